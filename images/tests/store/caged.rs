//! The cage as a process of its own: what comes out of it, and what does not.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use wherry_images::cage::{self, Cage};
use wherry_images::store::Input;
use wherry_images::unpack::{Encoding, Limits};
use wherry_images::{Class, DiffId};

use crate::stage::{open, program, run, unpack};

pub(crate) fn errors_come_out_of_the_cage_as_they_are() {
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
    // A patch that names a file by the longest name there is.
    let operations = [&[1, 0x80, 0x20][..], &[0xff; 4096]].concat();
    let patch = [&b"tardf1\n\0"[..], &zstd::encode_all(&operations[..], 3).unwrap()].concat();
    let encoding = Encoding::TarDiff {
        sources: vec![dir.path().to_owned()],
    };
    let error = store
        .unpack_layer(
            &diff_id,
            Input::Stream(&mut &patch[..]),
            &encoding,
            &Limits::for_blob(0),
        )
        .unwrap_err();
    let said = error.to_string();
    assert!(said.ends_with("File name too long (os error 36)"), "{said}");
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
pub(crate) fn the_cage_keeps_what_is_in_it() {
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

pub(crate) fn confined(work: &Path, source: &Path) {
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

/// A parser that never ends is ended: the cage has a limit of processor time, among others.
pub(crate) fn the_cage_has_limits() {
    /// Looks at the child that it feeds before it gives anything.
    struct Looks(Option<String>);
    impl Read for Looks {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
            while self.0.is_none() && std::time::Instant::now() < deadline {
                let tasks = fs::read_dir("/proc/self/task").unwrap();
                let children =
                    tasks.map(|task| fs::read_to_string(task.unwrap().path().join("children")).unwrap());
                let children = children.collect::<String>();
                let limits = children
                    .split_whitespace()
                    .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/limits")).ok());
                let set = |limits: &String| {
                    let line = limits.lines().find(|line| line.starts_with("Max processes"));
                    line.is_some_and(|line| line.split_whitespace().nth(2) == Some("0"))
                };
                self.0 = limits.into_iter().find(|text| set(text));
            }
            Ok(0)
        }
    }
    if !Path::new("/proc/self/task")
        .join(std::process::id().to_string())
        .join("children")
        .exists()
    {
        eprintln!("SKIPPED: this kernel does not tell a process's children");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("state"));
    let mut looks = Looks(None);
    let limits = Limits::for_blob(0);
    let _ = store.unpack_layer(
        &DiffId::of(b""),
        Input::Stream(&mut looks),
        &Encoding::Layer,
        &limits,
    );
    let seen = looks.0.expect("the cage took no limits");
    for (name, at_most) in [
        ("Max cpu time", 120 + limits.tar_bytes / (256 << 10)),
        ("Max address space", 512 << 20),
        ("Max open files", 600),
        ("Max core file size", 0),
    ] {
        let line = seen.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let limit: u64 = line.split_whitespace().next().unwrap().parse().unwrap();
        assert!(limit <= at_most, "{name}: {limit}");
    }
}

pub(crate) fn the_cage_cannot_be_used_by_hand() {
    let output = Command::new(program())
        .args([cage::VERB, "{}"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let report = String::from_utf8(output.stdout).unwrap();
    assert!(report.contains("started by the program itself"), "{report}");
}
