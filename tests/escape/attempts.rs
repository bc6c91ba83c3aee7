//! The attempts. What one reaches is never used: an open that works, or a system call whose own code answers, is enough.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Error, Read as _, Result};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use wherry_tests::kernel::{Argument, forbidden};

/// How an attempt ended.
pub(crate) enum Verdict {
    /// Denied, and by what.
    Refused(String),
    /// It worked, or came so far that only its arguments stopped it.
    Escaped(String),
    /// There is nothing here to attempt.
    Absent(String),
}

type Attempt = fn() -> Verdict;

/// Every attempt by its name.
pub(crate) const ATTEMPTS: &[(&str, Attempt)] = &[
    ("write /proc/sys/kernel/core_pattern", || {
        writable("/proc/sys/kernel/core_pattern")
    }),
    ("write /proc/sys/kernel/modprobe", || {
        writable("/proc/sys/kernel/modprobe")
    }),
    ("write /proc/sys/vm/overcommit_memory", || {
        writable("/proc/sys/vm/overcommit_memory")
    }),
    ("write /proc/sysrq-trigger", || writable("/proc/sysrq-trigger")),
    ("write /proc/irq/default_smp_affinity", || {
        writable("/proc/irq/default_smp_affinity")
    }),
    ("write /sys/kernel/uevent_helper", || {
        writable("/sys/kernel/uevent_helper")
    }),
    ("write /sys/power/state", || writable("/sys/power/state")),
    ("write the cgroup", || writable("/sys/fs/cgroup/cgroup.procs")),
    ("read /proc/kcore", || readable("/proc/kcore")),
    ("read /proc/keys", || readable("/proc/keys")),
    ("read /proc/timer_list", || readable("/proc/timer_list")),
    ("read /proc/interrupts", || readable("/proc/interrupts")),
    ("list /sys/firmware", || listed("/sys/firmware")),
    ("list /sys/devices/virtual/powercap", || {
        listed("/sys/devices/virtual/powercap")
    }),
    ("open /dev/mem", || device("/dev/mem")),
    ("open /dev/kmsg", || device("/dev/kmsg")),
    ("open /dev/fuse", || device("/dev/fuse")),
    ("open /dev/net/tun", || device("/dev/net/tun")),
    ("open /dev/loop-control", || device("/dev/loop-control")),
    ("mknod of a disk", mknod),
    ("mount a tmpfs", || {
        call(
            "mount",
            &mut [
                text("tmpfs"),
                text("/tmp"),
                text("tmpfs"),
                Argument::Word(0),
                Argument::Word(0),
            ],
        )
    }),
    ("remount /proc/sys writable", || {
        let flags = (libc::MS_REMOUNT | libc::MS_BIND) as i64;
        call(
            "mount",
            &mut [
                Argument::Word(0),
                text("/proc/sys"),
                Argument::Word(0),
                Argument::Word(flags),
                Argument::Word(0),
            ],
        )
    }),
    ("unmount what masks /proc/kcore", || {
        call("umount2", &mut [text("/proc/kcore"), Argument::Word(2)])
    }),
    ("mount by the newer calls", || {
        call("fsopen", &mut [text("proc"), Argument::Word(0)])
    }),
    ("copy the tree of mounts", || {
        call(
            "open_tree",
            &mut [Argument::Word(-100), text("/"), Argument::Word(1)],
        )
    }),
    ("pivot_root", || {
        call("pivot_root", &mut [text("/tmp"), text("/tmp")])
    }),
    ("a nested user namespace", || {
        call("unshare", &mut [Argument::Word(libc::CLONE_NEWUSER.into())])
    }),
    ("a nested mount namespace", || {
        call("unshare", &mut [Argument::Word(libc::CLONE_NEWNS.into())])
    }),
    ("join a namespace of init", setns),
    ("open a file by its handle", by_handle),
    ("climb out of the root", climb),
    ("a file of the host through /proc", through_proc),
    ("descriptors that leaked", descriptors),
    ("write a program that runs", running_program),
    ("signal a process outside", signal_outside),
    ("supplementary groups dropped", || {
        call("setgroups", &mut [Argument::Word(0), Argument::Word(0)])
    }),
    ("type into the terminal", type_into_terminal),
    ("the session's keyring", || {
        call(
            "keyctl",
            &mut [Argument::Word(0), Argument::Word(-3), Argument::Word(1)],
        )
    }),
    ("a key of one's own", || {
        let mut payload = [0; 8];
        call(
            "add_key",
            &mut [
                text("user"),
                text("escape"),
                Argument::Memory(&mut payload),
                Argument::Word(1),
                Argument::Word(-2),
            ],
        )
    }),
    ("request a key", || {
        call(
            "request_key",
            &mut [text("user"), text("escape"), Argument::Word(0), Argument::Word(0)],
        )
    }),
    ("bpf", || {
        let mut attributes = [0; 128];
        call(
            "bpf",
            &mut [
                Argument::Word(5),
                Argument::Memory(&mut attributes),
                Argument::Word(128),
            ],
        )
    }),
    ("io_uring", || {
        let mut parameters = [0; 256];
        call(
            "io_uring_setup",
            &mut [Argument::Word(1), Argument::Memory(&mut parameters)],
        )
    }),
    ("userfaultfd", || call("userfaultfd", &mut [Argument::Word(0)])),
    ("perf events", || {
        let mut attributes = [0; 128];
        call(
            "perf_event_open",
            &mut [
                Argument::Memory(&mut attributes),
                Argument::Word(0),
                Argument::Word(-1),
                Argument::Word(-1),
                Argument::Word(0),
            ],
        )
    }),
    ("another kernel", || {
        call(
            "kexec_load",
            &mut [
                Argument::Word(0),
                Argument::Word(0),
                Argument::Word(0),
                Argument::Word(0),
            ],
        )
    }),
    ("a module", || {
        call(
            "init_module",
            &mut [Argument::Word(0), Argument::Word(0), text("")],
        )
    }),
    ("no module", || {
        call(
            "delete_module",
            &mut [text("escape_no_such_module"), Argument::Word(0x800)],
        )
    }),
    ("reboot", || {
        call(
            "reboot",
            &mut [
                Argument::Word(0),
                Argument::Word(0),
                Argument::Word(0),
                Argument::Word(0),
            ],
        )
    }),
    ("swap", || {
        call("swapon", &mut [text("/no/such/file"), Argument::Word(0)])
    }),
    ("process accounting", || {
        call("acct", &mut [text("/no/such/file")])
    }),
    ("quotas", || {
        call(
            "quotactl",
            &mut [
                Argument::Word(0),
                Argument::Word(0),
                Argument::Word(0),
                Argument::Word(0),
            ],
        )
    }),
    ("the kernel's log", || {
        let mut log = [0; 64];
        call(
            "syslog",
            &mut [Argument::Word(3), Argument::Memory(&mut log), Argument::Word(64)],
        )
    }),
    ("the clock", || {
        let mut time = [0xff; 32];
        call(
            "clock_settime",
            &mut [Argument::Word(0), Argument::Memory(&mut time)],
        )
    }),
    ("no randomised addresses", || {
        call("personality", &mut [Argument::Word(0x004_0000)])
    }),
    ("another's host name", || {
        call("sethostname", &mut [text("escaped"), Argument::Word(7)])
    }),
    ("hang up the terminal", || call("vhangup", &mut [])),
    ("a packet socket", packet_socket),
    ("a raw socket on the host's network", raw_socket),
    ("a socket to the hypervisor", || {
        call(
            "socket",
            &mut [Argument::Word(40), Argument::Word(1), Argument::Word(0)],
        )
    }),
    ("an abstract socket of the host", abstract_socket),
    ("an undeclared port of the host", undeclared_port),
];

fn text(words: &str) -> Argument<'static> {
    // An attempt's process ends at once: what is leaked is not missed.
    Argument::Text(Box::leak(
        CString::new(words).unwrap_or_default().into_boxed_c_str(),
    ))
}

/// A call is refused when permission is what it lacks, or when there is no such call. Any other answer comes from the
/// code that was to be out of reach.
fn call(name: &str, arguments: &mut [Argument<'_>]) -> Verdict {
    verdict(name, forbidden(name, arguments).map(|result| result.to_string()))
}

fn verdict(name: &str, result: Result<String>) -> Verdict {
    match result {
        Ok(result) => Verdict::Escaped(format!("{name}: {result}")),
        Err(error) => match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => Verdict::Refused(format!("{name}: {error}")),
            _ => Verdict::Escaped(format!("{name} was reached: {error}")),
        },
    }
}

fn denied(path: &str, error: &Error) -> Verdict {
    Verdict::Refused(format!("{path}: {error}"))
}

fn writable(path: &str) -> Verdict {
    match OpenOptions::new().write(true).open(path) {
        Ok(_) => Verdict::Escaped(format!("{path} is open for writing")),
        Err(error) => denied(path, &error),
    }
}

fn readable(path: &str) -> Verdict {
    let mut bytes = [0; 64];
    match File::open(path).and_then(|mut file| file.read(&mut bytes)) {
        Ok(0) => Verdict::Refused(format!("{path} is empty")),
        Ok(count) => Verdict::Escaped(format!("{count} bytes of {path}")),
        Err(error) => denied(path, &error),
    }
}

fn listed(path: &str) -> Verdict {
    match fs::read_dir(path).map(Iterator::count) {
        Ok(0) => Verdict::Refused(format!("{path} is empty")),
        Ok(count) => Verdict::Escaped(format!("{count} entries of {path}")),
        Err(error) => denied(path, &error),
    }
}

fn device(path: &str) -> Verdict {
    match File::open(path) {
        Ok(_) => Verdict::Escaped(format!("{path} is open")),
        Err(error) => denied(path, &error),
    }
}

fn mknod() -> Verdict {
    let path = "/tmp/escape-disk";
    let mode = i64::from(libc::S_IFBLK | 0o600);
    match forbidden(
        "mknodat",
        &mut [
            Argument::Word(-100),
            text(path),
            Argument::Word(mode),
            Argument::Word(0x0800),
        ],
    ) {
        Err(error) => denied("mknod", &error),
        Ok(_) => device(path),
    }
}

fn setns() -> Verdict {
    use std::os::fd::AsRawFd as _;
    match File::open("/proc/1/ns/mnt") {
        Ok(namespace) => call(
            "setns",
            &mut [Argument::Word(namespace.as_raw_fd().into()), Argument::Word(0)],
        ),
        Err(error) => denied("/proc/1/ns/mnt", &error),
    }
}

/// As "shocker": the root of the host's file system by a handle that is easy to guess.
fn by_handle() -> Verdict {
    use std::os::fd::AsRawFd as _;
    let root = match File::open("/etc/hostname").or_else(|_| File::open("/")) {
        Ok(root) => root,
        Err(error) => return denied("/", &error),
    };
    // 8 bytes of handle of the type "inode and generation", for inode 2.
    let mut handle = [0; 16];
    (handle[0], handle[4], handle[8]) = (8, 1, 2);
    call(
        "open_by_handle_at",
        &mut [
            Argument::Word(root.as_raw_fd().into()),
            Argument::Memory(&mut handle),
            Argument::Word(0),
        ],
    )
}

fn mark() -> Option<String> {
    std::env::var("HOST_MARK").ok()
}

/// The way out of a chroot, and up from wherever the process started.
fn climb() -> Verdict {
    let Some(mark) = mark() else {
        return Verdict::Absent("HOST_MARK is not set".into());
    };
    let relative = mark.trim_start_matches('/').to_owned();
    let up = format!("{}{relative}", "../".repeat(64));
    if fs::metadata(&up).is_ok() || fs::metadata(&mark).is_ok() {
        return Verdict::Escaped("the host's file is above the working directory".into());
    }
    let _ = fs::create_dir("/tmp/escape-root");
    if let Err(error) = std::os::unix::fs::chroot("/tmp/escape-root") {
        return denied("chroot", &error);
    }
    // The working directory is still outside of the new root.
    if fs::metadata(&up).is_ok() {
        return Verdict::Escaped("the host's file is outside of the inner root".into());
    }
    Verdict::Refused("above the root is the root".into())
}

fn processes() -> Vec<String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .collect()
}

fn through_proc() -> Verdict {
    let Some(mark) = mark() else {
        return Verdict::Absent("HOST_MARK is not set".into());
    };
    for process in processes() {
        for place in ["root", "cwd"] {
            let path = format!("/proc/{process}/{place}{mark}");
            if fs::metadata(&path).is_ok() {
                return Verdict::Escaped(path);
            }
        }
    }
    Verdict::Refused(format!("none of {} processes sees it", processes().len()))
}

/// Descriptors of every process that lead to directories, programs or sockets which the container was not given.
fn descriptors() -> Verdict {
    for process in processes() {
        let directory = format!("/proc/{process}/fd");
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let number = entry.file_name().into_string().unwrap_or_default();
            let Ok(target) = fs::read_link(entry.path()) else {
                continue;
            };
            let target = target.to_string_lossy().into_owned();
            let listing = target.starts_with("/proc/") && target.ends_with("/fd");
            let standard = matches!(number.as_str(), "0" | "1" | "2");
            let harmless = ["pipe:", "anon_inode:[pidfd]", "/dev/null"]
                .iter()
                .any(|known| target.starts_with(known));
            if !standard && !listing && !harmless {
                return Verdict::Escaped(format!("{directory}/{number} -> {target}"));
            }
        }
    }
    Verdict::Refused("there are none".into())
}

/// CVE-2019-5736: the program that brought a process in here is reached through `/proc/PID/exe` and written.
fn running_program() -> Verdict {
    let mut why = String::from("no process shows its program");
    for process in processes() {
        let path = format!("/proc/{process}/exe");
        match OpenOptions::new().write(true).open(&path) {
            Ok(_) => return Verdict::Escaped(format!("{path} is open for writing")),
            Err(error) => why = format!("{path}: {error}"),
        }
    }
    Verdict::Refused(why)
}

fn signal_outside() -> Verdict {
    let pid = std::env::var("HOST_PID")
        .ok()
        .and_then(|pid| pid.parse().ok())
        .and_then(rustix::process::Pid::from_raw);
    match pid {
        None => Verdict::Absent("HOST_PID is not set".into()),
        Some(pid) => match rustix::process::test_kill_process(pid) {
            Ok(()) => Verdict::Escaped(format!("process {pid:?} can be signalled")),
            Err(error) => Verdict::Refused(error.to_string()),
        },
    }
}

/// Letters pushed into a terminal that somebody outside reads. One of the container's own goes nowhere else.
fn type_into_terminal() -> Verdict {
    let stdin = std::io::stdin();
    if !rustix::termios::isatty(&stdin) {
        return Verdict::Absent("standard input is no terminal".into());
    }
    let device = |stat: rustix::fs::Stat| stat.st_dev;
    let own = rustix::fs::stat("/dev/pts").map(device);
    if own.is_ok() && own == rustix::fs::fstat(&stdin).map(device) {
        return Verdict::Refused("the terminal is the container's own".into());
    }
    let mut letter = [b'x'; 8];
    let typed = forbidden(
        "ioctl",
        &mut [
            Argument::Word(0),
            Argument::Word(libc::TIOCSTI as i64),
            Argument::Memory(&mut letter),
        ],
    );
    match typed {
        Ok(_) => Verdict::Escaped("typed into a terminal of the host".into()),
        Err(error) => denied("TIOCSTI", &error),
    }
}

fn packet_socket() -> Verdict {
    // In a network of its own a container sees its own packets only; podman and docker let it.
    if std::env::var_os("HOST_NETWORK").is_none() {
        return Verdict::Absent("the network is the container's own".into());
    }
    call(
        "socket",
        &mut [Argument::Word(17), Argument::Word(3), Argument::Word(0x0300)],
    )
}

fn raw_socket() -> Verdict {
    if std::env::var_os("HOST_NETWORK").is_none() {
        return Verdict::Absent("the network is the container's own".into());
    }
    call(
        "socket",
        &mut [Argument::Word(2), Argument::Word(3), Argument::Word(1)],
    )
}

fn abstract_socket() -> Verdict {
    let Ok(name) = std::env::var("HOST_SOCKET") else {
        return Verdict::Absent("HOST_SOCKET is not set".into());
    };
    let connected = SocketAddr::from_abstract_name(name.as_bytes())
        .and_then(|address| UnixStream::connect_addr(&address));
    match connected {
        Ok(_) => Verdict::Escaped(format!("connected to @{name}")),
        Err(error) => denied(&format!("@{name}"), &error),
    }
}

fn undeclared_port() -> Verdict {
    let port = std::env::var("PORT").ok().and_then(|port| port.parse().ok());
    match port {
        None => Verdict::Absent("PORT is not set".into()),
        Some(port) => match TcpListener::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)) {
            Ok(_) => Verdict::Escaped(format!("listening on port {port}")),
            Err(error) => denied(&format!("port {port}"), &error),
        },
    }
}
