//! Tokens chosen on the device, against the processor's choices from the same logits: equal to the bit.

use gqla_kernels::{
    device::{Device, DeviceError, Images, Program, SampleKernel},
    sample::{Choice, Cuts, Draw, Edit, NoToken, TokenMask, choose, choose_rows},
};

use crate::{case::Noise, on_stand_in};

const GREEDY: Cuts = Cuts { temperature: 0.0, min_p: 0.0, top_k: 0, top_p: 1.0 };

fn kernel_of(ordinal: usize, program: &Program) -> (Device, SampleKernel) {
    let device = Device::open(ordinal).unwrap();
    let kernel = SampleKernel::new(&Images::default().load(&device, program).unwrap()).unwrap();
    (device, kernel)
}

type Chosen = Vec<Result<Choice, NoToken>>;

/// What the device chooses, and that it leaves the logits as they were.
fn on_device(
    (device, kernel): &(Device, SampleKernel),
    logits: &[f32],
    vocab: usize,
    draws: &[Draw],
) -> Result<Chosen, DeviceError> {
    let mut rows = device.upload("logits", logits)?;
    let chosen = kernel.choose(device, &mut rows, vocab, draws)?;
    let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&device.download(&rows, logits.len())?), bits(logits), "the logits changed");
    Ok(chosen)
}

fn plain(row: usize, cuts: Cuts) -> Draw {
    Draw { cuts, ..Draw::greedy(row) }
}

/// Every cut alone and together, of few tokens, of some and of all.
fn cuts() -> Vec<Cuts> {
    let free = Cuts { temperature: 0.8, ..GREEDY };
    let mut all = vec![GREEDY, free, Cuts { temperature: 1e-40, ..free }, Cuts { temperature: 30.0, ..free }];
    all.extend([1e-6, 0.1, 0.7, 1.0].map(|min_p| Cuts { min_p, ..free }));
    all.extend([1, 2, 7, 50, 2900, 5000].map(|top_k| Cuts { top_k, ..free }));
    all.extend([0.0, 0.2, 0.6, 0.95, 0.999_999].map(|top_p| Cuts { top_p, temperature: 1.4, ..free }));
    all.extend([(0.02, 9, 0.8), (0.3, 400, 0.5), (0.001, 60, 0.99)].map(|(min_p, top_k, top_p)| Cuts {
        min_p,
        top_k,
        top_p,
        temperature: 1.2,
    }));
    all
}

/// The greatest number that still falls on a token, or the least that falls on the next: a unit of weight more or less
/// anywhere before would tell.
fn at_an_edge(draw: Draw, logits: &[f32], last: bool) -> Draw {
    let with = |random| Draw { random, ..draw.clone() };
    let id = |random| choose(logits, &with(random), &mut Vec::new()).unwrap().id;
    let (mut low, mut high) = (0, u64::MAX);
    while high - low > 1 {
        let mid = low + (high - low) / 2;
        if id(mid) == id(low) { low = mid } else { high = mid }
    }
    with(if last { low } else { high })
}

/// Draws of all cuts in turn, with and without edits, masks and log-probabilities.
fn draws(logits: &[f32], vocab: usize) -> Vec<Draw> {
    let (cuts, mut noise) = (cuts(), Noise::new(77));
    let mut number = || noise.take(1)[0].to_f32();
    let draw = |row: usize| {
        let random = (row as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut draw = Draw { random, ..plain(row, cuts[row % cuts.len()]) };
        if row % 3 == 1 {
            let ids = (0..vocab as u32).step_by(1 + row % 5);
            draw.edits = ids
                .map(|id| Edit { id, bias: number(), repetition: 1.0 + number().abs(), less: number() })
                .collect();
        }
        if row % 4 == 2 {
            let mut mask = TokenMask::all(vocab);
            (0..vocab).filter(|id| !(id * 7 + row).is_multiple_of(3)).for_each(|id| mask.forbid(id));
            draw.allowed = Some(mask);
        }
        draw.logprobs = [None, Some(0), Some(3), Some(20)][row / 2 % 4];
        if row % 5 < 3 {
            draw
        } else {
            at_an_edge(draw, &logits[row * vocab..][..vocab], row.is_multiple_of(2))
        }
    };
    (0..logits.len() / vocab).map(draw).collect()
}

/// Logits of which many are equal, hardly any, or nearly all.
fn logits(vocab: usize, rows: usize) -> Vec<f32> {
    let numbers = Noise::new(vocab as u64).take(vocab * rows);
    let logit = |(i, x): (usize, &half::bf16)| {
        let x = 3.0 * x.to_f32();
        match i / vocab % 3 {
            0 => (x * 2.0).round() / 2.0,
            1 => x + i as f32 * 1e-6,
            _ => (x / 20.0).round(),
        }
    };
    numbers.iter().enumerate().map(logit).collect()
}

#[test]
fn the_device_chooses_what_the_processor_does_whatever_shares_the_launch() {
    on_stand_in(
        "sample::the_device_chooses_what_the_processor_does_whatever_shares_the_launch",
        "own-first",
        1,
        || {
            let kernel = kernel_of(0, &Program::sample());
            for (vocab, rows) in [(1, 3), (33, 44), (512, 44), (3001, 44)] {
                let logits = logits(vocab, rows);
                let draws = draws(&logits, vocab);
                let together = on_device(&kernel, &logits, vocab, &draws).unwrap();
                for (draw, (ours, expected)) in
                    draws.iter().zip(together.iter().zip(choose_rows(&logits, vocab, &draws)))
                {
                    assert_eq!(*ours, expected, "{vocab}: {:?} of row {}", draw.cuts, draw.row);
                }
                let last = &draws[rows - 1..];
                assert_eq!(on_device(&kernel, &logits, vocab, last).unwrap(), together[rows - 1..], "alone");
                let ids: std::collections::BTreeSet<_> = together.iter().flatten().map(|c| c.id).collect();
                assert!(vocab == 1 || ids.len() > rows / 2, "{vocab}: the draws say little: {ids:?}");
            }
        },
    );
}

#[test]
fn a_broken_row_and_a_forbidden_one_are_told_apart_from_the_others() {
    on_stand_in(
        "sample::a_broken_row_and_a_forbidden_one_are_told_apart_from_the_others",
        "own-first",
        1,
        || {
            let kernel = kernel_of(0, &Program::sample());
            let (vocab, rows) = (40, 8);
            let mut logits = logits(vocab, rows);
            logits[..vocab].fill(f32::NEG_INFINITY);
            logits[vocab + 7] = f32::NAN;
            logits[2 * vocab] = -f32::NAN;
            logits[3 * vocab + 39] = f32::INFINITY;
            logits[4 * vocab + 5..][..9].fill(f32::NEG_INFINITY);
            let free = Cuts { temperature: 1.0, ..GREEDY };
            let mut draws: Vec<Draw> = (0..rows).map(|row| plain(row, free)).collect();
            let mut nothing = TokenMask::all(vocab);
            nothing.keep(&[]);
            draws[5].allowed = Some(nothing);
            draws[6].edits = (0..40).map(|id| Edit { bias: f32::NEG_INFINITY, ..Edit::new(id) }).collect();
            draws[7].edits = vec![Edit { bias: f32::INFINITY, ..Edit::new(3) }];
            let chosen = on_device(&kernel, &logits, vocab, &draws).unwrap();
            let (broken, nothing) = (Err(NoToken::NotFinite), Err(NoToken::NothingAllowed));
            let expected = [&broken, &broken, &broken, &broken, &nothing, &nothing, &broken];
            let but_4 = [0, 1, 2, 3, 5, 6, 7].map(|row| &chosen[row]);
            assert_eq!(but_4, expected);
            assert!(chosen[4].is_ok());
            assert_eq!(chosen, choose_rows(&logits, vocab, &draws));

            let refused = |draws: &[Draw]| on_device(&kernel, &logits, vocab, draws).unwrap_err().to_string();
            let of = |row| plain(row, free);
            assert!(refused(&[of(8)]).contains("rows [8] of 8"));
            assert!(refused(&[of(1), of(1)]).contains("each once"));
            let edits = vec![Edit::new(4), Edit::new(4)];
            assert!(refused(&[Draw { edits, ..of(0) }]).contains("ascending ids"));
            assert!(refused(&[Draw { edits: vec![Edit::new(40)], ..of(0) }]).contains("below 40"));
            let allowed = Some(TokenMask::all(65));
            assert!(refused(&[Draw { allowed, ..of(0) }]).contains("a mask of 3 words for 40 tokens"));
        },
    );
}

/// What is planted, and where.
const MUTANTS: [(&str, &str, &str); 8] = [
    ("the higher id among equals", "| (u32)~id; }", "| (u32)id; }"),
    ("sums and products fused", "__fadd_rn(__fmul_rn(sum, part), 1.f)", "__fmaf_rn(sum, part, 1.f)"),
    ("min-p keeps what is above it only", "return weight >= least;", "return weight > least;"),
    ("a number falls on the token before", "left < sum);", "left <= sum);"),
    ("ties by the highest ids", "((1u << lane) - 1)) < left_ties", "~((2u << lane) - 1)) < left_ties"),
    ("one token too many", "(wanted - above + each - 1) / each", "(wanted - above) / each + 1"),
    ("forbidden tokens counted from the other end", ">> id % 32 & 1)", ">> 31 - id % 32 & 1)"),
    ("edits stay", "logits[edits[i].id] = edits[i].was;", "edits[i].was = 0.f;"),
];

#[test]
fn planted_mistakes_are_noticed() {
    on_stand_in("sample::planted_mistakes_are_noticed", "own-first", MUTANTS.len(), || {
        let (vocab, rows) = (512, 44);
        let logits = logits(vocab, rows);
        let draws = draws(&logits, vocab);
        let expected = choose_rows(&logits, vocab, &draws);
        let whole = Program::sample();
        // A fault ends its device.
        for (ordinal, (name, from, to)) in MUTANTS.into_iter().enumerate() {
            assert_eq!(whole.text().matches(from).count(), 1, "{name}: its place is gone");
            let kernel = kernel_of(ordinal, &whole.clone().with_text(whole.text().replace(from, to)));
            let got = std::panic::catch_unwind(|| on_device(&kernel, &logits, vocab, &draws));
            let right = got.is_ok_and(|got| got.is_ok_and(|got| got == expected));
            assert!(!right, "{name}");
        }
    });
}
