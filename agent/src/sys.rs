//! The system calls that no library makes safe: this crate's only unsafe code.
//!
//! Signals as something to read, and the questions that `wherry doctor` asks the kernel.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A set of signals that no longer interrupts anything and is read here instead.
#[derive(Debug)]
pub(crate) struct Signals {
    fd: OwnedFd,
}

impl Signals {
    /// Blocks the signals in this thread and in those it makes from now on; call it before there are others. Programs
    /// started through `std::process::Command` begin with nothing blocked.
    pub(crate) fn block(signals: &[u8]) -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set that it is given, and each sigaddset gets that initialised set and
        // refuses a number that is no signal.
        let set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            let mut set = set.assume_init();
            for signal in signals {
                if libc::sigaddset(&mut set, i32::from(*signal)) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            set
        };
        // SAFETY: the set is initialised and lives through the call; no old set is asked for.
        let blocked = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
        if blocked != 0 {
            return Err(io::Error::from_raw_os_error(blocked));
        }
        // SAFETY: the set is initialised; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd })
    }

    /// The next signal that has arrived, if there is one.
    pub(crate) fn next(&self) -> io::Result<Option<u8>> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the buffer is as large as said and lives through the call.
        let got = unsafe { libc::read(self.fd.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        if got < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            };
        }
        if usize::try_from(got) != Ok(size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: the kernel filled the whole structure.
        let info = unsafe { info.assume_init() };
        Ok(u8::try_from(info.ssi_signo).ok())
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The newest Landlock ABI of this kernel.
pub(crate) fn landlock_abi() -> io::Result<u32> {
    const VERSION: u32 = 1;
    // SAFETY: with the version flag the kernel reads no attributes: the pointer is null and the size zero.
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0usize,
            VERSION,
        )
    };
    u32::try_from(abi).map_err(|_| io::Error::last_os_error())
}

/// Whether a seccomp filter may answer a system call with an error.
pub(crate) fn seccomp_filters() -> io::Result<()> {
    const GET_ACTION_AVAIL: u32 = 2;
    let action: u32 = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the kernel reads four bytes at the pointer, which lives through the call.
    match unsafe { libc::syscall(libc::SYS_seccomp, GET_ACTION_AVAIL, 0u32, &action) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether something keeps the board's clock right.
pub(crate) fn clock_is_kept() -> io::Result<bool> {
    const UNSYNCHRONISED: i32 = 0x40;
    let mut clock = MaybeUninit::<libc::timex>::zeroed();
    // SAFETY: all zeroes is a valid timex whose mode 0 changes nothing; the kernel fills it.
    let (state, clock) = unsafe { (libc::adjtimex(clock.as_mut_ptr()), clock.assume_init()) };
    match state {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(clock.status & UNSYNCHRONISED == 0),
    }
}

/// Puts this process, which must have no threads, into new user and mount namespaces.
pub(crate) fn enter_own_namespaces() -> io::Result<()> {
    let flags = rustix::thread::UnshareFlags::NEWUSER | rustix::thread::UnshareFlags::NEWNS;
    // SAFETY: the table of descriptors stays shared: its flag is not among these.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_read_and_does_not_kill() {
        let signals = Signals::block(&[12]).unwrap();
        assert_eq!(signals.next().unwrap(), None);
        let own = rustix::thread::gettid();
        // To this thread: another test's thread has it unblocked.
        // SAFETY: three numbers go to the kernel, no memory.
        let sent = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), own.as_raw_nonzero().get(), 12) };
        assert_eq!(sent, 0);
        assert_eq!(signals.next().unwrap(), Some(12));
        assert_eq!(signals.next().unwrap(), None);
        assert!(Signals::block(&[200]).is_err());
    }
}
