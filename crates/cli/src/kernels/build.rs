//! `gqla kernels build`: images of the kernels in files.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::Context as _;
use gqla_kernels::device::{ARCHITECTURES, Extent, Images, Program, Trial};

use super::shapes;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder to write to
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Built-in shapes, checkpoints, or their config.json, with commas between [default: all built-in]
    #[arg(long, value_name = "SHAPE|PATH", value_delimiter = ',')]
    model: Vec<String>,
    /// Architectures to make machine code for, with commas between; PTX for others is always made [default: sm_80, 89, 90, 100, 120]
    #[arg(long, value_name = "sm_XY", value_delimiter = ',', value_parser = architecture)]
    arch: Vec<(u32, u32)>,
}

/// `sm_90` is (9, 0).
pub(super) fn architecture(text: &str) -> Result<(u32, u32), String> {
    let number: Option<u32> = text.strip_prefix("sm_").and_then(|digits| digits.parse().ok());
    match number {
        Some(number) if number >= 80 => Ok((number / 10, number % 10)),
        _ => Err(format!("expected sm_80 or later, such as sm_90, got `{text}`")),
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let trials = Trial::all(&shapes(&args.model)?, Extent::Whole);
    let programs = programs(&trials);
    fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    let architectures = if args.arch.is_empty() { &ARCHITECTURES[..] } else { &args.arch };
    for (stem, program) in &programs {
        Images::write(&args.out, program, architectures)?;
        eprintln!("{stem}");
    }
    Ok(())
}

/// What trials take kernels of, each once.
pub(super) fn programs(trials: &[Trial]) -> BTreeMap<String, Program> {
    trials.iter().map(Trial::program).map(|program| (program.stem(), program)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_are_named_as_nvidia_does() {
        assert_eq!(architecture("sm_120"), Ok((12, 0)));
        assert_eq!(architecture("sm_89"), Ok((8, 9)));
        for wrong in ["90", "sm_75", "sm_90a", "compute_80"] {
            assert!(architecture(wrong).unwrap_err().contains(wrong));
        }
    }
}
