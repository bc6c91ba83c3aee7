//! The store on real parts: the cage as a process of its own, archives that GNU tar made, overlay mounts, several processes at
//! once, kills, a full disk, an image layout that skopeo wrote.
//!
//! Run as root, what needs an ordinary user is also run as `wherry-test`, when there is one.

// A test program throughout; only functions marked as tests are let off by themselves.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr
)]

mod archives;
mod caged;
mod crash;
mod golden;
mod stage;
mod stress;

use std::fs::File;
use std::path::Path;
use std::process::ExitCode;

use wherry_images::store::{Input, Store};
use wherry_images::unpack::{Encoding, Limits};
use wherry_images::{DiffId, cage};

use crate::stage::{is_root, ordinary, run, shared_dir};

macro_rules! tests {
    ($($test:path),* $(,)?) => { &[$((stringify!($test), $test)),*] };
}

const TESTS: &[(&str, fn())] = tests![
    archives::archives_that_gnu_tar_made_come_back_as_they_were,
    archives::compressed_layers_through_the_cage,
    archives::whiteouts_and_opaque_directories_hide_in_an_overlay,
    archives::an_image_that_skopeo_wrote,
    caged::errors_come_out_of_the_cage_as_they_are,
    caged::the_cage_keeps_what_is_in_it,
    caged::the_cage_has_limits,
    caged::the_cage_cannot_be_used_by_hand,
    crash::processes_that_want_the_same_layer_make_it_once,
    crash::a_kill_at_any_moment_leaves_nothing_or_the_whole_layer,
    crash::a_full_disk_leaves_nothing_half_made,
    stress::eight_processes_at_once_with_random_kills,
    golden::the_golden_state_directory_opens,
    all_of_it_as_an_ordinary_user,
];

/// `store [FILTER]...` runs the tests whose names contain a filter, all without one; `store cage JOB` is the cage of them all;
/// `store ingest STATE TAR DIFFID` is a process that unpacks a layer and may be killed; `store golden-sample STATE` makes a
/// sample of the current format.
fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        [cage::VERB, ..] => return cage::main(),
        ["ingest", state, tar, diff_id] => {
            let ingested = ingest(Path::new(state), Path::new(tar), diff_id);
            return ingested.map_or_else(
                |e| {
                    eprintln!("{e}");
                    ExitCode::FAILURE
                },
                |()| ExitCode::SUCCESS,
            );
        }
        ["confined", work, source] => {
            caged::confined(Path::new(work), Path::new(source));
            return ExitCode::SUCCESS;
        }
        ["stress-worker", state, layout, registry, worker, seed] => {
            let (worker, seed) = (worker.parse().unwrap(), seed.parse().unwrap());
            stress::worker(Path::new(state), Path::new(layout), registry, worker, seed);
            return ExitCode::SUCCESS;
        }
        ["golden-sample", state] => {
            golden::make_golden_sample(Path::new(state));
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let filters: Vec<&str> = words.into_iter().filter(|word| !word.starts_with('-')).collect();
    let mut failed = false;
    for (name, test) in TESTS {
        if filters.is_empty() || filters.iter().any(|filter| name.contains(filter)) {
            let begin = std::time::Instant::now();
            let passed = std::panic::catch_unwind(test).is_ok();
            println!(
                "{name} ... {} ({:.1?})",
                if passed { "ok" } else { "FAILED" },
                begin.elapsed()
            );
            failed |= !passed;
        }
    }
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn ingest(state: &Path, tar: &Path, diff_id: &str) -> Result<(), Box<dyn std::error::Error>> {
    let file = File::open(tar)?;
    let limits = Limits::for_blob(file.metadata()?.len());
    let store = Store::open(state)?;
    store.unpack_layer(
        &DiffId::parse(diff_id)?,
        Input::Blob(&file),
        &Encoding::Layer,
        &limits,
    )?;
    Ok(())
}

/// Everything above once more as an ordinary user, when this is root.
fn all_of_it_as_an_ordinary_user() {
    if !is_root() {
        return;
    }
    let Some(mut command) = ordinary("env") else {
        return;
    };
    let dir = shared_dir();
    let this = std::env::current_exe().unwrap();
    command
        .arg(format!("TMPDIR={}", dir.path().display()))
        .arg("HOME=/tmp")
        .arg(this);
    run(&mut command);
}
