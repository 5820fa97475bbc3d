//! One decode step of a few sequences: its numbers, what it should give, and the least traffic it takes.

use gqla_kernels::{
    device::{DecodePlan, DecodeShape, Limits, Splits, plan_decode},
    reference::{AttentionInputs, per_group},
};
use gqla_model::{
    AttentionShape,
    DecodePath::{self, Gqa, MqaAbsorb},
};
use half::bf16;

pub const PAGE: usize = 64;

/// Dimensions of a step.
#[derive(Clone, Debug)]
pub struct Case {
    pub path: DecodePath,
    pub heads: usize,
    /// Along absorb, 1: all heads attend to the same rows.
    pub groups: usize,
    /// Head dimensions: nope, rope, value; along absorb, rank, rope, rank.
    pub dims: [usize; 3],
    pub s_q: usize,
    /// Tokens of each sequence, the queries' own included.
    pub lengths: Vec<usize>,
    pub splits: Splits,
    /// Standard deviation of the queries' numbers, and so of scores; a power of two, which rounds nothing.
    pub spread: f32,
}

/// Splits of so many pages, however many there are.
pub fn pages_each(least_pages: usize) -> Splits {
    Splits { least_pages, most: 1000 }
}

/// Numbers from a normal distribution, rounded to bf16.
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Box and Muller's.
    pub fn take(&mut self, count: usize) -> Vec<bf16> {
        let normal = |noise: &mut Self| {
            let radius = (-2.0 * (1.0 - noise.uniform()).ln()).sqrt();
            bf16::from_f64(radius * (std::f64::consts::TAU * noise.uniform()).cos())
        };
        (0..count).map(|_| normal(self)).collect()
    }

    /// The numbers below `count` in some order.
    pub fn shuffled(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            order.swap(last, (self.uniform() * (last + 1) as f64) as usize);
        }
        order
    }
}

/// One sequence's numbers, by token.
pub struct Sequence {
    /// `[s_q, heads, nope + rope]`
    pub q: Vec<bf16>,
    /// `[groups, tokens, nope]`; along absorb, latents.
    pub k_nope: Vec<Vec<bf16>>,
    /// `[tokens, rope]`
    pub k_rope: Vec<bf16>,
    /// `[groups, tokens, value]`; along absorb, the latents again.
    pub v: Vec<Vec<bf16>>,
}

impl Case {
    pub fn rows(&self) -> usize {
        self.s_q * self.heads / self.groups
    }

    pub fn shape(&self) -> DecodeShape {
        let [nope, rope, value] = self.dims.map(|dim| dim as u32);
        // Softmax scales by the widths of the keys that are multiplied, as the reference does with what it is given.
        let scale = 1.0 / f64::from(nope + rope).sqrt();
        DecodeShape {
            heads: self.heads as u32,
            groups: self.groups as u32,
            nope,
            rope,
            value,
            rank: nope,
            scale,
        }
    }

    pub fn plan(&self, limits: Limits) -> DecodePlan {
        plan_decode(&self.shape(), self.path, self.s_q as u32, limits).unwrap()
    }

    pub fn pages(&self, sequence: usize) -> usize {
        self.lengths[sequence].div_ceil(PAGE)
    }

    pub fn sequence(&self, index: usize) -> Sequence {
        let (mut noise, length) = (Noise::new(index as u64 + 1), self.lengths[index]);
        let [nope, rope, value] = self.dims;
        let mut q = noise.take(self.s_q * self.heads * (nope + rope));
        q.iter_mut().for_each(|x| *x = bf16::from_f32(x.to_f32() * self.spread));
        let k_nope: Vec<_> = (0..self.groups).map(|_| noise.take(length * nope)).collect();
        let k_rope = noise.take(length * rope);
        let v = match self.path {
            Gqa => (0..self.groups).map(|_| noise.take(length * value)).collect(),
            MqaAbsorb => k_nope.clone(),
        };
        Sequence { q, k_nope, k_rope, v }
    }

    /// What the float64 reference gives, `[s_q, heads, value]`. Keys and values are given here, not made from latents, so
    /// each group's stand in the latent side by side and the up-projections pick them out.
    pub fn expected(&self, index: usize) -> Vec<f64> {
        let (sequence, [nope, rope, value]) = (self.sequence(index), self.dims);
        let (per, length) = (self.heads / self.groups, self.lengths[index]);
        let rank = nope + value;
        let pick = |from: usize, count: usize| {
            (0..count * rank)
                .map(move |i| f64::from(u8::from(i % rank == from + i / rank)))
                .collect::<Vec<f64>>()
        };
        let wide = |x: &[bf16]| x.iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
        let mut out = vec![0.0; self.s_q * self.heads * value];
        for group in 0..self.groups {
            let head = |row: usize| row / per * self.heads + group * per + row % per;
            let queries = |row: usize| &sequence.q[head(row) * (nope + rope)..][..nope + rope];
            let rows = self.s_q * per;
            let keys = sequence.k_nope[group].chunks(nope).zip(sequence.v[group].chunks(value));
            let inputs = AttentionInputs {
                shape: AttentionShape {
                    num_attention_heads: per as u32,
                    num_key_value_heads: 1,
                    kv_lora_rank: rank as u32,
                    qk_nope_head_dim: nope as u32,
                    qk_rope_head_dim: rope as u32,
                    v_head_dim: value as u32,
                },
                s_q: self.s_q,
                kv_len: length,
                q_nope: (0..rows).flat_map(|row| wide(&queries(row)[..nope])).collect(),
                q_rope: (0..rows).flat_map(|row| wide(&queries(row)[nope..])).collect(),
                latent: keys.flat_map(|(key, value)| [wide(key), wide(value)].concat()).collect(),
                k_rope: wide(&sequence.k_rope),
                w_uk: pick(0, nope),
                w_uv: pick(nope, value),
            };
            let of_group = per_group(&inputs).out;
            for (row, numbers) in of_group.chunks(value).enumerate() {
                out[head(row) * value..][..value].copy_from_slice(numbers);
            }
        }
        out
    }

    /// Rows of each block that a sequence's rows of a group are divided into, and the tokens that its last query sees.
    fn blocks(&self, plan: &DecodePlan, length: usize) -> impl Iterator<Item = [usize; 2]> {
        let (rows, of_block, per, s_q) =
            (self.rows(), plan.rows as usize, self.heads / self.groups, self.s_q);
        (0..rows).step_by(of_block).map(move |first| {
            let end = (first + of_block).min(rows);
            [end - first, length - s_q + (end - 1) / per + 1]
        })
    }

    /// Bytes of keys (nope), keys (rope) and values, or of latent rows, that must be read: each once per group and block.
    pub fn least_bytes(&self, plan: &DecodePlan) -> [u64; 3] {
        let blocks = self.lengths.iter().flat_map(|length| self.blocks(plan, *length));
        let times = self.groups * blocks.map(|[_, tokens]| tokens).sum::<usize>();
        match self.path {
            Gqa => self.dims.map(|dim| (times * dim * 2) as u64),
            MqaAbsorb => [(times * (self.dims[0] + self.dims[1]) * 2) as u64, 0, 0],
        }
    }

    /// Multiplications of 16 × 8 × 16 that whole stages of tokens and whole tiles of rows take. A stage is a page, or what
    /// the absorbing kernel copies at a time.
    pub fn least_mma(&self, plan: &DecodePlan) -> u64 {
        let [nope, rope, value] = self.dims;
        let (stage, tile) = match (self.path, plan.depth as usize) {
            (Gqa, _) => (PAGE, 16),
            // A warp has one tile of 16 rows, whose queries are in its registers.
            (MqaAbsorb, 16) => (16, 16),
            (MqaAbsorb, stage) => (stage, plan.rows.min(32) as usize),
        };
        let blocks = self.lengths.iter().flat_map(|length| self.blocks(plan, *length));
        let tiles: usize =
            blocks.map(|[rows, tokens]| rows.div_ceil(tile) * (tile / 16) * tokens.div_ceil(stage)).sum();
        let of_stage = stage / 8 * ((nope + rope) / 16) + stage / 16 * (value / 8);
        (self.groups * tiles * of_stage) as u64
    }
}
