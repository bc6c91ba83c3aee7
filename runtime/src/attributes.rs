//! How processes are scheduled and what their memory and execution domain is: checked first, applied by init and `exec`
//! to themselves while they may.

use crate::config::{IoPriority, MemoryPolicy, Personality, Process, Scheduler};
use crate::error::{Context, Error};
use crate::sys;

/// Highest processor or memory node that is read: the kernel's own limits are lower.
const MAX_BIT: usize = 8192;

/// Longest list of processors or nodes.
const MAX_LIST: usize = 4096;

/// Values of `SCHED_DEADLINE` are between these, as sched(7) says.
const DEADLINE: std::ops::Range<u64> = 1024..1 << 63;

/// Scheduling of one process.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scheduling {
    scheduler: Option<sys::SchedulerAttributes>,
    io_priority: Option<i32>,
    /// Processors of a process of `exec` from its start on, as a mask.
    pub(crate) initial: Option<Vec<u64>>,
    /// Processors from just before its program on.
    pub(crate) last: Option<Vec<u64>>,
}

impl Scheduling {
    /// Checks what a process asks for.
    ///
    /// # Errors
    ///
    /// Names the field.
    pub(crate) fn from_process(process: &Process) -> Result<Self, Error> {
        let affinity = process.exec_cpu_affinity.as_ref();
        let mask = |field: &str, list: Option<&String>| {
            list.filter(|list| !list.is_empty())
                .map(|list| {
                    parse_list(list)
                        .map_err(|reason| Error::config(format!("process.execCPUAffinity.{field}"), reason))
                })
                .transpose()
        };
        Ok(Self {
            scheduler: process.scheduler.as_ref().map(scheduler).transpose()?,
            io_priority: process.io_priority.as_ref().map(io_priority).transpose()?,
            initial: mask("initial", affinity.and_then(|a| a.initial.as_ref()))?,
            last: mask("final", affinity.and_then(|a| a.last.as_ref()))?,
        })
    }

    /// Applies scheduler and I/O priority to this process.
    ///
    /// # Errors
    ///
    /// Names the field that the kernel refuses.
    pub(crate) fn apply(&self) -> Result<(), Error> {
        if let Some(scheduler) = &self.scheduler {
            sys::sched_setattr(scheduler).context(|| "config.json: process.scheduler: sched_setattr")?;
        }
        if let Some(priority) = self.io_priority {
            sys::ioprio_set(priority).context(|| "config.json: process.ioPriority")?;
        }
        Ok(())
    }
}

/// Runs on these processors only.
///
/// # Errors
///
/// Names the field.
pub(crate) fn set_affinity(field: &str, mask: Option<&[u64]>) -> Result<(), Error> {
    match mask {
        Some(mask) => {
            sys::sched_setaffinity(mask).context(|| format!("config.json: process.execCPUAffinity.{field}"))
        }
        None => Ok(()),
    }
}

/// What all processes of a container have: execution domain and memory policy.
#[derive(Debug, Clone, Default)]
pub(crate) struct Domain {
    personality: Option<u32>,
    /// Mode with flags, and nodes as a mask.
    memory: Option<(i32, Vec<u64>)>,
}

impl Domain {
    /// Checks what a bundle asks for.
    ///
    /// # Errors
    ///
    /// Names the field.
    pub(crate) fn new(
        personality: Option<&Personality>,
        memory: Option<&MemoryPolicy>,
    ) -> Result<Self, Error> {
        Ok(Self {
            personality: personality.map(domain).transpose()?,
            memory: memory.map(memory_policy).transpose()?,
        })
    }

    /// Applies it to this process, whose programs inherit it.
    ///
    /// # Errors
    ///
    /// Names the field that the kernel refuses.
    pub(crate) fn apply(&self) -> Result<(), Error> {
        if let Some(persona) = self.personality {
            sys::personality(persona).context(|| "config.json: linux.personality")?;
        }
        if let Some((mode, nodes)) = &self.memory {
            sys::set_mempolicy(*mode, nodes).context(|| "config.json: linux.memoryPolicy: set_mempolicy")?;
        }
        Ok(())
    }
}

fn domain(personality: &Personality) -> Result<u32, Error> {
    if !personality.flags.is_empty() {
        return Err(Error::config(
            "linux.personality.flags",
            "the specification names none",
        ));
    }
    match personality.domain.as_str() {
        "LINUX" => Ok(0),
        "LINUX32" => Ok(8),
        other => Err(Error::config(
            "linux.personality.domain",
            format!("{other:?}: expected LINUX or LINUX32"),
        )),
    }
}

/// The value of a word, or an error with the field.
fn word<T: Copy>(field: &str, word: &str, known: &[(&str, T)]) -> Result<T, Error> {
    let found = known.iter().find(|(name, _)| *name == word);
    found
        .map(|(_, value)| *value)
        .ok_or_else(|| Error::config(field, format!("{word:?}: unknown")))
}

/// Modes of `linux.memoryPolicy`.
pub(crate) const MEMORY_MODES: &[(&str, i32)] = &[
    ("MPOL_DEFAULT", 0),
    ("MPOL_PREFERRED", 1),
    ("MPOL_BIND", 2),
    ("MPOL_INTERLEAVE", 3),
    ("MPOL_LOCAL", 4),
    ("MPOL_PREFERRED_MANY", 5),
    ("MPOL_WEIGHTED_INTERLEAVE", 6),
];

/// Flags of `linux.memoryPolicy`.
pub(crate) const MEMORY_FLAGS: &[(&str, i32)] = &[
    ("MPOL_F_NUMA_BALANCING", 1 << 13),
    ("MPOL_F_RELATIVE_NODES", 1 << 14),
    ("MPOL_F_STATIC_NODES", 1 << 15),
];

fn memory_policy(policy: &MemoryPolicy) -> Result<(i32, Vec<u64>), Error> {
    let mut mode = word("linux.memoryPolicy.mode", &policy.mode, MEMORY_MODES)?;
    for flag in &policy.flags {
        mode |= word("linux.memoryPolicy.flags", flag, MEMORY_FLAGS)?;
    }
    let nodes = match policy.nodes.as_str() {
        "" => Vec::new(),
        list => parse_list(list).map_err(|reason| Error::config("linux.memoryPolicy.nodes", reason))?,
    };
    Ok((mode, nodes))
}

fn io_priority(asked: &IoPriority) -> Result<i32, Error> {
    let classes = [
        ("IOPRIO_CLASS_RT", 1),
        ("IOPRIO_CLASS_BE", 2),
        ("IOPRIO_CLASS_IDLE", 3),
    ];
    let class = word("process.ioPriority.class", &asked.class, &classes)?;
    if !(0..8).contains(&asked.priority) {
        return Err(Error::config(
            "process.ioPriority.priority",
            format!("{}: expected 0 to 7", asked.priority),
        ));
    }
    Ok(class << 13 | asked.priority)
}

const POLICIES: &[(&str, u32)] = &[
    ("SCHED_OTHER", 0),
    ("SCHED_FIFO", 1),
    ("SCHED_RR", 2),
    ("SCHED_BATCH", 3),
    ("SCHED_ISO", 4),
    ("SCHED_IDLE", 5),
    ("SCHED_DEADLINE", 6),
];

const SCHEDULER_FLAGS: &[(&str, u64)] = &[
    ("SCHED_FLAG_RESET_ON_FORK", 0x01),
    ("SCHED_FLAG_RECLAIM", 0x02),
    ("SCHED_FLAG_DL_OVERRUN", 0x04),
    ("SCHED_FLAG_KEEP_POLICY", 0x08),
    ("SCHED_FLAG_KEEP_PARAMS", 0x10),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
];

fn scheduler(asked: &Scheduler) -> Result<sys::SchedulerAttributes, Error> {
    let policy = word("process.scheduler.policy", &asked.policy, POLICIES)?;
    let mut flags = 0;
    for flag in &asked.flags {
        flags |= word("process.scheduler.flags", flag, SCHEDULER_FLAGS)?;
    }
    if asked.policy == "SCHED_DEADLINE" {
        check_deadline(asked).map_err(|reason| {
            Error::config(
                "process.scheduler",
                format!("sched_setattr: `SCHED_DEADLINE` {reason}"),
            )
        })?;
    }
    Ok(sys::SchedulerAttributes {
        policy,
        flags,
        nice: asked.nice.unwrap_or(0),
        priority: u32::try_from(asked.priority.unwrap_or(0))
            .map_err(|_| Error::config("process.scheduler.priority", "expected 0 or more"))?,
        runtime: asked.runtime.unwrap_or(0),
        deadline: asked.deadline.unwrap_or(0),
        period: asked.period.unwrap_or(0),
        size: 0,
    })
}

/// What the kernel wants of a deadline, which it would refuse without saying why.
fn check_deadline(asked: &Scheduler) -> Result<(), String> {
    let runtime = asked.runtime.ok_or("requires `runtime`")?;
    let deadline = asked.deadline.ok_or("requires `deadline`")?;
    // A period of 0 is as long as the deadline.
    let period = asked.period.filter(|period| *period != 0);
    for (name, value) in [("runtime", runtime), ("deadline", deadline)] {
        if value == 0 {
            return Err(format!("{name} must be greater than 0"));
        }
    }
    if runtime > deadline {
        return Err(format!("runtime ({runtime}) must be <= deadline ({deadline})"));
    }
    if let Some(period) = period.filter(|period| deadline > *period) {
        return Err(format!("deadline ({deadline}) must be <= period ({period})"));
    }
    for (name, value) in [
        ("runtime", runtime),
        ("deadline", deadline),
        ("period", period.unwrap_or(deadline)),
    ] {
        if !DEADLINE.contains(&value) {
            return Err(format!(
                "{name} ({value}) must be between {} and {}",
                DEADLINE.start, DEADLINE.end
            ));
        }
    }
    Ok(())
}

/// A list as the kernel writes it (`0-2,4`) as a mask of 64-bit words.
fn parse_list(list: &str) -> Result<Vec<u64>, String> {
    let malformed = || format!("{list:?}: expected a list like 0-2,4, numbers below {MAX_BIT}");
    if list.len() > MAX_LIST {
        return Err(malformed());
    }
    let number = |text: &str| {
        let number = text.trim().parse::<usize>().ok();
        number.filter(|number| *number < MAX_BIT).ok_or_else(malformed)
    };
    let mut mask = Vec::new();
    for part in list.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if first > last {
            return Err(malformed());
        }
        if mask.len() <= last / 64 {
            mask.resize(last / 64 + 1, 0u64);
        }
        for bit in first..=last {
            if let Some(word) = mask.get_mut(bit / 64) {
                *word |= 1 << (bit % 64);
            }
        }
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_become_masks() {
        for (list, expected) in [
            ("0", Some(vec![1])),
            ("0-2,4", Some(vec![0b10111])),
            ("64", Some(vec![0, 1])),
            ("1, 3", Some(vec![0b1010])),
            ("", None),
            ("2-1", None),
            ("8192", None),
            ("a", None),
            ("-1", None),
        ] {
            assert_eq!(parse_list(list).ok(), expected, "{list}");
        }
    }

    #[test]
    fn deadlines_are_explained() {
        let scheduler = |runtime, deadline, period| Scheduler {
            policy: "SCHED_DEADLINE".into(),
            runtime,
            deadline,
            period,
            ..Scheduler::default()
        };
        for (asked, expected) in [
            (scheduler(None, Some(1), None), "requires `runtime`"),
            (scheduler(Some(1), None, None), "requires `deadline`"),
            (
                scheduler(Some(0), Some(1), None),
                "runtime must be greater than 0",
            ),
            (
                scheduler(Some(3), Some(2), None),
                "runtime (3) must be <= deadline (2)",
            ),
            (
                scheduler(Some(1), Some(3), Some(2)),
                "deadline (3) must be <= period (2)",
            ),
            (scheduler(Some(1), Some(2000), None), "must be between 1024 and"),
            (
                scheduler(Some(1 << 63), Some(1 << 63), None),
                "must be between 1024 and",
            ),
        ] {
            let error = super::scheduler(&asked).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(super::scheduler(&scheduler(Some(2000), Some(3000), Some(0))).is_ok());
    }

    #[test]
    fn words_that_are_unknown_are_named() {
        let policy = |mode: &str, flag: &str, nodes: &str| MemoryPolicy {
            mode: mode.into(),
            flags: vec![flag.into()],
            nodes: nodes.into(),
        };
        let good = memory_policy(&policy("MPOL_BIND", "MPOL_F_STATIC_NODES", "0")).unwrap();
        assert_eq!(good, (2 | 1 << 15, vec![1]));
        for bad in [
            policy("", "MPOL_F_STATIC_NODES", ""),
            policy("MPOL_BIND", "x", ""),
            policy("MPOL_BIND", "MPOL_F_STATIC_NODES", "x"),
        ] {
            assert!(memory_policy(&bad).is_err(), "{bad:?}");
        }
        let io = |class: &str, priority| IoPriority {
            class: class.into(),
            priority,
        };
        assert_eq!(io_priority(&io("IOPRIO_CLASS_BE", 4)).unwrap(), 2 << 13 | 4);
        assert!(io_priority(&io("IOPRIO_CLASS_BE", 8)).is_err());
        assert!(io_priority(&io("x", 1)).is_err());
    }
}
