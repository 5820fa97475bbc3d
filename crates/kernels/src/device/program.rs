//! The kernels' texts.

use std::collections::BTreeMap;

use gqla_model::DecodePath;

use super::{DecodeShape, DeviceError, Resources, nvrtc};

/// Texts by the names they include each other under.
const FILES: [(&str, &str); 9] = [
    ("dev.cuh", include_str!("../../cuda/dev.cuh")),
    ("attention.cuh", include_str!("../../cuda/attention.cuh")),
    ("gqa_decode.cu", include_str!("../../cuda/gqa_decode.cu")),
    ("absorb_decode.cu", include_str!("../../cuda/absorb_decode.cu")),
    ("gemm.cuh", include_str!("../../cuda/gemm.cuh")),
    ("gemm.cu", include_str!("../../cuda/gemm.cu")),
    ("experts.cu", include_str!("../../cuda/experts.cu")),
    ("rows.cu", include_str!("../../cuda/rows.cu")),
    ("sample.cu", include_str!("../../cuda/sample.cu")),
];

/// Kernels that are compiled together, for given numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    name: &'static str,
    defines: Vec<(&'static str, u32)>,
    text: String,
}

impl Program {
    fn new(name: &'static str, file: &str, defines: Vec<(&'static str, u32)>) -> Self {
        Self { name, defines, text: included(file, &mut Vec::new()) }
    }

    /// Products of matrices.
    pub fn gemm() -> Self {
        Self::new("gemm", "gemm.cu", Vec::new())
    }

    /// Mixtures of experts.
    pub fn experts() -> Self {
        Self::new("experts", "experts.cu", Vec::new())
    }

    /// Row-wise operations.
    pub fn rows() -> Self {
        Self::new("rows", "rows.cu", Vec::new())
    }

    /// What chooses tokens from logits.
    pub fn sample() -> Self {
        Self::new("sample", "sample.cu", Vec::new())
    }

    /// Decode attention along `path`, compiled for the widths of `shape`.
    pub fn decode(shape: &DecodeShape, path: DecodePath) -> Self {
        match path {
            DecodePath::Gqa => Self::gqa_decode(shape.nope, shape.rope, shape.value),
            DecodePath::MqaAbsorb => Self::absorb_decode(shape.rank, shape.rope),
        }
    }

    /// Decode attention along the GQA path.
    pub fn gqa_decode(nope: u32, rope: u32, value: u32) -> Self {
        let defines = vec![("D_NOPE", nope), ("D_ROPE", rope), ("D_V", value)];
        Self::new("gqa_decode", "gqa_decode.cu", defines)
    }

    /// Decode attention along the absorb path.
    pub fn absorb_decode(rank: u32, rope: u32) -> Self {
        Self::new("absorb_decode", "absorb_decode.cu", vec![("RANK", rank), ("D_ROPE", rope)])
    }

    /// What files with images of it are called, but for architecture and kind: `gqa_decode-128-64-128`.
    pub fn stem(&self) -> String {
        self.defines.iter().fold(self.name.to_owned(), |stem, (_, value)| format!("{stem}-{value}"))
    }

    /// The numbers that it is compiled for, by the names that the texts give them.
    pub fn numbers(&self) -> &[(&'static str, u32)] {
        &self.defines
    }

    /// What each of its kernels takes on an architecture, 9.0 is (9, 0), by the assembler's own account. Needs NVRTC, and no
    /// device.
    ///
    /// # Errors
    /// When there is no NVRTC, or it refuses.
    pub fn resources(&self, capability: (u32, u32)) -> Result<BTreeMap<String, Resources>, DeviceError> {
        nvrtc::resources(self, capability).map_err(|reason| {
            let doing = format!("assembling `{}` for sm_{}{}", self.stem(), capability.0, capability.1);
            DeviceError::Driver { doing, reason }
        })
    }

    /// The whole text, in one piece.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The same kernels with another text, for tests that plant mistakes.
    pub fn with_text(self, text: String) -> Self {
        Self { text, ..self }
    }

    /// What NVRTC is told besides the architecture.
    pub(super) fn options(&self) -> Vec<String> {
        let defines = self.defines.iter().map(|(name, value)| format!("-D{name}={value}"));
        std::iter::once("--std=c++17".to_owned()).chain(defines).collect()
    }
}

/// A file with those it includes in their place, each once: NVRTC then needs no file system.
fn included(name: &str, seen: &mut Vec<String>) -> String {
    let Some((_, text)) = FILES.iter().find(|(file, _)| *file == name) else { return String::new() };
    let mut whole = String::with_capacity(text.len());
    for line in text.lines() {
        match line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"')) {
            Some(other) if seen.iter().any(|seen| seen == other) => {}
            Some(other) => {
                seen.push(other.to_owned());
                whole.push_str(&included(other, seen));
            }
            None if line == "#pragma once" => {}
            None => {
                whole.push_str(line);
                whole.push('\n');
            }
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_whole_and_include_each_file_once() {
        let programs = [
            Program::gemm(),
            Program::experts(),
            Program::rows(),
            Program::sample(),
            Program::gqa_decode(128, 64, 128),
            Program::absorb_decode(512, 64),
        ];
        for program in programs {
            assert!(!program.text().contains("#include"), "{}", program.name);
            assert_eq!(program.text().matches("DEV u32 pack(").count(), 1, "{}", program.name);
            assert!(program.text().contains("extern \"C\" __global__"), "{}", program.name);
        }
        assert_eq!(Program::gqa_decode(128, 64, 256).stem(), "gqa_decode-128-64-256");
        assert_eq!(
            Program::absorb_decode(512, 64).options(),
            ["--std=c++17", "-DRANK=512", "-DD_ROPE=64"].map(str::to_owned)
        );
    }
}
