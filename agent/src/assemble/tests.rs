use std::path::{Path, PathBuf};

use super::*;
use crate::container::{Limits, Owner, Port, Signal};
use wherry_images::Digest;
use wherry_images::manifest::ImageConfig;

/// Where `config.json` of [`spec`] lies. `WHERRY_GOLDEN=write cargo test -p wherry` writes it anew.
const GOLDEN: &str = "tests/golden/bundle-v1.json";

fn spec() -> Spec {
    Spec {
        name: "iris".into(),
        image: Digest::of(b"manifest"),
        image_name: "localhost:5000/iris:v1".into(),
        args: vec!["/iris".into(), "--port".into(), "5000".into()],
        env: vec![("MODEL".into(), "a=b".into())],
        cwd: "/srv".into(),
        user: String::new(),
        hostname: String::new(),
        mounts: vec![
            Mount {
                source: Source::Bind("/data".into()),
                target: "/srv/data".into(),
                readonly: true,
            },
            Mount {
                source: Source::Tmpfs { size: Some(1 << 20) },
                target: "/dev/shm".into(),
                readonly: false,
            },
        ],
        ports: vec![Port::parse("5001:5000").unwrap()],
        network: Network::Private,
        tty: false,
        open_stdin: false,
        readonly_root: false,
        cap_add: vec![],
        cap_drop: vec![],
        extra_hosts: vec![("db".into(), "192.0.2.7".into())],
        labels: BTreeMap::new(),
        owner: Owner::Cli,
        auto_remove: false,
        stop_signal: Signal::TERM,
        stop_grace: 10,
        limits: Limits::default(),
        devices: vec![],
        security: Security::default(),
    }
}

fn host() -> Host {
    Host {
        uid: 1000,
        gid: 100,
        name: "board-7".into(),
        hosts: "127.0.0.1 localhost board-7".into(),
        resolv_conf: "nameserver 127.0.0.53\nnameserver 192.0.2.53\nsearch lan\n".into(),
        machine: security::Machine {
            architecture: "arm64",
            kernel: (6, 1),
        },
    }
}

fn root() -> User {
    User {
        uid: 0,
        gid: 0,
        home: "/root".into(),
    }
}

fn assembled(spec: &Spec, user: &User, layers: &[&str], volumes: &[&str]) -> Result<Bundle, Error> {
    let layers: Vec<PathBuf> = layers.iter().map(PathBuf::from).collect();
    let volumes = volumes
        .iter()
        .map(|path| ((*path).to_owned(), Empty::default()))
        .collect();
    bundle(&Input {
        id: &Id::from_bytes([0xab; 32]),
        spec,
        volumes: &volumes,
        user,
        layers: &layers,
        directory: Path::new("/state/containers/abab"),
        host: &host(),
        devices: &Edits::default(),
    })
}

fn file<'a>(bundle: &'a Bundle, name: &str) -> &'a str {
    &bundle.files.iter().find(|(known, _)| *known == name).unwrap().1
}

fn config(bundle: &Bundle) -> Value {
    serde_json::from_str(file(bundle, "bundle/config.json")).unwrap()
}

#[test]
fn golden() {
    let bundle = assembled(
        &spec(),
        &root(),
        &["/layers/a", "/layers/b:c", "/layers/a"],
        &["/srv/data"],
    )
    .unwrap();
    let text = file(&bundle, "bundle/config.json");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(GOLDEN);
    if std::env::var_os("WHERRY_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(path).unwrap());
    assert_eq!(file(&bundle, "etc/hostname"), "abababababab\n");
    assert_eq!(
        file(&bundle, "etc/hosts"),
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n10.88.0.2\tabababababab\n192.0.2.7\tdb\n"
    );
    assert_eq!(
        file(&bundle, "etc/resolv.conf"),
        "nameserver 192.0.2.53\nsearch lan\n"
    );
}

#[test]
fn the_host_network_brings_its_names_and_limits_the_ports() {
    let spec = Spec {
        network: Network::Host,
        ..spec()
    };
    let bundle = assembled(&spec, &root(), &["/l"], &[]).unwrap();
    let config = config(&bundle);
    assert_eq!(config["hostname"], "board-7");
    assert_eq!(config["annotations"]["dev.wherry.ports"], "5000");
    assert!(
        !config["linux"]["namespaces"]
            .as_array()
            .unwrap()
            .contains(&json!({ "type": "network" }))
    );
    assert_eq!(
        file(&bundle, "etc/hosts"),
        "127.0.0.1 localhost board-7\n192.0.2.7\tdb\n"
    );
    assert!(file(&bundle, "etc/resolv.conf").contains("127.0.0.53"));
    let caps = config["process"]["capabilities"]["bounding"].as_array().unwrap();
    assert!(
        !caps.contains(&json!("CAP_NET_RAW")),
        "the board's network is not the container's"
    );
}

#[test]
fn another_user_is_the_one_id_and_holds_no_capability() {
    let user = User {
        uid: 1234,
        gid: 55,
        home: "/home/x".into(),
    };
    let config = config(&assembled(&spec(), &user, &["/l"], &[]).unwrap());
    assert_eq!(config["process"]["user"], json!({ "uid": 1234, "gid": 55 }));
    assert_eq!(
        config["linux"]["uidMappings"],
        json!([{ "containerID": 1234, "hostID": 1000, "size": 1 }])
    );
    assert_eq!(
        config["linux"]["gidMappings"],
        json!([{ "containerID": 55, "hostID": 100, "size": 1 }])
    );
    assert_eq!(config["process"]["capabilities"]["effective"], json!([]));
    assert!(
        config["process"]["env"]
            .as_array()
            .unwrap()
            .contains(&json!("HOME=/home/x"))
    );
}

#[test]
fn a_read_only_root_makes_the_image_s_volumes_directories() {
    let spec = Spec {
        readonly_root: true,
        ..spec()
    };
    let bundle = assembled(&spec, &root(), &[], &["/srv/data", "/var/lib/x"]).unwrap();
    assert_eq!(
        bundle.directories,
        [PathBuf::from("empty"), PathBuf::from("volumes/1")]
    );
    let config = config(&bundle);
    assert_eq!(config["root"]["readonly"], true);
    assert!(
        config["mounts"]
            .as_array()
            .unwrap()
            .iter()
            .any(|mount| mount["destination"] == "/var/lib/x"
                && mount["source"] == "/state/containers/abab/volumes/1")
    );
    for bad in ["x", "/a/../b", "/"] {
        assert!(
            assembled(&spec, &root(), &[], &[bad])
                .unwrap_err()
                .to_string()
                .contains("not a path below /")
        );
    }
}

#[test]
fn capabilities_as_docker_counts_them() {
    let held = |add: &[&str], drop: &[&str]| {
        let own = |list: &[&str]| list.iter().map(|cap| (*cap).to_owned()).collect();
        let spec = Spec {
            cap_add: own(add),
            cap_drop: own(drop),
            ..spec()
        };
        let sets = capabilities::sets(&spec, 0)?;
        Ok::<_, Error>(
            sets["effective"]
                .as_array()
                .unwrap()
                .iter()
                .map(|cap| cap.as_str().unwrap().to_owned())
                .collect::<Vec<_>>(),
        )
    };
    assert_eq!(held(&[], &[]).unwrap().len(), 12);
    assert_eq!(held(&["net_admin"], &["all"]).unwrap(), ["CAP_NET_ADMIN"]);
    assert!(
        !held(&[], &["CAP_NET_RAW"])
            .unwrap()
            .contains(&"CAP_NET_RAW".to_owned())
    );
    let all = held(&["ALL"], &["SYS_ADMIN"]).unwrap();
    assert!(all.len() == 40 && !all.contains(&"CAP_SYS_ADMIN".to_owned()));
    assert_eq!(
        held(&["FLY"], &[]).unwrap_err().to_string(),
        "capability \"FLY\" does not exist; see capabilities(7)"
    );
}

#[test]
fn users() {
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nbad line\nweb:x:33:34::/srv/www:/bin/sh\n\xff\xfe:x:1:1::/:\nlost:x:7:8\n";
    let group = b"root:x:0:\nstaff:x:50:web\n";
    for (wanted, uid, gid, home) in [
        ("", 0, 0, "/root"),
        ("root", 0, 0, "/root"),
        ("web", 33, 34, "/srv/www"),
        ("33", 33, 34, "/srv/www"),
        ("web:staff", 33, 50, "/srv/www"),
        ("web:77", 33, 77, "/srv/www"),
        ("1000", 1000, 0, "/"),
        ("1000:1000", 1000, 1000, "/"),
        ("lost", 7, 8, "/"),
        (":50", 0, 50, "/root"),
    ] {
        let user = user::resolve(wanted, passwd, group).unwrap();
        assert_eq!(
            (user.uid, user.gid, user.home.as_str()),
            (uid, gid, home),
            "{wanted:?}"
        );
    }
    for (wanted, text) in [
        (
            "nobody",
            "user \"nobody\": not in /etc/passwd of the image; use a number",
        ),
        (
            "web:nogroup",
            "user \"nogroup\": not in /etc/group of the image; use a number",
        ),
        (
            "4294967295",
            "user \"4294967295\": not in /etc/passwd of the image; use a number",
        ),
        ("-1", "user \"-1\": not in /etc/passwd of the image; use a number"),
    ] {
        assert_eq!(
            user::resolve(wanted, passwd, group).unwrap_err().to_string(),
            text
        );
    }
}

#[test]
fn the_topmost_list_of_users_counts_and_no_link_leads_out() {
    use std::fs;
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["upper", "low/etc", "high/etc", "outside"] {
        fs::create_dir_all(at(name)).unwrap();
    }
    fs::write(at("low/etc/passwd"), "web:x:1:1::/low:\n").unwrap();
    fs::write(at("outside/passwd"), "web:x:666:666::/outside:\n").unwrap();
    let layers = [at("low"), at("high")];
    assert_eq!(find_user("web", &at("upper"), &layers).unwrap().uid, 1);
    fs::write(at("high/etc/passwd"), "web:x:2:2::/high:\n").unwrap();
    assert_eq!(find_user("web", &at("upper"), &layers).unwrap().uid, 2);
    // The container's own list comes first, and a link in it stays beneath its own tree.
    fs::create_dir(at("upper/etc")).unwrap();
    symlink(at("outside/passwd"), at("upper/etc/passwd")).unwrap();
    assert_eq!(find_user("web", &at("upper"), &layers).unwrap().uid, 2);
    fs::remove_file(at("upper/etc/passwd")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        at("upper/etc/passwd"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    let error = find_user("web", &at("upper"), &layers).unwrap_err();
    assert_eq!(error.to_string(), "cannot read /etc/passwd of the image");
}

#[test]
fn commands() {
    let config: ImageConfig = serde_json::from_value(json!({
        "architecture": "arm64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [] },
        "config": { "Entrypoint": ["/entry", "-x"], "Cmd": ["serve"] },
    }))
    .unwrap();
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    for (entrypoint, args, expected) in [
        (None, vec![], vec!["/entry", "-x", "serve"]),
        (None, vec!["a", "b"], vec!["/entry", "-x", "a", "b"]),
        (Some(vec!["/bin/sh"]), vec![], vec!["/bin/sh"]),
        (
            Some(vec!["/bin/sh"]),
            vec!["-c", "ls"],
            vec!["/bin/sh", "-c", "ls"],
        ),
        (Some(vec![]), vec!["ls"], vec!["ls"]),
    ] {
        let entrypoint = entrypoint.map(|entrypoint| words(&entrypoint));
        assert_eq!(argv(&config, entrypoint.as_deref(), &words(&args)), expected);
    }
}

#[test]
fn environments() {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let mut env = vec![pair("A", "1"), pair("B", "2")];
    merge_env(&mut env, [pair("C", "3"), pair("A", "x=y")]);
    assert_eq!(env, [pair("A", "x=y"), pair("B", "2"), pair("C", "3")]);
    let lookup = |name: &str| (name == "HERE").then(|| "yes".to_owned());
    let file = "# comment\n\n A=1 2 \nB=\nHERE\nABSENT\n";
    assert_eq!(
        parse_env_file(file, lookup).unwrap(),
        [pair("A", "1 2 "), pair("B", ""), pair("HERE", "yes")]
    );
    assert_eq!(parse_env_file("A=1\n=x\n", lookup).unwrap_err().0, 2);
    assert_eq!(parse_env_file("two words\n", lookup).unwrap_err().0, 1);
}
