//! Tokens chosen from logits on the device: only ids and what is asked for of log-probabilities leave it.

use cudarc::driver::{CudaFunction, DeviceRepr, LaunchConfig, PushKernelArg};

use super::{Buffer, Device, DeviceError, Loaded, decode::int};
use crate::sample::{Choice, Draw, NoToken, Rules, TokenLogprob, logprob};

const NAME: &str = "sample";
/// Threads of the block that a draw has.
pub(super) const THREADS: u32 = 1024;
/// 4-byte words of the structs of `sample.cu`.
const DRAW_WORDS: usize = 14;
const EDIT_WORDS: usize = 5;
const CHOICE_WORDS: usize = 6;
const TOP_WORDS: usize = 2;
/// What its choices that are none are called.
const NOT_FINITE: i32 = -1;
const NOTHING_ALLOWED: i32 = -2;
/// Sums of so many weights fit 64 bits.
const MOST_TOKENS: usize = 1 << 23;

/// `Sample` of `sample.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    logits: u64,
    draws: u64,
    edits: u64,
    words: u64,
    choices: u64,
    tops: u64,
    vocab: i32,
}

// SAFETY: plain numbers, laid out as the kernel's struct.
unsafe impl DeviceRepr for Params {}

/// The loaded kernel.
pub struct SampleKernel(CudaFunction);

impl SampleKernel {
    /// Takes it from [`Program::sample`](super::Program::sample).
    ///
    /// # Errors
    /// When the program lacks it.
    pub fn new(loaded: &Loaded) -> Result<Self, DeviceError> {
        Ok(Self(loaded.kernel(NAME)?))
    }

    /// Chooses a token for each of `draws` from `[rows, vocab]` logits, as [`choose_rows`](crate::sample::choose_rows) does;
    /// the logits are what they were afterwards. Waits for all work.
    ///
    /// # Errors
    /// When a row is not there or is drawn from twice, edits are not by ascending ids of the vocabulary or a mask is not of
    /// it; when the device refuses or any work so far failed.
    pub fn choose(
        &self,
        device: &Device,
        logits: &mut Buffer<f32>,
        vocab: usize,
        draws: &[Draw],
    ) -> Result<Vec<Result<Choice, NoToken>>, DeviceError> {
        if draws.is_empty() {
            return Ok(Vec::new());
        }
        check(logits.len(), vocab, draws)?;
        let packed = Packed::of(vocab, draws)?;
        let words = device.upload("how tokens are drawn", &packed.words)?;
        let answers: Buffer<i32> = device.unwritten("drawn tokens", packed.answers())?;
        let word = |buffer: &Buffer<i32>, at: usize| buffer.address() + (at * size_of::<i32>()) as u64;
        let params = Params {
            logits: logits.address(),
            draws: words.address(),
            edits: word(&words, packed.edits),
            words: word(&words, packed.masks),
            choices: answers.address(),
            tops: word(&answers, CHOICE_WORDS * draws.len()),
            vocab: int(NAME, "vocabulary", vocab)?,
        };
        let config = LaunchConfig {
            grid_dim: (int(NAME, "draws", draws.len())?.cast_unsigned(), 1, 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        device.bind()?;
        // SAFETY: the kernel takes these parameters, and `check` held rows, ids and masks to what it touches.
        unsafe { device.stream.launch_builder(&self.0).arg(&params).launch(config) }
            .map_err(DeviceError::driver(format!("launching `{NAME}`")))?;
        let answers = device.download(&answers, packed.answers())?;
        let (choices, tops) = answers.split_at(CHOICE_WORDS * draws.len());
        let choices = choices.chunks_exact(CHOICE_WORDS).zip(packed.tops.iter().zip(draws));
        Ok(choices
            .map(|(words, (top, draw))| answer(words, &tops[TOP_WORDS * top.0..][..TOP_WORDS * top.1], draw))
            .collect())
    }
}

fn check(room: usize, vocab: usize, draws: &[Draw]) -> Result<(), DeviceError> {
    let wrong = |reason: String| Err(DeviceError::arguments(NAME, reason));
    if vocab == 0 || vocab > MOST_TOKENS {
        return wrong(format!("a vocabulary of {vocab}, expected 1 to {MOST_TOKENS}"));
    }
    let mut rows: Vec<usize> = draws.iter().map(|draw| draw.row).collect();
    rows.sort_unstable();
    let twice = rows.windows(2).any(|pair| pair[0] == pair[1]);
    if twice || rows.last().is_some_and(|last| *last >= room / vocab) {
        return wrong(format!("rows {rows:?} of {}, expected each once", room / vocab));
    }
    for draw in draws {
        let ascend = draw.edits.windows(2).all(|pair| pair[0].id < pair[1].id);
        if !ascend || draw.edits.last().is_some_and(|edit| edit.id as usize >= vocab) {
            return wrong(format!("edits of row {} are not by ascending ids below {vocab}", draw.row));
        }
        let words = draw.allowed.as_ref().map_or(vocab.div_ceil(32), |mask| mask.words().len());
        if words != vocab.div_ceil(32) {
            return wrong(format!("a mask of {words} words for {vocab} tokens of row {}", draw.row));
        }
    }
    Ok(())
}

/// Draws as the kernel reads them: structs, then edits, then masks.
struct Packed {
    words: Vec<i32>,
    edits: usize,
    masks: usize,
    /// Where each draw's most likely tokens are among all, and how many.
    tops: Vec<(usize, usize)>,
}

impl Packed {
    fn of(vocab: usize, draws: &[Draw]) -> Result<Self, DeviceError> {
        let int = |what: &str, x: usize| int(NAME, what, x);
        let edit_count = draws.iter().map(|draw| draw.edits.len()).sum::<usize>();
        let edits = DRAW_WORDS * draws.len();
        let masks = edits + EDIT_WORDS * edit_count;
        let (mut words, mut rest, mut bits) = (Vec::new(), Vec::new(), Vec::new());
        let (mut tops, mut top_count) = (Vec::with_capacity(draws.len()), 0);
        for draw in draws {
            let rules = Rules::of(&draw.cuts);
            let top = draw.logprobs.map(|top| (top as usize).min(vocab));
            for wide in [rules.least, rules.share, draw.random] {
                words.extend([wide as i32, (wide >> 32) as i32]);
            }
            let mask = if draw.allowed.is_some() { int("mask", bits.len())? } else { -1 };
            words.extend([
                rules.scale.to_bits().cast_signed(),
                rules.most.cast_signed(),
                int("row", draw.row)?,
                int("edits", rest.len() / EDIT_WORDS)?,
                int("edits", draw.edits.len())?,
                mask,
                int("most likely tokens", top_count)?,
                top.map_or(Ok(-1), |top| int("most likely tokens", top))?,
            ]);
            for edit in &draw.edits {
                let [bias, repetition, less] =
                    [edit.bias, edit.repetition, edit.less].map(|x| x.to_bits().cast_signed());
                rest.extend([edit.id.cast_signed(), bias, repetition, less, 0]);
            }
            bits.extend(draw.allowed.iter().flat_map(|mask| mask.words()).map(|word| word.cast_signed()));
            tops.push((top_count, top.unwrap_or(0)));
            top_count += top.unwrap_or(0);
        }
        words.append(&mut rest);
        words.append(&mut bits);
        Ok(Self { words, edits, masks, tops })
    }

    /// Words that the kernel answers.
    fn answers(&self) -> usize {
        let tops = self.tops.last().map_or(0, |(first, count)| first + count);
        CHOICE_WORDS * self.tops.len() + TOP_WORDS * tops
    }
}

fn answer(words: &[i32], tops: &[i32], draw: &Draw) -> Result<Choice, NoToken> {
    let word = |at: usize| words[at].cast_unsigned();
    let total = u64::from(word(1)) << 32 | u64::from(word(0));
    let (logit, max) = (f32::from_bits(word(2)), f32::from_bits(word(3)));
    let id = match words[4] {
        NOTHING_ALLOWED => return Err(NoToken::NothingAllowed),
        NOT_FINITE => return Err(NoToken::NotFinite),
        id => id.cast_unsigned(),
    };
    let of = |logit: f32| logprob(logit, max, total);
    let top = |pair: &[i32]| (pair[0].cast_unsigned(), of(f32::from_bits(pair[1].cast_unsigned())));
    let asked = || TokenLogprob { logprob: of(logit), top: tops.chunks_exact(TOP_WORDS).map(top).collect() };
    Ok(Choice { id, logprob: draw.logprobs.map(|_| asked()) })
}
