//! cargo xtask: demo, test, e2e, bench, gen and lint.

fn main() {}
