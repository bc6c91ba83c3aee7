//! Bundles around busybox, and the runtime run on them as an ordinary user.

#![allow(dead_code, reason = "each test program uses its part")]

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The ordinary user that tests run containers as when they are run by root.
pub(crate) const USER: &str = "wherry-test";

/// Longer than anything here takes on a busy machine; reached only by a hang.
const HANG: Duration = Duration::from_secs(60);

/// Programs of busybox that bundles have.
const APPLETS: &[&str] = &[
    "sh", "true", "sleep", "ls", "cat", "echo", "id", "ps", "mount", "kill", "touch", "readlink", "hostname",
    "env", "pwd", "ip", "stty", "tty", "grep", "mkdir", "chmod", "wc", "head", "ln", "rm", "mknod",
    "unshare", "test",
];

/// User and group id that containers are run as.
pub(crate) fn ids() -> (u32, u32) {
    let own = (
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if own.0 != 0 {
        return own;
    }
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd.lines().find(|line| line.starts_with(&format!("{USER}:")));
    let line = line.unwrap_or_else(|| panic!("tests run by root need the user {USER}: useradd -m {USER}"));
    let mut fields = line.split(':').skip(2).map(|field| field.parse().unwrap());
    (fields.next().unwrap(), fields.next().unwrap())
}

/// A command run as the ordinary user.
pub(crate) fn as_user(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    if rustix::process::getuid().is_root() {
        let (uid, gid) = ids();
        command.uid(uid).gid(gid);
    }
    command.env_remove("XDG_RUNTIME_DIR");
    command
}

/// A bundle in a directory of its own, with a root directory for the runtime beside it.
pub(crate) struct Bundle {
    directory: tempfile::TempDir,
    pub(crate) config: Value,
}

impl Bundle {
    /// A bundle that runs `args`, with the mounts and namespaces that container engines give.
    pub(crate) fn new(args: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let bundle = Self {
            config: config(args),
            directory,
        };
        let rootfs = bundle.rootfs();
        for name in ["bin", "etc", "proc", "dev", "sys", "tmp", "data"] {
            std::fs::create_dir_all(rootfs.join(name)).unwrap();
        }
        std::fs::copy("/bin/busybox", rootfs.join("bin/busybox")).expect("the package busybox-static");
        for applet in APPLETS {
            std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        bundle
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.path().join("rootfs")
    }

    /// Writes `config.json` and gives everything to the ordinary user.
    pub(crate) fn write(&self) -> &Self {
        std::fs::write(self.path().join("config.json"), self.config.to_string()).unwrap();
        own(self.path());
        self
    }

    /// The runtime, with this bundle's root directory.
    pub(crate) fn runtime(&self, args: &[&str]) -> Command {
        let mut command = as_user(env!("CARGO_BIN_EXE_wherry-runtime"));
        command
            .arg("--root")
            .arg(self.path().join("state"))
            .args(args)
            .current_dir(self.path());
        command
    }

    /// Runs a verb to its end, which must come.
    pub(crate) fn call(&self, args: &[&str]) -> Output {
        finish(
            self.runtime(args)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap(),
        )
    }

    /// Runs a verb as whoever runs the test.
    pub(crate) fn call_as_root(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wherry-runtime"));
        command
            .arg("--root")
            .arg(self.path().join("state"))
            .args(args)
            .current_dir(self.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        finish(command.spawn().unwrap())
    }

    /// Runs a verb that must succeed; its standard output.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.call(args);
        assert!(
            output.status.success(),
            "{args:?}: {:?} {}",
            output.status,
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// Writes the bundle and runs it to its end.
    pub(crate) fn run(&self) -> Output {
        self.write();
        self.call(&["run", "c"])
    }

    /// Creates the container `c` with its output going nowhere.
    pub(crate) fn create(&self) -> &Self {
        self.write();
        // The container inherits these: a pipe would not end before it.
        let errors = std::fs::File::create(self.path().join("errors")).unwrap();
        let mut command = self.runtime(&["create", "--pid-file", "pid", "c"]);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .unwrap();
        let errors = || std::fs::read_to_string(self.path().join("errors")).unwrap();
        assert!(finish(child).status.success(), "create: {}", errors());
        self
    }

    /// Creates and starts the container `c` with its output going nowhere.
    pub(crate) fn start(&self) -> &Self {
        self.create().ok(&["start", "c"]);
        self
    }

    pub(crate) fn pid(&self) -> i32 {
        std::fs::read_to_string(self.path().join("pid"))
            .unwrap()
            .parse()
            .unwrap()
    }

    pub(crate) fn status(&self) -> String {
        let state: Value = serde_json::from_str(&self.ok(&["state", "c"])).unwrap();
        state["status"].as_str().unwrap().to_owned()
    }

    /// Living processes of this bundle's runtime or container, by their command lines and roots.
    pub(crate) fn processes(&self) -> Vec<String> {
        let mark = self.path().to_str().unwrap().to_owned();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let read = |name: &str| std::fs::read(entry.path().join(name)).unwrap_or_default();
            let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            if command.contains(&mark) {
                found.push(command);
            }
        }
        found
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = self
            .runtime(&["delete", "--force", "c"])
            .stdin(Stdio::null())
            .output();
    }
}

/// Gives a tree to the ordinary user.
pub(crate) fn own(path: &Path) {
    if rustix::process::getuid().is_root() {
        let (uid, gid) = ids();
        std::os::unix::fs::lchown(path, Some(uid), Some(gid)).unwrap();
        if std::fs::symlink_metadata(path).unwrap().is_dir() {
            for entry in std::fs::read_dir(path).unwrap() {
                own(&entry.unwrap().path());
            }
        }
    }
}

/// Says why a test did not run, loudly and where skipped tests are counted.
#[allow(clippy::print_stderr)]
pub(crate) fn skip(test: &str, why: &str) {
    use std::io::Write;
    let line = format!("{test}: {why}");
    eprintln!("SKIPPED: {line}");
    if let Some(path) = std::env::var_os("WHERRY_SKIP_LOG") {
        let mut log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        writeln!(log, "{line}").unwrap();
    }
}

/// Lets every user into a directory.
pub(crate) fn open_to_all(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
}

/// Waits for a child; one that hangs is killed and fails the test.
pub(crate) fn finish(mut child: Child) -> Output {
    let pid = rustix::process::Pid::from_child(&child);
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    // Readers, so that a child never waits for a full pipe.
    let reader = |stream: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            stream.map(|mut stream| stream.read_to_end(&mut bytes));
            bytes
        })
    };
    let stdout = reader(child.stdout.take().map(|s| Box::new(s) as _));
    let stderr = reader(child.stderr.take().map(|s| Box::new(s) as _));
    let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec {
        tv_sec: HANG.as_secs() as i64,
        tv_nsec: 0,
    };
    if rustix::event::poll(&mut fds, Some(&limit)).unwrap() == 0 {
        child.kill().unwrap();
        panic!("the runtime hangs");
    }
    let status = child.wait().unwrap();
    Output {
        status,
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    }
}

/// Looks until something is so.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < HANG, "never: {what}");
        std::thread::yield_now();
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Opens a directory that children inherit.
pub(crate) fn inheritable(path: &Path) -> OwnedFd {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap()
}

/// Docker's default capabilities, as far as they mean something without root.
const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
];

fn config(args: &[&str]) -> Value {
    let (uid, gid) = ids();
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/bin", "MARK=here"],
            "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": {
                "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
            },
        },
        "root": {"path": "rootfs"},
        "hostname": "boat",
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "uidMappings": [{"containerID": 0, "hostID": uid, "size": 1}],
            "gidMappings": [{"containerID": 0, "hostID": gid, "size": 1}],
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "user"}, {"type": "cgroup"},
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/acpi", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

/// Has a command, whoever it runs as, begin in a cgroup: root opens the way, and a process goes it itself.
#[allow(unsafe_code)]
pub(crate) fn enter_cgroup(command: &mut Command, directory: &Path) {
    let procs = std::fs::File::options()
        .write(true)
        .open(directory.join("cgroup.procs"))
        .unwrap();
    // SAFETY: one system call between fork and exec, on a descriptor that lives in the closure.
    unsafe {
        command.pre_exec(move || std::io::Write::write_all(&mut &procs, b"0"));
    }
}

/// Gives a command descriptors at chosen numbers.
#[allow(unsafe_code)]
pub(crate) fn inherit(command: &mut Command, fds: &[(i32, i32)]) {
    let fds = fds.to_vec();
    // SAFETY: dup2 is async-signal-safe, and the numbers are the child's own table.
    unsafe {
        command.pre_exec(move || {
            for (from, to) in &fds {
                // dup2 onto itself would leave close-on-exec set.
                let result = if from == to {
                    libc::fcntl(*to, libc::F_SETFD, 0)
                } else {
                    libc::dup2(*from, *to)
                };
                if result < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}

/// Seizes and attaches to process 1, which must be allowed, and lets it go again.
#[allow(unsafe_code)]
pub(crate) fn trace_first_process() {
    let check = |what: &str, result: libc::c_long| {
        assert!(result >= 0, "{what}: {}", std::io::Error::last_os_error());
    };
    let null = std::ptr::null_mut::<libc::c_void>();
    let wait = || {
        let mut status = 0;
        // SAFETY: a valid place for the status.
        check(
            "waitpid",
            unsafe { libc::waitpid(1, &raw mut status, libc::__WALL) }.into(),
        );
        assert!(libc::WIFSTOPPED(status), "{status:#x}");
    };
    // SAFETY: requests on another process, without memory of ours.
    unsafe {
        check("PTRACE_SEIZE", libc::ptrace(libc::PTRACE_SEIZE, 1, null, null));
        check(
            "PTRACE_INTERRUPT",
            libc::ptrace(libc::PTRACE_INTERRUPT, 1, null, null),
        );
        wait();
        check("PTRACE_DETACH", libc::ptrace(libc::PTRACE_DETACH, 1, null, null));
        check("PTRACE_ATTACH", libc::ptrace(libc::PTRACE_ATTACH, 1, null, null));
        wait();
        check("PTRACE_DETACH", libc::ptrace(libc::PTRACE_DETACH, 1, null, null));
    }
    println!("seized, stopped, attached, stopped and let go");
}

/// A system call by its number, made with arguments that do nothing.
pub(crate) struct Call(&'static str, libc::c_long, [Argument; 6]);

/// What a call is given.
#[derive(Clone, Copy)]
enum Argument {
    Number(libc::c_long),
    /// A time of nothing: seconds and nanoseconds of 64 bits.
    NoTime,
    /// The time a second after the epoch.
    PastTime,
    /// Memory to be written to.
    Space,
}

impl Call {
    /// Those that carry a time: the time64 calls where there are others.
    #[cfg(target_pointer_width = "32")]
    pub(crate) const WITH_TIMES: &'static [Self] = {
        use Argument::{NoTime, Number as N, PastTime, Space};
        &[
            Self("clock_gettime64", 403, [N(0), Space, N(0), N(0), N(0), N(0)]),
            Self("clock_getres_time64", 406, [N(0), Space, N(0), N(0), N(0), N(0)]),
            Self(
                "clock_nanosleep_time64",
                407,
                [N(0), N(1), PastTime, N(0), N(0), N(0)],
            ),
            Self("pselect6_time64", 413, [N(0), N(0), N(0), N(0), NoTime, N(0)]),
            Self("ppoll_time64", 414, [N(0), N(0), NoTime, N(0), N(0), N(0)]),
            // FUTEX_WAIT for a value that is there: woken by the time.
            Self("futex_time64", 422, [Space, N(0), N(0), NoTime, N(0), N(0)]),
        ]
    };
    /// Those that carry a time.
    #[cfg(target_pointer_width = "64")]
    pub(crate) const WITH_TIMES: &'static [Self] = {
        use Argument::{NoTime, Number as N, PastTime, Space};
        &[
            Self(
                "clock_gettime",
                libc::SYS_clock_gettime,
                [N(0), Space, N(0), N(0), N(0), N(0)],
            ),
            Self(
                "clock_nanosleep",
                libc::SYS_clock_nanosleep,
                [N(0), N(1), PastTime, N(0), N(0), N(0)],
            ),
            Self("ppoll", libc::SYS_ppoll, [N(0), N(0), NoTime, N(0), N(0), N(0)]),
            Self("futex", libc::SYS_futex, [Space, N(0), N(0), NoTime, N(0), N(0)]),
        ]
    };
    /// Those that only this architecture has.
    #[cfg(target_arch = "arm")]
    pub(crate) const OWN: &'static [Self] = {
        use Argument::Number as N;
        &[
            Self("get_tls", 0xf0006, [N(0), N(0), N(0), N(0), N(0), N(0)]),
            Self("getuid32", 199, [N(0), N(0), N(0), N(0), N(0), N(0)]),
            Self("getgroups32", 205, [N(0), N(0), N(0), N(0), N(0), N(0)]),
            Self(
                "cacheflush",
                0xf0002,
                [N(0x10000), N(0x10000), N(0), N(0), N(0), N(0)],
            ),
        ]
    };
    /// Those that only this architecture has.
    #[cfg(target_arch = "x86_64")]
    pub(crate) const OWN: &'static [Self] = {
        use Argument::{Number as N, Space};
        // ARCH_GET_FS
        &[Self(
            "arch_prctl",
            158,
            [N(0x1003), Space, N(0), N(0), N(0), N(0)],
        )]
    };
    /// Those that only this architecture has.
    #[cfg(not(any(target_arch = "arm", target_arch = "x86_64")))]
    pub(crate) const OWN: &'static [Self] = &[];
    /// Those that no container is let make, by this architecture's number.
    pub(crate) const DENIED: &'static [Self] = {
        use Argument::Number as N;
        const NOTHING: [Argument; 6] = [N(0), N(0), N(0), N(0), N(0), N(0)];
        &[
            Self("mount", libc::SYS_mount, NOTHING),
            Self("bpf", libc::SYS_bpf, NOTHING),
            Self("keyctl", libc::SYS_keyctl, NOTHING),
            Self(
                "unshare",
                libc::SYS_unshare,
                [N(0x1000_0000), N(0), N(0), N(0), N(0), N(0)],
            ),
        ]
    };

    /// Makes the call: whatever it says, it is let through.
    pub(crate) fn check(&self) {
        let error = self.make();
        assert!(
            !matches!(error, Some(libc::EPERM | libc::ENOSYS)),
            "{}: {error:?}",
            self.0
        );
        println!("{}: let through", self.0);
    }

    /// Makes the call, which is denied.
    pub(crate) fn check_denied(&self) {
        assert_eq!(self.make(), Some(libc::EPERM), "{}", self.0);
        println!("{}: denied", self.0);
    }

    /// The call's error.
    #[allow(unsafe_code)]
    fn make(&self) -> Option<i32> {
        let (none, past, mut space) = ([0_i64, 0], [1_i64, 0], [0_u64; 8]);
        let argument = |argument: &Argument, space: &mut [u64; 8]| match argument {
            Argument::Number(number) => *number,
            Argument::NoTime => none.as_ptr() as libc::c_long,
            Argument::PastTime => past.as_ptr() as libc::c_long,
            Argument::Space => space.as_mut_ptr() as libc::c_long,
        };
        let words = self.2.map(|word| argument(&word, &mut space));
        // SAFETY: the pointers are to memory of this function, larger than what each of the calls above reads or writes.
        let result =
            unsafe { libc::syscall(self.1, words[0], words[1], words[2], words[3], words[4], words[5]) };
        (result == -1).then(|| std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }
}

/// Makes system calls fail with ENOSYS for a command and everything that it starts, as on a kernel that is older than they
/// are: a filter that is there before the runtime is. Programs cannot gain privileges under it, so there is no newuidmap.
#[allow(unsafe_code)]
pub(crate) fn without(command: &mut Command, calls: &[libc::c_long]) {
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let mut program = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0)];
    for call in calls {
        program.push(libc::sock_filter {
            jf: 1,
            ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, *call as u32)
        });
        let action = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
        program.push(statement(libc::BPF_RET | libc::BPF_K, action));
    }
    program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW));
    // SAFETY: two system calls between fork and exec; the kernel copies the program, which lives in the closure.
    unsafe {
        command.pre_exec(move || {
            let filter = libc::sock_fprog {
                len: program.len() as u16,
                filter: program.as_ptr().cast_mut(),
            };
            let set = libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) == 0;
            if set {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
}
