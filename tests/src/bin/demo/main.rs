//! `make demo`: one voyage with real bytes. A sample image is published, pulled by an ordinary user's agent over a
//! link that cuts every connection after 256 KB, run without root, updated by a delta, and kept alive through the
//! agent's death and a dead link; a Kubernetes API hears of it. Each claim is checked; one that fails is named, and
//! the exit code says so.

mod ledger;
mod voyage;

use std::process::ExitCode;

fn main() -> ExitCode {
    wherry_tests::kernel::note_interrupts();
    match voyage::sail() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            println!("\n{failed} of the claims do not hold");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("\ndemo: {error}");
            ExitCode::FAILURE
        }
    }
}
