//! Rows in tiles that registers hold.

/// Calls `$f::<$t.., R>(args, row)` for tiles of R rows; larger ones than `$max` are not even compiled.
macro_rules! for_tiles {
    ($rows:expr, $max:expr, ($($t:tt),*), $f:ident($($arg:expr),*)) => {{
        let mut row = 0;
        while row < $rows {
            // Evenly, because a tile of few rows costs nearly as much as a full one.
            let left = $rows - row;
            let left = left.div_ceil(left.div_ceil($max));
            match left {
                1 => $f::<$($t),*, 1>($($arg),*, row),
                2 => $f::<$($t),*, 2>($($arg),*, row),
                3 => $f::<$($t),*, 3>($($arg),*, row),
                5 if const { $max > 4 } => $f::<$($t),*, 5>($($arg),*, row),
                6 if const { $max > 5 } => $f::<$($t),*, 6>($($arg),*, row),
                _ => $f::<$($t),*, 4>($($arg),*, row),
            }
            row += left;
        }
    }};
}
