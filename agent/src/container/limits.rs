//! What a container may use: read as docker reads its flags, refused in docker's words.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::spec::Invalid;

/// Docker's least memory: below it hardly a process can be made.
const MEMORY_MIN: u64 = 6 << 20;
/// Microseconds of the period in which processor time is given out: the kernel's own default.
const PERIOD: u64 = 100_000;
/// The least quota of a period that the kernel takes, in microseconds.
const QUOTA_MIN: u64 = 1000;
/// Names of rlimits as `--ulimit` takes them.
const ULIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// Limits of a container. What is absent is not limited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Bytes of memory and swap together; -1 is any swap there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_swap: Option<i64>,
    /// Bytes kept for it when memory is short.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_reservation: Option<u64>,
    /// Microseconds of processor time in each 100 ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_quota: Option<u64>,
    /// Relative share of processor time, 1024 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<u64>,
    /// Processors, as in `0-2,4`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpuset: Option<String>,
    /// Processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// Who is ended first when memory is short, -1000 to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// Whether all processes end when one has to for want of memory.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub oom_group: bool,
    /// Limits of each process.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ulimits: Vec<Ulimit>,
}

/// A limit of each process, as `setrlimit` knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ulimit {
    /// As in `ulimit`: `nofile`.
    pub name: String,
    /// In force; -1 is unlimited.
    pub soft: i64,
    /// How far a process may raise it; -1 is unlimited.
    pub hard: i64,
}

/// The flags of `run` that limit, as typed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flags<'a> {
    /// `--memory`.
    pub memory: Option<&'a str>,
    /// `--memory-swap`.
    pub memory_swap: Option<&'a str>,
    /// `--memory-reservation`.
    pub memory_reservation: Option<&'a str>,
    /// `--cpus`.
    pub cpus: Option<&'a str>,
    /// `--cpu-shares`.
    pub cpu_shares: Option<i64>,
    /// `--cpuset-cpus`.
    pub cpuset_cpus: Option<&'a str>,
    /// `--pids-limit`.
    pub pids_limit: Option<i64>,
    /// `--oom-score-adj`.
    pub oom_score_adj: Option<i32>,
    /// `--ulimit`, each.
    pub ulimit: &'a [String],
}

impl Limits {
    /// Reads docker's flags, on a board with this many processors.
    ///
    /// # Errors
    ///
    /// In docker's words, after the flag's name.
    pub fn parse(flags: &Flags<'_>, processors: u64) -> Result<Self, Invalid> {
        let invalid = |flag: &str, why: &str| Invalid::new(format!("run --{flag}: {why}"));
        let size = |flag: &str, text: Option<&str>| {
            text.map(|text| {
                super::spec::parse_size(text).ok_or_else(|| invalid(flag, &format!("invalid size: '{text}'")))
            })
            .transpose()
            // As in docker 0 is no limit.
            .map(|size| size.filter(|size| *size != 0))
        };
        let memory = size("memory", flags.memory)?;
        let memory_reservation = size("memory-reservation", flags.memory_reservation)?;
        let memory_swap = match flags.memory_swap {
            Some("-1") => Some(-1),
            text => size("memory-swap", text)?.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
        };
        if memory.is_some_and(|bytes| bytes < MEMORY_MIN) {
            return Err(invalid("memory", "Minimum memory limit allowed is 6MB"));
        }
        match (memory, memory_swap) {
            (None, Some(1..)) => {
                return Err(invalid(
                    "memory-swap",
                    "You should always set the Memory limit when using Memoryswap limit, see usage",
                ));
            }
            (Some(memory), Some(swap @ 1..)) if swap.unsigned_abs() < memory => {
                return Err(invalid(
                    "memory-swap",
                    "Minimum memoryswap limit should be larger than memory limit, see usage",
                ));
            }
            _ => {}
        }
        if memory_reservation.is_some_and(|bytes| bytes < MEMORY_MIN) {
            return Err(invalid(
                "memory-reservation",
                "Minimum memory reservation allowed is 6MB",
            ));
        }
        if let (Some(memory), Some(reservation)) = (memory, memory_reservation)
            && memory < reservation
        {
            return Err(invalid(
                "memory-reservation",
                "Minimum memory limit can not be less than memory reservation limit, see usage",
            ));
        }
        // Docker's: twice the memory where nothing else is said.
        let doubled = || memory.and_then(|memory| i64::try_from(memory.saturating_mul(2)).ok());
        let cpu_shares = match flags.cpu_shares {
            Some(shares) if shares < 0 => {
                let why = format!("invalid CPU shares ({shares}): value must be a positive integer");
                return Err(invalid("cpu-shares", &why));
            }
            shares => shares.map(i64::unsigned_abs).filter(|shares| *shares != 0),
        };
        if let Some(set) = flags.cpuset_cpus {
            check_cpuset(set, processors).map_err(|why| invalid("cpuset-cpus", &why))?;
        }
        if let Some(score) = flags.oom_score_adj
            && !(-1000..=1000).contains(&score)
        {
            let why = format!("Invalid value {score}, range for oom score adj is [-1000, 1000]");
            return Err(invalid("oom-score-adj", &why));
        }
        Ok(Self {
            memory,
            memory_swap: memory_swap.or_else(doubled),
            memory_reservation,
            cpu_quota: flags
                .cpus
                .map(|text| parse_cpus(text, processors).map_err(|why| invalid("cpus", &why)))
                .transpose()?
                .flatten(),
            cpu_shares,
            cpuset: flags.cpuset_cpus.filter(|set| !set.is_empty()).map(str::to_owned),
            // As in docker 0 and -1 are no limit.
            pids: flags
                .pids_limit
                .and_then(|pids| u64::try_from(pids).ok())
                .filter(|pids| *pids != 0),
            oom_score_adj: flags.oom_score_adj,
            oom_group: false,
            ulimits: flags
                .ulimit
                .iter()
                .map(|text| Ulimit::parse(text).map_err(|why| invalid("ulimit", &why)))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// `linux.resources` of the bundle; `None` if no cgroup is needed for it.
    pub(crate) fn resources(&self) -> Option<Value> {
        let mut parts = Map::new();
        let mut set = |part: &str, field: &str, value: Option<Value>| {
            if let Some(value) = value {
                let part = parts.entry(part).or_insert_with(|| json!({}));
                part[field] = value;
            }
        };
        set("memory", "limit", self.memory.map(Value::from));
        set("memory", "swap", self.memory_swap.map(Value::from));
        set("memory", "reservation", self.memory_reservation.map(Value::from));
        set("cpu", "quota", self.cpu_quota.map(Value::from));
        set("cpu", "period", self.cpu_quota.map(|_| PERIOD.into()));
        set("cpu", "shares", self.cpu_shares.map(Value::from));
        set("cpu", "cpus", self.cpuset.clone().map(Value::from));
        set("pids", "limit", self.pids.map(Value::from));
        set("unified", "memory.oom.group", self.oom_group.then(|| "1".into()));
        (!parts.is_empty()).then_some(Value::Object(parts))
    }

    /// `process.rlimits` of the bundle.
    pub(crate) fn rlimits(&self) -> Vec<Value> {
        // The bundle's -1: the largest number.
        let bound = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
        let one = |limit: &Ulimit| {
            let kind = format!("RLIMIT_{}", limit.name.to_ascii_uppercase());
            json!({"type": kind, "soft": bound(limit.soft), "hard": bound(limit.hard)})
        };
        self.ulimits.iter().map(one).collect()
    }

    /// Thousandths of a processor as the quota of a period.
    pub(crate) fn quota(millis: u64) -> u64 {
        (millis.saturating_mul(PERIOD) / 1000).max(QUOTA_MIN)
    }
}

impl Ulimit {
    /// Reads `NAME=SOFT[:HARD]`. The last one of a name counts.
    fn parse(text: &str) -> Result<Self, String> {
        let (name, values) = text
            .split_once('=')
            .ok_or_else(|| format!("invalid ulimit argument: {text}"))?;
        if !ULIMITS.contains(&name) {
            return Err(format!("invalid ulimit type: {name}"));
        }
        let values: Vec<&str> = values.split(':').collect();
        let number = |value: &str| {
            let number: Option<i64> = value.parse().ok().filter(|number| *number >= -1);
            number.ok_or_else(|| format!("invalid ulimit value: {value:?}"))
        };
        let (soft, hard) = match values[..] {
            [soft] => (number(soft)?, number(soft)?),
            [soft, hard] => (number(soft)?, number(hard)?),
            _ => {
                return Err(format!(
                    "too many limit values - {}, can only have up to two - `soft[:hard]`",
                    values.join(":")
                ));
            }
        };
        if hard != -1 && (soft > hard || soft == -1) {
            return Err(format!(
                "ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
            ));
        }
        Ok(Self {
            name: name.into(),
            soft,
            hard,
        })
    }
}

/// `1.5` processors as microseconds of the period; 0 is no limit.
fn parse_cpus(text: &str, processors: u64) -> Result<Option<u64>, String> {
    let bad = || format!("failed to parse {text:?} as a number of CPUs");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || (whole.is_empty() && fraction.is_empty()) || fraction.len() > 9
    {
        return Err(bad());
    }
    let whole: u64 = if whole.is_empty() {
        0
    } else {
        whole.parse().map_err(|_| bad())?
    };
    let fraction: u64 = format!("{fraction:0<9}").parse().map_err(|_| bad())?;
    let nanos = whole
        .checked_mul(1_000_000_000)
        .and_then(|nanos| nanos.checked_add(fraction))
        .ok_or_else(bad)?;
    match nanos {
        0 => Ok(None),
        // A hundredth of a processor is the least, the board's processors are the most.
        10_000_000.. if nanos <= processors.saturating_mul(1_000_000_000) => {
            Ok(Some(nanos / (1_000_000_000 / PERIOD)))
        }
        _ => Err(format!(
            "range of CPUs is from 0.01 to {processors}.00, as there are only {processors} CPUs available"
        )),
    }
}

/// A list of processors that the board has.
fn check_cpuset(set: &str, processors: u64) -> Result<(), String> {
    for part in set.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| {
            text.parse::<u64>()
                .map_err(|_| format!("Invalid value {set} for cpuset cpus"))
        };
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("Invalid value {set} for cpuset cpus"));
        }
        if last >= processors {
            let last = processors.saturating_sub(1);
            return Err(format!(
                "Requested CPUs are not available - requested {set}, available: 0-{last}"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(flags: Flags<'_>) -> Result<Limits, String> {
        Limits::parse(&flags, 4).map_err(|error| error.to_string())
    }

    #[test]
    fn dockers_flags_become_limits_of_the_bundle() {
        let ulimit = ["nofile=1024:2048".to_owned(), "core=-1".to_owned()];
        let limits = parse(Flags {
            memory: Some("64m"),
            memory_reservation: Some("32m"),
            cpus: Some("1.5"),
            cpu_shares: Some(512),
            cpuset_cpus: Some("0-1,3"),
            pids_limit: Some(100),
            oom_score_adj: Some(500),
            ulimit: &ulimit,
            ..Flags::default()
        })
        .unwrap();
        assert_eq!(
            limits.resources().unwrap(),
            json!({
                "memory": {"limit": 67_108_864, "swap": 134_217_728, "reservation": 33_554_432},
                "cpu": {"quota": 150_000, "period": 100_000, "shares": 512, "cpus": "0-1,3"},
                "pids": {"limit": 100},
            })
        );
        assert_eq!(
            limits.rlimits(),
            [
                json!({"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 2048}),
                json!({"type": "RLIMIT_CORE", "soft": u64::MAX, "hard": u64::MAX}),
            ]
        );
        assert_eq!(limits.oom_score_adj, Some(500));

        let nothing = parse(Flags {
            memory: Some("0"),
            memory_swap: Some("0"),
            cpus: Some("0"),
            cpu_shares: Some(0),
            pids_limit: Some(-1),
            cpuset_cpus: Some(""),
            ..Flags::default()
        });
        assert!(nothing.unwrap().is_empty());
        for (swap, expected) in [("-1", -1), ("64m", 64 << 20), ("1g", 1 << 30)] {
            let flags = Flags {
                memory: Some("64m"),
                memory_swap: Some(swap),
                ..Flags::default()
            };
            assert_eq!(parse(flags).unwrap().memory_swap, Some(expected), "{swap}");
        }
    }

    #[test]
    fn what_docker_refuses_is_refused_in_its_words() {
        let none = Flags::default();
        let with = |memory, swap, reservation| Flags {
            memory,
            memory_swap: swap,
            memory_reservation: reservation,
            ..none
        };
        let cpus = |text| Flags {
            cpus: Some(text),
            ..none
        };
        let set = |text| Flags {
            cpuset_cpus: Some(text),
            ..none
        };
        let ulimits: Vec<[String; 1]> = [
            "nofile",
            "files=3",
            "nofile=1:2:3",
            "nofile=9:3",
            "nofile=-1:3",
            "core=x",
        ]
        .map(|text| [text.to_owned()])
        .into();
        let ulimit = |index: usize| Flags {
            ulimit: &ulimits[index],
            ..none
        };
        for (flags, words) in [
            (
                with(Some("1k"), None, None),
                "run --memory: Minimum memory limit allowed is 6MB",
            ),
            (with(Some("x"), None, None), "run --memory: invalid size: 'x'"),
            (
                with(None, Some("64m"), None),
                "You should always set the Memory limit",
            ),
            (
                with(Some("64m"), Some("32m"), None),
                "Minimum memoryswap limit should be larger than memory limit",
            ),
            (with(Some("64m"), Some("-2"), None), "invalid size: '-2'"),
            (
                with(Some("64m"), None, Some("65m")),
                "Minimum memory limit can not be less than memory reservation limit",
            ),
            (
                with(None, None, Some("1m")),
                "Minimum memory reservation allowed is 6MB",
            ),
            (
                cpus("4.01"),
                "range of CPUs is from 0.01 to 4.00, as there are only 4 CPUs available",
            ),
            (cpus("0.001"), "range of CPUs is from 0.01 to 4.00"),
            (cpus("-1"), "failed to parse \"-1\""),
            (cpus("."), "failed to parse"),
            (cpus("1e3"), "failed to parse"),
            (
                Flags {
                    cpu_shares: Some(-1),
                    ..none
                },
                "invalid CPU shares (-1): value must be a positive integer",
            ),
            (set("a"), "Invalid value a for cpuset cpus"),
            (set("3-1"), "Invalid value 3-1 for cpuset cpus"),
            (
                set("0-4"),
                "Requested CPUs are not available - requested 0-4, available: 0-3",
            ),
            (
                Flags {
                    oom_score_adj: Some(1001),
                    ..none
                },
                "Invalid value 1001, range for oom score adj is [-1000, 1000]",
            ),
            (ulimit(0), "invalid ulimit argument: nofile"),
            (ulimit(1), "invalid ulimit type: files"),
            (ulimit(2), "too many limit values - 1:2:3"),
            (ulimit(3), "must be less than or equal to hard limit: 9 > 3"),
            (ulimit(4), "must be less than or equal to hard limit: -1 > 3"),
            (ulimit(5), "invalid ulimit value: \"x\""),
        ] {
            let error = parse(flags).unwrap_err();
            assert!(error.contains(words), "{flags:?}: {error}");
        }
    }

    #[test]
    fn a_record_without_limits_stays_as_it_was() {
        assert_eq!(serde_json::to_string(&Limits::default()).unwrap(), "{}");
        assert_eq!(serde_json::from_str::<Limits>("{}").unwrap(), Limits::default());
        assert!(serde_json::from_str::<Limits>(r#"{"memory":1,"more":2}"#).is_err());
        assert_eq!(Limits::quota(500), 50_000);
        assert_eq!(Limits::quota(1), 1000);
    }
}
