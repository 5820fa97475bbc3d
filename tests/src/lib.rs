//! What the cross-crate tests share: where the fixtures are.
