//! Weights and choices by their definitions in float64.

use super::*;

#[test]
fn weights_are_powers_of_two_within_their_unit_and_f32() {
    assert_eq!(weight(0.0), ONE);
    assert_eq!((weight(-1.0), weight(-40.0)), (ONE / 2, 1));
    assert_eq!([f32::NEG_INFINITY, f32::NAN, -41.0, f32::MIN].map(weight), [0; 4]);
    for step in 0..400_000 {
        let power = -(step as f32) * 1e-4;
        let expected = f64::from(power).exp2() * ONE as f64;
        let error = (weight(power) as f64 - expected).abs();
        assert!(error <= 1.0 + 2.5e-7 * expected, "{power}: {error} of {expected}");
    }
}

#[test]
fn ranks_order_as_numbers_and_then_by_id() {
    let logits = [f32::NEG_INFINITY, -3.5, -0.0, 0.0, f32::MIN_POSITIVE, 2.0, f32::INFINITY];
    assert!(logits.windows(2).all(|pair| key(pair[0]) <= key(pair[1])));
    assert_eq!(key(-0.0), key(0.0));
    assert!(key(-f32::NAN) > key(f32::INFINITY) && key(f32::NAN) == key(-f32::NAN));
    assert_eq!(argmax(&[1.0, 3.0, 2.0, 3.0]), 1);
    assert_eq!(argmax(&[1.0, f32::NAN, f32::INFINITY]), 1);
    assert_eq!(argmax(&[-0.0, 0.0]), 0);
}

#[test]
fn masks_end_with_the_vocabulary() {
    for vocab in [1, 31, 32, 33, 64] {
        let mut mask = TokenMask::all(vocab);
        assert!((0..vocab).all(|id| mask.allows(id)) && !mask.allows(vocab) && !mask.allows(99));
        mask.keep(&[]);
        assert!(mask.is_empty());
    }
    let mut mask = TokenMask::all(40);
    mask.keep(&[0b1010, u32::MAX, u32::MAX]);
    mask.forbid(3);
    mask.forbid(40);
    assert_eq!(
        (0..99).filter(|id| mask.allows(*id)).collect::<Vec<_>>(),
        [1, 32, 33, 34, 35, 36, 37, 38, 39]
    );
}

#[test]
fn a_number_falls_on_tokens_by_ascending_id() {
    let cuts = Cuts { temperature: 1.0, min_p: 0.0, top_k: 3, top_p: 1.0 };
    let draw = |random| Draw { cuts, random, ..Draw::greedy(0) };
    // Weights 1/4, 1, 1/2 of 7/4; the fourth is cut off.
    let logits = [1.0f32, 4.0, 2.0, 0.5].map(f32::ln);
    let id =
        |random: f64| choose(&logits, &draw((random * 2f64.powi(64)) as u64), &mut Vec::new()).unwrap().id;
    assert_eq!([0.0, 0.14, 0.15, 0.71, 0.72, 0.999].map(id), [0, 0, 1, 1, 2, 2]);
}
