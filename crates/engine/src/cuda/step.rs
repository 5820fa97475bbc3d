//! Which rows of a step attend how: all alike, or prompts in groups and the rest along the model's path.

use gqla_kernels::{
    attention::Segment,
    device::{Attending, DecodeCache, DeviceError, GroupedPrompt, GroupedRoom, Part, Splits, Tables},
};

use super::{
    forward::Activations,
    model::{CudaModel, Layer},
};

/// Where a step's rows are, and how they attend.
pub(super) struct Step<'a> {
    /// Of all rows.
    pub tables: &'a Tables,
    /// None where all rows attend alike.
    parts: Vec<StepPart>,
}

enum StepPart {
    /// Neighbouring rows from this one on that attend along the model's path.
    Alike(Box<Tables>, usize),
    Prompt(Box<GroupedPrompt>),
}

impl<'a> Step<'a> {
    /// All rows attend alike.
    pub fn alike(tables: &'a Tables) -> Self {
        Self { tables, parts: Vec::new() }
    }
}

impl CudaModel {
    /// How the rows of `segments`, which `tables` hold, attend in a cache of `pages` pages.
    pub(super) fn step<'a>(
        &self,
        tables: &'a Tables,
        segments: &[Segment<'_>],
        pages: usize,
        room: Option<&GroupedRoom>,
    ) -> Result<Step<'a>, DeviceError> {
        let (Some(grouped), Some(room)) = (&self.grouped, room) else { return Ok(Step::alike(tables)) };
        let parts = Attending::parts(segments, self.decoding_rows);
        if parts.iter().all(|part| !part.grouped) {
            return Ok(Step::alike(tables));
        }
        let device = &self.device;
        let part = |part: Attending| {
            let segments = &segments[part.segments];
            let first_row = segments[0].first_row;
            if part.grouped {
                let kernel = (&grouped.decode, Splits::ENGINE);
                let prompt = GroupedPrompt::new(device, &segments[0], pages, kernel, room)?;
                return Ok(StepPart::Prompt(Box::new(prompt)));
            }
            let from_0 = |segment: &Segment<'_>| segment.first_row - first_row;
            let segments: Vec<_> =
                segments.iter().map(|segment| Segment { first_row: from_0(segment), ..*segment }).collect();
            let tiling = self.attention.decode.tiling(Splits::ENGINE);
            let tables = Tables::new(device, &segments, pages, Some(tiling))?;
            Ok(StepPart::Alike(Box::new(tables), first_row))
        };
        Ok(Step { tables, parts: parts.into_iter().map(part).collect::<Result<_, DeviceError>>()? })
    }

    /// Every row's attention in layer `index`, queries and latents to `[rows, H, d_v]`.
    pub(super) fn attend_to(
        &self,
        (index, layer): (usize, &Layer),
        cache: &mut DecodeCache,
        step: &Step<'_>,
        a: &mut Activations,
    ) -> Result<(), DeviceError> {
        let (device, attention, turns) = (&self.device, &self.attention, &self.parameters.turns);
        let alike = |tables: &Tables, first_row, cache: &mut DecodeCache, a: &mut Activations| {
            let activations = (&mut a.projected, &mut a.scratch);
            let part = Part { tables, first_row };
            attention.forward(device, (&layer.up, turns), cache, part, activations, &mut a.attended)
        };
        if step.parts.is_empty() {
            return alike(step.tables, 0, cache, a);
        }
        for part in &step.parts {
            match (part, &self.grouped, &mut a.grouped) {
                (StepPart::Alike(tables, first_row), ..) => alike(tables, *first_row, cache, a)?,
                (StepPart::Prompt(prompt), Some(grouped), Some(room)) => {
                    let weights = (&grouped.decode, &grouped.up[index], turns);
                    let activations = (&mut a.projected, room);
                    attention.grouped(device, weights, cache, prompt, activations, &mut a.attended)?;
                }
                (StepPart::Prompt(_), ..) => {
                    let reason = "neither kernels nor room for prompts in groups".to_owned();
                    return Err(DeviceError::Arguments { kernel: "attention", reason });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "step_tests.rs"]
mod tests;
