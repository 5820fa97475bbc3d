//! Attention in the processor's units for narrow numbers, and what lies beside numbers in pairs.

use super::{
    int8::{normal, normal_inputs, shape},
    *,
};

/// Plain attention, and absorb over latents: keys in columns, and in rows. Latents are whole vectors, or end in a part of one.
fn attentions(wanted: bool) -> Vec<Box<dyn Attention>> {
    let plain = [(9, 3, 64), (5, 1, 48), (16, 2, 128)].map(|(heads, groups, dim)| -> Box<dyn Attention> {
        Box::new(Plain::new(heads, groups, dim).with_bf16_products(wanted))
    });
    let latents = [(9, 3, [160, 32, 32, 64]), (20, 1, [512, 64, 64, 32]), (4, 2, [80, 24, 20, 16])].map(
        |(heads, groups, widths)| -> Box<dyn Attention> {
            let inputs = normal_inputs(shape(heads, groups, widths), 1, 1);
            let up = up_projection(&inputs);
            let absorb = Absorb::new(&inputs.shape, UpProjection(WeightRows::F32(&up))).unwrap();
            Box::new(absorb.with_bf16_products(wanted))
        },
    );
    plain.into_iter().chain(latents).collect()
}

/// Rows of attention in steps: a prompt, then token by token with `batch` equal sequences.
fn outputs(attention: &dyn Attention, format: CacheFormat, threads: usize, steps: &[usize]) -> Vec<f32> {
    let pool = Pool::new(Some(threads)).unwrap();
    let total: usize = steps.iter().sum();
    let width = attention.projected_width();
    let rows: Vec<f32> = normal(17, total * width, 1.0).iter().map(|x| *x as f32).collect();
    let blocks: Vec<u32> = (0..total.div_ceil(BLOCK_TOKENS) as u32).rev().collect();
    let mut cache = LayerCache::new(blocks.len(), attention.cached_token(), format);
    let (mut scratch, mut start, mut all) = (Scratch::default(), 0, Vec::new());
    for step in steps {
        let segment = Segment { first_row: 0, rows: *step, start, blocks: &blocks };
        let mut out = vec![f32::NAN; step * attention.output_width()];
        let rows = &rows[start * width..][..step * width];
        attention.forward(&pool, &mut cache, &[segment], rows, &mut scratch, &mut out);
        scratch.poison();
        all.extend(out);
        start += step;
    }
    all
}

#[test]
fn bf16_products_cost_what_rounding_does_and_no_bit_depends_on_the_division() {
    for (number, (plain, rounding)) in attentions(false).iter().zip(attentions(true)).enumerate() {
        let exact = outputs(plain.as_ref(), CacheFormat::Bf16, 2, &[300, 1, 1]);
        let rounded = outputs(rounding.as_ref(), CacheFormat::Bf16, 2, &[300, 1, 1]);
        let error = int8::relative_rms(&rounded, exact.iter().map(|x| f64::from(*x)));
        if crate::bf16_unit().is_some() {
            assert!(error > 1e-4 && error < 6e-3, "attention {number}: {error:e}");
        } else {
            assert_eq!(exact, rounded);
        }
        for (threads, steps) in [(1, &[302][..]), (3, &[1, 200, 101]), (2, &[256, 45, 1])] {
            let divided = outputs(rounding.as_ref(), CacheFormat::Bf16, threads, steps);
            assert!(divided == rounded, "attention {number}: {threads} {steps:?}");
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
    let cases = [(CacheFormat::F32, false), (CacheFormat::Bf16, false), (CacheFormat::Bf16, true)];
    for ((format, wanted), tokens) in
        cases.into_iter().flat_map(|case| [1, 2, 31, 63].map(|tokens| (case, tokens)))
    {
        for plain in attentions(wanted) {
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
    let inputs = normal_inputs(shape(2, 1, [96, 32, 32, 64]), 1, 1);
    let up = up_projection(&inputs);
    let absorb = || {
        let absorb = Absorb::new(&inputs.shape, UpProjection(WeightRows::F32(&up))).unwrap();
        Box::new(absorb.with_bf16_products(true)) as Box<dyn Attention>
    };
    let plain = || Box::new(Plain::new(2, 1, 64).with_bf16_products(true)) as Box<dyn Attention>;
    for (format, plain) in
        CacheFormat::ALL.into_iter().flat_map(|format| [(format, plain()), (format, absorb())])
    {
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
