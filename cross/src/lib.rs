//! The virtual Pi: an arm64 board in qemu's software emulation, with Debian's kernels, cgroup v2 delegated to an ordinary
//! user, a disk that outlives a power cut and a way to services of the host (10.0.2.2).
//!
//! ```text
//! test ──▶ Board::boot ──▶ qemu ──▶ cross/pi/guest (the first process)
//!   │                                 │ mounts, modules, cgroups, users
//!   │ ◀───────────── "ready" ──────── ┤
//!   ├─ run("script") ───────────────▶ │ sh
//!   │ ◀──── exit code, both streams ─ ┤
//!   ├─ cut() = SIGKILL to qemu: what the guest had not written is lost
//!   └─ boot again with the same disk
//! ```
//!
//! Host and guest speak over a virtio port, a line each way; the console is kept for the kernel's last words and for marks that
//! a script leaves before the power is cut. Nothing
//! waits for seconds: each wait ends with the guest's line, with qemu's end, or at [`HANG`]. When the host's side of the
//! port closes the guest powers itself off, so nothing is left of a test that was killed.
//!
//! A test is a file in `cross/tests`. It gets the disks made by `cross/pi/test` by their names; see [`payload`].

use std::io::{BufRead, BufReader, Error, ErrorKind, Result, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Longer than anything takes on a busy machine, where a boot can take minutes; reached only by a hang.
pub const HANG: Duration = Duration::from_secs(900);

/// The directory that `cross/pi/test` filled.
///
/// # Errors
///
/// When it was not run: the environment does not name it.
pub fn directory() -> Result<PathBuf> {
    std::env::var_os("WHERRY_PI_DIR")
        .map(PathBuf::from)
        .ok_or_else(|| {
            Error::other(
                "WHERRY_PI_DIR is not set: run these tests with `make pi-test`, which makes what they boot",
            )
        })
}

/// The disk with the programs and tests of a target, as the board sees them at their own paths.
///
/// # Errors
///
/// As [`directory`].
pub fn payload(triple: &str) -> Result<PathBuf> {
    Ok(directory()?.join(format!("payload-{triple}.ext4")))
}

/// A board to be switched on.
#[derive(Debug, Clone)]
pub struct Board {
    kernel: &'static str,
    memory: u32,
    cpus: u32,
    append: String,
    clock: Option<String>,
    online: bool,
    user_space: &'static str,
}

impl Board {
    /// A board with one of the kernels in `cross/pi/prepare` (`"6.1"`, `"6.12"`), 512 MB and 2 processors.
    pub fn new(kernel: &'static str) -> Self {
        Self {
            kernel,
            memory: 512,
            cpus: 2,
            append: String::new(),
            clock: None,
            online: true,
            user_space: "arm64",
        }
    }

    /// With a 32-bit user space on its 64-bit kernel, as 32-bit Raspberry Pi OS has.
    #[must_use]
    pub fn with_32_bits(mut self) -> Self {
        self.user_space = "armhf";
        self
    }

    /// With so many MB of memory.
    #[must_use]
    pub fn memory(mut self, megabytes: u32) -> Self {
        self.memory = megabytes;
        self
    }

    /// With another word on the kernel's command line.
    #[must_use]
    pub fn append(mut self, word: &str) -> Self {
        self.append = format!("{} {word}", self.append);
        self
    }

    /// With a clock that shows this when it is switched on, as `1970-01-01T00:00:00`.
    #[must_use]
    pub fn clock(mut self, time: &str) -> Self {
        self.clock = Some(time.into());
        self
    }

    /// With no network but its own loopback.
    #[must_use]
    pub fn offline(mut self) -> Self {
        self.online = false;
        self
    }

    /// Switches it on and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When qemu cannot be started or the guest does not come up, with the console's last lines.
    pub fn boot(&self, payload: &Path, disk: &Disk) -> Result<Pi> {
        let kernel = directory()?.join(self.kernel);
        let scratch = tempfile::tempdir()?;
        let (console, port) = (scratch.path().join("console"), scratch.path().join("port"));
        let mut command = Command::new("qemu-system-aarch64");
        command
            .args([
                "-machine",
                "virt",
                "-cpu",
                "cortex-a72",
                "-accel",
                "tcg,thread=multi",
            ])
            .args([
                "-display",
                "none",
                "-monitor",
                "none",
                "-no-reboot",
                "-nodefaults",
            ])
            .args(["-smp", &self.cpus.to_string(), "-m", &self.memory.to_string()])
            .arg("-kernel")
            .arg(kernel.join("vmlinuz"))
            .arg("-initrd")
            .arg(kernel.join(format!("initramfs-{}", self.user_space)))
            .arg("-append")
            .arg(format!(
                "console=ttyAMA0 quiet panic=-1 rdinit=/init{}",
                self.append
            ))
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"])
            .arg("-chardev")
            .arg(format!(
                "socket,id=port,path={},server=on,wait=off",
                port.display()
            ))
            .args(["-device", "virtserialport,chardev=port,name=wherry"])
            // A cut kills qemu, not this machine: what the guest has written is in this machine's page cache.
            .arg("-drive")
            .arg(format!(
                "file={},if=none,id=payload,format=raw,readonly=on",
                payload.display()
            ))
            .args(["-device", "virtio-blk-pci,drive=payload"])
            .arg("-drive")
            .arg(format!(
                "file={},if=none,id=disk,format=raw,cache=unsafe",
                disk.path.display()
            ))
            .args(["-device", "virtio-blk-pci,drive=disk"]);
        if self.online {
            let card = "virtio-net-pci,netdev=net,romfile=";
            command.args(["-netdev", "user,id=net", "-device", card]);
        }
        if let Some(clock) = &self.clock {
            command.args(["-rtc", &format!("base={clock}")]);
        }
        let started = Instant::now();
        let qemu = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|e| {
                Error::new(
                    e.kind(),
                    format!("qemu-system-aarch64 (package qemu-system-arm): {e}"),
                )
            })?;
        let mut pi = Pi {
            qemu,
            port: None,
            console,
            release: String::new(),
            boot: Duration::ZERO,
            _scratch: scratch,
        };
        pi.connect(&port, started)?;
        let ready = pi.line()?;
        pi.boot = started.elapsed();
        pi.release = ready.split(' ').nth(1).unwrap_or_default().into();
        Ok(pi)
    }
}

/// A board's own disk: ext4, sparse, mounted at the home of the user `wherry-test`.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Disk {
    /// An empty one with so many MB.
    ///
    /// # Errors
    ///
    /// When `mke2fs` fails.
    pub fn new(megabytes: u32) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("disk");
        let mut command = Command::new("/sbin/mke2fs");
        command
            .args(["-q", "-t", "ext4", "-E", "root_owner=1000:1000"])
            .arg(&path)
            .arg(format!("{megabytes}M"));
        let output = command.output()?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(Error::other(format!("mke2fs: {text}")));
        }
        Ok(Self {
            path,
            _directory: directory,
        })
    }

    /// Checks the filesystem, after its journal was replayed, as a board does at boot.
    ///
    /// # Errors
    ///
    /// When something was wrong with it, in e2fsck's words.
    pub fn check(&self) -> Result<()> {
        let output = Command::new("/sbin/e2fsck")
            .args(["-f", "-y"])
            .arg(&self.path)
            .output()?;
        match output.status.code() {
            Some(0 | 1) => Ok(()),
            _ => Err(Error::other(String::from_utf8_lossy(&output.stdout).into_owned())),
        }
    }
}

/// What a script did.
#[derive(Debug)]
pub struct Answer {
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Answer {
    /// Its standard output, if it succeeded.
    ///
    /// # Errors
    ///
    /// Names its exit code and both streams.
    pub fn ok(self) -> Result<String> {
        if self.code == 0 {
            return Ok(self.out);
        }
        Err(Error::other(format!(
            "exit code {}: {}{}",
            self.code, self.out, self.err
        )))
    }
}

/// A board that is on.
#[derive(Debug)]
pub struct Pi {
    qemu: Child,
    port: Option<BufReader<UnixStream>>,
    console: PathBuf,
    release: String,
    boot: Duration,
    _scratch: tempfile::TempDir,
}

impl Pi {
    /// The kernel's release, as `uname -r` says.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// How long it took to come up, on this machine's clock.
    pub fn boot_time(&self) -> Duration {
        self.boot
    }

    /// Runs a shell script as root.
    ///
    /// # Errors
    ///
    /// When the board does not answer; a script's own failure is in the answer.
    pub fn run(&mut self, script: &str) -> Result<Answer> {
        self.ask(script)?;
        let line = self.line()?;
        let mut fields = line.split(' ');
        let malformed = || Error::new(ErrorKind::InvalidData, format!("the guest said {line:?}"));
        let code = fields
            .next()
            .and_then(|code| code.parse().ok())
            .ok_or_else(malformed)?;
        let mut stream = || {
            let text = fields.next()?.strip_suffix('.')?;
            Some(String::from_utf8_lossy(&STANDARD.decode(text).ok()?).into_owned())
        };
        let (out, err) = stream().zip(stream()).ok_or_else(malformed)?;
        Ok(Answer { code, out, err })
    }

    /// Runs a shell script as the ordinary user, in a session whose cgroup is delegated to it.
    ///
    /// # Errors
    ///
    /// As [`Pi::run`].
    pub fn as_user(&mut self, script: &str) -> Result<Answer> {
        let text = STANDARD.encode(script);
        self.run(&format!(
            "echo $$ >/sys/fs/cgroup/user/session/cgroup.procs\necho {text} | base64 -d >/run/user-script\n\
             cd /home/wherry-test && HOME=/home/wherry-test TMPDIR=/home/wherry-test exec su wherry-test -s /bin/sh /run/user-script"
        ))
    }

    /// Starts a shell script and does not wait for it: for what a power cut is to meet.
    ///
    /// # Errors
    ///
    /// When the board does not take it.
    pub fn ask(&mut self, script: &str) -> Result<()> {
        let line = STANDARD.encode(script) + "\n";
        let port = self
            .port
            .as_mut()
            .ok_or_else(|| Error::other("the board is off"))?;
        port.get_mut().write_all(line.as_bytes())
    }

    /// Waits until the guest's console shows a line with these words, and gives all lines that hold them.
    ///
    /// # Errors
    ///
    /// When the board goes off, or they do not come.
    pub fn console_shows(&mut self, words: &str, times: usize) -> Result<Vec<String>> {
        let deadline = Instant::now() + HANG;
        loop {
            let bytes = std::fs::read(&self.console).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            // A line that is being written is not there yet.
            let whole = text
                .rfind('\n')
                .map_or("", |end| text.get(..end).unwrap_or_default());
            let lines: Vec<String> = whole
                .lines()
                .filter(|line| line.contains(words))
                .map(str::to_owned)
                .collect();
            if lines.len() >= times {
                return Ok(lines);
            }
            if let Some(status) = self.qemu.try_wait()? {
                return Err(Error::other(format!("qemu: {status}:\n{}", self.console())));
            }
            if Instant::now() > deadline {
                return Err(Error::new(
                    ErrorKind::TimedOut,
                    format!("never {words:?} on the console:\n{}", self.console()),
                ));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Cuts the power. What the console has shown by then is the answer.
    pub fn cut_and_read(mut self) -> String {
        self.end();
        String::from_utf8_lossy(&std::fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// Cuts the power.
    pub fn cut(mut self) {
        self.end();
    }

    /// Switches it off in order: what was written is on the disk.
    ///
    /// # Errors
    ///
    /// When it does not go.
    pub fn off(mut self) -> Result<()> {
        self.run("sync")?;
        self.ask("umount /home/wherry-test; sync; poweroff -f")?;
        let deadline = Instant::now() + HANG;
        while self.qemu.try_wait()?.is_none() {
            if Instant::now() > deadline {
                return Err(Error::new(
                    ErrorKind::TimedOut,
                    "the board does not switch itself off",
                ));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// The last lines of the console.
    pub fn console(&self) -> String {
        let bytes = std::fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    fn connect(&mut self, path: &Path, started: Instant) -> Result<()> {
        loop {
            if let Ok(stream) = UnixStream::connect(path) {
                stream.set_read_timeout(Some(HANG))?;
                self.port = Some(BufReader::new(stream));
                return Ok(());
            }
            if let Some(status) = self.qemu.try_wait()? {
                return Err(Error::other(format!("qemu: {status}")));
            }
            if started.elapsed() > HANG {
                return Err(Error::new(ErrorKind::TimedOut, "qemu does not open its port"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let port = self
            .port
            .as_mut()
            .ok_or_else(|| Error::other("the board is off"))?;
        let read = port.read_line(&mut line);
        match read {
            Ok(_) if line.ends_with('\n') => {
                line.pop();
                Ok(line)
            }
            Ok(_) => Err(Error::other(format!("the board went off:\n{}", self.console()))),
            Err(e) => Err(Error::new(
                e.kind(),
                format!("the board: {e}:\n{}", self.console()),
            )),
        }
    }

    fn end(&mut self) {
        self.port = None;
        // Both fail only when it has ended already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Drop for Pi {
    fn drop(&mut self) {
        self.end();
    }
}
