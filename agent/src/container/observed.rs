//! What a container was last seen doing: the value in `observed`, written by its monitor alone.
//!
//! ```text
//!   (no file) ──monitor──► created ──start──► running ──exit──► exited ──monitor──► created ...
//!                             │                  │
//!                             └── monitor gone ──┴──► exited 137 "monitor lost" (written by whoever finds it)
//! ```
//!
//! The file alone is not the truth: `created` and `running` hold only while the monitor holds `monitor.lock` and the
//! board has not been started again since.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The version of `observed` and `desired` that is written and the newest that is read.
pub(crate) const VERSION: u32 = 1;
/// The exit code of a process that was killed with `SIGKILL`, as shells count it.
const KILLED: i32 = 137;

/// A moment, written as RFC 3339 in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(OffsetDateTime);

impl Timestamp {
    /// The present by the board's clock, which may be wrong until it has been set.
    pub fn now() -> Self {
        Self(OffsetDateTime::now_utc())
    }

    /// From the value of the `time` crate.
    pub const fn new(moment: OffsetDateTime) -> Self {
        Self(moment)
    }

    /// Reads RFC 3339.
    pub fn parse(text: &str) -> Option<Self> {
        OffsetDateTime::parse(text, &Rfc3339).ok().map(Self)
    }

    /// As the value of the `time` crate.
    pub const fn get(self) -> OffsetDateTime {
        self.0
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.format(&Rfc3339).map_err(|_| fmt::Error)?)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom("expected a moment in RFC 3339"))
    }
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Status {
    /// Made, and its process does not run yet.
    Created,
    /// Its first process runs.
    Running,
    /// Its first process has ended, or never could be started.
    Exited,
}

/// The last word of a container's monitor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Observed {
    /// The version of this record.
    pub version: u32,
    /// Where it is in its life.
    pub status: Status,
    /// The first process, once there was one.
    #[serde(with = "or_zero")]
    pub pid: Option<i32>,
    /// Its start time in clock ticks since boot: with it a pid is not mistaken for another process.
    #[serde(with = "or_zero")]
    pub pid_start: Option<u64>,
    /// The boot during which this was written.
    pub boot_id: String,
    /// The monitor that wrote this, once there was one.
    #[serde(with = "or_zero")]
    pub monitor_pid: Option<i32>,
    /// When this run of the container was prepared.
    pub created_at: Timestamp,
    /// When its process was started.
    pub started_at: Option<Timestamp>,
    /// When its process ended.
    pub finished_at: Option<Timestamp>,
    /// What it exited with, 128 + signal when it was killed.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether that was for want of memory.
    pub oom_killed: bool,
    /// Why it could not be started, or was lost.
    pub error: Option<String>,
}

/// A number that the record writes as 0 while there is none.
mod or_zero {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T, S>(number: &Option<T>, serializer: S) -> Result<S::Ok, S::Error>
    where
        T: Copy + Default + Serialize,
        S: Serializer,
    {
        number.unwrap_or_default().serialize(serializer)
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
    where
        T: Default + PartialOrd + Deserialize<'de>,
        D: Deserializer<'de>,
    {
        let number = T::deserialize(deserializer)?;
        Ok((number > T::default()).then_some(number))
    }
}

/// Whether a record may be believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Truth {
    /// As the monitor wrote it.
    Sound(Observed),
    /// It says that the container lives, and nobody watches over it: what has to be recorded instead.
    Lost(Observed),
}

impl Observed {
    /// How long its first process has been running, by ticks since boot: true also when the clock was set meanwhile.
    /// `None` without a process that was started.
    pub(crate) fn uptime(&self) -> Option<std::time::Duration> {
        let started = self.pid_start?.checked_mul(1000)? / rustix::param::clock_ticks_per_second();
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let now = std::time::Duration::new(now.tv_sec.try_into().ok()?, now.tv_nsec.try_into().ok()?);
        now.checked_sub(std::time::Duration::from_millis(started))
    }

    /// A container that no monitor has had yet.
    pub fn never_started(created_at: Timestamp) -> Self {
        Self {
            version: VERSION,
            status: Status::Created,
            pid: None,
            pid_start: None,
            boot_id: String::new(),
            monitor_pid: None,
            created_at,
            started_at: None,
            finished_at: None,
            exit_code: None,
            signal: None,
            oom_killed: false,
            error: None,
        }
    }

    /// Whether the record claims a live monitor.
    pub(crate) fn claims_life(&self) -> bool {
        self.status != Status::Exited && self.monitor_pid.is_some()
    }

    /// The truth rule. `supervised` is whether `monitor.lock` is held, `seen` the last sign of life.
    pub(crate) fn truth(self, supervised: bool, boot_id: &str, seen: Timestamp) -> Truth {
        let this_boot = self.boot_id == boot_id;
        if !self.claims_life() || (supervised && this_boot) {
            return Truth::Sound(self);
        }
        let error = if this_boot {
            "monitor lost"
        } else {
            "monitor lost: the board was started again"
        };
        Truth::Lost(Self {
            status: Status::Exited,
            finished_at: Some(self.started_at.map_or(seen, |started| started.max(seen))),
            exit_code: Some(KILLED),
            signal: Some(9),
            error: Some(error.into()),
            ..self
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(boot_id: &str) -> Observed {
        let at = Timestamp::parse("2026-11-20T23:50:01Z").unwrap();
        Observed {
            status: Status::Running,
            pid: Some(42),
            pid_start: Some(1),
            boot_id: boot_id.into(),
            monitor_pid: Some(41),
            started_at: Some(at),
            ..Observed::never_started(at)
        }
    }

    #[test]
    fn only_a_supervised_record_of_this_boot_is_believed() {
        let early = Timestamp::parse("2026-11-20T23:00:00Z").unwrap();
        let late = Timestamp::parse("2026-11-21T00:00:00Z").unwrap();
        let exited = Observed {
            status: Status::Exited,
            ..running("b")
        };
        let fresh = Observed::never_started(early);
        for (name, observed, supervised, lost) in [
            ("running, watched", running("b"), true, false),
            ("running, not watched", running("b"), false, true),
            ("running, before the boot", running("a"), true, true),
            (
                "created, not watched",
                Observed {
                    status: Status::Created,
                    ..running("b")
                },
                false,
                true,
            ),
            ("exited", exited.clone(), false, false),
            (
                "exited before the boot",
                Observed {
                    boot_id: "a".into(),
                    ..exited
                },
                false,
                false,
            ),
            ("never started", fresh, false, false),
        ] {
            let truth = observed.clone().truth(supervised, "b", late);
            assert_eq!(matches!(truth, Truth::Lost(_)), lost, "{name}");
        }
        let Truth::Lost(lost) = running("b").truth(false, "b", early) else {
            panic!()
        };
        assert_eq!(
            (lost.exit_code, lost.finished_at),
            (Some(137), lost.started_at),
            "never before it started"
        );
        assert_eq!(lost.error.as_deref(), Some("monitor lost"));
    }

    #[test]
    fn the_form_is_that_of_the_monitor() {
        let text = r#"{"version":1,"status":"running","pid":42,"pidStart":1,"bootId":"b","monitorPid":41,"createdAt":"2026-11-20T23:50:01Z","startedAt":"2026-11-20T23:50:01Z","finishedAt":null,"exitCode":null,"signal":null,"oomKilled":false,"error":null}"#;
        assert_eq!(serde_json::from_str::<Observed>(text).unwrap(), running("b"));
        assert_eq!(serde_json::to_string(&running("b")).unwrap(), text);
    }
}
