//! Containers as other processes see them: the record of version 1, and many processes at once.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use wherry::container::{
    Containers, Error, Id, Mount, Network, Observed, Owner, Port, Spec, Status, Timestamp,
};
use wherry_images::{Digest, Image, Platform, Store};

/// A container's directory as version 1 left it. `WHERRY_GOLDEN=write cargo test -p wherry` makes `desired` anew.
const GOLDEN: &str = "tests/golden/container-v1";
/// The id of the golden container.
const GOLDEN_ID: &str = "9f3b1c6a5d2e48f7a0b1c2d3e4f5061728394a5b6c7d8e9fa0b1c2d3e4f50617";
/// How many processes race, and for how many names.
const PROCESSES: usize = 8;
const NAMES: usize = 40;

fn open(root: &Path) -> Containers {
    Containers::open(Store::open(root).unwrap(), Path::new("/bin/false")).unwrap()
}

fn spec(name: &str) -> Spec {
    let host = Platform::host();
    let config = serde_json::json!({
        "architecture": host.architecture,
        "os": "linux",
        "variant": host.variant,
        "config": { "Cmd": ["/iris", "--port", "5000"], "Env": ["MODEL=a"], "WorkingDir": "/srv", "User": "33" },
        "rootfs": { "type": "layers", "diff_ids": [] },
    });
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(b"config"), "size": 6,
        },
        "layers": [],
    });
    let image = Image {
        reference: None,
        digest: Digest::of(b"manifest"),
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        manifest: serde_json::from_value(manifest).unwrap(),
        config: serde_json::from_value(config).unwrap(),
        config_digest: Digest::of(b"config"),
        diff_ids: vec![],
    };
    let mut spec = Spec::from_image(&image, "localhost:5000/iris:v1", None, &[]).unwrap();
    spec.name = name.into();
    spec.ports = vec![Port::parse("127.0.0.1:5001:5000").unwrap()];
    spec
}

fn golden_spec() -> Spec {
    let owner = Owner::Pod {
        namespace: "default".into(),
        name: "iris".into(),
        uid: "5f9b7a52-0c1e-4f1e-8a55-6f2f7c1c9b10".into(),
        container: "server".into(),
    };
    let mounts = vec![
        Mount::parse("/data:/srv/data:ro", Path::new("/")).unwrap(),
        Mount::parse_tmpfs("/scratch:size=1m").unwrap(),
    ];
    Spec {
        owner,
        mounts,
        network: Network::Private,
        ..spec("iris")
    }
}

fn copy_golden(root: &Path) -> PathBuf {
    drop(open(root));
    let target = root.join("containers").join(GOLDEN_ID);
    fs::create_dir(&target).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(GOLDEN);
    for entry in fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), target.join(entry.file_name())).unwrap();
    }
    target
}

#[test]
fn the_golden_container_opens() {
    let dir = tempfile::tempdir().unwrap();
    if std::env::var_os("WHERRY_GOLDEN").is_some() {
        let record = serde_json::json!({
            "version": 1, "id": GOLDEN_ID, "createdAt": "2026-11-20T23:50:01Z", "spec": golden_spec(),
        });
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(GOLDEN).join("desired");
        fs::write(path, format!("{record:#}\n")).unwrap();
    }
    copy_golden(dir.path());
    let containers = open(dir.path());
    let container = containers.find("iris").unwrap();
    assert_eq!(container.id, Id::parse(GOLDEN_ID).unwrap());
    assert_eq!(container.spec, golden_spec());
    assert_eq!(container.observed.status, Status::Exited);
    assert_eq!(
        (container.observed.exit_code, container.observed.signal),
        (Some(137), Some(9))
    );
    assert_eq!(
        container.observed.finished_at,
        Timestamp::parse("2026-11-20T23:51:00.000000001Z")
    );
    assert_eq!(containers.find("9f3b1c").unwrap().id, container.id);
    containers.remove(&container.id, false).unwrap();
    assert!(matches!(containers.find("iris"), Err(Error::NotFound(_))));
}

#[test]
fn a_newer_or_damaged_record_is_left_alone_and_told() {
    for (file, content, part) in [
        (
            "desired",
            r#"{"version":2,"id":1}"#,
            "version 2 is newer than this program",
        ),
        ("desired", r#"{"version":1,"id":"x"}"#, "damaged record"),
        ("desired", "", "damaged record"),
        (
            "observed",
            r#"{"version":7}"#,
            "version 7 is newer than this program",
        ),
        ("observed", "{}{}", "damaged record"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let target = copy_golden(dir.path());
        fs::write(target.join(file), content).unwrap();
        let containers = open(dir.path());
        let other = containers.create(&spec("other")).unwrap();
        let listing = containers.list().unwrap();
        assert_eq!(listing.containers, [other], "{file} {content}");
        let [(id, error)] = listing.damaged.as_slice() else {
            panic!("{file} {content}")
        };
        assert_eq!(id.hex(), GOLDEN_ID);
        assert!(error.to_string().contains(part), "{error}");
        assert_eq!(fs::read_to_string(target.join(file)).unwrap(), content);
    }
}

#[test]
fn a_container_that_lost_its_monitor_is_not_called_running() {
    let dir = tempfile::tempdir().unwrap();
    let target = copy_golden(dir.path());
    let mut observed: Observed = serde_json::from_slice(&fs::read(target.join("observed")).unwrap()).unwrap();
    observed.status = Status::Running;
    observed.finished_at = None;
    fs::write(target.join("observed"), serde_json::to_vec(&observed).unwrap()).unwrap();
    let containers = open(dir.path());
    let found = containers.find("iris").unwrap().observed;
    assert_eq!((found.status, found.exit_code), (Status::Exited, Some(137)));
    assert_eq!(
        found.error.as_deref(),
        Some("monitor lost: the board was started again")
    );
    let written: Observed = serde_json::from_slice(&fs::read(target.join("observed")).unwrap()).unwrap();
    assert_eq!(written, found, "and so it stands in the record");
}

/// The golden container as a start has left it that was begun with `runtime_root`.
fn begun(root: &Path, runtime_root: &Path) -> PathBuf {
    let target = copy_golden(root);
    let told = serde_json::json!({
        "version": 1, "id": GOLDEN_ID, "runtime": "/bin/false", "runtimeRoot": runtime_root, "bundle": "bundle",
        "terminal": false, "openStdin": false, "waitAttach": false, "ports": [],
        "log": { "path": "log", "maxSize": 32768, "maxFiles": 1 },
    });
    fs::write(target.join("monitor.json"), told.to_string()).unwrap();
    target
}

#[test]
fn what_a_killed_monitor_left_with_the_runtime_goes_with_the_container() {
    let dir = tempfile::tempdir().unwrap();
    let runtime_root = dir.path().join("run");
    let left = runtime_root.join(GOLDEN_ID);
    begun(dir.path(), &runtime_root);
    fs::create_dir_all(&left).unwrap();
    let runtime = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/runtime-that-deletes");
    let containers = Containers::open(Store::open(dir.path()).unwrap(), &runtime).unwrap();
    containers.remove(&Id::parse(GOLDEN_ID).unwrap(), false).unwrap();
    assert!(!left.exists());
    assert!(matches!(containers.find("iris"), Err(Error::NotFound(_))));
}

#[test]
fn a_container_on_its_way_up_is_not_removed_under_its_monitor() {
    let dir = tempfile::tempdir().unwrap();
    let target = begun(dir.path(), &dir.path().join("run"));
    let mut observed: Observed = serde_json::from_slice(&fs::read(target.join("observed")).unwrap()).unwrap();
    // Whoever started it was killed; its monitor has its lock and goes on.
    let monitor = fs::File::open(target.join("monitor.lock")).unwrap();
    rustix::fs::flock(&monitor, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let remover = std::thread::spawn({
        let containers = open(dir.path());
        move || containers.remove(&Id::parse(GOLDEN_ID).unwrap(), false)
    });
    observed.status = Status::Running;
    observed.finished_at = None;
    observed.boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap()
        .trim()
        .into();
    observed.monitor_pid = i32::try_from(std::process::id()).ok();
    fs::write(target.join(".next"), serde_json::to_vec(&observed).unwrap()).unwrap();
    fs::rename(target.join(".next"), target.join("observed")).unwrap();
    let removed = remover.join().unwrap();
    assert!(matches!(removed, Err(Error::Running { .. })), "{removed:?}");
}

#[test]
fn what_a_dead_process_left_is_swept() {
    let dir = tempfile::tempdir().unwrap();
    let containers = open(dir.path());
    let root = dir.path().join("containers");
    for name in [".making-1", ".removing-2"] {
        fs::create_dir_all(root.join(name).join("work/work")).unwrap();
        fs::set_permissions(root.join(name).join("work/work"), fs::Permissions::from_mode(0o0)).unwrap();
    }
    containers.sweep().unwrap();
    let left: Vec<_> = fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, [".lock"]);
}

/// The other side of the races: what one of several processes does.
#[test]
fn worker() {
    let Some(task) = std::env::var_os("WHERRY_WORKER") else {
        return;
    };
    let root = PathBuf::from(std::env::var_os("WHERRY_WORKER_ROOT").unwrap());
    let containers = open(&root);
    let (mut won, mut lost) = (0, 0);
    for number in 0..NAMES {
        let name = format!("name-{number}");
        let result = match task.to_str() {
            Some("make") => containers.create(&spec(&name)).map(|_| ()),
            _ => containers
                .find(&name)
                .and_then(|container| containers.remove(&container.id, true)),
        };
        match result {
            Ok(()) => won += 1,
            Err(Error::NameTaken { .. } | Error::NotFound(_) | Error::Gone { .. }) => lost += 1,
            Err(error) => panic!("{name}: {error:?}"),
        }
    }
    assert_eq!(won + lost, NAMES);
    fs::write(root.join(format!("won-{}", std::process::id())), won.to_string()).unwrap();
}

fn race(root: &Path, task: &str) -> usize {
    let start = || -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "worker"])
            .env("WHERRY_WORKER", task)
            .env("WHERRY_WORKER_ROOT", root)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let workers: Vec<Child> = (0..PROCESSES).map(|_| start()).collect();
    let mut won = 0;
    for mut worker in workers {
        assert!(worker.wait().unwrap().success());
        let path = root.join(format!("won-{}", worker.id()));
        won += fs::read_to_string(&path).unwrap().parse::<usize>().unwrap();
        fs::remove_file(path).unwrap();
    }
    won
}

#[test]
fn of_many_processes_one_gets_each_name_and_one_removes_it() {
    let dir = tempfile::tempdir().unwrap();
    let containers = open(dir.path());
    assert_eq!(race(dir.path(), "make"), NAMES);
    let listing = containers.list().unwrap();
    assert_eq!((listing.containers.len(), listing.damaged.len()), (NAMES, 0));
    assert_eq!(race(dir.path(), "remove"), NAMES);
    let left: Vec<_> = fs::read_dir(dir.path().join("containers"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, [".lock"]);
}

#[test]
fn names_are_made_up_and_kept_apart() {
    let dir = tempfile::tempdir().unwrap();
    let containers = open(dir.path());
    for _ in 0..60 {
        containers.create(&spec("")).unwrap();
    }
    let mut names: Vec<String> = containers
        .list()
        .unwrap()
        .containers
        .into_iter()
        .map(|container| container.spec.name)
        .collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 60);
    assert!(matches!(
        containers.create(&spec(&names[0])),
        Err(Error::NameTaken { .. })
    ));
    assert!(matches!(containers.create(&spec("a/b")), Err(Error::Invalid(_))));
    assert!(matches!(containers.find(""), Err(Error::NotFound(_))));
}
