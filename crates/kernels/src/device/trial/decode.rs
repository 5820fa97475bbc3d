//! One sequence attended to, against the float64 reference.

use gqla_model::{AttentionShape, DecodePath};
use half::bf16;

use super::{SPLITS, held, noise, relative_rms, wide};
use crate::{
    attention::{BLOCK_TOKENS, Segment},
    device::{Buffer, Decode, DecodeCache, DecodeInputs, DecodeShape, Device, DeviceError, Tables},
    reference::{self, AttentionInputs},
};

/// Bound on the relative root mean square error; bf16 weights and outputs make about 2e-3.
pub(super) const MAX_ERROR: f64 = 6e-3;

/// A sequence of `tokens` tokens, the last `queries` of which attend.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecodeTrial {
    /// Dimensions.
    pub shape: DecodeShape,
    /// Which kernel.
    pub path: DecodePath,
    /// Query tokens.
    pub queries: usize,
    /// Tokens, the queries' own included.
    pub tokens: usize,
}

/// What attending gave.
pub(super) struct Attended {
    pub error: f64,
    /// Where keys and values were read.
    pub cache: [u64; 3],
}

impl DecodeTrial {
    fn widths(&self) -> [usize; 3] {
        let shape = &self.shape;
        let nope = if self.path == DecodePath::Gqa { shape.nope } else { shape.rank };
        [nope, shape.rope, shape.output(self.path)].map(|width| width as usize)
    }

    fn groups(&self) -> usize {
        self.shape.key_groups(self.path) as usize
    }

    fn query_numbers(&self) -> Vec<bf16> {
        let width = (self.shape.heads * self.shape.query(self.path)) as usize;
        noise(1, self.queries * width)
    }

    fn keys(&self, group: usize) -> Vec<bf16> {
        noise(2 + group as u64, self.tokens * self.widths()[0])
    }

    fn rope_keys(&self) -> Vec<bf16> {
        noise(2000, self.tokens * self.widths()[1])
    }

    /// Along absorb, the latents again.
    fn values(&self, group: usize) -> Vec<bf16> {
        match self.path {
            DecodePath::Gqa => noise(3000 + group as u64, self.tokens * self.widths()[2]),
            DecodePath::MqaAbsorb => self.keys(group),
        }
    }

    fn pages(&self) -> usize {
        self.tokens.div_ceil(BLOCK_TOKENS)
    }

    /// The tokens in pages from 0 on.
    fn cache(&self, device: &Device) -> Result<DecodeCache, DeviceError> {
        let mut cache = DecodeCache::new(device, &self.shape, self.path, self.pages())?;
        let [nope, rope, value] = self.widths();
        let groups = self.groups();
        let write = |to: &mut Buffer<bf16>, parts: usize, part: usize, width: usize, numbers: &[bf16]| {
            let pages = numbers.chunks(BLOCK_TOKENS * width).enumerate();
            pages
                .map(|(page, numbers)| (((page * parts) + part) * BLOCK_TOKENS * width, numbers))
                .try_for_each(|(at, numbers)| device.write(to, at, numbers))
        };
        match &mut cache {
            DecodeCache::Gqa { keys, rope_keys, values } => {
                write(rope_keys, 1, 0, rope, &self.rope_keys())?;
                for group in 0..groups {
                    write(keys, groups, group, nope, &self.keys(group))?;
                    write(values, groups, group, value, &self.values(group))?;
                }
            }
            DecodeCache::Absorb { latents } => {
                let (keys, rope_keys) = (self.keys(0), self.rope_keys());
                let rows = keys.chunks(nope).zip(rope_keys.chunks(rope));
                let rows: Vec<bf16> = rows.flat_map(|(latent, rope)| [latent, rope].concat()).collect();
                write(latents, 1, 0, nope + rope, &rows)?;
            }
        }
        Ok(cache)
    }

    /// `[queries, heads, width of a value]` by the reference. It makes keys and values from latents: here the latent is both,
    /// side by side, and the up-projections pick them out.
    fn expected(&self) -> Vec<f64> {
        let [nope, rope, value] = self.widths();
        let (heads, groups) = (self.shape.heads as usize, self.groups());
        let (per_group, rank) = (heads / groups, nope + value);
        let pick = |from: usize, count: usize| {
            (0..count * rank).map(|i| f64::from(u8::from(i % rank == from + i / rank))).collect()
        };
        // The reference scales by what it is given.
        let rescale = self.shape.scale * ((nope + rope) as f64).sqrt();
        let queries = self.query_numbers();
        let mut out = vec![0.0; self.queries * heads * value];
        for group in 0..groups {
            let head = |row: usize| row / per_group * heads + group * per_group + row % per_group;
            let rows = self.queries * per_group;
            let part = |from: usize, to: usize| -> Vec<f64> {
                let of = |row: usize| &queries[head(row) * (nope + rope)..][from..to];
                (0..rows).flat_map(|row| wide(of(row))).map(|x| x * rescale).collect()
            };
            let (keys, values) = (self.keys(group), self.values(group));
            let latents = keys.chunks(nope).zip(values.chunks(value));
            let inputs = AttentionInputs {
                shape: AttentionShape {
                    num_attention_heads: per_group as u32,
                    num_key_value_heads: 1,
                    kv_lora_rank: rank as u32,
                    qk_nope_head_dim: nope as u32,
                    qk_rope_head_dim: rope as u32,
                    v_head_dim: value as u32,
                },
                s_q: self.queries,
                kv_len: self.tokens,
                q_nope: part(0, nope),
                q_rope: part(nope, nope + rope),
                latent: latents.flat_map(|(key, value)| [wide(key), wide(value)].concat()).collect(),
                k_rope: wide(&self.rope_keys()),
                w_uk: pick(0, nope),
                w_uv: pick(nope, value),
            };
            for (row, numbers) in reference::per_group(&inputs).out.chunks(value).enumerate() {
                out[head(row) * value..][..value].copy_from_slice(numbers);
            }
        }
        out
    }

    /// Runs it.
    pub(super) fn run(&self, device: &Device, decode: &Decode) -> Result<Attended, DeviceError> {
        let cache = self.cache(device)?;
        let blocks: Vec<u32> = (0..self.pages() as u32).collect();
        let (rows, start) = (self.queries, self.tokens - self.queries);
        let segment = Segment { first_row: 0, rows, start, blocks: &blocks };
        let tables = Tables::new(device, &[segment], self.pages(), Some(decode.tiling(SPLITS)))?;
        let (queries, expected) = (self.query_numbers(), self.expected());
        let q = device.upload("queries", &queries)?;
        let mut out = device.unwritten("outputs", expected.len())?;
        let partial = Decode::partial_numbers(&self.shape, self.path, SPLITS, rows, self.tokens);
        let mut partial = device.unwritten("splits", partial)?;
        let q_stride = queries.len() / rows;
        let inputs = DecodeInputs {
            q: &q,
            q_offset: 0,
            q_stride,
            partial: &mut partial,
            out: &mut out,
            out_offset: 0,
        };
        decode.launch(device, &cache, &tables, inputs)?;
        let got = wide(&device.download(&out, expected.len())?);
        Ok(Attended { error: relative_rms(&got, &expected), cache: cache.addresses() })
    }
}

impl Decode {
    /// Runs a small problem on the device before it is trusted with anybody's text, and returns its relative error against
    /// the float64 reference.
    ///
    /// # Errors
    /// [`DeviceError::SelfTest`] when the error is above what bf16 explains: the device must not serve.
    pub fn self_test(&self, device: &Device) -> Result<f64, DeviceError> {
        // A whole page and a tail, and two queries, of which the last sees the one before it.
        let (shape, path) = (*self.shape(), self.plan().path);
        let trial = DecodeTrial { shape, path, queries: 2, tokens: BLOCK_TOKENS + 7 };
        held(device, self.plan().decode, trial.run(device, self)?.error, MAX_ERROR)
    }
}
