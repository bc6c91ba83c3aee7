//! The store on real parts: the cage as a process of its own, archives that GNU tar made, overlay mounts, several processes at
//! once, kills, a full disk, an image layout that skopeo wrote.
//!
//! Run as root, what needs an ordinary user is also run as `wherry-test`, when there is one.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};

use wherry_images::cage::{self, Cage};
use wherry_images::layout::Layout;
use wherry_images::store::{Error, Input, LayerInfo, Store};
use wherry_images::unpack::{Encoding, Limits};
use wherry_images::{Class, DiffId, Digest, Platform, Reference, manifest};

const TESTS: &[(&str, fn())] = &[
    (
        "archives_that_gnu_tar_made_come_back_as_they_were",
        archives_that_gnu_tar_made_come_back_as_they_were,
    ),
    (
        "compressed_layers_through_the_cage",
        compressed_layers_through_the_cage,
    ),
    (
        "errors_come_out_of_the_cage_as_they_are",
        errors_come_out_of_the_cage_as_they_are,
    ),
    ("the_cage_keeps_what_is_in_it", the_cage_keeps_what_is_in_it),
    ("the_cage_cannot_be_used_by_hand", the_cage_cannot_be_used_by_hand),
    (
        "whiteouts_and_opaque_directories_hide_in_an_overlay",
        whiteouts_and_opaque_directories_hide_in_an_overlay,
    ),
    (
        "processes_that_want_the_same_layer_make_it_once",
        processes_that_want_the_same_layer_make_it_once,
    ),
    (
        "a_kill_at_any_moment_leaves_nothing_or_the_whole_layer",
        a_kill_at_any_moment_leaves_nothing_or_the_whole_layer,
    ),
    (
        "a_full_disk_leaves_nothing_half_made",
        a_full_disk_leaves_nothing_half_made,
    ),
    ("an_image_that_skopeo_wrote", an_image_that_skopeo_wrote),
    (
        "the_golden_state_directory_opens",
        the_golden_state_directory_opens,
    ),
    ("all_of_it_as_an_ordinary_user", all_of_it_as_an_ordinary_user),
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
            confined(Path::new(work), Path::new(source));
            return ExitCode::SUCCESS;
        }
        ["golden-sample", state] => {
            make_golden_sample(Path::new(state));
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

/// This program.
fn program() -> PathBuf {
    std::env::current_exe().unwrap()
}

fn open(root: &Path) -> Store {
    Store::open(root).unwrap()
}

fn unpack(store: &Store, tar: &Path) -> Result<LayerInfo, Error> {
    let bytes = fs::read(tar).unwrap();
    let limits = Limits::for_blob(bytes.len() as u64);
    store.unpack_layer(
        &DiffId::of(&bytes),
        Input::Blob(&File::open(tar).unwrap()),
        &Encoding::Layer,
        &limits,
    )
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn have(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok()
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// A command as an ordinary user: this one, or `wherry-test` when this is root.
fn ordinary(program: &str) -> Option<Command> {
    if !is_root() {
        return Some(Command::new(program));
    }
    let known = Command::new("id")
        .arg("wherry-test")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !known.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED for an ordinary user: this is root and there is no user wherry-test");
        return None;
    }
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid=wherry-test",
        "--regid=wherry-test",
        "--clear-groups",
        "--",
        program,
    ]);
    Some(command)
}

/// A directory that anybody may enter and write to, so that an ordinary user can work in it.
fn shared_dir() -> tempfile::TempDir {
    let dir = tempfile::Builder::new()
        .prefix("wherry-store-")
        .tempdir_in("/tmp")
        .unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    dir
}

/// A directory in memory, where there is one: kills cannot tell the difference, and syncing a whole disk that others write to
/// would take most of the time.
fn memory_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

/// What a tree looks like: path, kind and mode, size, time, link target, content; hard links by their first name.
fn picture(tree: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut first = std::collections::BTreeMap::new();
    let mut todo = vec![tree.to_owned()];
    while let Some(dir) = todo.pop() {
        let mut entries: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            let meta = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(tree).unwrap().to_owned();
            let content = match () {
                () if meta.is_symlink() => format!("{:?}", fs::read_link(&path).unwrap()),
                () if meta.is_file() => DiffId::of(&fs::read(&path).unwrap()).hex(),
                () => String::new(),
            };
            let link = match meta.nlink() > 1 && !meta.is_dir() {
                true => format!("{:?}", first.entry(meta.ino()).or_insert_with(|| name.clone())),
                false => String::new(),
            };
            lines.push(format!(
                "{name:?} {:o} {} {content} {link}",
                meta.mode(),
                meta.mtime()
            ));
            if meta.is_dir() {
                todo.push(path);
            }
        }
    }
    lines.sort();
    lines
}

/// Fails with the lines that differ.
#[track_caller]
fn assert_same(got: &[String], want: &[String], what: &str) {
    let lacking: Vec<_> = want.iter().filter(|line| !got.contains(line)).take(5).collect();
    let extra: Vec<_> = got.iter().filter(|line| !want.contains(line)).take(5).collect();
    assert!(
        lacking.is_empty() && extra.is_empty(),
        "{what}: lacking {lacking:#?}, instead {extra:#?}"
    );
}

/// A tree with a bit of everything that an ordinary user can make.
fn make_tree(dir: &Path, files: usize) {
    use std::os::unix::ffi::OsStrExt;
    let long = dir
        .join("long".repeat(40))
        .join("l".repeat(200))
        .join("x".repeat(255));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("end"), "of the path").unwrap();
    fs::write(dir.join(std::ffi::OsStr::from_bytes(b"not \xff utf-8\n")), "odd").unwrap();
    fs::write(dir.join("empty"), "").unwrap();
    fs::write(dir.join("hard"), "link").unwrap();
    fs::hard_link(dir.join("hard"), dir.join("harder")).unwrap();
    fs::create_dir(dir.join("links")).unwrap();
    std::os::unix::fs::symlink("../hard", dir.join("links/up")).unwrap();
    std::os::unix::fs::symlink("/nowhere/at/all", dir.join("links/abs")).unwrap();
    std::os::unix::fs::symlink("t".repeat(300), dir.join("links/long")).unwrap();
    fs::write(dir.join("suid"), "#!").unwrap();
    fs::set_permissions(dir.join("suid"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::create_dir(dir.join("sticky")).unwrap();
    fs::set_permissions(dir.join("sticky"), fs::Permissions::from_mode(0o1777)).unwrap();
    let sparse = File::create(dir.join("sparse")).unwrap();
    sparse.set_len(8 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", 5 << 20).unwrap();
    for i in 0..files {
        let sub = dir.join(format!("many/{}", i % 50));
        fs::create_dir_all(&sub).unwrap();
        fs::write(sub.join(i.to_string()), format!("file {i} ").repeat(i % 200)).unwrap();
    }
}

fn archives_that_gnu_tar_made_come_back_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    make_tree(&source, 300);
    let want = picture(&source);
    let store = open(&dir.path().join("state"));
    let names: Vec<_> = fs::read_dir(&source)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    for (i, options) in [
        &["--format=gnu"][..],
        &["--format=gnu", "--sparse"],
        &["--format=posix"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
    ]
    .into_iter()
    .enumerate()
    {
        let tar = dir.path().join(format!("{i}.tar"));
        // Names without "./" in front: the second archive of the same tree must not be the first one.
        let mut command = Command::new("tar");
        run(command
            .args(options)
            .arg("-cf")
            .arg(&tar)
            .arg("-C")
            .arg(&source)
            .arg("--")
            .args(&names));
        let info = unpack(&store, &tar).unwrap();
        let tree = store.layer(&info.diff_id).unwrap().unwrap();
        // GNU's form has whole seconds, and that is what the picture shows.
        assert_same(&picture(&tree), &want, &format!("{options:?}"));
        let blocks = fs::metadata(tree.join("sparse")).unwrap().blocks();
        if options.contains(&"--sparse") {
            assert!(blocks < 1000, "{options:?}: {blocks} blocks of a sparse file");
        }
    }
}

fn compressed_layers_through_the_cage() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    make_tree(&source, 100);
    let tar = dir.path().join("l.tar");
    run(Command::new("tar")
        .arg("-cf")
        .arg(&tar)
        .arg("-C")
        .arg(&source)
        .arg("."));
    let bytes = fs::read(&tar).unwrap();
    let diff_id = DiffId::of(&bytes);
    for (program, suffix) in [("gzip", "gz"), ("zstd", "zst")] {
        if !have(program) {
            eprintln!("SKIPPED: {program} is not installed");
            continue;
        }
        let packed = dir.path().join(format!("l.{suffix}"));
        let output = run(Command::new(program).arg("-c").arg(&tar));
        fs::write(&packed, output.stdout).unwrap();
        let store = open(&dir.path().join(suffix));
        let mut stream: Box<dyn Read> = Box::new(File::open(&packed).unwrap());
        let limits = Limits::for_blob(fs::metadata(&packed).unwrap().len());
        let info = store
            .unpack_layer(&diff_id, Input::Stream(&mut stream), &Encoding::Layer, &limits)
            .unwrap();
        assert_eq!(info.tar_size, bytes.len() as u64);
        let tree = store.layer(&diff_id).unwrap().unwrap();
        assert_same(&picture(&tree), &picture(&source), suffix);
    }
}

fn errors_come_out_of_the_cage_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("state"));
    let hostile = dir.path().join("hostile.tar");
    fs::write(dir.path().join("f"), "x").unwrap();
    run(Command::new("tar")
        .args(["-P", "-cf"])
        .arg(&hostile)
        .arg("-C")
        .arg(dir.path())
        .args(["--transform", "s,^,../,", "f"]));
    let error = unpack(&store, &hostile).unwrap_err();
    let diff_id = DiffId::of(&fs::read(&hostile).unwrap());
    assert_eq!(
        error.to_string(),
        format!("layer {diff_id}: entry \"../f\": its name leads outside")
    );
    assert_eq!(error.class(), Class::Permanent);
    // An input that breaks off: the cage is killed, nothing stays.
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::ConnectionReset.into())
        }
    }
    let limits = Limits::for_blob(0);
    let error = store
        .unpack_layer(&diff_id, Input::Stream(&mut Broken), &Encoding::Layer, &limits)
        .unwrap_err();
    assert_eq!(error.class(), Class::Transient, "{error}");
    assert_eq!(fs::read_dir(store.root().join("layers")).unwrap().count(), 0);
    // A program that is no cage.
    let store = store.with_cage(Cage::program("/bin/false".into()));
    let error = unpack(&store, &hostile).unwrap_err();
    assert!(
        error.to_string().contains("the cage ended without a report"),
        "{error}"
    );
    let store = store.with_cage(Cage::program("/nothing/there".into()));
    let error = unpack(&store, &hostile).unwrap_err();
    assert!(error.to_string().contains("start the cage"), "{error}");
    assert_eq!(fs::read_dir(store.root().join("layers")).unwrap().count(), 0);
}

/// What a parser that went over to the enemy could still do.
fn the_cage_keeps_what_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["work", "source", "other"] {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("f"), name).unwrap();
    }
    let output = run(Command::new(program())
        .arg("confined")
        .arg(dir.path().join("work"))
        .arg(dir.path().join("source"))
        .env("OTHER", dir.path().join("other")));
    let report = String::from_utf8(output.stdout).unwrap();
    if report.contains("missing: landlock") {
        eprintln!("SKIPPED in part: this kernel has no Landlock");
        return;
    }
    let want = "missing: none
write in work: ok
link between directories of work: ok
read in source: ok
write in source: denied
read elsewhere: denied
write elsewhere: denied
list the root: denied
chmod elsewhere: denied
tcp socket: denied
unix socket: denied
start a program: denied
start a thread: denied
signal the parent: denied
";
    assert_eq!(report, want);
    assert_eq!(fs::read(dir.path().join("other/f")).unwrap(), b"other");
}

fn confined(work: &Path, source: &Path) {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    let other = PathBuf::from(std::env::var_os("OTHER").unwrap());
    let parent = rustix::process::getppid().unwrap();
    let dir = File::open(work).unwrap();
    let missing = cage::confine(dir.as_fd(), &[source.to_owned()]).unwrap();
    println!(
        "missing: {}",
        if missing.is_empty() {
            "none".into()
        } else {
            missing.join(", ")
        }
    );
    fs::create_dir(work.join("d")).unwrap();
    let deeds: [(&str, bool); 13] = [
        ("write in work", fs::write(work.join("new"), "x").is_ok()),
        (
            "link between directories of work",
            fs::hard_link(work.join("new"), work.join("d/new")).is_ok(),
        ),
        ("read in source", fs::read(source.join("f")).is_ok()),
        ("write in source", fs::write(source.join("f"), "x").is_ok()),
        ("read elsewhere", fs::read(other.join("f")).is_ok()),
        ("write elsewhere", fs::write(other.join("new"), "x").is_ok()),
        ("list the root", fs::read_dir("/").is_ok()),
        (
            "chmod elsewhere",
            fs::set_permissions(other.join("f"), fs::Permissions::from_mode(0o777)).is_ok(),
        ),
        ("tcp socket", std::net::TcpListener::bind("127.0.0.1:0").is_ok()),
        ("unix socket", UnixStream::pair().is_ok()),
        ("start a program", Command::new("/bin/true").spawn().is_ok()),
        ("start a thread", std::thread::Builder::new().spawn(|| ()).is_ok()),
        (
            "signal the parent",
            rustix::process::test_kill_process(parent).is_ok(),
        ),
    ];
    for (deed, done) in deeds {
        println!("{deed}: {}", if done { "ok" } else { "denied" });
    }
}

fn the_cage_cannot_be_used_by_hand() {
    let output = Command::new(program())
        .args([cage::VERB, "{}"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let report = String::from_utf8(output.stdout).unwrap();
    assert!(report.contains("started by the program itself"), "{report}");
}

/// Overlay in a user namespace, as an ordinary user: what the lower layer has and the upper one hides is hidden.
fn whiteouts_and_opaque_directories_hide_in_an_overlay() {
    let Some(mut ingest) = ordinary("sh") else { return };
    if !have("unshare") {
        eprintln!("SKIPPED: unshare is not installed");
        return;
    }
    let dir = shared_dir();
    let at = dir.path();
    let script = r#"
        set -e
        cd "$1"; cage=$2
        mkdir -p a/d a/o a/r b/d b/o b/r/new
        echo x > a/d/gone; echo x > a/d/stays; echo x > a/o/old; echo x > a/r/old
        : > b/d/.wh.gone; : > b/o/.wh..wh..opq; echo x > b/o/new; : > b/.wh.r; 
        tar -cf a.tar -C a d o r
        tar -cf b.tar -C b .wh.r d o r
        for l in a b; do $cage ingest "$PWD/state" $l.tar sha256:$(sha256sum $l.tar | cut -d' ' -f1); done
        tree() { echo "$PWD/state/layers/$(sha256sum $1.tar | cut -d' ' -f1)/tree"; }
        mkdir m u w
        unshare -Urm sh -ec "
            mount -t overlay overlay -o userxattr,lowerdir=$(tree b):$(tree a),upperdir=u,workdir=w m
            find m -mindepth 1 -printf '%P\n' | sort"
    "#;
    let output = run(ingest.args(["-c", script, "sh"]).arg(at).arg(program()));
    let seen = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        seen.lines().collect::<Vec<_>>(),
        ["d", "d/stays", "o", "o/new", "r", "r/new"]
    );
    clean_as_owner(at);
}

/// Root's temporary directory may hold an ordinary user's files, which root can remove; nothing to do otherwise.
fn clean_as_owner(dir: &Path) {
    for name in ["state", "m", "u", "w"] {
        let _ = fs::remove_dir_all(dir.join(name));
    }
}

fn ingest_command(state: &Path, tar: &Path, diff_id: &DiffId) -> Command {
    let mut command = Command::new(program());
    command
        .arg("ingest")
        .arg(state)
        .arg(tar)
        .arg(diff_id.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// A tar of a few thousand files, its diffID, and what it unpacks to.
fn big_layer(dir: &Path) -> (PathBuf, DiffId, Vec<String>) {
    let source = dir.join("source");
    fs::create_dir(&source).unwrap();
    make_tree(&source, 1000);
    let tar = dir.join("big.tar");
    run(Command::new("tar")
        .arg("-cf")
        .arg(&tar)
        .arg("-C")
        .arg(&source)
        .arg("."));
    let diff_id = DiffId::of(&fs::read(&tar).unwrap());
    (tar, diff_id, picture(&source))
}

fn processes_that_want_the_same_layer_make_it_once() {
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

fn a_kill_at_any_moment_leaves_nothing_or_the_whole_layer() {
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
fn a_full_disk_leaves_nothing_half_made() {
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

fn an_image_that_skopeo_wrote() {
    if !have("skopeo") {
        eprintln!("SKIPPED: skopeo is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    make_tree(&source, 20);
    let layer = dir.path().join("layer.tar");
    run(Command::new("tar")
        .arg("-cf")
        .arg(&layer)
        .arg("-C")
        .arg(&source)
        .arg("."));
    // What `docker save` writes, made by hand; skopeo turns it into a layout with a compressed layer.
    let diff_id = DiffId::of(&fs::read(&layer).unwrap());
    let platform = Platform::host();
    let config = serde_json::json!({
        "architecture": platform.architecture, "os": "linux", "config": {"Cmd": ["/hello"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let manifest = r#"[{"Config":"config.json","RepoTags":["iris:v1"],"Layers":["layer.tar"]}]"#;
    fs::write(dir.path().join("manifest.json"), manifest).unwrap();
    run(Command::new("tar").current_dir(dir.path()).args([
        "-cf",
        "image.tar",
        "manifest.json",
        "config.json",
        "layer.tar",
    ]));
    for tag in ["v1", "v2"] {
        run(Command::new("skopeo").current_dir(dir.path()).args([
            "--insecure-policy",
            "copy",
            "-q",
            "docker-archive:image.tar",
            &format!("oci:layout:{tag}"),
        ]));
    }
    let store = open(&dir.path().join("state"));
    let layout = Layout::open(&dir.path().join("layout")).unwrap();
    let reference: Reference = "iris:v1".parse().unwrap();
    let image = store
        .import_layout(&layout, Some("v1"), &platform, Some(&reference), true)
        .unwrap();
    assert_eq!(image.config.config.cmd, ["/hello"]);
    assert_eq!(store.resolve("iris:v1").unwrap(), image);
    assert_same(
        &picture(&store.layer(&diff_id).unwrap().unwrap()),
        &picture(&source),
        "skopeo",
    );
    assert!(store.has_blob(&image.manifest.layers[0].digest), "kept");
    let error = layout.find(Some("v3")).unwrap_err().to_string();
    assert!(
        error.contains("no image \"v3\" in the layout, only: v1, v2"),
        "{error}"
    );
    assert!(layout.find(None).is_err());

    // The same layout with a layer that is another one.
    let blob = dir
        .path()
        .join("layout/blobs/sha256")
        .join(image.manifest.layers[0].digest.hex());
    fs::set_permissions(&blob, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&blob, fs::read(dir.path().join("image.tar")).unwrap()).unwrap();
    let store = open(&dir.path().join("state2"));
    let error = store
        .import_layout(&layout, Some("v1"), &platform, Some(&reference), false)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains(&format!("expected diffID {diff_id}, got")),
        "{error}"
    );
    assert!(store.images().unwrap().is_empty());
    assert_eq!(fs::read_dir(store.root().join("layers")).unwrap().count(), 0);
}

/// Everything that git can keep: no whiteouts (device nodes), no attributes, no empty directories, no modes.
fn make_golden_sample(state: &Path) {
    let store = open(state);
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("etc")).unwrap();
    fs::write(dir.path().join("etc/hello"), "hello from format 1\n").unwrap();
    std::os::unix::fs::symlink("hello", dir.path().join("etc/link")).unwrap();
    let tar = dir.path().join("layer.tar");
    let times = [
        "--mtime=@1767225600",
        "--owner=root:0",
        "--group=mail:8",
        "--sort=name",
        "--format=gnu",
    ];
    run(Command::new("tar")
        .args(times)
        .arg("-cf")
        .arg(&tar)
        .arg("-C")
        .arg(dir.path())
        .arg("etc"));
    let layer = fs::read(&tar).unwrap();
    unpack(&store, &tar).unwrap();
    let config = serde_json::json!({
        "architecture": "arm64", "os": "linux", "created": "2026-01-01T00:00:00Z", "config": {"Cmd": ["/hello"]},
        "rootfs": {"type": "layers", "diff_ids": [DiffId::of(&layer)]},
    });
    let config = config.to_string();
    let config_digest = store.put_document(config.as_bytes()).unwrap();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": manifest::OCI_MANIFEST,
        "config": {"mediaType": manifest::OCI_CONFIG, "digest": config_digest, "size": config.len()},
        "layers": [{"mediaType": manifest::OCI_LAYER, "digest": Digest::of(&layer), "size": layer.len()}],
    });
    let digest = store.put_document(manifest.to_string().as_bytes()).unwrap();
    store
        .tag(
            &store.image(&digest).unwrap(),
            &"localhost:5000/golden:v1".parse().unwrap(),
        )
        .unwrap();
    let blob = b"a blob on its way";
    let mut partial = store.partial(&Digest::of(blob), blob.len() as u64).unwrap();
    partial.set_etag(Some("\"an-etag\"")).unwrap();
    partial.append(&blob[..6]).unwrap();
    partial.sync().unwrap();
    partial.append(&blob[6..10]).unwrap();
}

/// Format 1 as it was on the day it was written opens for ever. `images/STORE.md` says how the sample was made.
fn the_golden_state_directory_opens() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/state-v1");
    run(Command::new("cp").arg("-r").arg(&golden).arg(&state));
    let store = open(&state);
    let images = store.images().unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].reference.familiar(), "localhost:5000/golden:v1");
    let image = store.resolve("localhost:5000/golden:v1").unwrap();
    assert_eq!(image.digest, images[0].digest);
    assert!(store.missing_layers(&image).is_empty());
    let mut text = String::new();
    let file = store.layer_file(&image.diff_ids[0], b"etc/hello");
    file.unwrap().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello from format 1\n");
    let partial = store
        .partial(&wherry_images::Digest::of(b"a blob on its way"), 17)
        .unwrap();
    assert_eq!(
        (partial.offset(), partial.etag()),
        (6, Some("\"an-etag\"")),
        "synced bytes outlive a reboot"
    );
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
