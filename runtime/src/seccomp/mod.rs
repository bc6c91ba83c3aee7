//! System call filters: a profile of names becomes a BPF program, without a C library.
//!
//! ```text
//! load architecture -> one section for each architecture this machine can run
//! load number       -> binary search over ranges of numbers with one decision each
//! decision          -> an action, or checks of arguments and then an action
//! ```
//! A number newer than the table gets ENOSYS where the profile says EPERM, so that C libraries fall back to the call
//! that they know. Other architectures, and x32 on x86_64, are refused.

mod bpf;
mod profile;
mod table;

use caps::CapsHashSet;

use std::os::fd::OwnedFd;

use crate::config::{Seccomp, SeccompArg, SeccompRule};
use crate::error::Error;
use crate::sys::{self, Instruction};
use bpf::{Check, Decision, Operator};
use table::{Architecture, Table};

/// What the kernel does with a call, as the value a filter returns.
pub(crate) mod action {
    pub(crate) const KILL_PROCESS: u32 = 0x8000_0000;
    pub(crate) const KILL_THREAD: u32 = 0;
    pub(crate) const TRAP: u32 = 0x0003_0000;
    pub(crate) const ERRNO: u32 = 0x0005_0000;
    pub(crate) const TRACE: u32 = 0x7ff0_0000;
    pub(crate) const NOTIFY: u32 = 0x7fc0_0000;
    pub(crate) const LOG: u32 = 0x7ffc_0000;
    pub(crate) const ALLOW: u32 = 0x7fff_0000;
}

/// Actions that a profile may name.
pub(crate) const ACTIONS: &[&str] = &[
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];

/// Operators that a condition may name.
pub(crate) const OPERATORS: &[&str] = &[
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];

/// Flags that a profile may name.
pub(crate) const FLAGS: &[&str] = &[
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_TSYNC",
];

/// Architectures whose programs can run under this build's filters.
pub(crate) fn architectures() -> Vec<&'static str> {
    Architecture::NATIVE.iter().map(|a| a.seccomp_name()).collect()
}

/// Most rules of one profile.
const MAX_RULES: usize = 8192;

/// A filter, ready to be installed.
#[derive(Clone)]
pub(crate) struct Filter {
    program: Vec<Instruction>,
    flags: u32,
}

/// One rule about one system call.
#[derive(Debug, Clone)]
struct Rule {
    checks: Vec<Check>,
    action: u32,
}

impl Filter {
    /// The filter for bundles that bring none: docker's default for these capabilities.
    pub(crate) fn built_in(bounding: &CapsHashSet) -> Self {
        let table = Table::read();
        let program = compile(
            &table,
            action::ERRNO | libc::EPERM as u32,
            |architecture, rules| {
                profile::rules(bounding, architecture, |name, checks, action| {
                    if let Some(number) = table.number(name, architecture) {
                        rules.push((number, Rule { checks, action }));
                    }
                });
            },
        );
        Self { program, flags: 0 }
    }

    /// Compiles `linux.seccomp`.
    ///
    /// # Errors
    ///
    /// Names the field. A name that this runtime does not know is refused where leaving it out would allow more.
    pub(crate) fn compile(profile: &Seccomp, warnings: &mut Vec<String>) -> Result<Self, Error> {
        let table = Table::read();
        let default = parse_action(
            "linux.seccomp.defaultAction",
            &profile.default_action,
            profile.default_errno_ret,
        )?;
        if profile.syscalls.len() > MAX_RULES {
            return Err(Error::config(
                "linux.seccomp.syscalls",
                format!("more than {MAX_RULES} rules"),
            ));
        }
        for name in &profile.architectures {
            if !Architecture::NATIVE
                .iter()
                .any(|architecture| architecture.seccomp_name() == name)
            {
                warnings.push(format!(
                    "linux.seccomp.architectures: {name}: its programs are refused by the filter"
                ));
            }
        }
        check_listener(profile, default)?;
        let mut parsed = Vec::with_capacity(profile.syscalls.len());
        for (index, rule) in profile.syscalls.iter().enumerate() {
            let field = format!("linux.seccomp.syscalls[{index}]");
            let action = parse_action(&field, &rule.action, rule.errno_ret)?;
            let checks = parse_checks(&field, rule)?;
            for name in &rule.names {
                let known = Architecture::ALL.iter().any(|a| table.number(name, *a).is_some());
                if !known && permits(default) && !permits(action) {
                    return Err(Error::config(
                        format!("{field}.names"),
                        format!("{name:?}: unknown, so it cannot be denied"),
                    ));
                }
            }
            // A rule that repeats the default says nothing.
            if action != default {
                parsed.push((rule, Rule { checks, action }));
            }
        }
        let program = compile(&table, default, |architecture, rules| {
            for (rule, parsed) in &parsed {
                for name in &rule.names {
                    if let Some(number) = table.number(name, architecture) {
                        rules.push((number, parsed.clone()));
                    }
                }
            }
        });
        if program.len() > bpf::MAX_LENGTH {
            return Err(Error::config(
                "linux.seccomp",
                format!(
                    "{} instructions, the kernel takes {}",
                    program.len(),
                    bpf::MAX_LENGTH
                ),
            ));
        }
        let mut flags = parse_flags(&profile.flags)?;
        if profile
            .listener_path
            .as_ref()
            .is_some_and(|path| !path.is_empty())
        {
            flags |= libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32;
        }
        Ok(Self { program, flags })
    }

    /// Installs the filter on this process. The result is what a profile with a listener gives it to answer calls by.
    pub(crate) fn install(&self) -> std::io::Result<Option<OwnedFd>> {
        sys::seccomp(&self.program, self.flags)
    }
}

/// Builds the program; `rules` gives the rules of one architecture, in the profile's order.
fn compile(
    table: &Table,
    default: u32,
    rules: impl Fn(Architecture, &mut Vec<(u32, Rule)>),
) -> Vec<Instruction> {
    let mut sections = Vec::new();
    for architecture in Architecture::NATIVE {
        let mut list = Vec::with_capacity(512);
        rules(*architecture, &mut list);
        // Those of one call in the profile's order.
        list.sort_by_key(|(number, _)| *number);
        let mut decisions: Vec<(u32, Decision)> = Vec::with_capacity(list.len());
        for chunk in list.chunk_by(|a, b| a.0 == b.0) {
            let Some((number, _)) = chunk.first() else {
                continue;
            };
            // An unconditional rule stands for whatever the conditional ones leave, wherever it is written.
            let rest = chunk
                .iter()
                .find(|(_, rule)| rule.checks.is_empty())
                .map_or(default, |(_, rule)| rule.action);
            let checked: Vec<_> = chunk
                .iter()
                .filter(|(_, rule)| !rule.checks.is_empty())
                .map(|(_, rule)| (rule.checks.clone(), rule.action))
                .collect();
            decisions.push((*number, Decision { checked, rest }));
        }
        let unknown = if default == action::ERRNO | libc::EPERM as u32 {
            action::ERRNO | libc::ENOSYS as u32
        } else {
            default
        };
        let ranges = bpf::ranges(decisions, default, table.newest(*architecture), unknown);
        sections.push((*architecture, bpf::section(*architecture, &ranges)));
    }
    bpf::program(&sections)
}

/// Calls by which a process hands its listener over: nobody could answer them before.
const HAND_OVER: &[&str] = &["sendmsg", "socketcall"];

/// A profile that notifies needs somebody to notify.
fn check_listener(profile: &Seccomp, default: u32) -> Result<(), Error> {
    let notifies = |rule: &&SeccompRule| rule.action == "SCMP_ACT_NOTIFY";
    let used = default == action::NOTIFY || profile.syscalls.iter().any(|rule| notifies(&rule));
    if used && profile.listener_path.as_ref().is_none_or(String::is_empty) {
        return Err(Error::config(
            "linux.seccomp.listenerPath",
            "SCMP_ACT_NOTIFY needs a socket to send the listener to",
        ));
    }
    let needed = |rule: &&SeccompRule| rule.names.iter().any(|name| HAND_OVER.contains(&name.as_str()));
    let allowed = profile.syscalls.iter().filter(needed);
    if default == action::NOTIFY
        && !allowed
            .clone()
            .any(|rule| rule.action == "SCMP_ACT_ALLOW" && rule.args.is_empty())
        || allowed.clone().any(|rule| notifies(&rule))
    {
        return Err(Error::config(
            "linux.seccomp",
            "SCMP_ACT_NOTIFY on sendmsg: the listener itself is sent by it, so it must be allowed",
        ));
    }
    Ok(())
}

fn permits(action: u32) -> bool {
    matches!(action, action::ALLOW | action::LOG) || action & 0xffff_0000 == action::TRACE
}

fn parse_action(field: &str, name: &str, errno: Option<u32>) -> Result<u32, Error> {
    let data = |default: i32| errno.unwrap_or(default as u32) & 0xffff;
    Ok(match name {
        "SCMP_ACT_ALLOW" => action::ALLOW,
        "SCMP_ACT_ERRNO" => action::ERRNO | data(libc::EPERM),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => action::KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => action::KILL_PROCESS,
        "SCMP_ACT_TRAP" => action::TRAP,
        "SCMP_ACT_TRACE" => action::TRACE | data(libc::EPERM),
        "SCMP_ACT_LOG" => action::LOG,
        "SCMP_ACT_NOTIFY" => action::NOTIFY,
        other => {
            return Err(Error::config(
                field,
                format!("action {other:?}: not supported by this runtime"),
            ));
        }
    })
}

fn parse_checks(field: &str, rule: &SeccompRule) -> Result<Vec<Check>, Error> {
    rule.args.iter().map(|arg| parse_check(field, arg)).collect()
}

fn parse_check(field: &str, arg: &SeccompArg) -> Result<Check, Error> {
    if arg.index > 5 {
        return Err(Error::config(
            format!("{field}.args"),
            format!("index {}: a call has 6 arguments", arg.index),
        ));
    }
    let operator = match arg.op.as_str() {
        "SCMP_CMP_NE" => Operator::Ne,
        "SCMP_CMP_LT" => Operator::Lt,
        "SCMP_CMP_LE" => Operator::Le,
        "SCMP_CMP_EQ" => Operator::Eq,
        "SCMP_CMP_GE" => Operator::Ge,
        "SCMP_CMP_GT" => Operator::Gt,
        "SCMP_CMP_MASKED_EQ" => Operator::Masked(arg.value),
        other => {
            return Err(Error::config(
                format!("{field}.args"),
                format!("op {other:?}: unknown"),
            ));
        }
    };
    let value = if matches!(operator, Operator::Masked(_)) {
        arg.value_two
    } else {
        arg.value
    };
    Ok(Check {
        argument: arg.index,
        operator,
        value,
    })
}

fn parse_flags(flags: &[String]) -> Result<u32, Error> {
    let mut bits = 0;
    for flag in flags {
        bits |= match flag.as_str() {
            // One thread, and no other to wait for.
            "SECCOMP_FILTER_FLAG_TSYNC" => 0,
            "SECCOMP_FILTER_FLAG_LOG" => 2,
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => 4,
            other => {
                return Err(Error::config(
                    "linux.seccomp.flags",
                    format!("{other:?}: not supported"),
                ));
            }
        };
    }
    Ok(bits)
}

#[cfg(test)]
mod tests;
