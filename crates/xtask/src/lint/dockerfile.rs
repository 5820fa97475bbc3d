//! `deploy/Dockerfile` against those who look for what it copies: nobody builds it in tests, and a wrong name shows only where a
//! model whose kernels are not built in is loaded on a GPU.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::{nvrtc, shell};

const DOCKERFILE: &str = "deploy/Dockerfile";
/// Where the kernels' images lie is said here. To link it for one word would cost every `cargo xtask` minutes.
const LOADER: &str = "crates/kernels/src/device/image.rs";
/// In NVIDIA's wheel of NVRTC.
const LIBRARIES: &str = "nvidia/cuda_nvrtc/lib";

/// Fails where a server's image lacks NVRTC, the kernels or cuBLASLt under the names and in the folders in which they are looked for.
pub fn check() -> Result<()> {
    let read = |path: &str| {
        fs::read_to_string(shell::repo_root()?.join(path)).with_context(|| format!("cannot read {path}"))
    };
    let beside = beside_programs(&read(LOADER)?).with_context(|| {
        format!("{LOADER} has no line `const BESIDE_PROGRAMS: &str = \"…\";`: tell this check where kernels lie now")
    })?;
    let [names, products] = ["nvrtc", "cublasLt"].map(cudarc::get_lib_name_candidates);
    let expected = Expected { names, products, wheel: nvrtc::WHEEL.to_owned(), beside };
    let wrong = expected.complaints(&read(DOCKERFILE)?);
    if !wrong.is_empty() {
        bail!("{DOCKERFILE}: {}", wrong.join(&format!("\n{DOCKERFILE}: ")));
    }
    Ok(())
}

fn beside_programs(loader: &str) -> Option<String> {
    let line = loader.lines().find(|line| line.starts_with("const BESIDE_PROGRAMS: &str ="))?;
    line.split('"').nth(1).map(str::to_owned)
}

/// What others look for.
struct Expected {
    /// Under which cudarc opens NVRTC.
    names: Vec<String>,
    /// Under which it opens cuBLASLt.
    products: Vec<String>,
    /// NVRTC as pip names it, with its version, that tests compile with.
    wheel: String,
    /// Folder of the kernels' images, from the folder above the programs.
    beside: String,
}

/// What a Dockerfile's stage does, as far as it matters here.
#[derive(Default)]
struct Stage {
    /// Sources and destination of each `COPY`.
    copies: Vec<(Vec<String>, String)>,
    env: BTreeMap<String, String>,
    /// The words of all `RUN`s.
    words: Vec<String>,
}

impl Stage {
    /// The word after `flag` in what is run after `before` was.
    fn flag(&self, before: &str, flag: &str) -> Option<&str> {
        let mut words = self.words.iter().skip_while(|word| *word != before).skip_while(|word| *word != flag);
        words.nth(1).map(String::as_str)
    }

    fn expect_searched(&self, what: &str, folder: &str) -> Result<(), String> {
        let path = self.env.get("LD_LIBRARY_PATH").map_or("", String::as_str);
        if path.split(':').any(|searched| searched == folder) {
            return Ok(());
        }
        Err(format!(
            "{what} goes to {folder}, which `server`'s LD_LIBRARY_PATH does not name: it is `{path}`"
        ))
    }

    /// Where a file of `folder` that `is` wanted goes.
    fn target(&self, folder: &str, is: impl Fn(&str) -> bool) -> Option<&str> {
        let wanted = |source: &String| {
            source.strip_prefix(folder).and_then(|name| name.strip_prefix('/')).is_some_and(&is)
        };
        let copy = self.copies.iter().find(|(sources, _)| sources.iter().any(wanted));
        copy.map(|(_, to)| to.trim_end_matches('/'))
    }
}

/// Stages by name.
fn stages(dockerfile: &str) -> BTreeMap<String, Stage> {
    let mut stages = BTreeMap::<String, Stage>::new();
    let mut name = String::new();
    let lines: Vec<&str> = dockerfile.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    for instruction in lines.join("\n").replace("\\\n", " ").lines() {
        let mut words = instruction.split_whitespace();
        let (verb, words) = (words.next(), words.map(str::to_owned).collect::<Vec<_>>());
        let stage = stages.entry(name.clone()).or_default();
        match verb {
            Some("FROM") => name = words.last().cloned().unwrap_or_default(),
            Some("RUN") => stage.words.extend(words),
            Some("ENV") => stage.env.extend(words.iter().filter_map(|word| {
                word.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()))
            })),
            Some("COPY") => {
                let mut paths: Vec<String> =
                    words.into_iter().filter(|word| !word.starts_with("--")).collect();
                stage.copies.extend(paths.pop().map(|to| (paths, to)));
            }
            _ => {}
        }
    }
    stages
}

impl Expected {
    /// What is wrong, a sentence each.
    fn complaints(&self, dockerfile: &str) -> Vec<String> {
        let stages = stages(dockerfile);
        let [Some(build), Some(server), Some(with_cublaslt)] =
            ["build", "server", "server-cublaslt"].map(|name| stages.get(name))
        else {
            return vec!["it lacks one of the stages `build`, `server` and `server-cublaslt`".to_owned()];
        };
        let all = [
            self.of_nvrtc(build, server),
            self.of_kernels(build, server),
            self.of_cublaslt(server, with_cublaslt),
        ];
        all.into_iter().filter_map(Result::err).collect()
    }

    fn of_cublaslt(&self, server: &Stage, with: &Stage) -> Result<(), String> {
        let names = &self.products;
        let known = |from: &String| names.iter().any(|name| from.ends_with(&format!("/{name}")));
        let copy = with.copies.iter().find(|(from, _)| from.iter().any(known)).ok_or_else(|| {
            format!("`server-cublaslt` copies no cuBLASLt that cudarc opens; it opens {}", names.join(", "))
        })?;
        server.expect_searched("cuBLASLt", copy.1.trim_end_matches('/'))
    }

    fn of_nvrtc(&self, build: &Stage, server: &Stage) -> Result<(), String> {
        let Self { names, wheel, .. } = self;
        if !build.words.contains(wheel) {
            return Err(format!(
                "`build` does not install {wheel}, which crates/xtask/src/nvrtc.rs tests with"
            ));
        }
        let to = build.flag("install", "--target").ok_or("`build` says no `--target` for NVRTC's wheel")?;
        let from = format!("{to}/{LIBRARIES}");
        let library = server.target(&from, |name| names.iter().any(|known| known == name));
        let library = library.ok_or_else(|| {
            format!("`server` copies no NVRTC from {from} that cudarc opens; it opens {}", names.join(", "))
        })?;
        // NVRTC opens it by the name of its own release.
        let version = wheel.rsplit("==").next().unwrap_or_default();
        let release = version.rsplit_once('.').map_or(version, |(release, _)| release);
        let builtins = format!("libnvrtc-builtins.so.{release}");
        if server.target(&from, |name| name == builtins) != Some(library) {
            return Err(format!(
                "`server` does not copy {from}/{builtins} to {library}, where NVRTC opens it"
            ));
        }
        server.expect_searched("NVRTC", library)
    }

    fn of_kernels(&self, build: &Stage, server: &Stage) -> Result<(), String> {
        let built = build.flag("kernels", "--out").ok_or("`build` runs no `gqla kernels build --out …`")?;
        let programs =
            server.copies.iter().find(|(from, _)| from.iter().any(|from| from.ends_with("/gqla-server")));
        let programs = programs.map(|(_, to)| Path::new(to)).ok_or("`server` copies no gqla-server")?;
        let looked = programs.parent().unwrap_or(programs).join(&self.beside).display().to_string();
        let copied = server.target(built, |name| name.is_empty());
        if copied != Some(looked.as_str()) {
            return Err(format!(
                "`server` copies the kernels of {built}/ to {}, and gqla-server looks in {looked}",
                copied.unwrap_or("no place")
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# NVRTC and all
FROM rust AS build
RUN cargo build -p gqla-cli
RUN apt-get install --yes python3-pip \\
    && python3 -m pip install --target /nvrtc nvidia-cuda-nvrtc-cu12==12.9.86 \\
    && target/release/gqla kernels build --out /kernels
FROM base AS server
COPY --from=build /src/target/release/gqla-server /src/target/release/gqla /usr/local/bin/
COPY --from=build /kernels/ /usr/local/share/gqla/kernels/
COPY --from=build /nvrtc/nvidia/cuda_nvrtc/lib/libnvrtc.so.12 /nvrtc/nvidia/cuda_nvrtc/lib/libnvrtc-builtins.so.12.9 /usr/local/lib/
ENV LD_LIBRARY_PATH=/usr/local/lib
FROM server AS server-cublaslt
COPY --from=cublaslt /cublas/nvidia/cublas/lib/libcublasLt.so.12 /usr/local/lib/
FROM base AS operator
";

    #[test]
    fn what_is_looked_for_has_to_be_copied_there() {
        let [names, products] = ["nvrtc", "cublasLt"].map(cudarc::get_lib_name_candidates);
        let expected = Expected {
            names,
            products,
            wheel: "nvidia-cuda-nvrtc-cu12==12.9.86".to_owned(),
            beside: "share/gqla/kernels".to_owned(),
        };
        assert_eq!(expected.complaints(GOOD), Vec::<String>::new());
        for (from, to, complaint) in [
            (
                "libnvrtc.so.12 ",
                "libnvrtc.so.12.9 ",
                "`server` copies no NVRTC from /nvrtc/nvidia/cuda_nvrtc/lib that cudarc",
            ),
            ("libnvrtc.so.12 ", "libnvrtc.alt.so.12 ", "it opens libnvrtc.so, "),
            (
                "builtins.so.12.9",
                "builtins.so.12.8",
                "does not copy /nvrtc/nvidia/cuda_nvrtc/lib/libnvrtc-builtins.so.12.9 to",
            ),
            ("12.9.86", "12.9.41", "`build` does not install nvidia-cuda-nvrtc-cu12==12.9.86"),
            (
                "libnvrtc-builtins.so.12.9 /usr/local/lib/",
                "libnvrtc-builtins.so.12.9 /usr/lib/",
                "NVRTC goes to /usr/lib, which `server`'s LD_LIBRARY_PATH does not name: it is `/usr/local/lib`",
            ),
            (
                "libcublasLt.so.12 ",
                "libcublas.so.12 ",
                "`server-cublaslt` copies no cuBLASLt that cudarc opens",
            ),
            ("libcublasLt.so.12 /usr/local/lib/", "libcublasLt.so.12 /opt/", "cuBLASLt goes to /opt, which"),
            (
                "gqla/kernels/\n",
                "kernels/\n",
                "to /usr/local/share/kernels, and gqla-server looks in /usr/local/share/gqla/kernels",
            ),
            ("/usr/local/bin/", "/opt/gqla/bin/", "gqla-server looks in /opt/gqla/share/gqla/kernels"),
            ("COPY --from=build /kernels/", "# COPY", "copies the kernels of /kernels/ to no place"),
        ] {
            let wrong = expected.complaints(&GOOD.replace(from, to));
            assert!(wrong.len() == 1 && wrong[0].contains(complaint), "{to}: {wrong:?}");
        }
    }

    #[test]
    fn where_kernels_lie_is_read_from_who_loads_them() {
        let loader = "//! Doc\nconst BESIDE_PROGRAMS: &str = \"share/gqla/kernels\";\n";
        assert_eq!(beside_programs(loader).as_deref(), Some("share/gqla/kernels"));
        assert_eq!(beside_programs("const ELSEWHERE: &str = \"share\";\n"), None);
    }
}
