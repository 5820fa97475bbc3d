//! The time of one layer's decode attention along either path.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use gqla_model::{AttentionShape, DecodePath};

use super::{Figure, rates::sample};
use crate::{
    MatrixError, Pool, WeightRows,
    attention::{
        Absorb, Attention, BLOCK_TOKENS, CacheFormat, CachedToken, LayerCache, PerGroup, Scratch, Segment,
        UpProjection,
    },
    reference::counter_noise,
};

/// Numbers of noise that fill caches and queries over and over; their values do not change the time.
const NOISE: usize = 4093;

/// What the server keeps caches as unless told otherwise.
pub const CACHE_FORMAT: CacheFormat = CacheFormat::CPU_DEFAULT;

/// What one pass has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionCase {
    /// Sequences.
    pub batch: usize,
    /// Cached tokens per sequence, those of the queries included.
    pub context: usize,
    /// Query tokens per sequence, `s_q`.
    pub query_tokens: usize,
}

/// A pass that cannot be timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaseError {
    /// Nothing to do.
    #[error("{what} is 0, expected at least 1")]
    Zero {
        /// What is missing.
        what: &'static str,
    },
    /// The queries are tokens of the context.
    #[error("{query_tokens} query tokens do not fit a context of {context}: raise the context")]
    ContextTooShort {
        /// Query tokens asked for.
        query_tokens: usize,
        /// Context asked for.
        context: usize,
    },
    /// The timer has fewer blocks.
    #[error(
        "{batch} sequences of {context} tokens take {needed} cache blocks of {BLOCK_TOKENS} tokens, of which there are \
         {blocks}"
    )]
    TooLarge {
        /// Sequences.
        batch: usize,
        /// Tokens of each.
        context: usize,
        /// Blocks they take.
        needed: usize,
        /// Blocks there are.
        blocks: usize,
    },
}

impl AttentionCase {
    /// Refuses what no pass can be.
    pub fn validate(&self) -> Result<(), CaseError> {
        let fields = [("batch", self.batch), ("context", self.context), ("s_q", self.query_tokens)];
        if let Some((what, _)) = fields.into_iter().find(|(_, value)| *value == 0) {
            return Err(CaseError::Zero { what });
        }
        if self.query_tokens > self.context {
            let Self { context, query_tokens, .. } = *self;
            return Err(CaseError::ContextTooShort { query_tokens, context });
        }
        Ok(())
    }

    /// Cache blocks of all sequences.
    pub fn blocks(&self) -> usize {
        self.batch.saturating_mul(self.context.div_ceil(BLOCK_TOKENS))
    }

    /// Bytes the pass reads of a cache in `format`, each token's read once.
    pub fn cache_bytes(&self, token: CachedToken, format: CacheFormat) -> f64 {
        self.batch as f64 * self.context as f64 * token.bytes(format) as f64
    }
}

/// Seconds of one layer's pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PassTimes {
    /// Reading the cache: scores, softmax and weighted sums.
    pub core: Figure,
    /// The whole of [`Attention::forward`]: the core, storing the new tokens, and what the path projects before and after.
    pub call: Figure,
}

/// One layer of attention, as the engine builds it, over a cache of noise.
pub struct AttentionTimer {
    attention: Box<dyn Attention>,
    cache: LayerCache,
    scratch: Scratch,
}

impl AttentionTimer {
    /// A layer of `shape` on `path` with bf16 up-projections and a cache of `blocks` blocks in `format`. Passes take their
    /// blocks in turn, so a cache several times as large as a pass keeps the last-level cache from answering for memory.
    /// Products over bf16 round to bf16 if `bf16_products` says so.
    pub fn new(
        shape: &AttentionShape,
        path: DecodePath,
        blocks: usize,
        format: CacheFormat,
        bf16_products: bool,
    ) -> Result<Self, MatrixError> {
        let rows = shape.num_key_value_heads as usize * (shape.qk_nope_head_dim + shape.v_head_dim) as usize;
        let up = counter_noise(1, rows * shape.kv_lora_rank as usize, 0.125);
        let up: Vec<u8> = up.flat_map(|x| half::bf16::from_f64(x).to_bits().to_le_bytes()).collect();
        let up = UpProjection(WeightRows::Bf16(&up));
        let attention: Box<dyn Attention> = match path {
            DecodePath::Gqa => Box::new(PerGroup::new(shape, up)?.with_bf16_products(bf16_products)),
            DecodePath::MqaAbsorb => Box::new(Absorb::new(shape, up)?.with_bf16_products(bf16_products)),
        };
        let mut cache = LayerCache::new(blocks, attention.cached_token(), format);
        cache.fill(noise(2).into_iter().cycle());
        Ok(Self { attention, cache, scratch: Scratch::default() })
    }

    /// Bytes that one block of a layer takes on `path` in `format`.
    pub fn block_bytes(shape: &AttentionShape, path: DecodePath, format: CacheFormat) -> u64 {
        shape.cached_token(path).bytes(format).saturating_mul(BLOCK_TOKENS as u64)
    }

    /// What the layer caches per token.
    pub fn cached_token(&self) -> CachedToken {
        self.attention.cached_token()
    }

    /// Bytes of the whole cache.
    pub fn cache_bytes(&self) -> usize {
        self.cache.allocated_bytes()
    }

    /// Times `case` for about `time`, half of it for the core and half for whole calls. Two of each are run even if they
    /// take longer.
    pub fn time(
        &mut self,
        pool: &Pool,
        case: &AttentionCase,
        time: Duration,
    ) -> Result<PassTimes, CaseError> {
        let mut ready = self.ready(case)?;
        // The first whole call leaves the queries that the core then reads.
        let call = sample(1, Instant::now(), time / 2, || self.call(pool, &mut ready));
        let core = sample(1, Instant::now(), time / 2, || self.core(pool, &mut ready));
        Ok(PassTimes { core: Figure::of(core), call: Figure::of(call) })
    }

    /// Makes `case` ready for [`Self::core_seconds`], with a whole call that leaves the queries the core reads.
    pub fn prepare(&mut self, pool: &Pool, case: &AttentionCase) -> Result<Prepared, CaseError> {
        let mut ready = self.ready(case)?;
        self.call(pool, &mut ready);
        Ok(ready)
    }

    /// Seconds of one pass of the core, which is the mean of `passes` in a row. `prepared` must be this timer's, and no
    /// other case prepared since: its queries are overwritten then.
    pub fn core_seconds(&mut self, pool: &Pool, prepared: &mut Prepared, passes: u32) -> f64 {
        let start = Instant::now();
        for _ in 0..passes.max(1) {
            self.core(pool, prepared);
        }
        start.elapsed().as_secs_f64() / f64::from(passes.max(1))
    }

    fn ready(&self, case: &AttentionCase) -> Result<Prepared, CaseError> {
        case.validate()?;
        let AttentionCase { batch, context, query_tokens } = *case;
        let (needed, blocks) = (case.blocks(), self.cache.blocks());
        if needed > blocks {
            return Err(CaseError::TooLarge { batch, context, needed, blocks });
        }
        let rows = batch * query_tokens;
        let projected =
            noise(3).iter().copied().cycle().take(rows * self.attention.projected_width()).collect();
        Ok(Prepared {
            case: *case,
            blocks: (0..(blocks / needed * needed) as u32).collect(),
            turn: 0,
            projected,
            out: vec![0.0; rows * self.attention.output_width()],
        })
    }

    fn call(&mut self, pool: &Pool, ready: &mut Prepared) {
        let Self { attention, cache, scratch } = self;
        let Prepared { case, blocks, turn, projected, out } = ready;
        attention.forward(pool, cache, &next(case, blocks, turn), projected, scratch, out);
        black_box(&out);
    }

    fn core(&mut self, pool: &Pool, ready: &mut Prepared) {
        let Self { attention, cache, scratch } = self;
        let Prepared { case, blocks, turn, projected, out } = ready;
        attention.attend(pool, cache, &next(case, blocks, turn), projected, scratch, out);
        black_box(&out);
    }
}

/// A case, and what its passes read and write besides the cache.
pub struct Prepared {
    case: AttentionCase,
    blocks: Vec<u32>,
    /// The first block of the next pass.
    turn: usize,
    projected: Vec<f32>,
    out: Vec<f32>,
}

/// The next pass's sequences, on the blocks that were read longest ago.
fn next<'a>(case: &AttentionCase, blocks: &'a [u32], turn: &mut usize) -> Vec<Segment<'a>> {
    let needed = case.blocks();
    let first = if *turn + needed > blocks.len() { 0 } else { *turn };
    *turn = first + needed;
    segments(&blocks[first..*turn], needed / case.batch, case)
}

fn segments<'a>(blocks: &'a [u32], per_sequence: usize, case: &AttentionCase) -> Vec<Segment<'a>> {
    let rows = case.query_tokens;
    let sequences = blocks.chunks_exact(per_sequence).enumerate();
    sequences
        .map(|(index, blocks)| Segment { first_row: index * rows, rows, start: case.context - rows, blocks })
        .collect()
}

fn noise(seed: u64) -> Vec<f32> {
    counter_noise(seed, NOISE, 0.5).map(|x| x as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: AttentionShape = AttentionShape {
        num_attention_heads: 8,
        num_key_value_heads: 2,
        kv_lora_rank: 32,
        qk_nope_head_dim: 16,
        qk_rope_head_dim: 8,
        v_head_dim: 16,
    };

    fn case(batch: usize, context: usize, query_tokens: usize) -> AttentionCase {
        AttentionCase { batch, context, query_tokens }
    }

    #[test]
    fn both_paths_are_timed_over_the_cache_their_formula_says() {
        let pool = Pool::new(Some(2)).unwrap();
        for (path, format) in
            DecodePath::ALL.into_iter().flat_map(|path| CacheFormat::ALL.map(|format| (path, format)))
        {
            let mut timer = AttentionTimer::new(&SHAPE, path, 9, format, false).unwrap();
            assert_eq!(timer.cache_bytes() as u64, 9 * AttentionTimer::block_bytes(&SHAPE, path, format));
            assert_eq!(timer.cached_token(), SHAPE.cached_token(path));
            let times = timer.time(&pool, &case(2, 100, 3), Duration::ZERO).unwrap();
            for figure in [times.core, times.call] {
                assert!(figure.median > 0.0 && figure.median < 60.0, "{path}: {times:?}");
            }
        }
    }

    /// A timed core is the engine's own: after the projections of a whole call it writes what the call wrote.
    #[test]
    fn the_core_alone_answers_as_the_call_it_is_part_of() {
        let pool = Pool::new(Some(2)).unwrap();
        let mut timer = AttentionTimer::new(&SHAPE, DecodePath::Gqa, 2, CACHE_FORMAT, false).unwrap();
        let segments = segments(&[0, 1], 2, &case(1, 100, 2));
        let projected = noise(5)[..2 * timer.attention.projected_width()].to_vec();
        let (mut whole, mut core) = (vec![0.0; 2 * 8 * 16], vec![0.0; 2 * 8 * 16]);
        let AttentionTimer { attention, cache, scratch } = &mut timer;
        attention.forward(&pool, cache, &segments, &projected, scratch, &mut whole);
        attention.attend(&pool, cache, &segments, &projected, scratch, &mut core);
        assert_eq!(whole, core);
        assert!(whole.iter().any(|x| *x != 0.0) && whole.iter().all(|x| x.is_finite()));
    }

    #[test]
    fn a_prepared_core_is_timed_pass_by_pass_over_blocks_in_turn() {
        let pool = Pool::new(Some(2)).unwrap();
        let mut timer = AttentionTimer::new(&SHAPE, DecodePath::MqaAbsorb, 5, CACHE_FORMAT, false).unwrap();
        let mut prepared = timer.prepare(&pool, &case(1, 128, 2)).unwrap();
        assert_eq!((prepared.blocks.len(), prepared.turn), (4, 2));
        for (passes, turn) in [(1, 4), (1, 2), (2, 2), (0, 4)] {
            let seconds = timer.core_seconds(&pool, &mut prepared, passes);
            assert!(seconds > 0.0 && seconds < 60.0, "{seconds}");
            assert_eq!(prepared.turn, turn);
        }
        assert!(prepared.out.iter().any(|x| *x != 0.0) && prepared.out.iter().all(|x| x.is_finite()));
    }

    #[test]
    fn impossible_passes_are_refused_with_the_arithmetic() {
        let pool = Pool::new(Some(1)).unwrap();
        let mut timer = AttentionTimer::new(&SHAPE, DecodePath::MqaAbsorb, 3, CACHE_FORMAT, false).unwrap();
        let mut refusal = |case| timer.time(&pool, &case, Duration::ZERO).unwrap_err().to_string();
        assert_eq!(refusal(case(0, 64, 1)), "batch is 0, expected at least 1");
        assert_eq!(refusal(case(1, 2, 4)), "4 query tokens do not fit a context of 2: raise the context");
        assert_eq!(
            refusal(case(2, 65, 1)),
            "2 sequences of 65 tokens take 4 cache blocks of 64 tokens, of which there are 3"
        );
    }
}
