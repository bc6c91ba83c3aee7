//! System call numbers. `syscalls.txt` has one call a line: name, then its number on x86_64, aarch64, arm (EABI) and riscv64,
//! or `-`. They are the kernel's `syscall.tbl` files, which only ever grow.

const TEXT: &str = include_str!("syscalls.txt");

/// An architecture whose calls a filter can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Architecture {
    X86_64,
    Aarch64,
    Arm,
    Riscv64,
}

impl Architecture {
    pub(super) const ALL: &'static [Self] = &[Self::X86_64, Self::Aarch64, Self::Arm, Self::Riscv64];

    /// Those whose programs run under this build; the first is its own.
    #[cfg(target_arch = "x86_64")]
    pub(super) const NATIVE: &'static [Self] = &[Self::X86_64];
    /// Those whose programs run under this build: 64-bit boards run 32-bit images as well.
    #[cfg(target_arch = "aarch64")]
    pub(super) const NATIVE: &'static [Self] = &[Self::Aarch64, Self::Arm];
    /// Those whose programs run under this build.
    #[cfg(target_arch = "arm")]
    pub(super) const NATIVE: &'static [Self] = &[Self::Arm];
    /// Those whose programs run under this build.
    #[cfg(target_arch = "riscv64")]
    pub(super) const NATIVE: &'static [Self] = &[Self::Riscv64];

    /// `AUDIT_ARCH_*`.
    pub(super) fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xC000_003E,
            Self::Aarch64 => 0xC000_00B7,
            Self::Arm => 0x4000_0028,
            Self::Riscv64 => 0xC000_00F3,
        }
    }

    pub(super) fn seccomp_name(self) -> &'static str {
        match self {
            Self::X86_64 => "SCMP_ARCH_X86_64",
            Self::Aarch64 => "SCMP_ARCH_AARCH64",
            Self::Arm => "SCMP_ARCH_ARM",
            Self::Riscv64 => "SCMP_ARCH_RISCV64",
        }
    }
}

/// The numbers, by name.
pub(super) struct Table(Vec<(&'static str, [Option<u32>; 4])>);

impl Table {
    /// Reads the text.
    pub(super) fn read() -> Self {
        let mut rows = Vec::with_capacity(512);
        for line in TEXT.lines() {
            let mut fields = line.split(' ');
            let name = fields.next().unwrap_or_default();
            let mut number = || fields.next().and_then(|field| field.parse().ok());
            rows.push((name, [number(), number(), number(), number()]));
        }
        Self(rows)
    }

    /// A call's number.
    pub(super) fn number(&self, name: &str, architecture: Architecture) -> Option<u32> {
        let row = self.0.binary_search_by_key(&name, |row| row.0).ok()?;
        self.0.get(row)?.1.get(architecture as usize).copied().flatten()
    }

    /// The highest number of the common table. ARM's private calls, far above it, are not meant.
    pub(super) fn newest(&self, architecture: Architecture) -> u32 {
        let numbers = self
            .0
            .iter()
            .filter_map(|row| row.1.get(architecture as usize).copied().flatten());
        numbers.filter(|number| *number < 0x1_0000).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_sorted_and_says_what_the_c_library_says() {
        let table = Table::read();
        assert!(table.0.is_sorted_by(|a, b| a.0 < b.0));
        assert!(table.0.iter().all(|row| row.1.iter().any(Option::is_some)));
        let native = Architecture::NATIVE[0];
        for (name, number) in [
            ("read", libc::SYS_read),
            ("execve", libc::SYS_execve),
            ("clone3", libc::SYS_clone3),
            ("openat2", libc::SYS_openat2),
            ("seccomp", libc::SYS_seccomp),
        ] {
            assert_eq!(
                table.number(name, native).map(i64::from),
                Some(i64::from(number as libc::c_int)),
                "{name}"
            );
        }
        // 32-bit ARM's time64 calls and private calls.
        assert_eq!(table.number("futex_time64", Architecture::Arm), Some(422));
        assert_eq!(table.number("set_tls", Architecture::Arm), Some(0xf0005));
        assert_eq!(table.number("setresuid32", Architecture::Arm), Some(208));
        assert_eq!(table.number("io_pgetevents", Architecture::Aarch64), Some(292));
        assert_eq!(
            table.number("riscv_flush_icache", Architecture::Riscv64),
            Some(259)
        );
        assert_eq!(table.number("renameat", Architecture::Riscv64), None);
        assert_eq!(table.number("no_such_call", native), None);
        assert!(table.newest(Architecture::Arm) < 0x1_0000);
    }
}
