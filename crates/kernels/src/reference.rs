//! Float64 attention along both paths, straight from the definition: what every kernel is held to.

use gqla_model::AttentionShape;

/// Inputs of one attention layer for one sequence, all row-major. `s_q` queries are the last of `kv_len` tokens;
/// query i sees tokens 0 ..= `kv_len` - `s_q` + i.
pub struct AttentionInputs {
    /// Dimensions.
    pub shape: AttentionShape,
    /// Queries.
    pub s_q: usize,
    /// Tokens in the cache, the queries' own included.
    pub kv_len: usize,
    /// `[s_q, H, d_nope]`
    pub q_nope: Vec<f64>,
    /// `[s_q, H, d_rope]`, turned.
    pub q_rope: Vec<f64>,
    /// `[kv_len, r]`
    pub latent: Vec<f64>,
    /// `[kv_len, d_rope]`, turned.
    pub k_rope: Vec<f64>,
    /// `[G, d_nope, r]`
    pub w_uk: Vec<f64>,
    /// `[G, d_v, r]`
    pub w_uv: Vec<f64>,
}

/// What attention answers.
pub struct AttentionOutputs {
    /// `[s_q, H, d_v]`
    pub out: Vec<f64>,
    /// Natural logarithm of the sum of exponentials of the scaled scores, `[s_q, H]`.
    pub lse: Vec<f64>,
}

struct Dims {
    heads: usize,
    per_group: usize,
    nope: usize,
    rope: usize,
    value: usize,
    rank: usize,
    scale: f64,
}

impl Dims {
    fn of(shape: &AttentionShape) -> Self {
        let (nope, rope) = (shape.qk_nope_head_dim as usize, shape.qk_rope_head_dim as usize);
        Self {
            heads: shape.num_attention_heads as usize,
            per_group: shape.heads_per_group() as usize,
            nope,
            rope,
            value: shape.v_head_dim as usize,
            rank: shape.kv_lora_rank as usize,
            scale: 1.0 / ((nope + rope) as f64).sqrt(),
        }
    }
}

/// The GQA path: keys and values of every group are made from the latents first.
pub fn per_group(inputs: &AttentionInputs) -> AttentionOutputs {
    let d = Dims::of(&inputs.shape);
    let expand = |weights: &[f64], width: usize| -> Vec<Vec<f64>> {
        let group = |w: &[f64]| inputs.latent.chunks(d.rank).flat_map(|c| multiply(w, c)).collect();
        weights.chunks(width * d.rank).map(group).collect()
    };
    let (keys, values) = (expand(&inputs.w_uk, d.nope), expand(&inputs.w_uv, d.value));
    each_query(inputs, &d, |group, q_nope, weights_of| {
        let scores = keys[group].chunks(d.nope).map(|key| dot(q_nope, key)).collect();
        let p = weights_of(scores);
        weighted_sum(&p, &values[group], d.value)
    })
}

/// The absorb path: queries move into the latent space, the weighted latent moves out of it.
pub fn absorb(inputs: &AttentionInputs) -> AttentionOutputs {
    let d = Dims::of(&inputs.shape);
    each_query(inputs, &d, |group, q_nope, weights_of| {
        let w_uk = &inputs.w_uk[group * d.nope * d.rank..][..d.nope * d.rank];
        let absorbed = weighted_sum(q_nope, w_uk, d.rank);
        let scores = inputs.latent.chunks(d.rank).map(|c| dot(&absorbed, c)).collect();
        let mean = weighted_sum(&weights_of(scores), &inputs.latent, d.rank);
        multiply(&inputs.w_uv[group * d.value * d.rank..][..d.value * d.rank], &mean)
    })
}

/// Runs `head(group, q_nope, weights_of)` for every query and head; `weights_of` turns position-free scores into
/// attention weights.
fn each_query(
    inputs: &AttentionInputs,
    d: &Dims,
    head: impl Fn(usize, &[f64], &mut dyn FnMut(Vec<f64>) -> Vec<f64>) -> Vec<f64>,
) -> AttentionOutputs {
    let (mut out, mut lse) = (Vec::new(), Vec::new());
    for (row, (q_nope, q_rope)) in inputs.q_nope.chunks(d.nope).zip(inputs.q_rope.chunks(d.rope)).enumerate()
    {
        let (query, h) = (row / d.heads, row % d.heads);
        let visible = inputs.kv_len - inputs.s_q + query + 1;
        let mut weights_of = |mut scores: Vec<f64>| {
            scores.truncate(visible);
            for (score, k_rope) in scores.iter_mut().zip(inputs.k_rope.chunks(d.rope)) {
                *score = d.scale * (*score + dot(q_rope, k_rope));
            }
            let log_sum = log_sum_exp(&scores);
            lse.push(log_sum);
            scores.iter().map(|score| (score - log_sum).exp()).collect()
        };
        out.extend(head(h / d.per_group, q_nope, &mut weights_of));
    }
    AttentionOutputs { out, lse }
}

fn log_sum_exp(scores: &[f64]) -> f64 {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + scores.iter().map(|score| (score - max).exp()).sum::<f64>().ln()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `W x` for `w` `[_, x.len()]`.
fn multiply(w: &[f64], x: &[f64]) -> Vec<f64> {
    w.chunks(x.len()).map(|row| dot(row, x)).collect()
}

/// `Σ_i weight_i · rows_i` for rows of `width`.
fn weighted_sum(weights: &[f64], rows: &[f64], width: usize) -> Vec<f64> {
    let mut sum = vec![0.0; width];
    for (weight, row) in weights.iter().zip(rows.chunks(width)) {
        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * x);
    }
    sum
}

/// Counter-based test data: bytes of splitmix64 as `i8 / 128 · scale`, exact in bf16, f16 and f32.
pub fn counter_noise(seed: u64, len: usize, scale: f64) -> impl Iterator<Item = f64> {
    (0..len as u64).map(move |i| {
        let bits = splitmix64(seed.wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        f64::from((bits >> 56) as u8 as i8) / 128.0 * scale
    })
}

/// The splitmix64 finaliser.
fn splitmix64(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
