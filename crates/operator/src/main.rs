//! The gqla-operator binary.

fn main() {}
