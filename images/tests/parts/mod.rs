//! The real parts that the registry tests meet: docker-registry, skopeo, a bad link, a sample image.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use wherry_images::store::Store;
use wherry_images::{DiffId, Digest};

/// Fails by name when a program that a test needs is missing.
fn program(name: &str, package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/bin"), PathBuf::from("/usr/sbin")])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| {
            panic!("{name} is missing: install the package {package}; this test does not pass without it")
        })
}

/// A store in a folder. Its cage is this very program.
pub(crate) fn store(folder: &Path) -> Store {
    Store::open(folder).unwrap()
}

/// Debian's docker-registry on a free port, its storage in a folder.
pub(crate) struct DockerRegistry {
    child: Child,
    pub(crate) address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl DockerRegistry {
    pub(crate) fn start() -> DockerRegistry {
        DockerRegistry::start_with("")
    }

    /// With `extra` lines at the end of its configuration; `FOLDER` in them is its folder.
    pub(crate) fn start_with(extra: &str) -> DockerRegistry {
        let program = program("docker-registry", "docker-registry");
        let folder = tempfile::tempdir().unwrap();
        let address = free_address();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {0}/data}}\n  delete: {{enabled: true}}\n\
             http:\n  addr: {address}\n{1}",
            folder.path().display(),
            extra.replace("FOLDER", &folder.path().display().to_string()),
        );
        let file = folder.path().join("config.yml");
        std::fs::write(&file, config).unwrap();
        for name in ["cert.pem", "key.pem"] {
            std::fs::copy(tls_file(name), folder.path().join(name)).unwrap();
        }
        // user:pass, as htpasswd -B writes it.
        let login = "user:$2y$05$abcdefghijklmnopqrstuuZFBUbfXoM8LFiPx8LYlO/sXZB/Cwk3K\n";
        std::fs::write(folder.path().join("htpasswd"), login).unwrap();
        let child = Command::new(program)
            .args(["serve".as_ref(), file.as_os_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = DockerRegistry {
            child,
            address,
            _folder: folder,
        };
        wait_for("docker-registry", || TcpStream::connect(address).is_ok());
        registry
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The certificate of a registry at 127.0.0.1 and localhost, which nobody vouches for. Made, with its key, by
/// `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500 -subj /CN=registry.test
/// -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE -keyout key.pem -out cert.pem`.
pub(crate) fn certificate() -> PathBuf {
    tls_file("cert.pem")
}

fn tls_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/parts/tls")
        .join(name)
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !ready() {
        assert!(Instant::now() < until, "{what} does not answer");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs skopeo and fails with what it says.
pub(crate) fn skopeo(arguments: &[&str]) {
    let output = Command::new(program("skopeo", "skopeo"))
        .arg("--insecure-policy")
        .args(arguments)
        .env("REGISTRY_AUTH_FILE", "/nonexistent/auth.json")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "skopeo {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A relay that cuts each connection after so many bytes downstream, or upstream, and counts what it delivers.
pub(crate) struct Link {
    pub(crate) address: SocketAddr,
    pub(crate) down: Arc<AtomicU64>,
    pub(crate) connections: Arc<AtomicU64>,
}

impl Link {
    pub(crate) fn cutting(upstream: SocketAddr, cut_down: Option<u64>, cut_up: Option<u64>) -> Link {
        Link::bad(upstream, cut_down, cut_up, u64::MAX)
    }

    /// One that turns a bit of the nth byte downstream.
    pub(crate) fn flipping(upstream: SocketAddr, nth: u64) -> Link {
        Link::bad(upstream, None, None, nth)
    }

    fn bad(upstream: SocketAddr, cut_down: Option<u64>, cut_up: Option<u64>, flip: u64) -> Link {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let down = Arc::new(AtomicU64::new(0));
        let connections = Arc::new(AtomicU64::new(0));
        let counters = (down.clone(), connections.clone());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                counters.1.fetch_add(1, Ordering::Relaxed);
                let Ok(server) = TcpStream::connect(upstream) else {
                    continue;
                };
                let pairs = [
                    (
                        server.try_clone().unwrap(),
                        client.try_clone().unwrap(),
                        cut_down,
                        Some(counters.0.clone()),
                    ),
                    (client, server, cut_up, None),
                ];
                for (from, to, cut, counter) in pairs {
                    std::thread::spawn(move || relay(from, to, cut, counter, flip));
                }
            }
        });
        Link {
            address,
            down,
            connections,
        }
    }
}

fn relay(
    mut from: TcpStream,
    mut to: TcpStream,
    cut: Option<u64>,
    counter: Option<Arc<AtomicU64>>,
    flip: u64,
) {
    let mut left = cut.unwrap_or(u64::MAX);
    let mut buffer = [0; 16384];
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(buffer.len()).min(buffer.len());
        let Ok(got @ 1..) = from.read(&mut buffer[..most]) else {
            break;
        };
        if let Some(counter) = &counter {
            let place = flip.checked_sub(counter.load(Ordering::Relaxed));
            if let Some(byte) = place.and_then(|at| buffer[..got].get_mut(usize::try_from(at).ok()?)) {
                *byte ^= 1;
            }
        }
        if to.write_all(&buffer[..got]).is_err() {
            break;
        }
        if let Some(counter) = &counter {
            counter.fetch_add(got as u64, Ordering::Relaxed);
        }
        left -= got as u64;
    }
    for stream in [&from, &to] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// Bytes that nothing compresses, the same each time.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// An image in an OCI layout.
pub(crate) struct Sample {
    folder: tempfile::TempDir,
    pub(crate) manifest: Digest,
    pub(crate) config: Digest,
    pub(crate) blobs: Vec<Digest>,
    /// Bytes of manifest, config and layers.
    pub(crate) bytes: u64,
}

impl Sample {
    /// An image with one layer for each list of files.
    pub(crate) fn new(layers: &[&[(&str, &[u8])]]) -> Sample {
        let folder = tempfile::tempdir().unwrap();
        let mut sample = Sample {
            folder,
            manifest: Digest::of(b""),
            config: Digest::of(b""),
            blobs: Vec::new(),
            bytes: 0,
        };
        std::fs::create_dir_all(sample.path().join("blobs/sha256")).unwrap();
        let mut descriptors = Vec::new();
        let mut diff_ids = Vec::new();
        for files in layers {
            let tar = tar(files);
            diff_ids.push(DiffId::of(&tar).to_string());
            let (digest, size) = sample.blob(&gzip(&tar));
            sample.blobs.push(digest);
            descriptors.push(serde_json::json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": size,
            }));
        }
        let platform = wherry_images::Platform::host();
        let config = serde_json::json!({
            "architecture": platform.architecture, "os": platform.os, "config": {"Cmd": ["/a"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let (config, size) = sample.blob(config.to_string().as_bytes());
        sample.config = config;
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": size},
            "layers": descriptors,
        });
        let (manifest, size) = sample.blob(manifest.to_string().as_bytes());
        sample.manifest = manifest;
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": size,
            "annotations": {"org.opencontainers.image.ref.name": "v1"},
        }]});
        std::fs::write(sample.path().join("index.json"), index.to_string()).unwrap();
        std::fs::write(
            sample.path().join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )
        .unwrap();
        sample
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// As skopeo names it.
    pub(crate) fn place(&self) -> String {
        format!("oci:{}:v1", self.path().display())
    }

    fn blob(&mut self, bytes: &[u8]) -> (Digest, u64) {
        let digest = Digest::of(bytes);
        std::fs::write(self.path().join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        self.bytes += bytes.len() as u64;
        (digest, bytes.len() as u64)
    }
}

/// As gzip writes it.
pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

/// An ustar archive of regular files.
pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (name, bytes) in files {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[108..116].copy_from_slice(b"0000000\0");
        header[116..124].copy_from_slice(b"0000000\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", bytes.len()).as_bytes());
        header[136..148].copy_from_slice(b"00000000000\0");
        header[148..156].copy_from_slice(b"        ");
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend_from_slice(&header);
        tar.extend_from_slice(bytes);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

/// The names of all blobs in a layout.
pub(crate) fn blobs_in(layout: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(layout.join("blobs/sha256"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
