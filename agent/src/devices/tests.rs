use std::fs;

use serde_json::json;

use super::*;

/// A board with `/etc/cdi`, `/run/cdi` and Jetson's lists somewhere else.
struct Board {
    directory: tempfile::TempDir,
    places: Places,
}

impl Board {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let places = Places {
            cdi: vec![directory.path().join("etc"), directory.path().join("run")],
            l4t: directory.path().join("l4t"),
        };
        for place in places.cdi.iter().chain([&places.l4t]) {
            fs::create_dir(place).unwrap();
        }
        Self { directory, places }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.directory.path().join(name), text).unwrap();
    }

    fn resolve(&self, names: &[&str]) -> Result<Edits, Error> {
        let requests: Vec<Request> = names.iter().map(|name| Request::parse(name).unwrap()).collect();
        resolve(&requests, &self.places)
    }

    fn refused(&self, names: &[&str]) -> String {
        self.resolve(names).unwrap_err().to_string()
    }
}

#[test]
fn what_people_type() {
    let path = |host: &str, container: &str| Request::Path {
        host: host.into(),
        container: container.into(),
    };
    for (text, expected) in [
        ("/dev/i2c-1", path("/dev/i2c-1", "/dev/i2c-1")),
        ("/dev/ttyUSB0:/dev/gps", path("/dev/ttyUSB0", "/dev/gps")),
        ("/dev/video0:rw", path("/dev/video0", "/dev/video0")),
        ("/dev/a:/dev/b:rwm", path("/dev/a", "/dev/b")),
        ("nvidia.com/gpu=all", Request::Cdi("nvidia.com/gpu=all".into())),
        (
            "vendor.com/net-card_2=eth0:1",
            Request::Cdi("vendor.com/net-card_2=eth0:1".into()),
        ),
    ] {
        assert_eq!(Request::parse(text).unwrap(), expected, "{text}");
    }
    for (text, part) in [
        ("video0", "neither a path nor a qualified name"),
        ("/dev/a:r", "cannot be enforced"),
        ("/dev/a:/dev/b:x", "rights"),
        ("/dev/a:/dev/b:rw:c", "colons"),
        ("/dev/../etc/shadow", "not an absolute path"),
        ("/gpu=0", "not an absolute path"),
        ("vendor/class", "qualified"),
        ("vendor.com/class=", "not a device's name"),
        ("ven dor/class=a", "not VENDOR/CLASS"),
        ("9vendor/class=a", "not VENDOR/CLASS"),
    ] {
        match Request::parse(text) {
            Err(error) => assert!(error.to_string().contains(part), "{text}: {error}"),
            // A path that leads nowhere is told when it is looked up.
            Ok(request) => assert_eq!(text, "/gpu=0", "{request:?}"),
        }
    }
    let names = |text: &str| -> Vec<String> {
        let requests = Request::parse_gpus(text).unwrap();
        requests
            .iter()
            .map(|request| match request {
                Request::Cdi(name) => name.clone(),
                other => format!("{other:?}"),
            })
            .collect()
    };
    assert_eq!(names("all"), ["nvidia.com/gpu=all"]);
    assert_eq!(names("2"), ["nvidia.com/gpu=0", "nvidia.com/gpu=1"]);
    assert_eq!(
        names("\"device=0,GPU-7a\""),
        ["nvidia.com/gpu=0", "nvidia.com/gpu=GPU-7a"]
    );
    for bad in ["", "none", "0", "65", "device=", "-2"] {
        assert!(Request::parse_gpus(bad).is_err(), "{bad}");
    }
}

#[test]
fn nodes_and_directories_of_nodes() {
    let board = Board::new();
    let edits = board.resolve(&["/dev/null:/dev/nothing", "/dev/zero"]).unwrap();
    let node = |host: &str, container: &str| (PathBuf::from(host), container.to_owned());
    assert_eq!(
        edits.nodes,
        [node("/dev/null", "/dev/nothing"), node("/dev/zero", "/dev/zero")]
    );
    assert!(
        board
            .refused(&["/dev/no-such-node"])
            .contains("/dev/no-such-node")
    );
    board.write("file", "");
    let file = board.directory.path().join("file");
    assert!(board.refused(&[file.to_str().unwrap()]).contains("not a device"));
    assert!(
        board
            .refused(&["/dev/null:/dev/x", "/dev/zero:/dev/x"])
            .contains("both /dev/null and /dev/zero")
    );
}

/// The examples of the CDI specification, in both spellings, with nodes that every board has.
#[test]
fn the_specifications_own_example() {
    let board = Board::new();
    let spec = json!({
        "cdiVersion": "0.6.0",
        "kind": "vendor.com/device",
        "annotations": {"whose": "ours"},
        "devices": [
            {"name": "myDevice", "annotations": {"whatever": "false"}, "containerEdits": {"deviceNodes": [
                {"hostPath": "/dev/null", "path": "/dev/card1", "type": "c", "major": 1, "minor": 3, "fileMode": 438, "permissions": "rw", "uid": 1000, "gid": 1000},
                {"path": "/dev/zero"},
            ]}},
            {"name": "other", "containerEdits": {"env": ["OTHER=1"]}},
        ],
        "containerEdits": {
            "env": ["FOO=VALID_SPEC", "BAR=BARVALUE1"],
            "deviceNodes": [{"path": "/dev/full"}],
            "mounts": [
                {"hostPath": "/bin/vendorBin", "containerPath": "/bin/vendorBin"},
                {"hostPath": "tmpfs", "containerPath": "/tmp/data", "type": "tmpfs", "options": ["nosuid", "mode=0755"]},
            ],
            "hooks": [
                {"hookName": "createContainer", "path": "/bin/vendor-hook", "args": ["hook", "--x"], "env": ["A=B"], "timeout": 5},
                {"hookName": "startContainer", "path": "/usr/bin/ldconfig"},
            ],
            "additionalGids": [44, 0, 44],
            "intelRdt": {"closID": "gold", "enableCMT": true},
        },
    });
    board.write("etc/vendor.json", &spec.to_string());
    let edits = board
        .resolve(&[
            "vendor.com/device=myDevice",
            "vendor.com/device=other",
            "vendor.com/device=myDevice",
        ])
        .unwrap();
    assert_eq!(edits.env, ["FOO=VALID_SPEC", "BAR=BARVALUE1", "OTHER=1"]);
    let containers: Vec<&str> = edits
        .nodes
        .iter()
        .map(|(_, container)| container.as_str())
        .collect();
    assert_eq!(containers, ["/dev/full", "/dev/card1", "/dev/zero"]);
    assert_eq!(edits.nodes[1].0, Path::new("/dev/null"));
    assert_eq!(
        edits.mounts[0],
        json!({"destination": "/bin/vendorBin", "type": "bind", "source": "/bin/vendorBin", "options": ["bind"]})
    );
    assert_eq!(edits.mounts[1]["type"], "tmpfs");
    assert_eq!(
        edits.hooks[0],
        (
            "createContainer".into(),
            json!({"path": "/bin/vendor-hook", "args": ["hook", "--x"], "env": ["A=B"], "timeout": 5})
        )
    );
    assert_eq!(edits.hooks[1].0, "startContainer");
    assert_eq!(edits.groups, [44]);
    assert_eq!(edits.rdt, Some(json!({"closID": "gold", "enableCMT": true})));

    let yaml = "cdiVersion: 0.5.0\nkind: vendor.com/net\ndevices:\n  - name: \"0\"\n    containerEdits:\n      env:\n        - CARD=0\n";
    board.write("run/net.yaml", yaml);
    assert_eq!(board.resolve(&["vendor.com/net=0"]).unwrap().env, ["CARD=0"]);
}

fn spec(kind: &str, device: &str, env: &str) -> String {
    json!({"cdiVersion": "0.3.0", "kind": kind, "devices": [{"name": device, "containerEdits": {"env": [env]}}]}).to_string()
}

/// A node is bound from the board's own: what was to be otherwise about it is told.
#[test]
fn what_a_bound_node_cannot_be_is_told() {
    let board = Board::new();
    let node = json!({"path": "/dev/x", "hostPath": "/dev/zero", "fileMode": 0o7123, "uid": 4_000_000_000_u32, "gid": 4_000_000_001_u32});
    let spec = json!({"cdiVersion": "0.6.0", "kind": "v.com/d", "devices": [{"name": "x", "containerEdits": {"deviceNodes": [node]}}]});
    board.write("etc/d.json", &spec.to_string());
    let told = board.resolve(&["v.com/d=x"]).unwrap().left_out;
    let starts = ["fileMode 7123", "uid 4000000000", "gid 4000000001"];
    assert_eq!(told.len(), starts.len(), "{told:?}");
    for (line, start) in told.iter().zip(starts) {
        assert!(
            line.starts_with(&format!("device /dev/x: {start} not set: ")),
            "{line}"
        );
    }
}

#[test]
fn conflicts_and_precedence() {
    let board = Board::new();
    board.write("etc/a.json", &spec("v.com/d", "x", "FROM=etc"));
    assert_eq!(board.resolve(&["v.com/d=x"]).unwrap().env, ["FROM=etc"]);
    // What was made at this boot wins over what was installed.
    board.write("run/a.json", &spec("v.com/d", "x", "FROM=run"));
    assert_eq!(board.resolve(&["v.com/d=x"]).unwrap().env, ["FROM=run"]);
    board.write("run/b.json", &spec("v.com/d", "x", "FROM=b"));
    let told = board.refused(&["v.com/d=x"]);
    assert!(
        told.contains("run/a.json") && told.contains("run/b.json"),
        "{told}"
    );
    // Others of the same kind are not in conflict.
    board.write("run/c.json", &spec("v.com/d", "y", "FROM=c"));
    assert_eq!(board.resolve(&["v.com/d=y"]).unwrap().env, ["FROM=c"]);
    let two = json!({"cdiVersion": "0.5.0", "kind": "v.com/n", "devices": [
        {"name": "a", "containerEdits": {"deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/null"}]}},
        {"name": "b", "containerEdits": {"deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/zero"}]}},
        {"name": "c", "containerEdits": {"mounts": [{"hostPath": "/a", "containerPath": "/m"}]}},
        {"name": "d", "containerEdits": {"mounts": [{"hostPath": "/b", "containerPath": "/m"}]}},
        {"name": "wrong", "containerEdits": {"deviceNodes": [{"path": "/dev/null", "major": 1, "minor": 5, "type": "c"}]}},
        {"name": "gone", "containerEdits": {"deviceNodes": [{"path": "/dev/no-such-node"}]}},
    ]});
    board.write("etc/n.json", &two.to_string());
    assert!(
        board
            .refused(&["v.com/n=a", "v.com/n=b"])
            .contains("both /dev/null and /dev/zero")
    );
    assert!(
        board
            .refused(&["v.com/n=c", "v.com/n=d"])
            .contains("/m is to be mounted from")
    );
    assert!(
        board
            .refused(&["v.com/n=wrong"])
            .contains("is c 1:3 on this board")
    );
    assert!(board.refused(&["v.com/n=gone"]).contains("this board has none"));
    assert!(board.refused(&["v.com/n=z"]).contains("there are: a b c d"));
    assert!(
        board
            .refused(&["v.com/none=z"])
            .contains("nothing of the kind v.com/none")
    );
    assert!(
        board
            .refused(&["nvidia.com/gpu=all"])
            .contains("nvidia-ctk cdi generate")
    );
}

#[test]
fn malformed_specifications_are_refused_by_name() {
    let device = json!([{"name": "x", "containerEdits": {}}]);
    let with = |edits: serde_json::Value| json!({"cdiVersion": "0.6.0", "kind": "v.com/d", "devices": [{"name": "x", "containerEdits": edits}]});
    for (spec, part) in [
        (
            json!({"cdiVersion": "9.9.9", "kind": "v.com/d", "devices": device}),
            "9.9.9",
        ),
        (json!({"kind": "v.com/d", "devices": device}), "cdiVersion"),
        (
            json!({"cdiVersion": "0.6.0", "kind": "vcom", "devices": device}),
            "not VENDOR/CLASS",
        ),
        (
            json!({"cdiVersion": "0.6.0", "kind": "v.com/d", "devices": []}),
            "no devices",
        ),
        (
            json!({"cdiVersion": "0.6.0", "kind": "v.com/d", "devices": device, "more": 1}),
            "more",
        ),
        (
            json!({"cdiVersion": "0.6.0", "kind": "v.com/d", "devices": [{"name": "-x", "containerEdits": {}}]}),
            "not a device's name",
        ),
        (
            json!({"cdiVersion": "0.6.0", "kind": "v.com/d", "devices": [{"name": "x", "containerEdits": {}}, {"name": "x", "containerEdits": {}}]}),
            "twice",
        ),
        (with(json!({"env": ["=x"]})), "NAME=VALUE"),
        (
            with(json!({"deviceNodes": [{"path": "dev/x"}]})),
            "not an absolute path",
        ),
        (
            with(json!({"deviceNodes": [{"path": "/dev/../etc"}]})),
            "not an absolute path",
        ),
        (
            with(json!({"deviceNodes": [{"path": "/dev/x", "type": "z"}]})),
            "type",
        ),
        (
            with(json!({"deviceNodes": [{"path": "/dev/x", "permissions": "r"}]})),
            "cannot be enforced",
        ),
        (
            with(json!({"deviceNodes": [{"path": "/dev/x", "permissions": "rx"}]})),
            "permissions",
        ),
        (
            with(json!({"mounts": [{"hostPath": "", "containerPath": "/x"}]})),
            "hostPath",
        ),
        (
            with(json!({"mounts": [{"hostPath": "/x", "containerPath": "x"}]})),
            "containerPath",
        ),
        (
            with(json!({"hooks": [{"hookName": "whenever", "path": "/x"}]})),
            "not a hook's name",
        ),
        (
            with(json!({"hooks": [{"hookName": "poststop", "path": "x"}]})),
            "hooks.path",
        ),
        (with(json!({"intelRdt": {"closID": "a/b"}})), "closID"),
        (with(json!({"netDevices": []})), "netDevices"),
    ] {
        let why = cdi::parse_for_tests(spec.to_string().as_bytes(), false).unwrap_err();
        assert!(why.contains(part), "{spec}: {why}");
    }
    for (text, yaml) in [
        ("{", false),
        ("", false),
        ("kind: [", true),
        ("\u{0}", true),
        ("null", true),
    ] {
        assert!(cdi::parse_for_tests(text.as_bytes(), yaml).is_err(), "{text}");
    }
    // One broken file does not keep another's devices away, and is named where something is missing.
    let board = Board::new();
    board.write("etc/broken.json", "{");
    board.write("etc/good.json", &spec("v.com/d", "x", "A=1"));
    assert!(board.resolve(&["v.com/d=x"]).is_ok());
    assert!(board.refused(&["v.com/d=y"]).contains("broken.json"));
}

#[test]
fn a_jetson_without_cdi() {
    let board = Board::new();
    board.write(
        "l4t/devices.csv",
        "# of JetPack\ndev, /dev/null\ndev, /dev/no-such-node\n\nlib, /bin/sh\nsym, /no/such/link\ndir, /usr\n",
    );
    let edits = board.resolve(&["nvidia.com/gpu=all"]).unwrap();
    assert_eq!(
        edits.nodes,
        [(PathBuf::from("/dev/null"), "/dev/null".to_owned())]
    );
    let targets: Vec<&str> = edits
        .mounts
        .iter()
        .filter_map(|mount| mount["destination"].as_str())
        .collect();
    assert_eq!(targets, ["/bin/sh", "/usr"]);
    // A CDI specification comes first.
    board.write("etc/nvidia.json", &spec("nvidia.com/gpu", "all", "CDI=1"));
    assert_eq!(board.resolve(&["nvidia.com/gpu=all"]).unwrap().env, ["CDI=1"]);
    fs::remove_file(board.directory.path().join("etc/nvidia.json")).unwrap();
    for (text, part) in [
        ("dev /dev/null\n", "line 1: expected KIND"),
        ("\nlink, /x\n", "line 2"),
        ("dev, ../x\n", "not an absolute"),
    ] {
        board.write("l4t/devices.csv", text);
        assert!(board.refused(&["nvidia.com/gpu=all"]).contains(part), "{text}");
    }
}
