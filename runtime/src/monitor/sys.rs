//! The few system calls of the monitor and the forwarder that have no safe binding: `fork`, `signalfd` with the
//! signal mask, `close` by number, and `_exit`.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{Errno, Result};
use rustix::process::Pid;

/// Which side of a [`fork`] this process is.
pub(crate) enum Forked {
    /// The caller, with the child's process id.
    Parent(Pid),
    /// The new process.
    Child,
}

/// Forks. The whole crate is single-threaded, so the child may go on like any other code.
pub(crate) fn fork() -> Result<Forked> {
    // SAFETY: fork has no memory preconditions; the process has one thread, so no lock can be held by another.
    match unsafe { libc::fork() } {
        -1 => Err(last_error()),
        pid => Ok(Pid::from_raw(pid).map_or(Forked::Child, Forked::Parent)),
    }
}

/// Ends this process at once, without running anything that was registered for a normal end.
pub(crate) fn exit(code: u8) -> ! {
    // SAFETY: _exit takes a number and does not return.
    unsafe { libc::_exit(libc::c_int::from(code)) }
}

/// The signals that a monitor passes on to its container.
pub(crate) const FORWARDED: [i32; 6] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

/// Blocks [`FORWARDED`] and `SIGCHLD` and returns a non-blocking descriptor that they are read from.
///
/// `SIGPIPE` and `SIGXFSZ` are blocked as well: both come with an errno that is handled where it happens.
pub(crate) fn signal_descriptor() -> Result<OwnedFd> {
    let mut read = empty_set();
    let mut blocked = empty_set();
    // SAFETY: both sets were initialised by sigemptyset and the signal numbers are valid constants.
    unsafe {
        for signal in FORWARDED.into_iter().chain([libc::SIGCHLD]) {
            libc::sigaddset(&raw mut read, signal);
            libc::sigaddset(&raw mut blocked, signal);
        }
        libc::sigaddset(&raw mut blocked, libc::SIGPIPE);
        libc::sigaddset(&raw mut blocked, libc::SIGXFSZ);
    }
    set_mask(&blocked)?;
    // SAFETY: `read` is an initialised set; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const read, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(last_error());
    }
    // SAFETY: signalfd has just returned this descriptor and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Reads the next signal number, or `None` when none is pending.
pub(crate) fn next_signal(signals: impl AsFd) -> Option<i32> {
    let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
    let length = rustix::io::retry_on_intr(|| rustix::io::read(&signals, &mut info)).ok()?;
    // `ssi_signo`, a u32, is the first field of the structure.
    let number = info.first_chunk::<4>().filter(|_| length == info.len())?;
    i32::try_from(u32::from_ne_bytes(*number)).ok()
}

/// Lets every signal through again, for a forked child that has its own way to end.
pub(crate) fn unblock_signals() -> Result<()> {
    set_mask(&empty_set())
}

/// Gives the program of `command` the signal mask that programs expect: nothing blocked.
pub(crate) fn unblock_signals_in(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: sigemptyset and sigprocmask are async-signal-safe, and nothing is allocated or locked.
    unsafe { command.pre_exec(|| Ok(unblock_signals()?)) };
}

/// Closes every descriptor of this process except those in `keep`.
///
/// The caller must not use anything afterwards that owns a descriptor which is not in `keep`: it is meant for a
/// process that has just been forked.
pub(crate) fn close_all_except(keep: &[RawFd]) -> std::io::Result<()> {
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        open.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<RawFd>().ok()),
        );
    }
    for fd in open {
        if !keep.contains(&fd) {
            // SAFETY: closing a number has no memory effect. The owners of these descriptors belong to the part of
            // the program that ended with the fork, and the one of read_dir is closed already (EBADF is ignored).
            unsafe { libc::close(fd) };
        }
    }
    Ok(())
}

/// Gives back the memory of program text that was needed once: reading settings, starting a container. What is needed
/// again comes back from the page cache. Only mappings that never held a page of this process's own are touched.
pub(crate) fn forget_program_pages() -> std::io::Result<()> {
    let smaps = std::fs::read_to_string("/proc/self/smaps")?;
    for (start, length) in untouched_mappings(&smaps) {
        // SAFETY: the range is a private mapping of a file, not writable and without an anonymous page ("Anonymous: 0"):
        // its content is the file's, and is faulted in again unchanged. Nothing else runs between reading and this.
        unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
    Ok(())
}

/// Start and length of the mappings in the text of `/proc/self/smaps` whose every page is the file's own.
fn untouched_mappings(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (Some(first), second) = (fields.next(), fields.next()) else {
            continue;
        };
        if let Some((start, end)) = first.split_once('-') {
            let range = usize::from_str_radix(start, 16)
                .ok()
                .zip(usize::from_str_radix(end, 16).ok());
            let read_only = matches!(second, Some("r-xp" | "r--p"));
            let of_file = fields.next_back().is_some_and(|path| path.starts_with('/'));
            current = range.filter(|_| read_only && of_file);
        } else if first == "Anonymous:" {
            let untouched = current.take().filter(|_| second == Some("0"));
            found.extend(untouched.map(|(start, end)| (start, end - start)));
        }
    }
    found
}

fn empty_set() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the whole set that it is given.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}

fn set_mask(set: &libc::sigset_t) -> Result<()> {
    // SAFETY: `set` is an initialised signal set; the old mask is not asked for.
    let error = unsafe { libc::sigprocmask(libc::SIG_SETMASK, set, std::ptr::null_mut()) };
    if error == 0 { Ok(()) } else { Err(last_error()) }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_untouched_read_only_file_mappings_are_forgotten() {
        let smaps = "\
1000-3000 r-xp 00000000 fe:00 42   /bin/program
Rss:  8 kB
Anonymous:  0 kB
3000-4000 r--p 00002000 fe:00 42   /bin/program
Anonymous:  4 kB
4000-5000 rw-p 00003000 fe:00 42   /bin/program
Anonymous:  0 kB
5000-6000 r--p 00000000 00:00 0
Anonymous:  0 kB
7000-9000 r-xp 00000000 00:00 0   [vdso]
Anonymous:  0 kB
a000-b000 r--p 00000000 fe:00 42   /bin/program
Anonymous:  0 kB
VmFlags: rd mr
";
        assert_eq!(untouched_mappings(smaps), [(0x1000, 0x2000), (0xa000, 0x1000)]);
    }

    #[test]
    fn a_program_goes_on_without_its_pages() {
        forget_program_pages().unwrap();
        assert_eq!(format!("{:?}", untouched_mappings("")), "[]");
    }
}
