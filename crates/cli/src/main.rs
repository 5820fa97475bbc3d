//! gqla: plan, roofline, convert, eval and logits on the command line.

fn main() {}
