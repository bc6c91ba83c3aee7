//! The only unsafe code of this crate: system calls that no safe wrapper covers.
//!
//! Everything here assumes one thread, which is why this crate starts none.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::{Pid, WaitOptions, WaitStatus};

/// Which side of a [`fork`] this is.
pub(crate) enum Side {
    Parent(Pid),
    Child,
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Forks with clone flags: `CLONE_NEW*` (not time) and `CLONE_PARENT`, nothing that shares memory.
///
/// The old system call knows every flag that is needed here (clone3 refuses an exit signal together with `CLONE_PARENT`),
/// so kernels before 5.3 need no second way.
pub(crate) fn fork(flags: c_int) -> io::Result<Side> {
    let allowed = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_PARENT;
    if flags & !allowed != 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let arguments = libc::c_long::from(flags | libc::SIGCHLD);
    let zero: libc::c_long = 0;
    // SAFETY: without CLONE_VM and with a null stack this is fork(): the child continues on a copy of this stack. The
    // process has one thread, so no lock of the allocator can be held by another. Arguments 3 to 5 are null on every
    // architecture's order.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone, arguments, zero, zero, zero, zero) })?;
    Ok(match Pid::from_raw(pid as i32) {
        Some(pid) => Side::Parent(pid),
        None => Side::Child,
    })
}

/// Forks as [`fork`] does, with `CLONE_PARENT` or nothing, into a cgroup of the unified hierarchy. An error when the kernel
/// cannot do that: before 5.7, or where clone3 is filtered.
pub(crate) fn fork_into(flags: c_int, cgroup: BorrowedFd<'_>) -> io::Result<Side> {
    /// `struct clone_args`, up to its version 2.
    #[repr(C, align(8))]
    #[derive(Default)]
    struct Arguments {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
        cgroup: u64,
    }
    const INTO_CGROUP: u64 = 0x2_0000_0000;
    if flags & !libc::CLONE_PARENT != 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let arguments = Arguments {
        flags: flags as u64 | INTO_CGROUP,
        // With CLONE_PARENT the child takes over this process's own signal.
        exit_signal: if flags == 0 { libc::SIGCHLD as u64 } else { 0 },
        cgroup: cgroup.as_raw_fd() as u64,
        ..Arguments::default()
    };
    // SAFETY: as in `fork`; the kernel reads a structure of the size that is named.
    let pid =
        check(unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<Arguments>()) })?;
    Ok(match Pid::from_raw(pid as i32) {
        Some(pid) => Side::Parent(pid),
        None => Side::Child,
    })
}

/// Runs `call` in a child that shares this memory while this process waits, and returns its exit status.
///
/// The child is created in the pid namespace chosen for children: this is how a process outside of it mounts its procfs.
pub(crate) fn call_in_child(call: &mut dyn FnMut() -> u8) -> io::Result<u8> {
    extern "C" fn enter(argument: *mut c_void) -> c_int {
        // SAFETY: `argument` is the `&mut &mut dyn FnMut` of the caller, who is suspended (CLONE_VFORK) until this returns.
        let call = unsafe { &mut *argument.cast::<&mut dyn FnMut() -> u8>() };
        c_int::from(call())
    }
    const STACK: usize = 64 * 1024;
    let mut stack = vec![0u8; STACK];
    let mut call: &mut dyn FnMut() -> u8 = call;
    let argument: *mut c_void = (&raw mut call).cast();
    // SAFETY: the stack is ours, live until the child is gone (CLONE_VFORK suspends us until it exits), and its top is
    // aligned to 16 bytes below. The child shares memory but only runs `call`, then exits without unwinding.
    let pid = unsafe {
        let top = stack.as_mut_ptr().add(STACK);
        let top = top.sub(top.align_offset(16).wrapping_neg() & 15).cast::<c_void>();
        libc::clone(
            enter,
            top,
            libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD,
            argument,
        )
    };
    check(libc::c_long::from(pid))?;
    match wait(Pid::from_raw(pid).ok_or_else(|| io::Error::from_raw_os_error(libc::ECHILD))?)? {
        status if status.exited() => Ok(status.exit_status().unwrap_or(0) as u8),
        _ => Ok(255),
    }
}

/// Waits for a child, again after a signal.
pub(crate) fn wait(pid: Pid) -> io::Result<WaitStatus> {
    loop {
        match rustix::process::waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(status),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Moves this process, or its children for pid and time, into new namespaces.
pub(crate) fn unshare(flags: rustix::thread::UnshareFlags) -> io::Result<()> {
    // SAFETY: FILES is never among the flags, and there is one thread.
    unsafe { rustix::thread::unshare_unsafe(flags - rustix::thread::UnshareFlags::FILES) }.map_err(Into::into)
}

/// What `mount_setattr` changes (`struct mount_attr`), without propagation.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MountAttributes<'a> {
    /// `MOUNT_ATTR_*` to set.
    pub(crate) set: u64,
    /// `MOUNT_ATTR_*` to clear, before.
    pub(crate) clear: u64,
    /// The user namespace of `MOUNT_ATTR_IDMAP`.
    pub(crate) users: Option<BorrowedFd<'a>>,
}

/// Changes the attributes of a mount, or with `recursive` of the tree from it on.
pub(crate) fn mount_setattr(
    mount: BorrowedFd<'_>,
    attributes: MountAttributes<'_>,
    recursive: bool,
) -> io::Result<()> {
    let arguments = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation: 0,
        userns_fd: attributes.users.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: an empty, terminated path, and a structure of the size that is named; the kernel only reads.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            &raw const arguments,
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}

/// `struct sched_attr`, without its utilisation clamps.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SchedulerAttributes {
    /// Set by who passes it to the kernel.
    pub(crate) size: u32,
    pub(crate) policy: u32,
    pub(crate) flags: u64,
    pub(crate) nice: i32,
    pub(crate) priority: u32,
    pub(crate) runtime: u64,
    pub(crate) deadline: u64,
    pub(crate) period: u64,
}

/// Sets the scheduler of this process.
pub(crate) fn sched_setattr(attributes: &SchedulerAttributes) -> io::Result<()> {
    let mut attributes = SchedulerAttributes {
        size: size_of::<SchedulerAttributes>() as u32,
        ..*attributes
    };
    // SAFETY: the kernel reads a structure of the size that it names, and may write another size there.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw mut attributes, 0) })?;
    Ok(())
}

/// Sets the processors that this process may run on.
pub(crate) fn sched_setaffinity(mask: &[u64]) -> io::Result<()> {
    let mask = words(mask);
    // SAFETY: the kernel reads the bytes of the slice.
    check(unsafe {
        libc::syscall(
            libc::SYS_sched_setaffinity,
            0,
            size_of_val(mask.as_slice()),
            mask.as_ptr(),
        )
    })?;
    Ok(())
}

/// Sets the I/O priority of this process: its class and value as the kernel packs them.
pub(crate) fn ioprio_set(priority: c_int) -> io::Result<()> {
    const PROCESS: c_int = 1;
    // SAFETY: no memory is involved.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, PROCESS, 0, priority) })?;
    Ok(())
}

/// Sets the execution domain of this process.
pub(crate) fn personality(persona: u32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::syscall(libc::SYS_personality, persona as libc::c_ulong) })?;
    Ok(())
}

/// Sets the memory policy of this process; an empty mask is none.
pub(crate) fn set_mempolicy(mode: c_int, nodes: &[u64]) -> io::Result<()> {
    let nodes = words(nodes);
    let (pointer, bits) = if nodes.is_empty() {
        (std::ptr::null(), 0)
    } else {
        // One more than there are: the kernel takes the last bit for the end.
        (nodes.as_ptr(), nodes.len() * libc::c_ulong::BITS as usize + 1)
    };
    // SAFETY: the kernel reads the words that the mask's bits are in.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, pointer, bits) })?;
    Ok(())
}

/// A mask in the kernel's words.
fn words(mask: &[u64]) -> Vec<libc::c_ulong> {
    let bytes: Vec<u8> = mask.iter().flat_map(|word| word.to_le_bytes()).collect();
    let words = bytes.chunks(size_of::<libc::c_ulong>());
    words
        .map(|word| {
            word.iter()
                .rev()
                .fold(0, |value, byte| value << 8 | libc::c_ulong::from(*byte))
        })
        .collect()
}

/// Replaces the program; returns only with an error.
pub(crate) fn execve(path: &CStr, argv: &[CString], envp: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const c_char> {
        list.iter()
            .map(|s| s.as_ptr())
            .chain([std::ptr::null()])
            .collect()
    };
    let (argv, envp) = (pointers(argv), pointers(envp));
    // SAFETY: three null-terminated structures that live until the call returns or the image is gone.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// One instruction of a classic BPF program (`struct sock_filter`).
pub(crate) type Instruction = libc::sock_filter;

/// Installs a seccomp filter on this process; `flags` are `SECCOMP_FILTER_FLAG_*`. With `NEW_LISTENER` among them the result
/// is the descriptor by which calls are answered.
pub(crate) fn seccomp(program: &[Instruction], flags: u32) -> io::Result<Option<OwnedFd>> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let program = libc::sock_fprog {
        len: length,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies `len` instructions out of the slice and writes nothing.
    let result = check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    })?;
    // SAFETY: with this flag the result is a new descriptor (close-on-exec), which nothing else owns.
    let listener = (flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32 != 0)
        .then(|| unsafe { OwnedFd::from_raw_fd(result as RawFd) });
    Ok(listener)
}

/// The Landlock ABI of this kernel, 0 without Landlock.
pub(crate) fn landlock_abi() -> u32 {
    const VERSION: u32 = 1;
    // SAFETY: with the version flag the kernel reads no memory of ours.
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<c_void>(),
            0usize,
            VERSION,
        )
    };
    u32::try_from(abi).unwrap_or(0)
}

/// Marks every descriptor from `first` on close-on-exec.
pub(crate) fn cloexec_from(first: RawFd) -> io::Result<()> {
    close_range(first, c_int::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

/// Closes every descriptor that is not in `keep`.
pub(crate) fn close_all_but(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut keep: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    keep.sort_unstable();
    let mut first = 0;
    for fd in keep {
        if fd > first {
            close_range(first, fd - 1, 0)?;
        }
        first = fd + 1;
    }
    close_range(first, c_int::MAX, 0)
}

fn close_range(first: RawFd, last: RawFd, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: the callers own the descriptors they leave open; those that are closed here belong to values which are
    // never used (nor dropped) again, since each caller is about to replace or to leave its program.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    match check(result) {
        Ok(_) => Ok(()),
        Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => {
            // Before 5.9. Descriptors above the soft limit are possible only if it was lowered later; the hard limit
            // bounds both.
            let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
            let limit = limit.maximum.or(limit.current).unwrap_or(65536).min(1 << 20) as c_int;
            for fd in first..=last.min(limit) {
                // SAFETY: as above; a descriptor that is not open is an error without effect.
                unsafe {
                    if flags & libc::CLOSE_RANGE_CLOEXEC != 0 {
                        libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
                    } else {
                        libc::close(fd);
                    }
                }
            }
            Ok(())
        }
        Err(e) => Err(e),
    }
}

/// Makes `fd` the descriptor number `target`, inherited by programs.
pub(crate) fn dup_onto(fd: BorrowedFd<'_>, target: RawFd) -> io::Result<()> {
    if fd.as_raw_fd() == target {
        // SAFETY: only a flag of an open descriptor.
        check(libc::c_long::from(unsafe {
            libc::fcntl(target, libc::F_SETFD, 0)
        }))?;
    } else {
        // SAFETY: the callers pass standard descriptors and those after them, which no value of ours owns.
        check(libc::c_long::from(unsafe { libc::dup2(fd.as_raw_fd(), target) }))?;
    }
    Ok(())
}

/// Whether this number is an open descriptor.
pub(crate) fn is_open(fd: RawFd) -> bool {
    // SAFETY: reads a flag.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// The open descriptors among `count` from `first` on, which this program was given and keeps to its end.
pub(crate) fn inherited_range(first: RawFd, count: u32) -> Vec<BorrowedFd<'static>> {
    let numbers = first..first.saturating_add_unsigned(count);
    // SAFETY: they are open, no value of ours owns them, and nothing closes them before the program is replaced.
    numbers
        .filter(|fd| is_open(*fd))
        .map(|fd| unsafe { BorrowedFd::borrow_raw(fd) })
        .collect()
}

/// Takes ownership of an inherited descriptor.
pub(crate) fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    if !is_open(fd) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: it is open, and the caller names descriptors that were given to this program by its parent.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A signal by its number, 1 to 64.
pub(crate) fn signal(number: c_int) -> Option<rustix::process::Signal> {
    // SAFETY: the signals are sent or compared, never handled here, so the C library's own real-time ones do no harm.
    (1..=64)
        .contains(&number)
        .then(|| unsafe { rustix::process::Signal::from_raw_unchecked(number) })
}

/// A set of signals.
pub(crate) struct Signals(libc::sigset_t);

impl Signals {
    /// The given signals, or with `None` all of them.
    pub(crate) fn new(which: Option<&[c_int]>) -> Self {
        let mut set = std::mem::MaybeUninit::uninit();
        // SAFETY: sigemptyset and sigfillset initialise the whole set.
        unsafe {
            match which {
                None => {
                    libc::sigfillset(set.as_mut_ptr());
                }
                Some(which) => {
                    libc::sigemptyset(set.as_mut_ptr());
                    for signal in which {
                        libc::sigaddset(set.as_mut_ptr(), *signal);
                    }
                }
            }
            Self(set.assume_init())
        }
    }

    /// Blocks exactly these signals.
    pub(crate) fn block(&self) -> io::Result<()> {
        // SAFETY: a valid set, no old set asked for.
        check(libc::c_long::from(unsafe {
            libc::sigprocmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut())
        }))?;
        Ok(())
    }

    /// A non-blocking descriptor that is readable when one of these (blocked) signals is pending.
    pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
        // SAFETY: a valid set; the result is a new descriptor that nothing else owns.
        unsafe {
            let fd = libc::signalfd(-1, &raw const self.0, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            check(libc::c_long::from(fd))?;
            Ok(OwnedFd::from_raw_fd(fd))
        }
    }
}

/// The next pending signal of a [`Signals::descriptor`].
pub(crate) fn next_signal(fd: BorrowedFd<'_>) -> Option<c_int> {
    let mut record = [0u8; size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(fd, &mut record) {
        // `ssi_signo` is the first field, in the machine's byte order.
        Ok(length) if length == record.len() => record.first_chunk().map(|b| i32::from_ne_bytes(*b)),
        _ => None,
    }
}

/// Gives every signal its default action, so that a program does not start with what this one ignores.
pub(crate) fn default_signals() {
    for signal in 1..=64 {
        // SAFETY: setting the default action installs no code; numbers that cannot be set are an error without effect.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Sets the NIS domain name of this UTS namespace.
pub(crate) fn setdomainname(name: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel reads `len` bytes of the slice.
    check(libc::c_long::from(unsafe {
        libc::setdomainname(name.as_ptr().cast(), name.len())
    }))?;
    Ok(())
}

/// Signals every process that this one may see and signal, except itself and the pid namespace's init.
pub(crate) fn kill_every(signal: c_int) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(libc::c_long::from(unsafe { libc::kill(-1, signal) }))?;
    Ok(())
}

/// Leaves this process at once, running nothing.
pub(crate) fn exit_now(code: u8) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(c_int::from(code)) }
}

/// Gives unused heap memory back to the kernel, where the C library can.
pub(crate) fn trim_heap() {
    // SAFETY: works on the allocator's own free lists.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
