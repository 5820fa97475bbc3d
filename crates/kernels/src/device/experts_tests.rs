//! How many tiles choices fall into, and which shapes are refused.

use super::*;

fn shape(experts: usize, per_token: usize, [n_group, topk_group]: [u32; 2]) -> RouterShape {
    let routing = Routing { n_group, topk_group, norm_topk_prob: true, routed_scaling_factor: 1.0 };
    RouterShape { experts, per_token, routing }
}

/// However choices fall, no step has more tiles: each expert begins one, and what is left fills whole ones.
#[test]
fn tiles_are_enough_for_any_choice() {
    for (experts, per_token, rows) in [(64, 4, 1), (64, 4, 16), (64, 4, 17), (8, 2, 256), (256, 8, 300)] {
        let shape = shape(experts, per_token, [1, 1]);
        let ((choices, tiles), begun) = (shape.choices(rows), experts.min(rows * per_token));
        assert_eq!(tiles, begun + (choices - begun) / block_of(rows).rows);
        assert!(tiles <= Choices::most_tiles(&shape, 300), "{experts} {per_token} {rows}");
    }
}

#[test]
fn shapes_that_no_kernel_has_are_refused() {
    assert!(shape(64, 4, [1, 1]).check().is_ok());
    assert!(shape(256, 8, [8, 4]).check().is_ok());
    for refused in [
        shape(0, 1, [1, 1]),
        shape(2048, 4, [1, 1]),
        shape(64, 33, [1, 1]),
        shape(64, 4, [0, 0]),
        shape(64, 4, [64, 8]),
        shape(64, 4, [3, 1]),
        shape(64, 4, [8, 9]),
        shape(64, 9, [8, 1]),
    ] {
        let error = refused.check().unwrap_err().to_string();
        assert!(error.contains("at most 32 of 1024 in 32 equal groups"), "{error}");
    }
}
