//! A calibration out of a file.

use std::{fs::File, io::Read as _, path::Path};

use anyhow::Context as _;
use gqla_decide::{LARGEST_CALIBRATION, parse_calibration};
use gqla_planner::Calibration;

/// The calibration in `file`; an empty one without a file.
pub fn read(file: Option<&Path>) -> anyhow::Result<Calibration> {
    let Some(file) = file else { return Ok(Calibration::default()) };
    let mut text = String::new();
    File::open(file)
        .and_then(|opened| opened.take(LARGEST_CALIBRATION + 1).read_to_string(&mut text))
        .with_context(|| format!("cannot read {}", file.display()))?;
    parse_calibration(&text).with_context(|| format!("{} is no calibration", file.display()))
}
