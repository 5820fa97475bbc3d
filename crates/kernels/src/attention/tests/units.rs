//! Attention in the processor's units for narrow numbers, and what lies beside numbers in pairs.

use super::{int8::normal, *};

/// Rows of plain attention in steps: a prompt, then token by token with `batch` equal sequences.
fn outputs(plain: &Plain, format: CacheFormat, threads: usize, steps: &[usize]) -> Vec<f32> {
    let pool = Pool::new(Some(threads)).unwrap();
    let total: usize = steps.iter().sum();
    let width = plain.projected_width();
    let rows: Vec<f32> = normal(17, total * width, 1.0).iter().map(|x| *x as f32).collect();
    let blocks: Vec<u32> = (0..total.div_ceil(BLOCK_TOKENS) as u32).rev().collect();
    let mut cache = LayerCache::new(blocks.len(), plain.cached_token(), format);
    let (mut scratch, mut start, mut all) = (Scratch::default(), 0, Vec::new());
    for step in steps {
        let segment = Segment { first_row: 0, rows: *step, start, blocks: &blocks };
        let mut out = vec![f32::NAN; step * plain.output_width()];
        let rows = &rows[start * width..][..step * width];
        plain.forward(&pool, &mut cache, &[segment], rows, &mut scratch, &mut out);
        scratch.poison();
        all.extend(out);
        start += step;
    }
    all
}

#[test]
fn bf16_products_cost_what_rounding_does_and_no_bit_depends_on_the_division() {
    for (heads, groups, dim) in [(9, 3, 64), (5, 1, 48), (16, 2, 128)] {
        let exact = outputs(&Plain::new(heads, groups, dim), CacheFormat::Bf16, 2, &[300, 1, 1]);
        let plain = Plain::new(heads, groups, dim).with_bf16_products(true);
        let rounded = outputs(&plain, CacheFormat::Bf16, 2, &[300, 1, 1]);
        let error = int8::relative_rms(&rounded, exact.iter().map(|x| f64::from(*x)));
        if crate::bf16_unit().is_some() {
            assert!(error > 1e-4 && error < 6e-3, "{heads} heads of {groups} groups: {error:e}");
        } else {
            assert_eq!(exact, rounded);
        }
        for (threads, steps) in [(1, &[302][..]), (3, &[1, 200, 101]), (2, &[256, 45, 1])] {
            assert!(outputs(&plain, CacheFormat::Bf16, threads, steps) == rounded, "{threads} {steps:?}");
        }
    }
}

/// Widths of no whole vectors take f32 in every format.
#[test]
fn odd_widths_ask_no_unit() {
    let plain = |wanted| Plain::new(6, 2, 37).with_bf16_products(wanted);
    let [exact, asked] = [false, true].map(|wanted| outputs(&plain(wanted), CacheFormat::Bf16, 2, &[130]));
    assert_eq!(exact, asked);
}

/// A block that another sequence left full of what is no number.
#[test]
fn what_another_sequence_left_beside_the_last_token_is_not_read() {
    let pool = Pool::new(Some(2)).unwrap();
    for (format, wanted) in [(CacheFormat::F32, false), (CacheFormat::Bf16, false), (CacheFormat::Bf16, true)]
    {
        for tokens in [1, 2, 31, 63] {
            let plain = Plain::new(9, 3, 64).with_bf16_products(wanted);
            let rows: Vec<f32> =
                normal(3, tokens * plain.projected_width(), 1.0).iter().map(|x| *x as f32).collect();
            let segment = Segment { first_row: 0, rows: tokens, start: 0, blocks: &[0] };
            let run = |left: f32| {
                let mut cache = LayerCache::new(1, plain.cached_token(), format);
                cache.fill(std::iter::repeat(left));
                let mut out = vec![f32::NAN; tokens * plain.output_width()];
                plain.forward(&pool, &mut cache, &[segment], &rows, &mut Scratch::default(), &mut out);
                out
            };
            let clean = run(0.0);
            assert!(clean.iter().all(|x| x.is_finite()) && clean.iter().any(|x| *x != 0.0));
            for left in [f32::NAN, f32::INFINITY] {
                assert!(run(left) == clean, "{format}, {tokens} tokens beside {left}");
            }
        }
    }
}

/// A number that is none in a query shows in what it attends to, in every format.
#[test]
fn a_query_that_is_no_number_is_not_hidden() {
    let pool = Pool::new(Some(1)).unwrap();
    for format in CacheFormat::ALL {
        let plain = Plain::new(2, 1, 64).with_bf16_products(true);
        let mut rows: Vec<f32> =
            normal(5, 2 * plain.projected_width(), 1.0).iter().map(|x| *x as f32).collect();
        rows[plain.projected_width() + 3] = f32::NAN;
        let segment = Segment { first_row: 0, rows: 2, start: 0, blocks: &[0] };
        let mut cache = LayerCache::new(1, plain.cached_token(), format);
        let mut out = vec![0.0; 2 * plain.output_width()];
        plain.forward(&pool, &mut cache, &[segment], &rows, &mut Scratch::default(), &mut out);
        let (first, second) = out.split_at(plain.output_width());
        assert!(first.iter().all(|x| x.is_finite()), "{format}");
        let (broken, other) = second.split_at(64);
        assert!(broken.iter().all(|x| x.is_nan()) && other.iter().all(|x| x.is_finite()), "{format}");
    }
}
