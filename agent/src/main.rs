//! The wherry command line.

fn main() {}
