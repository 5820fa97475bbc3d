//! `gqla kernels report`: counters of every kernel and shape, as they were counted.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use gqla_kernels::device::{
    Bench, DecodeTrial, Device, Extent, Launched, Outcome, ProductTrial, Program, Resources, Trial,
};
use serde::Serialize;

use super::{
    Tried,
    build::{architecture, programs},
    devices,
    launches::{Launch, LaunchLog},
    shape::Shape,
    shapes,
};
use crate::table::{TableFormat, columns};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    tried: Tried,
    /// The file to which the stand-in for libcuda appends a line per launch; without it, what only it counts is null
    #[arg(long, env = "GQLA_FAKECUDA_REPORT", value_name = "FILE")]
    launches: Option<PathBuf>,
    /// Also print what the assembler in NVRTC gives every kernel on these architectures, with commas between
    #[arg(long, value_name = "sm_XY", value_delimiter = ',', value_parser = architecture)]
    arch: Vec<(u32, u32)>,
}

#[derive(Debug, Serialize)]
struct Report {
    kernels: Vec<Row>,
}

/// A kernel's counters over one launch; null is what this driver does not tell. What was assembled only has none.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    arch: String,
    shape: Shape,
    /// Of a thread.
    registers: Option<u32>,
    /// Bytes of local memory of a thread.
    spills: Option<u32>,
    /// Of a block, declared or asked for; what was assembled only has what is declared.
    smem_bytes: u32,
    #[serde(flatten)]
    launched: Option<OfLaunch>,
    /// Bytes of cached keys and values, or latents; of kernels that attend only.
    #[serde(skip_serializing_if = "Option::is_none")]
    kv_bytes_read: Option<Option<u64>>,
    /// What `mma` would be at least, were nothing of it padding: the multiplications that the shape asks for, by what one
    /// instruction has of them, rounded up. Of kernels that attend and of products only: how many rows an expert has is not
    /// in a shape.
    #[serde(skip_serializing_if = "Option::is_none")]
    mma_useful: Option<u64>,
    /// The rest of `mma`, which fills up whole tiles of rows and tokens, those a query may not see among them.
    #[serde(skip_serializing_if = "Option::is_none")]
    mma_padding: Option<Option<u64>>,
}

/// Multiplications and additions of one instruction, 16 x 8 x 16.
const PER_MMA: u64 = 2048;

#[derive(Debug, Serialize)]
struct OfLaunch {
    /// Of a block.
    threads: u32,
    #[serde(flatten)]
    counted: Counted,
}

#[derive(Debug, Default, Serialize)]
struct Counted {
    blocks: Option<u64>,
    global_bytes_read: Option<u64>,
    global_bytes_written: Option<u64>,
    /// Sectors of 32 bytes, each counted once per request.
    global_sectors: Option<u64>,
    shared_bytes_read: Option<u64>,
    shared_bytes_written: Option<u64>,
    /// Multiplications of 16 x 8 x 16 by a warp.
    mma: Option<u64>,
    ldmatrix: Option<u64>,
    barriers: Option<u64>,
    warp_instructions: Option<u64>,
    /// Passes through the banks of shared memory beyond those without conflicts.
    shared_conflicts: Option<u64>,
}

/// Runs every kernel once and prints what that took.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let (devices, images) = (devices()?, args.tried.images());
    let trials = Trial::all(&shapes(&args.tried.model)?, Extent::Whole);
    let mut log = LaunchLog::new(args.launches.as_deref());
    let mut kernels = Vec::new();
    for device in &devices {
        let mut bench = Bench::new(device, &images);
        for trial in &trials {
            // What has no kernel has no counters; `selftest` says why.
            let Ok((kernel, plan)) = trial.kernel(device) else { continue };
            let shape = Shape::of(trial, plan.as_ref());
            let outcome = bench.run(trial).with_context(|| format!("{kernel}: {shape}"))?;
            ensure!(
                outcome.is_right(),
                "{kernel}: {shape}: off by {:.1e} from float64, expected at most {:.0e}: see `gqla kernels selftest`",
                outcome.error,
                outcome.bound
            );
            kernels.extend(rows(device, trial, &shape, &outcome, &log.take()?)?);
        }
    }
    for program in programs(&trials).values() {
        for capability in &args.arch {
            kernels.extend(assembled(program, *capability)?);
        }
    }
    TableFormat::or_default(args.tried.output).print(&Report { kernels }, table)?;
    Ok(())
}

/// What a program's kernels take on an architecture that need not be here.
fn assembled(program: &Program, capability: (u32, u32)) -> anyhow::Result<Vec<Row>> {
    let row = |(name, resources): (String, Resources)| Row {
        name,
        arch: arch(capability),
        shape: Shape::of_program(program),
        registers: Some(resources.registers),
        spills: Some(resources.local_bytes),
        smem_bytes: resources.shared_bytes,
        launched: None,
        kv_bytes_read: None,
        mma_useful: None,
        mma_padding: None,
    };
    Ok(program.resources(capability)?.into_iter().map(row).collect())
}

fn arch((major, minor): (u32, u32)) -> String {
    format!("sm_{major}{minor}")
}

/// Matrix instructions that the first kernel of a trial needs if none of them is padded.
fn mma_useful(trial: &Trial) -> Option<u64> {
    let multiplications = match trial {
        Trial::Decode(DecodeTrial { shape, path, queries, tokens }) => {
            let per_token = u64::from(shape.heads) * u64::from(shape.query(*path) + shape.output(*path));
            // The last query sees all tokens, each before it one less.
            let seen: usize = (0..*queries).map(|before| tokens - before).sum();
            per_token * seen as u64
        }
        Trial::Product(ProductTrial { rows, outputs, inputs, .. }) => (rows * outputs * inputs) as u64,
        Trial::Experts(_) | Trial::Row(_) | Trial::Sample(_) => return None,
    };
    Some(multiplications.div_ceil(PER_MMA))
}

fn rows(
    device: &Device,
    trial: &Trial,
    shape: &Shape,
    outcome: &Outcome,
    launches: &[Launch],
) -> anyhow::Result<Vec<Row>> {
    let row = |(index, launched): (usize, &Launched)| -> anyhow::Result<Row> {
        let launch = launches.get(index);
        if let Some(Launch { kernel, .. }) = launch {
            let expected = &launched.kernel;
            ensure!(
                kernel == expected,
                "the file of launches has `{kernel}` where `{expected}` was launched"
            );
        }
        let attends = index == 0 && !outcome.cache.is_empty();
        let mma_useful = mma_useful(trial).filter(|_| index == 0);
        let mma_padding = |useful| launch.map(|launch| launch.counters.mma.saturating_sub(useful));
        Ok(Row {
            name: launched.kernel.clone(),
            arch: arch(device.limits().capability),
            shape: shape.clone(),
            registers: launched.resources.map(|resources| resources.registers),
            spills: launched.resources.map(|resources| resources.local_bytes),
            smem_bytes: launched.shared_bytes,
            launched: Some(OfLaunch {
                threads: launched.threads,
                counted: launch.map(Counted::of).unwrap_or_default(),
            }),
            kv_bytes_read: attends.then(|| launch.map(|launch| launch.bytes_read(&outcome.cache))),
            mma_useful,
            mma_padding: mma_useful.map(mma_padding),
        })
    };
    outcome.launched.iter().enumerate().map(row).collect()
}

impl Counted {
    fn of(launch: &Launch) -> Self {
        let counters = &launch.counters;
        Self {
            blocks: Some(launch.grid.iter().product()),
            global_bytes_read: Some(counters.global_loads.bytes),
            global_bytes_written: Some(counters.global_stores.bytes),
            global_sectors: Some(counters.global_loads.sectors + counters.global_stores.sectors),
            shared_bytes_read: Some(counters.shared_bytes_read),
            shared_bytes_written: Some(counters.shared_bytes_written),
            mma: Some(counters.mma),
            ldmatrix: Some(counters.ldmatrix),
            barriers: Some(counters.barriers),
            warp_instructions: Some(counters.warp_instructions),
            shared_conflicts: Some(counters.shared_conflicts()),
        }
    }
}

fn table(report: &Report) -> String {
    let number = |x: Option<u64>| x.map_or_else(|| "-".to_owned(), |x| x.to_string());
    let cells = |row: &Row| {
        let counted = row.launched.as_ref().map(|launched| &launched.counted);
        let of = |what: fn(&Counted) -> Option<u64>| number(counted.and_then(what));
        [
            row.name.clone(),
            row.arch.clone(),
            row.shape.to_string(),
            number(row.registers.map(u64::from)),
            number(row.spills.map(u64::from)),
            row.smem_bytes.to_string(),
            number(row.kv_bytes_read.flatten()),
            of(|counted| counted.global_bytes_read),
            of(|counted| counted.mma),
            number(row.mma_padding.flatten()),
            of(|counted| counted.shared_conflicts),
        ]
    };
    let header = [
        "kernel",
        "arch",
        "shape",
        "registers",
        "spills",
        "smem",
        "KV read",
        "read",
        "MMA",
        "padding",
        "conflicts",
    ];
    columns(header, &report.kernels.iter().map(cells).collect::<Vec<_>>())
        + "(bytes and instructions as counted, no time; - where this driver does not tell)\n"
}
