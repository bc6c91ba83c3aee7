//! The system calls that no safe library offers: installing a seccomp filter and closing every inherited descriptor.
#![allow(unsafe_code)]

use std::io;

/// What the filter returns for a call from another architecture's table: the process ends.
const KILL: u32 = 0x8000_0000;
/// What it returns for a denied call: EPERM.
const DENY: u32 = 0x0005_0000 | libc::EPERM as u32;
/// What it returns for all others.
const ALLOW: u32 = 0x7fff_0000;

/// `AUDIT_ARCH_*` of this architecture's system calls; `None` where the filter is not made for it.
const ARCH: Option<u32> = {
    if cfg!(target_arch = "x86_64") {
        Some(0xc000_003e)
    } else if cfg!(target_arch = "aarch64") {
        Some(0xc000_00b7)
    } else if cfg!(all(target_arch = "arm", target_endian = "little")) {
        Some(0x4000_0028)
    } else if cfg!(target_arch = "riscv64") {
        Some(0xc000_00f3)
    } else {
        None
    }
};

/// Calls by which the cage could reach the network, other processes, other files' modes, or the kernel's rarer parts.
#[rustfmt::skip]
const DENIED: &[libc::c_long] = &[
    libc::SYS_socket, libc::SYS_socketpair, libc::SYS_connect, libc::SYS_bind, libc::SYS_listen, libc::SYS_accept4,
    libc::SYS_sendto, libc::SYS_sendmsg, libc::SYS_sendmmsg, libc::SYS_recvfrom, libc::SYS_recvmsg, libc::SYS_recvmmsg,
    libc::SYS_execve, libc::SYS_execveat, libc::SYS_clone, libc::SYS_clone3,
    libc::SYS_ptrace, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev, libc::SYS_kill, libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo, libc::SYS_rt_tgsigqueueinfo, libc::SYS_pidfd_open, libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal, libc::SYS_kcmp, libc::SYS_process_madvise,
    libc::SYS_mount, libc::SYS_umount2, libc::SYS_pivot_root, libc::SYS_chroot, libc::SYS_unshare, libc::SYS_setns,
    libc::SYS_open_tree, libc::SYS_move_mount, libc::SYS_fsopen, libc::SYS_fsconfig, libc::SYS_fsmount,
    libc::SYS_fspick, libc::SYS_mount_setattr, libc::SYS_open_by_handle_at, libc::SYS_name_to_handle_at,
    libc::SYS_bpf, libc::SYS_perf_event_open, libc::SYS_userfaultfd, libc::SYS_memfd_create,
    libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register,
    libc::SYS_add_key, libc::SYS_request_key, libc::SYS_keyctl, libc::SYS_personality,
    libc::SYS_init_module, libc::SYS_finit_module, libc::SYS_delete_module, libc::SYS_kexec_load, libc::SYS_reboot,
    libc::SYS_swapon, libc::SYS_swapoff, libc::SYS_syslog, libc::SYS_sethostname, libc::SYS_setdomainname,
    libc::SYS_setuid, libc::SYS_setgid, libc::SYS_setreuid, libc::SYS_setregid, libc::SYS_setresuid,
    libc::SYS_setresgid, libc::SYS_setfsuid, libc::SYS_setfsgid, libc::SYS_setgroups, libc::SYS_capset,
    libc::SYS_ioctl, libc::SYS_fchmodat, libc::SYS_fchownat, libc::SYS_setxattr, libc::SYS_lsetxattr,
    libc::SYS_removexattr, libc::SYS_lremovexattr, libc::SYS_quotactl, libc::SYS_acct, libc::SYS_inotify_init1,
    libc::SYS_fanotify_init, libc::SYS_mq_open, libc::SYS_shmget, libc::SYS_semget, libc::SYS_msgget,
];

/// The older spellings, which only the older tables have.
#[cfg(any(target_arch = "x86_64", target_arch = "arm"))]
#[rustfmt::skip]
const DENIED_OLD: &[libc::c_long] = &[
    libc::SYS_fork, libc::SYS_vfork, libc::SYS_chmod, libc::SYS_chown, libc::SYS_lchown, libc::SYS_inotify_init,
];
#[cfg(not(any(target_arch = "x86_64", target_arch = "arm")))]
const DENIED_OLD: &[libc::c_long] = &[];

/// The spellings with 32-bit IDs, which only 32-bit tables have.
#[cfg(target_arch = "arm")]
#[rustfmt::skip]
const DENIED_32: &[libc::c_long] = &[
    libc::SYS_setuid32, libc::SYS_setgid32, libc::SYS_setreuid32, libc::SYS_setregid32, libc::SYS_setresuid32,
    libc::SYS_setresgid32, libc::SYS_setfsuid32, libc::SYS_setfsgid32, libc::SYS_setgroups32, libc::SYS_chown32,
    libc::SYS_lchown32,
];
#[cfg(not(target_arch = "arm"))]
const DENIED_32: &[libc::c_long] = &[];

/// Newer than the constants at hand, and of one number everywhere: fchmodat2, setxattrat, removexattrat, open_tree_attr,
/// file_setattr.
const DENIED_NEW: &[libc::c_long] = &[452, 463, 466, 467, 469];

fn denied() -> impl Iterator<Item = libc::c_long> {
    [DENIED, DENIED_OLD, DENIED_32, DENIED_NEW]
        .into_iter()
        .flatten()
        .copied()
}

/// A classic BPF instruction with its jump offsets.
const fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}

/// The filter's program, `None` on an architecture that it is not made for.
fn program() -> Option<Vec<libc::sock_filter>> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    /// Offsets in `struct seccomp_data`.
    const NUMBER_AT: u32 = 0;
    const ARCH_AT: u32 = 4;
    /// Where x86_64's table of 32-bit calls begins.
    const X32: u32 = 0x4000_0000;

    let mut program = vec![
        instruction(LOAD, ARCH_AT, 0, 0),
        instruction(EQUAL, ARCH?, 1, 0),
        instruction(RETURN, KILL, 0, 0),
        instruction(LOAD, NUMBER_AT, 0, 0),
    ];
    if cfg!(target_arch = "x86_64") {
        program.extend([instruction(AT_LEAST, X32, 0, 1), instruction(RETURN, KILL, 0, 0)]);
    }
    for number in denied() {
        program.extend([
            instruction(EQUAL, number as u32, 0, 1),
            instruction(RETURN, DENY, 0, 0),
        ]);
    }
    program.push(instruction(RETURN, ALLOW, 0, 0));
    Some(program)
}

/// Whether [`install_seccomp`] would find what it needs.
pub(crate) fn has_seccomp() -> bool {
    // SAFETY: PR_SET_SECCOMP with SECCOMP_MODE_FILTER reads a sock_fprog at the address given; at none it fails with EFAULT
    // where the kernel has filters and with EINVAL where not, and installs nothing either way.
    let done = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            std::ptr::null::<libc::sock_fprog>(),
        )
    };
    let answer = io::Error::last_os_error().raw_os_error();
    done != 0 && answer == Some(libc::EFAULT) && program().is_some()
}

/// Installs the filter for this process, which must be single-threaded and have `no_new_privs`. `false` where the kernel or the
/// architecture has none.
pub(crate) fn install_seccomp() -> io::Result<bool> {
    let Some(mut program) = program() else {
        return Ok(false);
    };
    let filter = libc::sock_fprog {
        len: program.len() as libc::c_ushort,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: PR_SET_SECCOMP with SECCOMP_MODE_FILTER reads a sock_fprog and, through its pointer, `len` instructions; both are
    // alive and initialised for the length of the call, and nothing is written to them.
    let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    if done == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    // A kernel without CONFIG_SECCOMP_FILTER.
    if error.raw_os_error() == Some(libc::EINVAL) {
        Ok(false)
    } else {
        Err(error)
    }
}

/// Closes every descriptor but the standard three. Only for a process whose other descriptors nobody owns any more.
pub(crate) fn close_inherited() {
    // SAFETY: close_range takes three integers; the descriptors that it closes were inherited across exec, so no object
    // of this process owns one of them.
    if unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) } == 0 {
        return;
    }
    // Before Linux 5.9: the limit bounds the numbers.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .current
        .unwrap_or(65_536)
        .min(65_536);
    for fd in 3..limit as libc::c_int {
        // SAFETY: as above; closing a number that is not open fails with EBADF, which is fine.
        unsafe { libc::close(fd) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_fits_and_ends_in_allow() {
        let program = program().unwrap();
        assert!(program.len() < libc::BPF_MAXINSNS as usize);
        assert_eq!(program.last().unwrap().k, ALLOW);
        let denied = program.iter().filter(|i| i.k == DENY).count();
        assert_eq!(denied, super::denied().count());
    }
}
