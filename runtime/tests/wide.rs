//! Numbers that 16 or 32 bits do not hold, and the calls that carry them: ids above 65,535, times after 2038, offsets
//! above 4 GB. On 32-bit ARM each is a system call of its own, which the filter has to know.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]
#![allow(clippy::print_stderr)]

mod support;

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, SystemTime};

use serde_json::json;
use support::{Bundle, Call, ids, text};

/// Ids that 16 bits cut to 4464 and 4465.
const UID: u32 = 70_000;
const GID: u32 = 70_001;
/// 2040-12-25, in seconds.
const LATE: Duration = Duration::from_secs(2_240_000_000);
const FAR: u64 = 5 << 30;

/// Has a bundle's container reach this test program as `/probe`, with the libraries that it needs.
fn with_probe(bundle: &mut Bundle) {
    let program = std::env::current_exe().unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    for directory in ["/lib", "/lib64", "/usr"] {
        if std::path::Path::new(directory).exists() {
            mounts.push(json!({"destination": directory, "type": "bind", "source": directory, "options": ["rbind", "ro"]}));
        }
    }
    mounts
        .push(json!({"destination": "/probe", "type": "bind", "source": program, "options": ["bind", "ro"]}));
}

/// Runs one of this program's functions in the bundle's container, as init and by exec.
fn probe(bundle: &mut Bundle, name: &str) {
    let args = [
        "/probe",
        "--exact",
        name,
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ];
    bundle.config["process"]["args"] = json!(args);
    let output = bundle.run();
    assert!(
        output.status.success(),
        "init: {}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    assert!(
        text(&output.stdout).contains("1 passed"),
        "{}",
        text(&output.stdout)
    );
    bundle.config["process"]["args"] = json!(["sleep", "1000"]);
    bundle.start();
    let mut exec = vec!["exec", "c"];
    exec.extend(args);
    let said = bundle.ok(&exec);
    assert!(said.contains("1 passed"), "exec: {said}");
    bundle.ok(&["delete", "--force", "c"]);
}

fn with_ids(bundle: &mut Bundle) {
    let (uid, gid) = ids();
    bundle.config["linux"]["uidMappings"] = json!([{"containerID": UID, "hostID": uid, "size": 1}]);
    bundle.config["linux"]["gidMappings"] = json!([{"containerID": GID, "hostID": gid, "size": 1}]);
    bundle.config["process"]["user"] = json!({"uid": UID, "gid": GID});
    bundle.config["process"]["cwd"] = json!("/data");
    // Its group would be 5, which is not mapped.
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| mount["destination"] != "/dev/pts");
}

#[test]
fn ids_above_16_bits() {
    let mut bundle = Bundle::new(&["sh", "-c", "id -u; id -g; touch /data/made; ls -n /data"]);
    with_ids(&mut bundle);
    let output = bundle.run();
    let said = text(&output.stdout);
    assert!(
        said.starts_with("70000\n70001\n"),
        "{said}{}",
        text(&output.stderr)
    );
    assert!(said.contains(" 70000 ") && said.contains(" 70001 "), "{said}");
    let made = std::fs::metadata(bundle.rootfs().join("data/made")).unwrap();
    assert_eq!((made.uid(), made.gid()), ids());
    bundle.config["process"]["args"] = json!(["sleep", "1000"]);
    bundle.start();
    let said = bundle.ok(&["exec", "c", "sh", "-c", "id -u; id -g"]);
    assert_eq!(said, "70000\n70001\n");
    let said = bundle.ok(&["exec", "--user", "70000:70001", "c", "id", "-u"]);
    assert_eq!(said, "70000\n");
}

/// With a range, which root maps: supplementary groups are set, and files are given away, by calls of their own.
#[test]
fn a_range_of_ids_above_16_bits() {
    if !rustix::process::getuid().is_root() {
        return support::skip(
            "wide::a_range_of_ids_above_16_bits",
            "needs root to map a range without newuidmap",
        );
    }
    let script = "id -G; touch /tmp/given && chown 70005:70006 /tmp/given && ls -n /tmp; grep -E '^(Uid|Groups)' /proc/self/status";
    let mut bundle = Bundle::new(&["sh", "-c", script]);
    let range = json!([{"containerID": 0, "hostID": 1_000_000, "size": 100_000}]);
    bundle.config["linux"]["uidMappings"] = range.clone();
    bundle.config["linux"]["gidMappings"] = range;
    bundle.config["process"]["user"] = json!({"uid": UID, "gid": GID, "additionalGids": [70_002, 70_003]});
    let all = ["CAP_CHOWN"];
    bundle.config["process"]["capabilities"] =
        json!({"bounding": all, "effective": all, "permitted": all, "inheritable": all, "ambient": all});
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]}));
    std::fs::write(bundle.path().join("config.json"), bundle.config.to_string()).unwrap();
    let open = support::open_to_all(bundle.path());
    assert!(open.is_ok(), "{open:?}");
    let output = bundle.call_as_root(&["run", "c"]);
    let said = text(&output.stdout);
    assert!(
        said.starts_with("70001 70002 70003\n"),
        "{said}{}",
        text(&output.stderr)
    );
    assert!(said.contains(" 70005 ") && said.contains(" 70006 "), "{said}");
    assert!(said.contains("Uid:\t70000\t70000\t70000\t70000"), "{said}");
}

/// Not a test: what the next one runs inside a container.
#[test]
#[ignore = "runs inside a container, for the test below"]
fn late_times_inside_the_container() {
    let file = File::create("/data/late").unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + LATE).unwrap();
    let found = std::fs::metadata("/data/late").unwrap().modified().unwrap();
    assert_eq!(found.duration_since(SystemTime::UNIX_EPOCH).unwrap(), LATE);
    // Sleeps until a time, timed waits for a lock, a descriptor and a timer: with 64-bit times on every target.
    for call in Call::WITH_TIMES {
        call.check();
    }
}

#[test]
fn times_after_2038() {
    let mut bundle = Bundle::new(&[]);
    with_probe(&mut bundle);
    probe(&mut bundle, "late_times_inside_the_container");
    let made = std::fs::metadata(bundle.rootfs().join("data/late")).unwrap();
    assert_eq!(made.mtime(), LATE.as_secs() as i64);
}

/// Not a test: what the next one runs inside a container.
#[test]
#[ignore = "runs inside a container, for the test below"]
fn far_offsets_inside_the_container() {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open("/data/far")
        .unwrap();
    file.write_all_at(b"far", FAR).unwrap();
    let mut found = [0; 4];
    assert_eq!(file.read_at(&mut found, FAR).unwrap(), 3);
    assert_eq!(&found, b"far\0");
    let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize);
    assert_eq!((limit.current, limit.maximum), (Some(6 << 30), Some(7 << 30)));
}

#[test]
fn offsets_above_4_gb() {
    let mut bundle = Bundle::new(&[]);
    with_probe(&mut bundle);
    bundle.config["process"]["rlimits"] =
        json!([{"type": "RLIMIT_FSIZE", "soft": 6_u64 << 30, "hard": 7_u64 << 30}]);
    probe(&mut bundle, "far_offsets_inside_the_container");
    let made = std::fs::metadata(bundle.rootfs().join("data/far")).unwrap();
    assert_eq!(made.size(), FAR + 3);
}

/// Not a test: what the next one runs inside a container.
#[test]
#[ignore = "runs inside a container, for the test below"]
fn own_calls_inside_the_container() {
    for call in Call::OWN {
        call.check();
    }
    for call in Call::DENIED {
        call.check_denied();
    }
}

/// The calls that only this architecture has, let through and denied by its own numbers.
#[test]
fn this_architectures_own_calls() {
    let mut bundle = Bundle::new(&[]);
    with_probe(&mut bundle);
    probe(&mut bundle, "own_calls_inside_the_container");
}
