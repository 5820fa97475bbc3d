//! Both paths against the float64 reference, and the reference against independent figures.

use std::{fs, path::Path};

use gqla_model::AttentionShape;
use safetensors::SafeTensors;
use serde::Deserialize;

use super::{
    cache::{Numbers, Place, Run},
    *,
};
use crate::gemm::Element;
use crate::reference::{self, AttentionInputs, AttentionOutputs, counter_noise};

mod int8;
mod units;

#[derive(Deserialize)]
struct Checksum {
    n: usize,
    sum: f64,
    abs: f64,
    sq: f64,
    w97: f64,
}

#[derive(Deserialize)]
struct Case {
    h: u32,
    #[serde(rename = "G")]
    g: u32,
    d_nope: u32,
    d_v: u32,
    d_rope: u32,
    r: u32,
    s_q: usize,
    kv_len: usize,
    seed: u64,
    name: String,
    checksum: Checksum,
    lse_checksum: Checksum,
    sample_idx: Vec<usize>,
    sample: Vec<f64>,
}

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/attn").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn cases() -> Vec<Case> {
    let cases: Vec<Case> = serde_json::from_slice(&fixture("attn_cases.json")).unwrap();
    assert_eq!(cases.len(), 40);
    cases
}

impl Case {
    fn shape(&self) -> AttentionShape {
        AttentionShape {
            num_attention_heads: self.h,
            num_key_value_heads: self.g,
            kv_lora_rank: self.r,
            qk_nope_head_dim: self.d_nope,
            qk_rope_head_dim: self.d_rope,
            v_head_dim: self.d_v,
        }
    }

    fn inputs(&self) -> AttentionInputs {
        let tensor = |t: u64, dims: &[usize], scale| {
            counter_noise(1000 * self.seed + t, dims.iter().product(), scale).collect()
        };
        let d = LatentDims::of(&self.shape());
        AttentionInputs {
            shape: self.shape(),
            s_q: self.s_q,
            kv_len: self.kv_len,
            q_nope: tensor(1, &[self.s_q, d.heads, d.nope], 4.0),
            q_rope: tensor(2, &[self.s_q, d.heads, d.rope], 4.0),
            latent: tensor(3, &[self.kv_len, d.rank], 1.0),
            k_rope: tensor(4, &[self.kv_len, d.rope], 1.0),
            w_uk: tensor(5, &[d.groups, d.nope, d.rank], 0.125),
            w_uv: tensor(6, &[d.groups, d.value, d.rank], 0.125),
        }
    }
}

impl Checksum {
    fn check(&self, values: &[f64], name: &str) {
        assert_eq!(values.len(), self.n, "{name}");
        let weighted = values.iter().enumerate().map(|(i, x)| x * (i % 97 + 1) as f64).sum::<f64>();
        let figures = [
            (values.iter().sum(), self.sum),
            (values.iter().map(|x| x.abs()).sum(), self.abs),
            (values.iter().map(|x| x * x).sum(), self.sq),
            (weighted, self.w97),
        ];
        for (ours, theirs) in figures {
            let ours: f64 = ours;
            assert!((ours - theirs).abs() <= 1e-9 * (self.abs * 97.0), "{name}: {ours} {theirs}");
        }
    }
}

fn worst(a: impl IntoIterator<Item = f64>, b: &[f64]) -> f64 {
    a.into_iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn the_generator_is_the_one_the_figures_were_made_with() {
    let first: Vec<f64> = counter_noise(101_001, 3, 128.0).collect();
    assert_eq!(first, [0x68 as f64, 0x51 as f64, 0x28 as f64]);
}

#[test]
fn both_references_give_the_independent_figures() {
    let stored = fixture("attn_outputs_f64.safetensors");
    let stored = SafeTensors::deserialize(&stored).unwrap();
    for case in cases() {
        let inputs = case.inputs();
        let both = [reference::per_group(&inputs), reference::absorb(&inputs)];
        for AttentionOutputs { out, lse } in &both {
            case.checksum.check(out, &case.name);
            case.lse_checksum.check(lse, &case.name);
            let sample = case.sample_idx.iter().map(|i| out[*i]);
            assert!(worst(sample, &case.sample) < 1e-12, "{}", case.name);
            for (suffix, ours) in [("out", out), ("lse", lse)] {
                let Ok(tensor) = stored.tensor(&format!("{}.{suffix}", case.name)) else { continue };
                let bytes = tensor.data().chunks_exact(8);
                let theirs: Vec<_> = bytes.map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect();
                let ours = if suffix == "out" { query_innermost(&case, ours) } else { ours.clone() };
                assert!(worst(theirs, &ours) < 1e-12, "{} {suffix}", case.name);
            }
        }
    }
}

/// The stored outputs lie with the query innermost, although their header says `[s_q, h, _]`.
fn query_innermost(case: &Case, values: &[f64]) -> Vec<f64> {
    let per_query = values.len() / case.s_q;
    (0..per_query).flat_map(|i| (0..case.s_q).map(move |query| values[query * per_query + i])).collect()
}

/// Projected rows of tokens `from..to`; tokens before the queries get queries of zeros.
fn projected(inputs: &AttentionInputs, from: usize, to: usize) -> Vec<f32> {
    let d = LatentDims::of(&inputs.shape);
    let first_query = inputs.kv_len - inputs.s_q;
    let mut rows = Vec::with_capacity((to - from) * d.projected_width());
    let mut extend = |numbers: &[f64]| rows.extend(numbers.iter().map(|x| *x as f32));
    let none = vec![0.0; d.query()];
    for token in from..to {
        for head in 0..d.heads {
            match token.checked_sub(first_query) {
                Some(query) => {
                    let row = query * d.heads + head;
                    extend(&inputs.q_nope[row * d.nope..][..d.nope]);
                    extend(&inputs.q_rope[row * d.rope..][..d.rope]);
                }
                None => extend(&none),
            }
        }
        extend(&inputs.latent[token * d.rank..][..d.rank]);
        extend(&inputs.k_rope[token * d.rope..][..d.rope]);
    }
    rows
}

fn up_projection(inputs: &AttentionInputs) -> Vec<f32> {
    let d = LatentDims::of(&inputs.shape);
    let groups = inputs.w_uk.chunks(d.nope * d.rank).zip(inputs.w_uv.chunks(d.value * d.rank));
    groups.flat_map(|(uk, uv)| uk.iter().chain(uv)).map(|x| *x as f32).collect()
}

fn both_paths(inputs: &AttentionInputs) -> [Box<dyn Attention>; 2] {
    let up = up_projection(inputs);
    let up = UpProjection(WeightRows::F32(&up));
    [Box::new(PerGroup::new(&inputs.shape, up).unwrap()), Box::new(Absorb::new(&inputs.shape, up).unwrap())]
}

/// Blocks for all tokens, in descending order.
fn blocks_for(inputs: &AttentionInputs) -> Vec<u32> {
    (0..inputs.kv_len.div_ceil(BLOCK_TOKENS) as u32).rev().collect()
}

fn cache_for(attention: &dyn Attention, inputs: &AttentionInputs, format: CacheFormat) -> LayerCache {
    LayerCache::new(blocks_for(inputs).len(), attention.cached_token(), format)
}

/// Fills the cache up to the queries, then attends with them. What fills it attends within its block: a token is stored alike wherever
/// it attends, and thousands of rows over all of them would take most of the time that tests do.
fn run(attention: &dyn Attention, pool: &Pool, inputs: &AttentionInputs, cache: &mut LayerCache) -> Vec<f32> {
    let blocks = blocks_for(inputs);
    let first_query = inputs.kv_len - inputs.s_q;
    let past: Vec<_> = blocks
        .chunks(1)
        .zip((0..first_query).step_by(BLOCK_TOKENS))
        .map(|(block, first)| Segment {
            first_row: first,
            rows: BLOCK_TOKENS.min(first_query - first),
            start: 0,
            blocks: block,
        })
        .collect();
    let queries = [Segment { first_row: 0, rows: inputs.s_q, start: first_query, blocks: &blocks }];
    let mut scratch = Scratch::default();
    let mut out = Vec::new();
    for (from, to, segments) in [(0, first_query, &past[..]), (first_query, inputs.kv_len, &queries)] {
        out = vec![f32::NAN; (to - from) * attention.output_width()];
        if from < to {
            let rows = projected(inputs, from, to);
            attention.forward(pool, cache, segments, &rows, &mut scratch, &mut out);
            scratch.poison();
        }
    }
    out
}

#[test]
fn both_paths_match_float64_in_all_forty_cases() {
    let pool = Pool::new(None).unwrap();
    for case in cases() {
        let inputs = case.inputs();
        let expected = reference::per_group(&inputs).out;
        for (attention, path) in both_paths(&inputs).iter().zip(["gqa", "mqa-absorb"]) {
            let mut cache = cache_for(attention.as_ref(), &inputs, CacheFormat::F32);
            let ours = run(attention.as_ref(), &pool, &inputs, &mut cache).into_iter().map(f64::from);
            let error = worst(ours, &expected);
            assert!(error < 2e-5, "{} on {path}: {error:e}", case.name);
        }
    }
}

#[test]
fn the_cache_holds_what_the_formulas_say() {
    for case in cases() {
        let inputs = case.inputs();
        let [gqa, absorb] = both_paths(&inputs);
        let shape = case.shape();
        for (attention, path) in
            [(gqa, gqla_model::DecodePath::Gqa), (absorb, gqla_model::DecodePath::MqaAbsorb)]
        {
            for format in CacheFormat::ALL {
                let allocated = LayerCache::new(3, attention.cached_token(), format).allocated_bytes() as u64;
                let token = shape.cached_token(path).bytes(format);
                assert_eq!(allocated, 3 * 64 * token, "{} on {path}, {format}", case.name);
            }
        }
    }
}

/// All numbers as they are stored, then all scales.
fn contents(cache: &LayerCache) -> Vec<f32> {
    fn of<E: Element>(numbers: &[E]) -> impl Iterator<Item = f32> {
        numbers.iter().map(|number| number.to_f32())
    }
    match cache.numbers() {
        Numbers::F32(numbers) => of(numbers).collect(),
        Numbers::Bf16(numbers) => of(numbers).collect(),
        Numbers::Int8(numbers, scales) => of(numbers).chain(of(scales)).collect(),
    }
}

#[test]
fn latents_expand_to_the_keys_and_values_that_the_gqa_path_would_have_cached() {
    let pool = Pool::new(None).unwrap();
    for case in cases() {
        let inputs = case.inputs();
        let up = up_projection(&inputs);
        let up = UpProjection(WeightRows::F32(&up));
        let gqa = PerGroup::new(&inputs.shape, up).unwrap();
        let absorb = Absorb::new(&inputs.shape, up).unwrap();
        let mut latents = cache_for(&absorb, &inputs, CacheFormat::F32);
        let mut direct = cache_for(&gqa, &inputs, CacheFormat::F32);
        run(&absorb, &pool, &inputs, &mut latents);
        run(&gqa, &pool, &inputs, &mut direct);
        let mut expanded = cache_for(&gqa, &inputs, CacheFormat::F32);
        gqa.expand(&pool, &latents, &mut expanded, &blocks_for(&inputs));
        assert_eq!(contents(&expanded), contents(&direct), "{}", case.name);
    }
}

#[test]
fn a_bf16_cache_holds_the_nearest_numbers() {
    let pool = Pool::new(None).unwrap();
    for case in cases() {
        let inputs = case.inputs();
        let [gqa, absorb] = both_paths(&inputs);
        let both = |attention: &dyn Attention| {
            [CacheFormat::F32, CacheFormat::Bf16].map(|format| {
                let mut cache = cache_for(attention, &inputs, format);
                assert_eq!(cache.format(), format);
                let out = run(attention, &pool, &inputs, &mut cache);
                (out, contents(&cache))
            })
        };
        // Latents and rope keys of these cases are bf16 numbers, so nothing is lost and the same bits are computed.
        let [exact, rounded] = both(absorb.as_ref());
        assert_eq!(exact, rounded, "{}", case.name);
        let [(exact, kept), (rounded, kept_rounded)] = both(gqa.as_ref());
        // Narrow numbers lie elsewhere in a block.
        let sorted = |mut numbers: Vec<f32>| {
            numbers.sort_by(f32::total_cmp);
            numbers
        };
        let nearest = kept.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect();
        assert!(sorted(nearest) == sorted(kept_rounded), "{}", case.name);
        assert!(rounded.iter().all(|x| x.is_finite()) && exact != rounded, "{}", case.name);
    }
}

#[test]
fn plain_attention_reads_a_bf16_cache_as_it_was_stored() {
    let pool = Pool::new(Some(2)).unwrap();
    let (heads, groups, dim, tokens) = (6, 2, 40, 150);
    let plain = Plain::new(heads, groups, dim);
    let projected: Vec<f32> =
        counter_noise(5, tokens * plain.projected_width(), 2.0).map(|x| x as f32).collect();
    let blocks = [1, 2, 0];
    let segment = Segment { first_row: 0, rows: tokens, start: 0, blocks: &blocks };
    let outputs = [CacheFormat::F32, CacheFormat::Bf16].map(|format| {
        let mut cache = LayerCache::new(3, plain.cached_token(), format);
        let mut out = vec![0.0; tokens * plain.output_width()];
        plain.forward(&pool, &mut cache, &[segment], &projected, &mut Scratch::default(), &mut out);
        out
    });
    assert!(outputs[0].iter().any(|x| *x != 0.0));
    assert_eq!(outputs[0], outputs[1]);
}

#[test]
fn a_copied_block_holds_the_same_numbers() {
    let run = Run { part: 1, offset: 7, aside: 1, apart: 1, step: 2 };
    for format in CacheFormat::ALL {
        let mut cache = LayerCache::new(3, CachedToken { elements: 5, parts: 2 }, format);
        cache.write(Place { block: 1, token: 3 }, run, &[1.0, -2.0, 127.0]);
        cache.copy_block(1, 2);
        for (block, expected) in [(0, [0.0; 3]), (1, [1.0, -2.0, 127.0]), (2, [1.0, -2.0, 127.0])] {
            let mut read = [f32::NAN; 3];
            cache.read(Place { block, token: 3 }, run, &mut read);
            assert_eq!(read, expected, "{format}");
        }
        let other = contents(&cache).iter().filter(|x| **x != 0.0).count();
        assert_eq!(other, 2 * (3 + usize::from(format == CacheFormat::Int8)), "{format}");
    }
}

/// Decodes one token of each of `batch` equal sequences and answers their outputs.
fn decode(
    attention: &dyn Attention,
    format: CacheFormat,
    pool: &Pool,
    context: usize,
    batch: usize,
) -> Vec<Vec<f32>> {
    let per_sequence = context.div_ceil(BLOCK_TOKENS);
    let blocks: Vec<u32> = (0..(batch * per_sequence) as u32).rev().collect();
    let mut cache = LayerCache::new(blocks.len(), attention.cached_token(), format);
    let (width, mut scratch) = (attention.projected_width(), Scratch::default());
    let rows: Vec<f32> = counter_noise(7, context * width, 0.5).map(|x| x as f32).collect();
    let (first, others) = blocks.split_at(per_sequence);
    let prompt = Segment { first_row: 0, rows: context - 1, start: 0, blocks: first };
    let mut out = vec![f32::NAN; (context - 1) * attention.output_width()];
    attention.forward(pool, &mut cache, &[prompt], &rows[..(context - 1) * width], &mut scratch, &mut out);
    scratch.poison();
    first.iter().cycle().zip(others).for_each(|(from, to)| cache.copy_block(*from, *to));
    let segment = |(first_row, blocks)| Segment { first_row, rows: 1, start: context - 1, blocks };
    let segments: Vec<_> = blocks.chunks_exact(per_sequence).enumerate().map(segment).collect();
    let last = rows[(context - 1) * width..].repeat(batch);
    let mut out = vec![f32::NAN; batch * attention.output_width()];
    attention.forward(pool, &mut cache, &segments, &last, &mut scratch, &mut out);
    out.chunks_exact(attention.output_width()).map(<[f32]>::to_vec).collect()
}

#[test]
fn a_sequence_has_the_same_bits_however_its_tokens_are_divided() {
    let cases = cases();
    let smallest = cases.iter().min_by_key(|case| case.h * case.r).unwrap();
    let inputs = smallest.inputs();
    let plain: Box<dyn Attention> = Box::new(Plain::new(6, 2, 40));
    for attention in both_paths(&inputs).into_iter().chain([plain]) {
        for (format, context) in [
            (CacheFormat::F32, 257),
            (CacheFormat::F32, 600),
            (CacheFormat::Int8, 257),
            (CacheFormat::Int8, 600),
        ] {
            let alone = Pool::new(Some(1)).unwrap();
            let expected = decode(attention.as_ref(), format, &alone, context, 1).remove(0);
            assert!(expected.iter().all(|x| x.is_finite()) && expected.iter().any(|x| *x != 0.0));
            for (threads, batch) in [(2, 1), (3, 1), (2, 2), (2, 9)] {
                let pool = Pool::new(Some(threads)).unwrap();
                for out in decode(attention.as_ref(), format, &pool, context, batch) {
                    assert_eq!(out, expected, "{context} tokens, {threads} threads, {batch} sequences");
                }
            }
        }
    }
}
