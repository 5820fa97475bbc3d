//! One small problem against the float64 reference, before a device is trusted with anybody's text.

use gqla_model::{AttentionShape, DecodePath};
use half::bf16;

use super::{Buffer, Decode, DecodeCache, DecodeInputs, DecodeShape, Device, DeviceError, Tables};
use crate::{
    attention::{BLOCK_TOKENS, Segment},
    reference::{self, AttentionInputs, counter_noise},
};

/// Bound on the relative root mean square error; bf16 weights and outputs make about 2e-3.
const MAX_ERROR: f64 = 6e-3;
/// Tokens: a whole page, and a tail.
const TOKENS: usize = BLOCK_TOKENS + 7;
/// Queries, so that the last see those before them.
const QUERIES: usize = 2;

/// Numbers of one group's keys and values, and all queries, as the device gets them.
struct Problem {
    shape: DecodeShape,
    path: DecodePath,
}

impl Problem {
    fn noise(seed: u64, len: usize) -> Vec<bf16> {
        // Uniform of variance 1.
        counter_noise(seed, len, 12f64.sqrt() / 2.0).map(bf16::from_f64).collect()
    }

    fn widths(&self) -> [usize; 3] {
        let shape = &self.shape;
        let nope = if self.path == DecodePath::Gqa { shape.nope } else { shape.rank };
        [nope, shape.rope, shape.output(self.path)].map(|width| width as usize)
    }

    fn groups(&self) -> usize {
        self.shape.key_groups(self.path) as usize
    }

    fn queries(&self) -> Vec<bf16> {
        let width = (self.shape.heads * self.shape.query(self.path)) as usize;
        Self::noise(1, QUERIES * width)
    }

    fn keys(&self, group: usize) -> Vec<bf16> {
        Self::noise(2 + group as u64, TOKENS * self.widths()[0])
    }

    fn rope_keys(&self) -> Vec<bf16> {
        Self::noise(2000, TOKENS * self.widths()[1])
    }

    /// Along absorb, the latents again.
    fn values(&self, group: usize) -> Vec<bf16> {
        match self.path {
            DecodePath::Gqa => Self::noise(3000 + group as u64, TOKENS * self.widths()[2]),
            DecodePath::MqaAbsorb => self.keys(group),
        }
    }

    /// The problem's tokens in pages 0 and 1.
    fn cache(&self, device: &Device) -> Result<DecodeCache, DeviceError> {
        let mut cache = DecodeCache::new(device, &self.shape, self.path, 2)?;
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
        let wide = |x: &[bf16]| x.iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
        // The reference scales by what it is given.
        let rescale = self.shape.scale * ((nope + rope) as f64).sqrt();
        let queries = self.queries();
        let mut out = vec![0.0; QUERIES * heads * value];
        for group in 0..groups {
            let head = |row: usize| row / per_group * heads + group * per_group + row % per_group;
            let rows = QUERIES * per_group;
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
                s_q: QUERIES,
                kv_len: TOKENS,
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
}

impl Decode {
    /// Runs a small problem on the device and returns its relative error against the float64 reference.
    ///
    /// # Errors
    /// [`DeviceError::SelfTest`] when the error is above what bf16 explains: the device must not serve.
    pub fn self_test(&self, device: &Device) -> Result<f64, DeviceError> {
        let problem = Problem { shape: *self.shape(), path: self.path() };
        let cache = problem.cache(device)?;
        let segment = Segment { first_row: 0, rows: QUERIES, start: TOKENS - QUERIES, blocks: &[0, 1] };
        let tables = Tables::new(device, &[segment], 2)?;
        let (queries, expected) = (problem.queries(), problem.expected());
        let q = device.upload("self-test", &queries)?;
        let mut out = device.unwritten("self-test", expected.len())?;
        let inputs = DecodeInputs { q: &q, q_stride: queries.len() / QUERIES, out: &mut out };
        self.launch(device, &cache, &tables, inputs)?;
        let got = device.download(&out, expected.len())?;
        let off: f64 = got.iter().zip(&expected).map(|(x, y)| (x.to_f64() - y).powi(2)).sum();
        let error = (off / expected.iter().map(|y| y * y).sum::<f64>()).sqrt();
        // A result that is not a number is no pass either.
        if error <= MAX_ERROR {
            Ok(error)
        } else {
            Err(DeviceError::SelfTest {
                kernel: self.kernel(),
                device: device.name().to_owned(),
                error,
                bound: MAX_ERROR,
            })
        }
    }
}
