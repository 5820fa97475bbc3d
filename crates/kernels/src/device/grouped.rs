//! Prompts that are stored as latents and attend in groups: what decoding saves in memory it pays for in multiplications, and
//! a prompt's many rows have no use for the former.

use gqla_model::DecodePath::Gqa;
use half::bf16;

use super::{
    Attention, AttentionScratch, Buffer, Decode, DecodeCache, DecodeInputs, DecodeShape, Device, DeviceError,
    PageRun, Part, Projected, Splits, Tables, Turns, UpProjection, work::pages_of,
};
use crate::attention::{BLOCK_TOKENS, Segment};

/// Room for keys and values of one sequence in one layer, and for what attending to them writes.
pub struct GroupedRoom {
    cache: DecodeCache,
    scratch: AttentionScratch,
    rows: usize,
}

impl GroupedRoom {
    /// For steps of up to `rows` rows and sequences of up to `longest` tokens.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(
        device: &Device,
        shape: &DecodeShape,
        division: Splits,
        [rows, longest]: [usize; 2],
    ) -> Result<Self, DeviceError> {
        Ok(Self {
            cache: DecodeCache::new(device, shape, Gqa, pages_of(longest))?,
            scratch: AttentionScratch::new(device, shape, Gqa, division, [rows.max(BLOCK_TOKENS), longest])?,
            rows: rows.max(BLOCK_TOKENS),
        })
    }

    /// Bytes of that.
    pub fn bytes(shape: &DecodeShape, division: Splits, [rows, longest]: [usize; 2]) -> usize {
        pages_of(longest) * BLOCK_TOKENS * shape.kv_elements(Gqa) as usize * size_of::<bf16>()
            + AttentionScratch::bytes(shape, Gqa, division, [rows.max(BLOCK_TOKENS), longest])
    }
}

/// Rows of one sequence's prompt in a step.
pub struct GroupedPrompt {
    first_row: usize,
    /// In the latents' pages.
    stored: Tables,
    /// In those of the room.
    attending: Tables,
    /// All of the sequence's pages, to their places in the room.
    runs: Vec<PageRun>,
}

impl GroupedPrompt {
    /// The rows of `segment` of a cache of `page_count` pages, which attend by `decode`, a kernel of the GQA path.
    ///
    /// # Errors
    /// When pages are not there or do not fit in the room, or the device refuses.
    pub fn new(
        device: &Device,
        segment: &Segment<'_>,
        page_count: usize,
        (decode, division): (&Decode, Splits),
        room: &GroupedRoom,
    ) -> Result<Self, DeviceError> {
        let room_pages = room.cache.pages(decode.shape());
        let pages = pages_of(segment.start + segment.rows);
        let own = Segment { first_row: 0, ..*segment };
        let stored = Tables::new(device, &[own], page_count, None)?;
        let places: Vec<u32> = (0..pages as u32).collect();
        let placed = Segment { blocks: &places, ..own };
        let attending = Tables::new(device, &[placed], room_pages, Some(decode.tiling(division)))?;
        let (mut runs, mut to) = (Vec::new(), 0);
        for pages in PageRun::ranges(&segment.blocks[..pages], room.rows / BLOCK_TOKENS) {
            let count = pages.len() as u32;
            runs.push(PageRun::new(device, pages, to, room_pages)?);
            to += count;
        }
        Ok(Self { first_row: segment.first_row, stored, attending, runs })
    }
}

impl Attention {
    /// What [`Self::forward`] does for the rows of a prompt that are stored in `cache` as latents, by the GQA path's `up` and
    /// `decode`: to the bits that the GQA path has.
    ///
    /// # Errors
    /// When something is the other path's or too small, or the device refuses.
    pub fn grouped(
        &self,
        device: &Device,
        (decode, up, turns): (&Decode, &UpProjection, &Turns),
        cache: &mut DecodeCache,
        prompt: &GroupedPrompt,
        (projected, room): (&mut Projected, &mut GroupedRoom),
        out: &mut Buffer<bf16>,
    ) -> Result<(), DeviceError> {
        let (shape, part) = (decode.shape(), Part { tables: &prompt.stored, first_row: prompt.first_row });
        self.turn(device, part, turns, projected, None)?;
        self.append_latents(device, part, projected, cache)?;
        for run in &prompt.runs {
            self.expand(device, up, (&*cache, &mut room.cache), run, &mut room.scratch)?;
        }
        let inputs = DecodeInputs {
            q: projected.rows(),
            q_offset: projected.place(prompt.first_row),
            q_stride: projected.place(1),
            partial: room.scratch.partial(),
            out,
            out_offset: prompt.first_row * (shape.heads * shape.value) as usize,
        };
        decode.launch(device, &room.cache, &prompt.attending, inputs)
    }
}
