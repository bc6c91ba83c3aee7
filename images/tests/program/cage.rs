//! The cage as a program of its own, for tests that run outside `wherry`.

fn main() -> std::process::ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some(wherry_images::cage::VERB) => wherry_images::cage::main(),
        _ => std::process::ExitCode::FAILURE,
    }
}
