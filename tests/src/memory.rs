//! What a process costs in memory.

use std::fs;

/// Kilobytes of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// The process.
    pub pid: i32,
    /// All that is resident, shared file pages too.
    pub resident: u64,
    /// What only this process has: it would be free if the process ended.
    pub private: u64,
}

/// Of that process; none when it is gone. Where the kernel hides the details (an undumpable process of another
/// user), private is the anonymous part of what is resident.
pub fn of(pid: i32) -> Option<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |text: &str, name: &str| -> Option<u64> {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    let resident = field(&status, "VmRSS:")?;
    let private = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .ok()
        .and_then(|text| Some(field(&text, "Private_Clean:")? + field(&text, "Private_Dirty:")?));
    Some(Memory {
        pid,
        resident,
        private: private.or_else(|| field(&status, "RssAnon:"))?,
    })
}

/// The command line, its words joined by spaces.
pub fn command_line(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> = bytes
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(String::from_utf8_lossy)
        .collect();
    words.join(" ")
}

/// The name that the process has given itself, or its program's.
pub fn name(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm"))
        .unwrap_or_default()
        .trim_end()
        .to_owned()
}

/// The process that started it.
pub fn parent(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_has_some() {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let memory = super::of(pid).expect("memory");
        assert!(
            memory.private > 0 && memory.resident >= memory.private,
            "{memory:?}"
        );
        assert!(super::command_line(pid).contains("wherry_tests"));
    }
}
