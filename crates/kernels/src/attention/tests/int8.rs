//! What an int8 cache costs in accuracy, and that a token's numbers are its own.

use super::*;

/// Relative root mean square error of attention over an int8 cache when everything is normally distributed.
const BOUND: f64 = 1.2e-2;

/// Nearly normal: twelve uniform numbers.
pub(super) fn normal(seed: u64, n: usize, deviation: f64) -> Vec<f64> {
    let uniform: Vec<f64> = counter_noise(seed, 12 * n, 1.0).collect();
    uniform.chunks_exact(12).map(|twelve| twelve.iter().sum::<f64>() / 2.0 * deviation).collect()
}

/// Keys, values and queries of unit variance.
pub(super) fn normal_inputs(shape: AttentionShape, s_q: usize, kv_len: usize) -> AttentionInputs {
    let d = LatentDims::of(&shape);
    let tensor = |seed: u64, dims: [usize; 3], deviation| {
        normal(31 * kv_len as u64 + seed, dims.iter().product(), deviation)
    };
    let weight = 1.0 / (d.rank as f64).sqrt();
    AttentionInputs {
        shape,
        s_q,
        kv_len,
        q_nope: tensor(1, [s_q, d.heads, d.nope], 1.0),
        q_rope: tensor(2, [s_q, d.heads, d.rope], 1.0),
        latent: tensor(3, [1, kv_len, d.rank], 1.0),
        k_rope: tensor(4, [1, kv_len, d.rope], 1.0),
        w_uk: tensor(5, [d.groups, d.nope, d.rank], weight),
        w_uv: tensor(6, [d.groups, d.value, d.rank], weight),
    }
}

pub(super) fn shape(heads: u32, groups: u32, [rank, nope, rope, value]: [u32; 4]) -> AttentionShape {
    AttentionShape {
        num_attention_heads: heads,
        num_key_value_heads: groups,
        kv_lora_rank: rank,
        qk_nope_head_dim: nope,
        qk_rope_head_dim: rope,
        v_head_dim: value,
    }
}

pub(super) fn relative_rms(ours: &[f32], expected: impl IntoIterator<Item = f64>) -> f64 {
    let pairs = ours.iter().zip(expected);
    let (error, size) = pairs.fold((0.0, 0.0), |(error, size), (ours, expected)| {
        (error + (f64::from(*ours) - expected).powi(2), size + expected.powi(2))
    });
    (error / size).sqrt()
}

#[test]
fn both_paths_are_within_the_bound_of_float64() {
    let pool = Pool::new(Some(2)).unwrap();
    // Widths that are whole vectors, and some that are not.
    let [even, odd] = [[128, 64, 32, 64], [90, 37, 6, 41]];
    for (per_group, groups, widths) in
        [(1, 3, even), (3, 3, odd), (4, 2, even), (5, 2, odd), (10, 1, even), (16, 1, odd)]
    {
        for (kv_len, s_q) in [(1, 1), (63, 1), (63, 4), (64, 2), (65, 3), (1000, 1), (1000, 4)] {
            let inputs = normal_inputs(shape(per_group * groups, groups, widths), s_q, kv_len);
            let expected = reference::per_group(&inputs).out;
            for (attention, path) in both_paths(&inputs).iter().zip(["gqa", "mqa-absorb"]) {
                let mut cache = cache_for(attention.as_ref(), &inputs, CacheFormat::Int8);
                let ours = run(attention.as_ref(), &pool, &inputs, &mut cache);
                let error = relative_rms(&ours, expected.iter().copied());
                assert!(error > 1e-4, "{path} rounds nothing");
                assert!(error <= BOUND, "{per_group} heads of {groups} groups, {kv_len}, {path}: {error:e}");
            }
        }
    }
}

#[test]
fn plain_attention_is_within_the_bound() {
    let pool = Pool::new(Some(2)).unwrap();
    let (tokens, blocks) = (200, [3, 1, 2, 0]);
    for (heads, groups, dim) in [(9, 3, 64), (4, 4, 37), (16, 1, 48)] {
        let plain = Plain::new(heads, groups, dim);
        let rows: Vec<f32> =
            normal(9, tokens * plain.projected_width(), 1.0).iter().map(|x| *x as f32).collect();
        let segment = Segment { first_row: 0, rows: tokens, start: 0, blocks: &blocks };
        let [exact, rounded] = [CacheFormat::F32, CacheFormat::Int8].map(|format| {
            let mut cache = LayerCache::new(4, plain.cached_token(), format);
            let mut out = vec![f32::NAN; tokens * plain.output_width()];
            plain.forward(&pool, &mut cache, &[segment], &rows, &mut Scratch::default(), &mut out);
            out
        });
        let error = relative_rms(&rounded, exact.into_iter().map(f64::from));
        assert!(error > 1e-4 && error <= BOUND, "{heads} heads of {groups} groups: {error:e}");
    }
}

/// Rows in steps of so many tokens: the outputs, and what is cached in the end.
fn in_steps(
    attention: &dyn Attention,
    format: CacheFormat,
    rows: &[f32],
    steps: &[usize],
) -> (Vec<f32>, Vec<f32>) {
    let pool = Pool::new(Some(2)).unwrap();
    let width = attention.projected_width();
    let blocks = [2, 0, 1, 3, 4];
    let mut cache = LayerCache::new(blocks.len(), attention.cached_token(), format);
    let (mut scratch, mut outputs, mut start) = (Scratch::default(), Vec::new(), 0);
    for rows_of_step in steps {
        let segment = Segment { first_row: 0, rows: *rows_of_step, start, blocks: &blocks };
        let mut out = vec![f32::NAN; rows_of_step * attention.output_width()];
        let rows = &rows[start * width..][..rows_of_step * width];
        attention.forward(&pool, &mut cache, &[segment], rows, &mut scratch, &mut out);
        scratch.poison();
        outputs.extend(out);
        start += rows_of_step;
    }
    (outputs, contents(&cache))
}

#[test]
fn a_prompt_in_pieces_leaves_the_same_bits() {
    let inputs = normal_inputs(shape(6, 2, [40, 20, 6, 24]), 1, 1);
    let plain: Box<dyn Attention> = Box::new(Plain::new(6, 2, 20));
    for attention in both_paths(&inputs).into_iter().chain([plain]) {
        let rows = normal(11, 300 * attention.projected_width(), 1.0);
        let rows: Vec<f32> = rows.iter().map(|x| *x as f32).collect();
        for format in CacheFormat::ALL {
            let whole = in_steps(attention.as_ref(), format, &rows, &[300]);
            assert!(whole.0.iter().all(|x| x.is_finite()) && whole.0.iter().any(|x| *x != 0.0));
            for steps in [&[1, 63, 64, 2, 170][..], &[150, 150], &[299, 1], &[1; 300]] {
                let pieces = in_steps(attention.as_ref(), format, &rows, steps);
                assert!(pieces == whole, "{format}, {} steps", steps.len());
            }
        }
    }
}

#[test]
fn rounded_latents_expand_to_the_keys_and_values_that_are_theirs() {
    let pool = Pool::new(Some(2)).unwrap();
    let inputs = normal_inputs(shape(6, 2, [90, 37, 6, 41]), 1, 150);
    let up = up_projection(&inputs);
    let up = UpProjection(WeightRows::F32(&up));
    let gqa = PerGroup::new(&inputs.shape, up).unwrap();
    let absorb = Absorb::new(&inputs.shape, up).unwrap();
    let blocks = blocks_for(&inputs);
    let [exact, rounded] = [CacheFormat::F32, CacheFormat::Int8].map(|format| {
        let mut latents = cache_for(&absorb, &inputs, format);
        run(&absorb, &pool, &inputs, &mut latents);
        latents
    });
    let layout = absorb::LatentRows { rank: 90, rope: 6 };
    let mut unrounded = cache_for(&absorb, &inputs, CacheFormat::F32);
    let mut row = vec![0.0; layout.width()];
    for (block, token) in blocks.iter().flat_map(|block| (0..BLOCK_TOKENS).map(move |token| (*block, token)))
    {
        let at = Place { block, token };
        layout.load(&rounded, at, &mut row);
        layout.store(&mut unrounded, at, &row);
    }
    let expand = |latents: &LayerCache, format| {
        let mut cache = cache_for(&gqa, &inputs, format);
        gqa.expand(&pool, latents, &mut cache, &blocks);
        contents(&cache)
    };
    // The same bits as from f32 latents that happen to be those numbers: nothing is lost but by rounding.
    assert!(expand(&rounded, CacheFormat::Int8) == expand(&unrounded, CacheFormat::Int8));
    let keys_and_values = expand(&rounded, CacheFormat::F32);
    let error = relative_rms(&keys_and_values, expand(&exact, CacheFormat::F32).into_iter().map(f64::from));
    assert!(error > 1e-4 && error <= BOUND, "{error:e}");
}

#[test]
fn a_number_is_off_by_half_a_scale_at_most() {
    let at = Place { block: 0, token: 5 };
    let run = Run { part: 0, offset: 5, aside: 2, apart: 1, step: 3 };
    for (seed, size) in [(1, 1e-30), (2, 1e-3), (3, 1.0), (4, 1e30)] {
        let mut cache = LayerCache::new(1, CachedToken { elements: 300, parts: 1 }, CacheFormat::Int8);
        let values: Vec<f32> = normal(seed, 200, size).iter().map(|x| *x as f32).collect();
        cache.write(at, run, &values);
        let mut read = vec![f32::NAN; values.len()];
        cache.read(at, run, &mut read);
        let largest = values.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        let off = values.iter().zip(&read).fold(0.0f32, |off, (x, y)| off.max((x - y).abs()));
        assert!(off > 0.0 && off <= largest / 127.0 * 0.5001, "{off:e} of {largest:e}");
    }
}

#[test]
fn nothing_hides_a_number_that_is_not_finite() {
    let at = Place { block: 0, token: 0 };
    let mut cache = LayerCache::new(1, CachedToken { elements: 3, parts: 1 }, CacheFormat::Int8);
    let mut stored = |values: [f32; 3]| {
        cache.write(at, Run::aside(0, 0), &values);
        let mut read = [f32::NAN; 3];
        cache.read(at, Run::aside(0, 0), &mut read);
        read
    };
    assert_eq!(stored([0.0; 3]), [0.0; 3]);
    assert_eq!(stored([0.0, -127.0, 64.0]), [0.0, -127.0, 64.0]);
    for broken in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert!(!stored([1.0, broken, 2.0])[1].is_finite(), "{broken}");
    }
}
