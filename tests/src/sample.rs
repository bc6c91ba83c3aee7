//! Sample images without docker: the iris server in two versions as one OCI image layout. The lower layer is real
//! userland from the host's own packages, the upper one the server and its model.
//!
//! The same inputs give the same bytes: entries are sorted, times are zero, owners are root.

use flate2::{Compression, GzBuilder};
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::{Error, Result, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian packages whose files make the lower layer. All are on every Debian system, or installed by `tests/setup`.
const PACKAGES: &[&str] = &[
    "bash",
    "busybox-static",
    "ca-certificates",
    "coreutils",
    "dash",
    "diffutils",
    "findutils",
    "grep",
    "gzip",
    "libacl1",
    "libattr1",
    "libc-bin",
    "libc6",
    "libcrypt1",
    "libgmp10",
    "libpcre2-8-0",
    "libselinux1",
    "libtinfo6",
    "perl-base",
    "sed",
    "tar",
    "tzdata",
    "zlib1g",
];
/// What no image needs.
const LEFT_OUT: &[&str] = &[
    "/usr/share/doc",
    "/usr/share/man",
    "/usr/share/locale",
    "/usr/share/info",
    "/usr/share/lintian",
];
/// The symbolic links of a merged /usr.
const MERGED: &[(&str, &str)] = &[
    ("bin", "usr/bin"),
    ("lib", "usr/lib"),
    ("lib64", "usr/lib64"),
    ("sbin", "usr/sbin"),
];

/// One file of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A directory.
    Directory,
    /// A regular file with these permissions.
    File(Vec<u8>, u32),
    /// A symbolic link to this.
    Symlink(String),
    /// A hard link to this path of the same layer.
    Link(String),
    /// A whiteout or any other entry made of raw type and no data, for tests of refusals.
    Raw(u8),
}

/// A layer's files by path, relative and without a leading slash.
pub type Tree = BTreeMap<String, Entry>;

/// An uncompressed tar (ustar) of the tree.
pub fn tar(tree: &Tree) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for (path, entry) in tree {
        let (kind, mode, link, data): (u8, u32, &str, &[u8]) = match entry {
            Entry::Directory => (b'5', 0o755, "", &[]),
            Entry::File(data, mode) => (b'0', *mode, "", data),
            Entry::Symlink(to) => (b'2', 0o777, to, &[]),
            Entry::Link(to) => (b'1', 0o644, to, &[]),
            Entry::Raw(kind) => (*kind, 0o644, "", &[]),
        };
        let path = if kind == b'5' {
            format!("{path}/")
        } else {
            path.clone()
        };
        out.extend_from_slice(&header(&path, kind, mode, link, data.len())?);
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    Ok(out)
}

fn header(path: &str, kind: u8, mode: u32, link: &str, size: usize) -> Result<[u8; 512]> {
    let mut header = [0_u8; 512];
    let mut put = |at: usize, room: usize, bytes: &[u8]| {
        let bytes = &bytes[..bytes.len().min(room)];
        header[at..at + bytes.len()].copy_from_slice(bytes);
    };
    // A path over 100 bytes is split at a slash between prefix (155) and name (100).
    let split = if path.len() <= 100 {
        Some(("", path))
    } else {
        path.match_indices('/')
            .map(|(at, _)| (&path[..at], &path[at + 1..]))
            .find(|(prefix, name)| prefix.len() <= 155 && name.len() <= 100 && !name.is_empty())
    };
    let (prefix, name) = split.ok_or_else(|| Error::other(format!("{path}: too long for a ustar header")))?;
    if link.len() > 100 {
        return Err(Error::other(format!(
            "{path}: the link target is too long for a ustar header"
        )));
    }
    put(0, 100, name.as_bytes());
    put(100, 8, format!("{mode:07o}\0").as_bytes());
    put(108, 8, b"0000000\0");
    put(116, 8, b"0000000\0");
    put(124, 12, format!("{size:011o}\0").as_bytes());
    put(136, 12, b"00000000000\0");
    put(148, 8, b"        ");
    put(156, 1, &[kind]);
    put(157, 100, link.as_bytes());
    put(257, 8, b"ustar\x0000");
    put(265, 32, b"root");
    put(297, 32, b"root");
    put(345, 155, prefix.as_bytes());
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(header)
}

/// Gzip without a time or a name, so that the bytes depend on the data alone.
pub fn gzip(data: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::new(6));
    encoder.write_all(data)?;
    encoder.finish()
}

/// `sha256:` and the hash of the bytes.
pub fn digest_of(data: &[u8]) -> String {
    let hash = digest(&SHA256, data);
    let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// The files of the lower layer, from the packages installed on this host.
pub fn userland() -> Result<Tree> {
    let listed = Command::new("dpkg-query")
        .arg("--listfiles")
        .args(PACKAGES)
        .output()?;
    if !listed.status.success() {
        let text = String::from_utf8_lossy(&listed.stderr).trim().to_owned();
        return Err(Error::other(format!("dpkg-query --listfiles: {text}")));
    }
    let mut paths: BTreeSet<String> = String::from_utf8_lossy(&listed.stdout)
        .lines()
        .filter(|line| line.starts_with('/') && *line != "/.")
        .filter(|line| {
            !LEFT_OUT
                .iter()
                .any(|left_out| Path::new(line).starts_with(left_out))
        })
        // Configuration belongs to the host that it was written on.
        .filter(|line| !line.starts_with("/etc/"))
        .map(str::to_owned)
        .collect();
    paths.insert("/etc/ssl/certs/ca-certificates.crt".to_owned());

    let mut tree = Tree::new();
    let mut seen: HashMap<(u64, u64), String> = HashMap::new();
    for path in &paths {
        let Some(inside) = inside(Path::new(path)) else {
            continue;
        };
        let Ok(metadata) = fs::symlink_metadata(path) else {
            continue;
        };
        if inside.is_empty() || tree.contains_key(&inside) {
            continue;
        }
        let entry = if metadata.is_dir() {
            Entry::Directory
        } else if metadata.is_symlink() {
            Entry::Symlink(fs::read_link(path)?.to_string_lossy().into_owned())
        } else if metadata.is_file() {
            let twin = (metadata.nlink() > 1)
                .then(|| seen.get(&(metadata.dev(), metadata.ino())).cloned())
                .flatten();
            match twin {
                Some(first) => Entry::Link(first),
                None => {
                    seen.insert((metadata.dev(), metadata.ino()), inside.clone());
                    // Neither set-user-ID bits nor unreadable files belong in a sample.
                    Entry::File(
                        fs::read(path)?,
                        if metadata.mode() & 0o111 == 0 {
                            0o644
                        } else {
                            0o755
                        },
                    )
                }
            }
        } else {
            continue;
        };
        tree.insert(inside, entry);
    }
    for (name, to) in MERGED {
        if tree.keys().any(|path| path.starts_with(&format!("{to}/"))) {
            tree.insert((*name).to_owned(), Entry::Symlink((*to).to_owned()));
        }
    }
    for directory in ["tmp", "proc", "sys", "dev", "run", "root", "var"] {
        tree.insert(directory.to_owned(), Entry::Directory);
    }
    tree.insert(
        "etc/passwd".to_owned(),
        Entry::File(b"root:x:0:0:root:/root:/bin/sh\n".to_vec(), 0o644),
    );
    tree.insert(
        "etc/group".to_owned(),
        Entry::File(b"root:x:0:\n".to_vec(), 0o644),
    );
    add_parents(&mut tree);
    // An entry is written after the directories above it, which the order of the map gives; a hard link after its
    // file, which it gives as well, since the first path of an inode was the file.
    Ok(tree)
}

/// The path in the image: the host's merged /usr is followed for the parents, not for the file itself.
fn inside(path: &Path) -> Option<String> {
    let parent = path.parent()?.canonicalize().ok()?;
    let whole: PathBuf = parent.join(path.file_name()?);
    Some(whole.to_string_lossy().trim_start_matches('/').to_owned())
}

fn add_parents(tree: &mut Tree) {
    let paths: Vec<String> = tree.keys().cloned().collect();
    for path in paths {
        let mut parent = Path::new(&path).parent();
        while let Some(directory) = parent.filter(|directory| !directory.as_os_str().is_empty()) {
            tree.entry(directory.to_string_lossy().into_owned())
                .or_insert(Entry::Directory);
            parent = directory.parent();
        }
    }
}

/// An OCI image layout that is being written.
#[derive(Debug)]
pub struct Layout {
    root: PathBuf,
    manifests: Vec<Value>,
}

/// A layer as it lies in a layout.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The descriptor.
    pub descriptor: Value,
    /// The digest of the uncompressed tar.
    pub diff_id: String,
}

impl Layout {
    /// An empty layout at `root`; what was there is removed.
    pub fn create(root: &Path) -> Result<Self> {
        match fs::remove_dir_all(root) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::create_dir_all(root.join("blobs/sha256"))?;
        fs::write(root.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}")?;
        let layout = Self {
            root: root.to_owned(),
            manifests: Vec::new(),
        };
        layout.write_index()?;
        Ok(layout)
    }

    fn write_index(&self) -> Result<()> {
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": self.manifests,
        });
        fs::write(self.root.join("index.json"), index.to_string())
    }

    /// Stores a blob and returns its descriptor.
    pub fn blob(&self, media_type: &str, data: &[u8]) -> Result<Value> {
        let digest = digest_of(data);
        fs::write(
            self.root
                .join("blobs/sha256")
                .join(digest.trim_start_matches("sha256:")),
            data,
        )?;
        Ok(json!({"mediaType": media_type, "digest": digest, "size": data.len()}))
    }

    /// Stores a gzipped layer.
    pub fn layer(&self, tree: &Tree) -> Result<Layer> {
        let tar = tar(tree)?;
        let descriptor = self.blob("application/vnd.oci.image.layer.v1.tar+gzip", &gzip(&tar)?)?;
        Ok(Layer {
            descriptor,
            diff_id: digest_of(&tar),
        })
    }

    /// Stores config and manifest and names the image `tag`. Returns the manifest's digest.
    pub fn image(&mut self, tag: &str, layers: &[Layer], config: Value) -> Result<String> {
        let architecture = architecture();
        let config = json!({
            "created": "1970-01-01T00:00:00Z",
            "architecture": architecture,
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>()},
        });
        let config = self.blob(
            "application/vnd.oci.image.config.v1+json",
            config.to_string().as_bytes(),
        )?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": layers.iter().map(|layer| &layer.descriptor).collect::<Vec<_>>(),
        });
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let mut descriptor = self.blob(media_type, manifest.to_string().as_bytes())?;
        let digest = descriptor["digest"].as_str().unwrap_or_default().to_owned();
        descriptor["platform"] = json!({"architecture": architecture, "os": "linux"});
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        self.manifests.push(descriptor);
        self.write_index()?;
        Ok(digest)
    }
}

/// This machine in the words of image configs.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The upper layer: the server, and the model that its trainer makes from the measurements.
pub fn application(server: &Path, trainer: &Path, measurements: &Path) -> Result<Tree> {
    let trained = Command::new(trainer)
        .stdin(fs::File::open(measurements)?)
        .output()?;
    if !trained.status.success() {
        return Err(Error::other(format!(
            "{}: {}",
            trainer.display(),
            String::from_utf8_lossy(&trained.stderr).trim()
        )));
    }
    Ok(Tree::from([
        ("app".to_owned(), Entry::Directory),
        (
            "app/iris-server".to_owned(),
            Entry::File(fs::read(server)?, 0o755),
        ),
        ("model".to_owned(), Entry::File(trained.stdout, 0o644)),
    ]))
}

/// The config of the iris images.
pub fn iris_config() -> Value {
    json!({
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "Entrypoint": ["/app/iris-server"],
        "ExposedPorts": {"8080/tcp": {}},
        "WorkingDir": "/",
        "Labels": {"org.opencontainers.image.title": "iris"},
    })
}

/// A small image for tests: busybox and the tracer, which waits for SIGTERM when nothing else is asked.
pub fn toolbox(layout: &mut Layout, tag: &str, tracer: &Path) -> Result<String> {
    let mut tree = Tree::from([
        ("tracer".to_owned(), Entry::File(fs::read(tracer)?, 0o755)),
        (
            "bin/busybox".to_owned(),
            Entry::File(fs::read("/bin/busybox")?, 0o755),
        ),
        (
            "etc/passwd".to_owned(),
            Entry::File(b"root:x:0:0:root:/:/bin/sh\n".to_vec(), 0o644),
        ),
        (
            "etc/group".to_owned(),
            Entry::File(b"root:x:0:\n".to_vec(), 0o644),
        ),
    ]);
    for name in ["cat", "echo", "false", "ls", "sh", "sleep", "true"] {
        tree.insert(format!("bin/{name}"), Entry::Symlink("busybox".to_owned()));
    }
    for directory in ["proc", "sys", "dev", "tmp"] {
        tree.insert(directory.to_owned(), Entry::Directory);
    }
    add_parents(&mut tree);
    let layer = layout.layer(&tree)?;
    let config = json!({"Env": ["PATH=/bin"], "Cmd": ["/tracer", "wait"], "WorkingDir": "/"});
    layout.image(tag, &[layer], config)
}

/// An image with the program `escape`, and with one that watches for programs to write: `escape-loop`.
pub fn escape_box(layout: &mut Layout, tag: &str, escape: &Path) -> Result<String> {
    let watch = "#!/bin/sh\necho watching\nwhile true; do for exe in /proc/[0-9]*/exe; do \
                 (echo x >>$exe) 2>/dev/null && echo ESCAPED $exe; done; done\n";
    let mut tree = Tree::from([
        ("escape".to_owned(), Entry::File(fs::read(escape)?, 0o755)),
        ("escape-loop".to_owned(), Entry::File(watch.into(), 0o755)),
        (
            "bin/busybox".to_owned(),
            Entry::File(fs::read("/bin/busybox")?, 0o755),
        ),
        ("etc/hostname".to_owned(), Entry::File(b"box\n".to_vec(), 0o644)),
    ]);
    for name in ["sh", "sleep", "echo"] {
        tree.insert(format!("bin/{name}"), Entry::Symlink("busybox".to_owned()));
    }
    for directory in ["proc", "sys", "dev", "tmp"] {
        tree.insert(directory.to_owned(), Entry::Directory);
    }
    add_parents(&mut tree);
    let layer = layout.layer(&tree)?;
    layout.image(
        tag,
        &[layer],
        json!({"Env": ["PATH=/bin"], "Cmd": ["/escape"], "WorkingDir": "/"}),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tar_reads_what_is_written_and_the_bytes_are_the_same_each_time() {
        let long = format!("{}/{}", "d".repeat(120), "f".repeat(90));
        let tree = Tree::from([
            ("a".to_owned(), Entry::Directory),
            ("a/file".to_owned(), Entry::File(b"hello".to_vec(), 0o755)),
            ("a/hard".to_owned(), Entry::Link("a/file".to_owned())),
            ("link".to_owned(), Entry::Symlink("a/file".to_owned())),
            (long.clone(), Entry::File(vec![7; 600], 0o644)),
        ]);
        let bytes = gzip(&tar(&tree).expect("tar")).expect("gzip");
        assert_eq!(bytes, gzip(&tar(&tree).expect("tar")).expect("gzip"));
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("layer.tar.gz");
        fs::write(&file, bytes).expect("write");
        let status = Command::new("tar")
            .arg("-xzf")
            .arg(&file)
            .arg("-C")
            .arg(directory.path())
            .status()
            .expect("tar");
        assert!(status.success());
        assert_eq!(fs::read(directory.path().join("link")).expect("link"), b"hello");
        assert_eq!(
            fs::read(directory.path().join("a/hard")).expect("hard link"),
            b"hello"
        );
        assert_eq!(
            fs::read(directory.path().join(long)).expect("long name").len(),
            600
        );
    }
}
