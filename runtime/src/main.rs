//! The runtime command line.

fn main() {}
