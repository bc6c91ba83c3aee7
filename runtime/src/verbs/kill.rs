//! `kill`: a signal for a container.

use super::Kill;
use crate::error::Error;
use crate::launch::{self, Message};
use crate::state::{self, Root, Status};

/// Carries out `kill`.
///
/// # Errors
///
/// If the signal has no meaning or the container has no process.
pub fn run(root: &Root, options: &Kill) -> Result<(), Error> {
    let signal = parse_signal(options.signal.as_deref().unwrap_or("TERM"))?;
    let directory = root.find(&options.id)?;
    let record = directory.record()?;
    match (directory.status(record.as_ref()), record) {
        (Status::Created | Status::Running | Status::Paused, Some(record)) => {
            if !options.all {
                return record.init.signal(signal);
            }
            if signal == libc::SIGKILL
                && let Some(cgroup) = &record.cgroup
                && cgroup.kill()?
            {
                return Ok(());
            }
            match state::ask(&directory.connect()?, Message::SignalAll, &[signal])? {
                Some(packet) if packet.kind == Message::Error as u8 => Err(launch::reported(&packet)),
                _ => Ok(()),
            }
        }
        (status, _) => Err(Error::Status {
            id: directory.id.clone(),
            verb: "kill",
            status: status.as_str(),
        }),
    }
}

/// Signals by their numbers from 1 on: the same on x86_64, aarch64 and arm.
const NAMES: &[&str] = &[
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// A signal by name, with or without `SIG`, or by number.
fn parse_signal(text: &str) -> Result<i32, Error> {
    let unknown = || Error::Usage(format!("signal {text:?}: unknown"));
    if let Ok(number) = text.parse() {
        return if (1..=64).contains(&number) {
            Ok(number)
        } else {
            Err(unknown())
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(index) = NAMES.iter().position(|known| *known == name) {
        return Ok(index as i32 + 1);
    }
    let (base, sign) = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(offset), _) => (34, offset),
        (None, Some(offset)) => (64, offset),
        (None, None) => return Err(unknown()),
    };
    let offset: i32 = if sign.is_empty() {
        0
    } else {
        sign.parse().map_err(|_| unknown())?
    };
    let number = base + offset;
    if (34..=64).contains(&number) {
        Ok(number)
    } else {
        Err(unknown())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        for (text, number) in [
            ("TERM", 15),
            ("sigkill", 9),
            ("SIGSYS", 31),
            ("2", 2),
            ("RTMIN+3", 37),
            ("SIGRTMAX-1", 63),
            ("64", 64),
        ] {
            assert_eq!(parse_signal(text).unwrap(), number, "{text}");
        }
        for bad in [
            "",
            "0",
            "65",
            "-9",
            "SIG",
            "TERMINATE",
            "RTMIN-1",
            "RTMAX+1",
            "RTMINx",
        ] {
            assert!(parse_signal(bad).is_err(), "{bad}");
        }
    }
}
