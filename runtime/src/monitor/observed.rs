//! `observed`: what became of the container, written by its monitor alone, replaced whole and durably.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;

use super::settings::VERSION;

/// The file's name in the container's directory.
const NAME: &str = "observed";

/// The next version of the file lies here, with its space allocated while there was some: the exit of a container can
/// then be recorded on a full disk.
const NEXT: &str = ".observed.next";

/// Space kept for the next record. Every field but `error` is short, and `error` is cut to `MAX_ERROR`.
const RESERVED: u64 = 4096;

/// Longest `error`, in bytes.
const MAX_ERROR: usize = 1024;

/// Where the container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// Made, and waiting to be started.
    Created,
    /// Its first process runs.
    Running,
    /// Its first process has ended, or was never started.
    Exited,
}

/// The content of `observed`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Observed {
    pub(crate) version: u32,
    pub(crate) status: Status,
    pub(crate) pid: i32,
    pub(crate) pid_start: u64,
    pub(crate) boot_id: String,
    pub(crate) monitor_pid: i32,
    pub(crate) created_at: String,
    pub(crate) started_at: Option<String>,
    pub(crate) finished_at: Option<String>,
    pub(crate) exit_code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) oom_killed: bool,
    pub(crate) error: Option<String>,
}

impl Observed {
    /// A container that has no process yet.
    pub(crate) fn new(boot_id: String, monitor_pid: i32, created_at: String) -> Self {
        Self {
            version: VERSION,
            status: Status::Created,
            pid: 0,
            pid_start: 0,
            boot_id,
            monitor_pid,
            created_at,
            started_at: None,
            finished_at: None,
            exit_code: None,
            signal: None,
            oom_killed: false,
            error: None,
        }
    }

    /// Adds to `error`, within its length.
    pub(crate) fn add_error(&mut self, text: &str) {
        let mut error = self.error.take().unwrap_or_default();
        if !error.is_empty() {
            error.push_str("; ");
        }
        error.extend(text.chars().map(|c| if c.is_control() { ' ' } else { c }));
        let cut = error.floor_char_boundary(MAX_ERROR);
        error.truncate(cut);
        self.error = Some(error);
    }

    /// The file's bytes.
    fn to_json(&self) -> Result<Vec<u8>, Errno> {
        let mut json = serde_json::to_vec(self).map_err(|_| Errno::INVAL)?;
        json.push(b'\n');
        Ok(json)
    }
}

/// The place of `observed` in one container's directory.
#[derive(Debug)]
pub(crate) struct Record {
    directory: Rc<OwnedFd>,
    /// The present record, while it would not survive a loss of power yet.
    unsynced: Option<OwnedFd>,
}

impl Record {
    /// The record in `directory`; reserves the space of the first write.
    pub(crate) fn new(directory: Rc<OwnedFd>) -> Result<Self, Errno> {
        let record = Self {
            directory,
            unsynced: None,
        };
        record.reserve()?;
        Ok(record)
    }

    /// Replaces the record of a container that has not ended. It is seen at once and durable after [`Self::sync`]:
    /// whoever waits for the container need not wait for the disk, and a loss of power in between makes such a record
    /// void in any case.
    pub(crate) fn put(&mut self, observed: &Observed) -> Result<(), Errno> {
        let file = self.write(observed)?;
        rustix::fs::renameat(&*self.directory, NEXT, &*self.directory, NAME)?;
        self.unsynced = Some(file);
        // Without the reserve the next record asks for space in the ordinary way.
        let _ = self.reserve();
        Ok(())
    }

    /// Makes the present record durable; false when it was already.
    pub(crate) fn sync(&mut self) -> bool {
        let unsynced = self.unsynced.take();
        if let Some(file) = &unsynced {
            // A disk that fails now fails again with the final record.
            let _ = rustix::fs::fsync(file).and_then(|()| rustix::fs::fsync(&*self.directory));
        }
        unsynced.is_some()
    }

    /// Replaces the record for the last time; it is durable when it is seen.
    pub(crate) fn put_final(&mut self, observed: &Observed) -> Result<(), Errno> {
        self.unsynced = None;
        let file = self.write(observed)?;
        rustix::fs::fsync(&file)?;
        rustix::fs::renameat(&*self.directory, NEXT, &*self.directory, NAME)?;
        rustix::fs::fsync(&*self.directory)
    }

    fn write(&self, observed: &Observed) -> Result<OwnedFd, Errno> {
        let json = observed.to_json()?;
        let file = self.open_next()?;
        let mut written = 0;
        while written < json.len() {
            written += rustix::io::pwrite(&file, &json[written..], written as u64)?;
        }
        rustix::fs::ftruncate(&file, json.len() as u64)?;
        Ok(file)
    }

    /// Forgets the reserve of a container that ended without using it.
    pub(crate) fn release(&self) {
        let _ = rustix::fs::unlinkat(&*self.directory, NEXT, AtFlags::empty());
    }

    fn reserve(&self) -> Result<(), Errno> {
        let file = self.open_next()?;
        match rustix::fs::fallocate(file.as_fd(), FallocateFlags::empty(), 0, RESERVED) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            result => result,
        }
    }

    fn open_next(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOCTTY;
        rustix::fs::openat(&*self.directory, NEXT, flags, Mode::from_raw_mode(0o600))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The golden sample of version 1; MONITOR.md shows the same text.
    const SAMPLE: &str = r#"{"version":1,"status":"exited","pid":4711,"pidStart":123456,"bootId":"5f9b7a52-0c1e-4f1e-8a55-6f2f7c1c9b10","monitorPid":4700,"createdAt":"2026-11-20T23:50:01.123456789Z","startedAt":"2026-11-20T23:50:01.153456789Z","finishedAt":"2026-11-20T23:51:00.000000001Z","exitCode":137,"signal":9,"oomKilled":true,"error":null}"#;

    fn sample() -> Observed {
        Observed {
            version: VERSION,
            status: Status::Exited,
            pid: 4711,
            pid_start: 123_456,
            boot_id: "5f9b7a52-0c1e-4f1e-8a55-6f2f7c1c9b10".to_owned(),
            monitor_pid: 4700,
            created_at: "2026-11-20T23:50:01.123456789Z".to_owned(),
            started_at: Some("2026-11-20T23:50:01.153456789Z".to_owned()),
            finished_at: Some("2026-11-20T23:51:00.000000001Z".to_owned()),
            exit_code: Some(137),
            signal: Some(9),
            oom_killed: true,
            error: None,
        }
    }

    #[test]
    fn the_golden_sample_is_written_and_documented() {
        let json = String::from_utf8(sample().to_json().unwrap()).unwrap();
        assert_eq!(json, format!("{SAMPLE}\n"));
        let document = include_str!("../../MONITOR.md");
        assert!(
            document.contains(SAMPLE),
            "MONITOR.md does not show the golden sample of observed"
        );
    }

    #[test]
    fn errors_are_joined_cleaned_and_cut() {
        let mut observed = sample();
        observed.add_error("one\ntwo");
        observed.add_error("three");
        assert_eq!(observed.error.as_deref(), Some("one two; three"));
        observed.add_error(&"\u{fc}\u{1b}\"".repeat(2000));
        assert!(observed.error.as_ref().unwrap().len() <= MAX_ERROR);
        assert!((observed.to_json().unwrap().len() as u64) < RESERVED);
    }

    #[test]
    fn the_record_is_replaced_and_leaves_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let mut record = Record::new(Rc::new(std::fs::File::open(directory.path()).unwrap().into())).unwrap();
        let mut observed = sample();
        observed.status = Status::Running;
        observed.add_error(&"long ".repeat(100));
        record.put(&observed).unwrap();
        assert!(record.sync() && !record.sync());
        record.put_final(&sample()).unwrap();
        let text = std::fs::read_to_string(directory.path().join(NAME)).unwrap();
        assert_eq!(text, format!("{SAMPLE}\n"));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
