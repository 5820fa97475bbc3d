//! The gqla-server binary.

fn main() {}
