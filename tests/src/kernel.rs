//! The few system calls that neither the standard library nor rustix has a safe form of. This module alone holds
//! unsafe code in this crate.
#![allow(unsafe_code)]

use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note_interrupt(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// From now on SIGINT, SIGTERM and SIGHUP are noted instead of ending the process: who waits asks [`interrupted`]
/// and cleans up.
pub fn note_interrupts() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let handler: extern "C" fn(libc::c_int) = note_interrupt;
        // SAFETY: the signals are valid and catchable, and the handler only stores to an atomic, which is
        // async-signal-safe.
        unsafe {
            libc::signal(signal, handler as libc::sighandler_t);
        }
    }
}

/// Whether a signal asked this process to stop since [`note_interrupts`].
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// The command's process gets SIGKILL when the thread that started it ends, so that a killed test leaves nothing.
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec and makes one async-signal-safe system call; it touches no
    // memory of the parent.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            Ok(())
        });
    }
}

/// How many bytes written to the stream the peer has not acknowledged yet.
pub fn unsent(stream: &TcpStream) -> usize {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open for as long as `stream` lives, and TIOCOUTQ writes one int to a valid place.
    let status = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if status == 0 {
        usize::try_from(bytes).unwrap_or(0)
    } else {
        0
    }
}

/// Attaches to the process with ptrace, waits until it stands, reads a word of its first mapping and lets it go on.
pub fn trace(pid: rustix::process::Pid) -> std::io::Result<()> {
    let number = pid.as_raw_nonzero().get();
    let mapped = std::fs::read_to_string(format!("/proc/{number}/maps"))?;
    let start = mapped
        .split('-')
        .next()
        .and_then(|hex| usize::from_str_radix(hex, 16).ok())
        .unwrap_or(0);
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: PTRACE_SEIZE with no options takes no pointers; it touches no memory of this process.
    if unsafe { libc::ptrace(libc::PTRACE_SEIZE, number, none, none) } == -1 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: as above; the tracee is ours since the seize.
    if unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, number, none, none) } == -1 {
        return Err(std::io::Error::last_os_error());
    }
    let mut status = 0;
    // SAFETY: waitpid writes one int to a valid place; __WALL waits for a tracee that is no child.
    if unsafe { libc::waitpid(number, &raw mut status, libc::__WALL) } == -1 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the address is one of the tracee's, not of ours; the kernel checks it and errors otherwise.
    let peeked = unsafe { libc::ptrace(libc::PTRACE_PEEKDATA, number, start as *mut libc::c_void, none) };
    // The word itself may be -1: the C library clears the error number when it is.
    let failed = (peeked == -1)
        .then(std::io::Error::last_os_error)
        .filter(|error| error.raw_os_error() != Some(0));
    // SAFETY: PTRACE_DETACH with no signal takes no pointers.
    if unsafe { libc::ptrace(libc::PTRACE_DETACH, number, none, none) } == -1 {
        return Err(std::io::Error::last_os_error());
    }
    failed.map_or(Ok(()), Err)
}

/// Forks into new namespaces (`CLONE_NEW*`) with one clone3; `None` is the child. For programs with one thread.
pub fn fork_into(namespaces: i32) -> std::io::Result<Option<rustix::process::Pid>> {
    // SAFETY: all-zero is a valid value of this structure of numbers.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = u64::from(namespaces.unsigned_abs());
    arguments.exit_signal = libc::SIGCHLD.unsigned_abs().into();
    // SAFETY: without CLONE_VM the child has memory of its own, as after fork; the callers have one thread, so no lock is
    // held by a thread that the child lacks. The kernel reads `size_of` bytes of the structure.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<libc::clone_args>(),
        )
    };
    match i32::try_from(result) {
        Ok(0) => Ok(None),
        Ok(pid) if pid > 0 => Ok(rustix::process::Pid::from_raw(pid)),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Waits for a child: how it ended, and the largest resident set in kilobytes of it and those that it waited for.
pub fn wait_measured(pid: rustix::process::Pid) -> std::io::Result<(ExitStatus, u64)> {
    let mut status = 0;
    // SAFETY: all-zero is a valid value of this structure of numbers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: wait4 writes one int and one rusage to valid places.
        let result = unsafe { libc::wait4(pid.as_raw_nonzero().get(), &raw mut status, 0, &raw mut usage) };
        if result >= 0 {
            let kilobytes = u64::try_from(usage.ru_maxrss).unwrap_or(0);
            return Ok((ExitStatus::from_raw(status), kilobytes));
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Moves this process into a mount namespace of its own, from which nothing spreads. For programs with one thread.
pub fn own_mounts() -> std::io::Result<()> {
    use rustix::mount::{MountPropagationFlags, mount_change};
    // SAFETY: a mount namespace shares no descriptor table, and the callers have one thread.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    Ok(())
}

/// What a call of [`forbidden`] is given.
#[derive(Debug)]
pub enum Argument<'a> {
    /// A number.
    Word(i64),
    /// A text.
    Text(&'a std::ffi::CStr),
    /// Memory that the call may read and write.
    Memory(&'a mut [u8]),
}

/// System calls that no container needs, by name. None touches memory other than what its arguments name.
const FORBIDDEN: &[(&str, libc::c_long)] = &[
    ("acct", libc::SYS_acct),
    ("add_key", libc::SYS_add_key),
    ("bpf", libc::SYS_bpf),
    ("clock_settime", libc::SYS_clock_settime),
    ("delete_module", libc::SYS_delete_module),
    ("fsopen", libc::SYS_fsopen),
    ("init_module", libc::SYS_init_module),
    ("io_uring_setup", libc::SYS_io_uring_setup),
    ("ioctl", libc::SYS_ioctl),
    ("kexec_load", libc::SYS_kexec_load),
    ("keyctl", libc::SYS_keyctl),
    ("mknodat", libc::SYS_mknodat),
    ("mount", libc::SYS_mount),
    ("name_to_handle_at", libc::SYS_name_to_handle_at),
    ("open_by_handle_at", libc::SYS_open_by_handle_at),
    ("open_tree", libc::SYS_open_tree),
    ("perf_event_open", libc::SYS_perf_event_open),
    ("personality", libc::SYS_personality),
    ("pivot_root", libc::SYS_pivot_root),
    ("process_vm_readv", libc::SYS_process_vm_readv),
    ("quotactl", libc::SYS_quotactl),
    ("reboot", libc::SYS_reboot),
    ("request_key", libc::SYS_request_key),
    ("setgroups", libc::SYS_setgroups),
    ("setns", libc::SYS_setns),
    ("sethostname", libc::SYS_sethostname),
    ("socket", libc::SYS_socket),
    ("swapon", libc::SYS_swapon),
    ("syslog", libc::SYS_syslog),
    ("umount2", libc::SYS_umount2),
    ("unshare", libc::SYS_unshare),
    ("userfaultfd", libc::SYS_userfaultfd),
    ("vhangup", libc::SYS_vhangup),
];

/// Makes one of the calls that a container is refused.
///
/// # Errors
///
/// What the kernel says, and `InvalidInput` for a name that is not in the list.
pub fn forbidden(name: &str, arguments: &mut [Argument<'_>]) -> std::io::Result<i64> {
    let known = FORBIDDEN.iter().find(|(known, _)| *known == name);
    let (_, number) = known.ok_or(std::io::ErrorKind::InvalidInput)?;
    let mut words = [0 as libc::c_long; 6];
    for (word, argument) in words.iter_mut().zip(arguments) {
        *word = match argument {
            Argument::Word(value) => *value as libc::c_long,
            Argument::Text(text) => text.as_ptr() as libc::c_long,
            Argument::Memory(memory) => memory.as_mut_ptr() as libc::c_long,
        };
    }
    // SAFETY: the calls of the list read and write only what the pointers lead to, which outlives the call; texts end with
    // a zero, and the callers give as much memory as the call at hand takes.
    let result = unsafe {
        libc::syscall(
            *number, words[0], words[1], words[2], words[3], words[4], words[5],
        )
    };
    if result == -1 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(result)
}

/// The kernel's Landlock ABI; 0 without Landlock.
pub fn landlock_abi() -> u32 {
    // SAFETY: with LANDLOCK_CREATE_RULESET_VERSION the call takes no memory.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0_usize,
            1_u32,
        )
    };
    u32::try_from(version).unwrap_or(0)
}
