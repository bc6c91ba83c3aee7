//! The `wherry` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    // Before anything else: what handles foreign bytes starts with nothing of ours.
    if std::env::args_os().nth(1).is_some_and(|word| word == "cage") {
        return wherry_images::cage::main();
    }
    wherry::cli::main(&mut words)
}
