//! The verbs of images, as people and scripts use them: the program itself over a state directory of its own.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};
use wherry_images::manifest::{OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST};
use wherry_images::{DiffId, Digest, Platform};

struct Board {
    dir: tempfile::TempDir,
}

impl Board {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wherry"));
        command
            .env("WHERRY_ROOT", self.root())
            .env("WHERRY_RUNTIME", "/bin/false")
            .args(args)
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    #[track_caller]
    fn must(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {}\n{said}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it says on standard error when it fails with that code, as it must.
    #[track_caller]
    fn fails(&self, code: i32, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

/// A layout with two images, `v1` and `v2`, that share a layer; what their layers are.
fn layout(dir: &Path) -> Vec<(Digest, Vec<DiffId>)> {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let put = |bytes: &[u8]| {
        fs::write(blobs.join(Digest::of(bytes).hex()), bytes).unwrap();
        json!({"digest": Digest::of(bytes), "size": bytes.len()})
    };
    let layer = |name: &str| {
        let source = dir.join(name);
        fs::create_dir(&source).unwrap();
        fs::write(source.join(name), name.repeat(10_000)).unwrap();
        let tar = |compress: &[&str]| {
            let mut command = Command::new("tar");
            command.args(["--mtime=@0", "--sort=name"]).args(compress);
            let output = command
                .args(["-cf", "-", "-C"])
                .arg(&source)
                .arg(".")
                .output()
                .unwrap();
            assert!(output.status.success());
            output.stdout
        };
        (tar(&["-z"]), DiffId::of(&tar(&[])))
    };
    let (base, one, two) = (layer("base"), layer("one"), layer("two"));
    let mut listed = Vec::new();
    let mut made = Vec::new();
    for (tag, own) in [("v1", &one), ("v2", &two)] {
        let layers = [&base, own];
        let diff_ids: Vec<DiffId> = layers.iter().map(|(_, id)| *id).collect();
        let config = json!({
            "architecture": Platform::host().architecture, "os": "linux", "created": "2026-01-02T03:04:05Z",
            "config": {"Cmd": ["/hello"], "Env": ["A=1"], "Labels": {"who": tag}},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [
                {"created": "2026-01-01T00:00:00Z", "created_by": "ADD base"},
                {"created_by": "ENV A=1", "empty_layer": true},
                {"created": "2026-01-02T03:04:05Z", "created_by": "COPY own", "comment": "by hand"},
            ],
        });
        let with = |kind: &str, mut of: Value| {
            of["mediaType"] = kind.into();
            of
        };
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": with(OCI_CONFIG, put(config.to_string().as_bytes())),
            "layers": layers.map(|(blob, _)| with(OCI_LAYER_GZIP, put(blob))),
        });
        let manifest = manifest.to_string();
        let mut entry = with(OCI_MANIFEST, put(manifest.as_bytes()));
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        listed.push(entry);
        made.push((Digest::of(manifest.as_bytes()), diff_ids));
    }
    let index = json!({"schemaVersion": 2, "manifests": listed});
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    made
}

/// A board that has pulled both images, and the layout they came from.
fn with_images(flags: &[&str]) -> (Board, Vec<(Digest, Vec<DiffId>)>) {
    let board = Board::new();
    let app = board.dir.path().join("app");
    fs::create_dir(&app).unwrap();
    let made = layout(&app);
    for tag in ["v1", "v2"] {
        let source = format!("oci:{}:{tag}", app.display());
        let args = [&["pull"], flags, &[source.as_str()]].concat();
        board.must(&args);
    }
    (board, made)
}

#[test]
fn lists_and_formats() {
    let (board, made) = with_images(&[]);
    let lines = |args: &[&str]| -> Vec<String> { board.must(args).lines().map(str::to_owned).collect() };
    assert_eq!(
        lines(&["images", "--format", "{{.Repository}}:{{.Tag}} {{.Digest}}"]),
        [
            format!("localhost/app:v1 {}", made[0].0),
            format!("localhost/app:v2 {}", made[1].0)
        ]
    );
    assert_eq!(lines(&["images"]).len(), 3);
    assert_eq!(lines(&["image", "ls", "-q", "--no-trunc"]).len(), 2);
    assert_eq!(
        lines(&["images", "--filter", "reference=*/app:v?", "-q"]).len(),
        2
    );
    assert_eq!(
        lines(&["images", "-f", "label=who=v2", "--format", "{{.Tag}}"]),
        ["v2"]
    );
    assert_eq!(
        lines(&["images", "-f", "until=2026-01-01", "-q"]),
        Vec::<String>::new()
    );
    let table = lines(&["images", "--format", "table {{.Tag}}\\t{{.ID}}"]);
    assert!(table[0].starts_with("TAG   IMAGE ID"), "{table:?}");
    assert!(
        board
            .fails(1, &["images", "--format", "{{.Nope}}"])
            .contains("no field \"Nope\"")
    );
    assert!(
        board
            .fails(1, &["images", "--filter", "size=3"])
            .contains("there are dangling")
    );

    let history = lines(&["history", "app:v1"]);
    assert_eq!(history.len(), 4);
    assert!(
        history[1].contains("COPY own") && history[1].contains("30kB"),
        "{history:?}"
    );
    assert!(
        history[2].contains("<missing>") && history[2].contains("0B"),
        "{history:?}"
    );
    assert_eq!(
        lines(&["history", "--format", "{{.Comment}}", "app:v1"]),
        ["by hand", "", ""]
    );

    let inspected: Value = serde_json::from_str(&board.must(&["inspect", "app:v1"])).unwrap();
    assert_eq!(inspected[0]["RootFS"]["Layers"][0], made[0].1[0].to_string());
    assert_eq!(inspected[0]["RepoTags"], json!(["localhost/app:v1"]));
    assert_eq!(
        lines(&[
            "image",
            "inspect",
            "--format",
            "{{json .Config.Env}} {{.Size}}",
            "app:v1"
        ]),
        ["[\"A=1\"] 70000"]
    );
    assert!(
        board
            .fails(1, &["inspect", "nothing"])
            .contains("no such container or image")
    );
    assert!(
        board
            .fails(125, &["search", "iris"])
            .contains("registries have no search in common")
    );
}

#[test]
fn removes_and_prunes() {
    let (board, made) = with_images(&["--keep-blobs"]);
    board.must(&["tag", "app:v1", "other:v1"]);
    let id = board.must(&["images", "-q", "localhost/app:v1"]);
    let said = board.fails(1, &["rmi", id.trim()]);
    assert!(said.contains("it has 2 names"), "{said}");
    assert_eq!(board.must(&["rmi", "other:v1"]), "Untagged: other:v1\n");
    let said = board.must(&["rmi", "app:v1"]);
    assert!(
        said.starts_with("Untagged: localhost/app:v1\nDeleted: sha256:"),
        "{said}"
    );
    let layers = board.root().join("layers");
    assert!(!layers.join(made[0].1[1].hex()).exists(), "its own layer went");
    assert!(layers.join(made[0].1[0].hex()).exists(), "the shared one stayed");
    assert!(board.fails(1, &["rmi", "app:v1"]).contains("no such image"));
    board.must(&["rmi", "-f", "app:v1"]);

    // A container's image stays: its record counts, running or not.
    let container = "9f3b1c6a5d2e48f7a0b1c2d3e4f5061728394a5b6c7d8e9fa0b1c2d3e4f50617";
    let record = fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/golden/container-v1/desired"
    ));
    let mut record: Value = serde_json::from_str(&record.unwrap()).unwrap();
    record["id"] = container.into();
    record["spec"]["image"] = made[1].0.to_string().into();
    let dir = board.root().join("containers").join(container);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("desired"), record.to_string()).unwrap();
    let said = board.fails(1, &["rmi", "app:v2"]);
    assert!(said.contains("uses it; remove the container first"), "{said}");
    let said = board.must(&["image", "prune", "-af"]);
    assert!(said.contains("Total reclaimed space: 0B"), "{said}");
    assert_eq!(
        board.must(&["rmi", "-f", "app:v2"]),
        "Untagged: localhost/app:v2\n"
    );
    assert!(layers.join(made[1].1[1].hex()).exists());
    let usage = board.must(&[
        "system",
        "df",
        "--format",
        "{{.Type}} {{.TotalCount}} {{.Active}}",
    ]);
    assert!(usage.starts_with("Images 1 1\nContainers "), "{usage}");
    // A record that cannot be read may mean anything.
    fs::write(dir.join("desired"), "{").unwrap();
    let said = board.fails(1, &["image", "prune", "-af"]);
    assert!(
        said.contains("nothing was collected") && said.contains("desired"),
        "{said}"
    );
    fs::remove_dir_all(&dir).unwrap();
    let dangling = board.must(&["images", "-a", "--format", "{{.Repository}}"]);
    assert_eq!(dangling, "<none>\n");
    // Without an answer nothing goes; with one all of it.
    assert_eq!(board.must(&["image", "prune"]), "");
    let said = board.must(&["image", "prune", "-f"]);
    assert!(
        said.contains("Deleted Images:") && said.contains("Total reclaimed space: 7"),
        "{said}"
    );
    assert_eq!(fs::read_dir(&layers).unwrap().count(), 0);
    assert_eq!(
        fs::read_dir(board.root().join("blobs/sha256")).unwrap().count(),
        0
    );
}

/// Says loudly, and to whoever counts, what was not run.
fn skip(test: &str, lacking: &str) {
    eprintln!("SKIPPED: {test}: this machine lacks {lacking}");
    if let Some(path) = std::env::var_os("WHERRY_SKIP_LOG") {
        use std::io::Write;
        let log = fs::OpenOptions::new().append(true).create(true).open(path);
        writeln!(log.unwrap(), "{test}: this machine lacks {lacking}").unwrap();
    }
}

#[test]
fn saves_and_loads() {
    let (board, made) = with_images(&[]);
    let file = board.dir.path().join("app.tar");
    let file = file.to_str().unwrap();
    let output = board.run(&["save", "-o", file, "app:v1", "app:v2"]);
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("3 layers") || said.contains("4 layers"), "{said}");
    let other = Board::new();
    assert_eq!(
        other.must(&["load", "-i", file]),
        "Loaded image: localhost/app:v1\nLoaded image: localhost/app:v2\n"
    );
    let digests = other.must(&["images", "--format", "{{.Digest}}"]);
    assert_eq!(digests, format!("{}\n{}\n", made[0].0, made[1].0));
    assert!(other.must(&["verify"]).contains("nothing is damaged"));
    // Docker's own reader of archives.
    if Command::new("skopeo").arg("--version").output().is_err() {
        skip("saves_and_loads, the part with skopeo", "skopeo");
    } else {
        let source = format!("docker-archive:{file}:localhost/app:v1");
        let output = Command::new("skopeo")
            .args(["inspect", "--raw", &source])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }
    assert!(
        other
            .fails(1, &["load", "-i", "/dev/null"])
            .contains("not an image archive")
    );
    assert!(
        other
            .fails(1, &["load", "-i", "/nowhere"])
            .contains("cannot read /nowhere")
    );
    assert!(
        other
            .fails(1, &["save", "-o", file, "nothing"])
            .contains("no such image")
    );
}

#[test]
fn what_does_not_fit_is_refused_with_the_numbers() {
    let board = Board::new();
    let app = board.dir.path().join("app");
    fs::create_dir(&app).unwrap();
    let made = layout(&app);
    let source = format!("oci:{}:v1", app.display());
    for (name, value, part) in [
        ("WHERRY_RESERVE", "9999T", "kept in reserve"),
        ("WHERRY_QUOTA", "300", "quota 300 bytes"),
    ] {
        let output = board
            .command(&["pull", &source])
            .env(name, value)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            said.contains(&format!("image {}", made[0].0)) && said.contains("needed"),
            "{said}"
        );
        assert!(
            said.contains(part) && said.contains("wherry image prune"),
            "{said}"
        );
        assert_eq!(fs::read_dir(board.root().join("layers")).unwrap().count(), 0);
    }
    board.must(&["pull", &source]);
    assert_eq!(
        board.must(&["image", "prune", "-f"]).lines().last(),
        Some("Total reclaimed space: 0B")
    );
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn verifies_and_repairs_from_the_registry() {
    let (publisher, made) = with_images(&["--keep-blobs"]);
    let mut serve = publisher.command(&["serve", "--listen", "127.0.0.1:0"]);
    let mut server = Killed(serve.stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let port: String = line
        .rsplit_once("127.0.0.1:")
        .map(|(_, rest)| rest.chars().take_while(char::is_ascii_digit).collect())
        .unwrap_or_default();
    let image = format!("127.0.0.1:{port}/app:v1");
    publisher.must(&["tag", "app:v1", &image]);
    let board = Board::new();
    board.must(&["pull", &image]);
    assert!(board.must(&["verify"]).contains("nothing is damaged"));
    let tree = board
        .root()
        .join("layers")
        .join(made[0].1[1].hex())
        .join("tree/one");
    let config = board.must(&["images", "-q", "--no-trunc"]);
    let config = board
        .root()
        .join("blobs/sha256")
        .join(config.trim().trim_start_matches("sha256:"));
    fs::write(&tree, "changed by a bad card").unwrap();
    fs::write(&config, "{}").unwrap();
    let output = board.run(&["verify"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains(&format!("layer {}: ", made[0].1[1])) && said.contains("2 damaged or missing"),
        "{said}"
    );
    let said = board.must(&["verify", "--repair"]);
    assert!(said.contains("nothing is damaged"), "{said}");
    assert_eq!(fs::read_to_string(&tree).unwrap(), "one".repeat(10_000));
    let names = board.must(&["images", "--format", "{{.Repository}}:{{.Tag}}"]);
    assert_eq!(names, format!("{image}\n"), "the repair left no name of its own");
    // With nobody to fetch it from, the damage is told and the image is not lost more than it was.
    drop(server);
    fs::remove_file(&tree).unwrap();
    let said = board.fails(1, &["verify", "--repair"]);
    assert!(said.contains("No such file") && said.contains(&image), "{said}");
}
