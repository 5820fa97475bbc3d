//! `gqla kernels selftest`: what an owner of a card runs.

use std::{fmt::Write as _, fs};

use anyhow::bail;
use gqla_kernels::device::{Bench, Device, DeviceError, Extent, Images, Trial};
use serde::Serialize;

use super::{Tried, devices, shape::Shape, shapes};
use crate::table::{TableFormat, columns};

/// What the driver's kernel module says of itself; containers see the node's.
const MODULE_VERSION: &str = "/proc/driver/nvidia/version";

/// What is tried, and by what.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    tried: Tried,
    /// Try cuBLASLt's products too, which `gqla-server --prompt-gemm cublaslt` computes prompts with
    #[arg(long)]
    cublaslt: bool,
}

#[derive(Debug, Serialize)]
struct SelfTest {
    driver: Driver,
    devices: Vec<Card>,
}

#[derive(Debug, Serialize)]
struct Driver {
    /// Such as 550.54.15; none where the kernel module does not say.
    version: Option<String>,
    /// The newest CUDA that it serves.
    cuda: String,
}

#[derive(Debug, Serialize)]
struct Card {
    name: String,
    compute_capability: String,
    kernels: Vec<Row>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Failed,
    /// The card has no room for the kernel.
    None,
}

#[derive(Debug, Serialize)]
struct Row {
    kernel: String,
    shape: Shape,
    /// The step that gave the image.
    image: Option<String>,
    /// Null where the result has no number.
    relative_rms: Option<f64>,
    bound: Option<f64>,
    verdict: Verdict,
    reason: Option<String>,
}

/// Runs all trials on all cards, prints, and fails if a kernel did.
pub(super) fn run(Args { tried, cublaslt }: &Args) -> anyhow::Result<()> {
    let (cards, images) = (devices()?, tried.images());
    let mut trials = Trial::all(&shapes(&tried.model)?, Extent::Ragged);
    if *cublaslt {
        trials.extend(Trial::by_cublaslt());
    }
    let test = SelfTest {
        driver: driver()?,
        devices: cards.iter().map(|device| card(device, &images, &trials)).collect(),
    };
    TableFormat::or_default(tried.output).print(&test, table)?;
    let failed = test.count(Verdict::Failed);
    if failed > 0 {
        bail!("{failed} of {} trials failed: do not serve on this card", test.rows().count());
    }
    Ok(())
}

fn driver() -> Result<Driver, DeviceError> {
    let (major, minor) = Device::driver_version()?;
    let version = fs::read_to_string(MODULE_VERSION).ok().and_then(|text| module_version(&text));
    Ok(Driver { version, cuda: format!("{major}.{minor}") })
}

/// The first word of numbers and dots in `NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar …`.
fn module_version(text: &str) -> Option<String> {
    let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.lines().next()?.split_whitespace().find(is_version).map(str::to_owned)
}

fn card(device: &Device, images: &Images, trials: &[Trial]) -> Card {
    let (major, minor) = device.limits().capability;
    let mut bench = Bench::new(device, images);
    Card {
        name: device.name().to_owned(),
        compute_capability: format!("{major}.{minor}"),
        kernels: trials.iter().map(|trial| row(device, &mut bench, trial)).collect(),
    }
}

fn row(device: &Device, bench: &mut Bench<'_>, trial: &Trial) -> Row {
    let (kernel, plan) =
        trial.kernel(device).unwrap_or_else(|_| (format!("{} (none)", trial.program().stem()), None));
    let empty = Row {
        kernel,
        shape: Shape::of(trial, plan.as_ref()),
        image: None,
        relative_rms: None,
        bound: None,
        verdict: Verdict::Failed,
        reason: None,
    };
    match bench.run(trial) {
        Ok(outcome) => Row {
            image: Some(outcome.source.to_string()),
            relative_rms: Some(outcome.error).filter(|error| error.is_finite()),
            bound: Some(outcome.bound),
            verdict: if outcome.is_right() { Verdict::Ok } else { Verdict::Failed },
            ..empty
        },
        Err(DeviceError::NoKernel(reason)) => {
            Row { verdict: Verdict::None, reason: Some(reason.to_string()), ..empty }
        }
        Err(error) => Row { reason: Some(error.to_string()), ..empty },
    }
}

impl SelfTest {
    fn rows(&self) -> impl Iterator<Item = &Row> {
        self.devices.iter().flat_map(|card| &card.kernels)
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.rows().filter(|row| row.verdict == verdict).count()
    }
}

fn table(test: &SelfTest) -> String {
    let Driver { version, cuda } = &test.driver;
    let version = version.as_deref().unwrap_or("of unknown version");
    let mut text = String::new();
    for card in &test.devices {
        let rows: Vec<_> = card.kernels.iter().map(cells).collect();
        let _ = writeln!(
            text,
            "{}, compute capability {}, driver {version}, CUDA {cuda}\n{}",
            card.name,
            card.compute_capability,
            columns(["kernel", "shape", "image", "relative RMS", "bound", "verdict"], &rows)
        );
        let mut reasons: Vec<&str> = card.kernels.iter().filter_map(|row| row.reason.as_deref()).collect();
        reasons.dedup();
        reasons.iter().for_each(|reason| text.extend([reason, "\n"]));
    }
    let [ok, failed, none] = [Verdict::Ok, Verdict::Failed, Verdict::None].map(|verdict| test.count(verdict));
    let _ = writeln!(text, "{ok} ok, {failed} failed, {none} without a kernel on this card");
    text + "These kernels were checked by executing their PTX on CPUs. Whatever this page says of a GPU is news: please send it \
            to the project's maintainers.\n"
}

fn cells(row: &Row) -> [String; 6] {
    let number = |x: Option<f64>| x.map_or_else(|| "-".to_owned(), |x| format!("{x:.1e}"));
    let verdict = match row.verdict {
        Verdict::Ok => "ok",
        Verdict::Failed => "FAILED",
        Verdict::None => "no kernel",
    };
    [
        row.kernel.clone(),
        row.shape.to_string(),
        row.image.clone().unwrap_or_else(|| "-".to_owned()),
        number(row.relative_rms),
        number(row.bound),
        verdict.to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_module_says_which_version_the_driver_is() {
        let text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version:\n";
        assert_eq!(module_version(text).as_deref(), Some("550.54.15"));
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\n";
        assert_eq!(module_version(open).as_deref(), Some("570.86.15"));
        assert_eq!(module_version("no driver"), None);
    }
}
