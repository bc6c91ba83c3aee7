//! Several processes at once, kills, a full disk.

use std::fs;

use wherry_images::store::Store;

use crate::stage::{
    assert_same, big_layer, ingest_command, memory_dir, open, ordinary, picture, program, run, shared_dir,
};

pub(crate) fn processes_that_want_the_same_layer_make_it_once() {
    let dir = memory_dir();
    let (tar, diff_id, want) = big_layer(dir.path());
    let state = dir.path().join("state");
    let children: Vec<_> = (0..4)
        .map(|_| ingest_command(&state, &tar, &diff_id).spawn().unwrap())
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let store = open(&state);
    assert_same(
        &picture(&store.layer(&diff_id).unwrap().unwrap()),
        &want,
        "four processes",
    );
    let names: Vec<_> = fs::read_dir(state.join("layers"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names, [diff_id.hex().as_str()]);
}

pub(crate) fn a_kill_at_any_moment_leaves_nothing_or_the_whole_layer() {
    let dir = memory_dir();
    let (tar, diff_id, want) = big_layer(dir.path());
    let begin = std::time::Instant::now();
    run(&mut ingest_command(&dir.path().join("whole"), &tar, &diff_id));
    let step = begin.elapsed() / 16;
    let (mut early, mut late) = (0, 0);
    for round in 0..200_u32 {
        if early >= 20 && late >= 3 {
            break;
        }
        let state = dir.path().join(format!("state-{}", round % 4));
        let mut child = ingest_command(&state, &tar, &diff_id).spawn().unwrap();
        // Not a synchronisation but the spread of the kills, over the time that the whole takes and a little more.
        std::thread::sleep(step * (round % 32));
        child.kill().unwrap();
        child.wait().unwrap();
        // The child's cage dies with it, but not before the child is reaped: opening sweeps once the lock is free.
        let store = loop {
            match Store::open(&state) {
                Ok(store) => {
                    let left = fs::read_dir(state.join("layers"))
                        .unwrap()
                        .map(|e| e.unwrap().file_name());
                    if !left
                        .into_iter()
                        .any(|name| name.to_string_lossy().starts_with('.'))
                    {
                        break store;
                    }
                }
                Err(e) => panic!("round {round}: {e}"),
            }
        };
        match store.layer(&diff_id).unwrap() {
            None => early += 1,
            Some(tree) => {
                late += 1;
                assert_same(&picture(&tree), &want, &format!("round {round}"));
                fs::remove_dir_all(&state).unwrap();
            }
        }
    }
    eprintln!("killed before the layer was visible: {early}, after: {late}");
    assert!(early > 0 && late > 0, "the kills were not spread: {early} {late}");
    let state = dir.path().join("state-0");
    run(&mut ingest_command(&state, &tar, &diff_id));
    assert_same(
        &picture(&open(&state).layer(&diff_id).unwrap().unwrap()),
        &want,
        "after all",
    );
}

/// A file system of 6 MiB: everything fails with one clear error, nothing half-made stays, and with room again all is well.
pub(crate) fn a_full_disk_leaves_nothing_half_made() {
    let script = r#"
        set -e
        cd "$1"; cage=$2
        mkdir -p small
        mount -t tmpfs -o size=6m tmpfs small
        mkdir source; head -c 3000000 /dev/urandom > source/a; head -c 9000000 /dev/urandom > source/b
        tar -cf big.tar -C source a b; tar -cf fits.tar -C source a
        id() { echo sha256:$(sha256sum "$1" | cut -d' ' -f1); }
        if $cage ingest small/state big.tar $(id big.tar) 2> error; then echo "it fitted"; exit 1; fi
        cat error
        ls -A small/state/layers
        $cage ingest small/state fits.tar $(id fits.tar)
        ls -A small/state/layers | wc -l
        head -c 9000000 /dev/zero > small/fill 2> /dev/null || true
        if $cage ingest small/new big.tar $(id big.tar) 2> error; then echo "it fitted"; exit 1; fi
        cat error
        rm small/fill
        $cage ingest small/new fits.tar $(id fits.tar) 2> error || cat error
    "#;
    let dir = shared_dir();
    let mut command = match ordinary("unshare") {
        Some(command) => command,
        None => return,
    };
    let probe =
        ordinary("unshare").map(|mut c| c.args(["-Urm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).output());
    if !probe.is_some_and(|probe| probe.is_ok_and(|output| output.status.success())) {
        eprintln!("SKIPPED: no file system of its own for an ordinary user (unshare -Urm failed)");
        return;
    }
    let output = run(command
        .args(["-Urm", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(program()));
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = lines.lines().collect();
    assert!(lines.len() >= 3, "{lines:?}");
    assert!(lines[0].contains("no space left on the file system"), "{lines:?}");
    assert_eq!(lines[1], "1", "the failed layer left nothing: {lines:?}");
    assert!(lines[2].contains("no space left on the file system"), "{lines:?}");
    // Two layers of 3 MB do not fit into 6 MiB either: that, too, is said.
    assert!(
        lines.get(3).is_none_or(|line| line.contains("no space left")),
        "{lines:?}"
    );
}
