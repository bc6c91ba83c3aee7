//! `wherry logs`: the CRI log files of a container, read in order and followed across rotations.
//!
//! `log` is the current file, `log.1` the one before it. A rotation renames `log`; whoever has it open reads on to its
//! end and goes on with the new one.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use argh::{ArgsInfo, FromArgs};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use super::failure::Failure;
use super::place::Place;
use crate::container::{self, Container, Containers, Status, Timestamp};

/// The longest record: a line's text is cut into parts by whoever writes it.
const RECORD_MAX: u64 = 1 << 20;
/// No more rotated files are looked for.
const FILES_MAX: u32 = 100;
/// A lost monitor sends no event: the container's state is looked at this often while following.
const LOOK_EVERY: Timespec = Timespec {
    tv_sec: 2,
    tv_nsec: 0,
};

/// print what a container wrote
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "logs",
    example = "wherry logs iris",
    example = "wherry logs -f --tail 20 iris",
    example = "wherry logs --since 10m --timestamps iris",
    note = "What was written to standard output goes to standard output, what was written to standard error there."
)]
pub struct Args {
    /// go on until the container ends
    #[argh(switch, short = 'f')]
    pub follow: bool,
    /// only the last lines, or all
    #[argh(option, short = 'n', arg_name = "lines", default = "String::from(\"all\")")]
    pub tail: String,
    /// only what is younger: 10m, 1h30m, 2026-11-20T23:50:01Z or seconds since 1970
    #[argh(option, arg_name = "when")]
    pub since: Option<String>,
    /// begin each line with its moment
    #[argh(switch, short = 't')]
    pub timestamps: bool,
    /// name or id
    #[argh(positional)]
    pub container: String,
}

pub(super) fn run(args: &Args, place: &Place) -> Result<ExitCode, Failure> {
    let tail = match args.tail.as_str() {
        "all" => None,
        text => match text.parse::<i64>() {
            Ok(lines) => usize::try_from(lines).ok(),
            Err(_) => {
                return Err(Failure::new(format!(
                    "logs --tail {text:?}: expected a number of lines or all"
                )));
            }
        },
    };
    let now = Timestamp::now();
    let since = args.since.as_deref().map(|text| {
        parse_since(text, now).ok_or_else(|| {
            Failure::new(format!(
                "logs --since {text:?}: expected 10m, a moment in RFC 3339 or seconds since 1970"
            ))
        })
    });
    let since = since.transpose()?;
    let containers = place.containers()?;
    let container = containers.find(&args.container)?;
    let logged =
        |error: io::Error| Failure::about(format!("log of container {}", container.spec.name), &error);
    let mut printer = Printer {
        timestamps: args.timestamps,
        since,
        tail: tail.map(Kept::new),
    };
    let result = follow(&containers, &container, args.follow, &mut printer);
    match result {
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        other => other.map(|()| ExitCode::SUCCESS).map_err(logged),
    }
}

/// `10m`, `1h30m`, RFC 3339, or seconds since 1970.
fn parse_since(text: &str, now: Timestamp) -> Option<Timestamp> {
    if let Some(moment) = Timestamp::parse(text) {
        return Some(moment);
    }
    if let Ok(seconds) = text.parse::<i64>() {
        return time::OffsetDateTime::from_unix_timestamp(seconds)
            .ok()
            .map(Timestamp::new);
    }
    if text.is_empty() {
        return None;
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let unit = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest.get(..unit)?.parse().ok()?;
        let seconds = match rest.get(unit..unit + 1)? {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return None,
        };
        total = total.checked_add(Duration::from_secs(number.checked_mul(seconds)?))?;
        rest = rest.get(unit + 1..)?;
    }
    now.get().checked_sub(total.try_into().ok()?).map(Timestamp::new)
}

/// One record of the log: a line, or a part of one.
#[derive(Debug, PartialEq, Eq)]
struct Record<'a> {
    moment: &'a str,
    to_stdout: bool,
    whole: bool,
    text: &'a [u8],
}

/// Takes a record apart: `2026-11-20T23:50:01.123456789Z stdout F text`.
fn parse(line: &[u8]) -> Option<Record<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let moment = std::str::from_utf8(fields.next()?).ok()?;
    let to_stdout = match fields.next()? {
        b"stdout" => true,
        b"stderr" => false,
        _ => return None,
    };
    let whole = match fields.next()?.split(|byte| *byte == b':').next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    Some(Record {
        moment,
        to_stdout,
        whole,
        text: fields.next().unwrap_or_default(),
    })
}

struct Printer {
    timestamps: bool,
    since: Option<Timestamp>,
    /// The last lines, until the end of what there is has been reached.
    tail: Option<Kept>,
}

/// The last lines seen: a line may be several records.
struct Kept {
    lines: usize,
    whole: usize,
    records: VecDeque<Vec<u8>>,
}

impl Kept {
    fn new(lines: usize) -> Self {
        Self {
            lines,
            whole: 0,
            records: VecDeque::new(),
        }
    }

    fn push(&mut self, line: &[u8]) {
        let whole = |line: &[u8]| usize::from(parse(line).is_some_and(|record| record.whole));
        self.whole += whole(line);
        self.records.push_back(line.to_vec());
        while self.whole > self.lines {
            self.whole -= self.records.pop_front().map_or(self.whole, |line| whole(&line));
        }
    }
}

impl Printer {
    fn take(&mut self, line: &[u8]) -> io::Result<()> {
        let Some(record) = parse(line) else { return Ok(()) };
        if self
            .since
            .is_some_and(|since| Timestamp::parse(record.moment).is_some_and(|moment| moment < since))
        {
            return Ok(());
        }
        if let Some(kept) = &mut self.tail {
            kept.push(line);
            return Ok(());
        }
        self.show(&record)
    }

    /// From here on everything is shown.
    fn end_of_tail(&mut self) -> io::Result<()> {
        for line in self.tail.take().map(|kept| kept.records).unwrap_or_default() {
            if let Some(record) = parse(&line) {
                self.show(&record)?;
            }
        }
        Ok(())
    }

    fn show(&self, record: &Record<'_>) -> io::Result<()> {
        let mut text = Vec::with_capacity(record.text.len() + 40);
        if self.timestamps {
            text.extend_from_slice(record.moment.as_bytes());
            text.push(b' ');
        }
        text.extend_from_slice(record.text);
        if record.whole {
            text.push(b'\n');
        }
        if record.to_stdout {
            let mut out = io::stdout().lock();
            out.write_all(&text).and_then(|()| out.flush())
        } else {
            io::stderr().lock().write_all(&text)
        }
    }
}

/// A log file that may still grow.
struct Tail {
    reader: BufReader<File>,
    /// The beginning of a record whose end is not written yet.
    partial: Vec<u8>,
}

impl Tail {
    fn open(path: &Path) -> io::Result<Option<Self>> {
        match File::open(path) {
            Ok(file) => Ok(Some(Self {
                reader: BufReader::new(file),
                partial: Vec::new(),
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn drain(&mut self, printer: &mut Printer) -> io::Result<()> {
        loop {
            let room = RECORD_MAX.saturating_sub(self.partial.len() as u64);
            let count = io::Read::take(&mut self.reader, room).read_until(b'\n', &mut self.partial)?;
            if self.partial.ends_with(b"\n") || self.partial.len() as u64 >= RECORD_MAX {
                printer.take(&std::mem::take(&mut self.partial))?;
            } else if count == 0 {
                return Ok(());
            }
        }
    }

    /// Whether this is the file at `path`.
    fn is_at(&self, path: &Path) -> io::Result<bool> {
        let own = rustix::fs::fstat(self.reader.get_ref())?;
        match rustix::fs::stat(path) {
            Ok(there) => Ok((there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The file that was begun after this one, if there is one yet: this one's neighbour in the order of rotation, or
    /// the oldest when this one is gone.
    fn next(&self, directory: &Path) -> io::Result<Option<Self>> {
        loop {
            let mut place = None;
            let mut oldest = 0;
            for number in 0..FILES_MAX {
                let path = file(directory, number);
                if self.is_at(&path)? {
                    place = Some(number);
                    break;
                }
                match path.try_exists()? {
                    true => oldest = number,
                    // `log` itself is missing for a moment in the middle of a rotation.
                    false if number == 0 => {}
                    false => break,
                }
            }
            let next = match place {
                Some(0) => return Ok(None),
                Some(number) => number - 1,
                None => oldest,
            };
            let opened = Self::open(&file(directory, next))?;
            let rotated = match place {
                Some(number) => !self.is_at(&file(directory, number))?,
                None => false,
            };
            if !rotated {
                return Ok(opened);
            }
        }
    }
}

/// The current file is number 0.
fn file(directory: &Path, number: u32) -> PathBuf {
    if number == 0 {
        directory.join("log")
    } else {
        directory.join(format!("log.{number}"))
    }
}

fn follow(
    containers: &Containers,
    container: &Container,
    forever: bool,
    printer: &mut Printer,
) -> io::Result<()> {
    let directory = container.directory();
    let watch = if forever { Some(watch(directory)?) } else { None };
    // From the oldest on; each next one is found from the one before, whatever is rotated meanwhile.
    let oldest = (1..FILES_MAX)
        .take_while(|number| file(directory, *number).exists())
        .last()
        .unwrap_or(0);
    let mut open = Tail::open(&file(directory, oldest))?;
    loop {
        // Looked at before the log is read, so that the last words of a container that ended are not missed.
        let ended = match containers.load(&container.id) {
            Ok(now) => now.observed.status == Status::Exited,
            Err(container::Error::Gone { .. }) => true,
            Err(error) => return Err(io::Error::other(error)),
        };
        if open.is_none() {
            open = Tail::open(&file(directory, 0))?;
        }
        while let Some(tail) = &mut open {
            tail.drain(printer)?;
            let Some(next) = tail.next(directory)? else { break };
            // What was written between the last read and the rename.
            tail.drain(printer)?;
            open = Some(next);
        }
        printer.end_of_tail()?;
        let Some(watch) = &watch else { return Ok(()) };
        if ended {
            return Ok(());
        }
        wait(watch)?;
    }
}

fn watch(directory: &Path) -> io::Result<rustix::fd::OwnedFd> {
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let events = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::MOVE_SELF;
    inotify::add_watch(&watch, directory, events)?;
    Ok(watch)
}

/// Waits for a change in the directory and takes all events that there are.
fn wait(watch: &rustix::fd::OwnedFd) -> io::Result<()> {
    let mut fds = [PollFd::new(watch, PollFlags::IN)];
    match rustix::event::poll(&mut fds, Some(&LOOK_EVERY)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(watch.as_fd(), &mut buffer);
    loop {
        match events.next() {
            Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => {}
            Ok(_) => {}
            Err(Errno::AGAIN) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records() {
        let record = parse(b"2026-11-20T23:50:01.1Z stderr P two  words \n").unwrap();
        assert_eq!(
            (record.to_stdout, record.whole, record.text),
            (false, false, &b"two  words "[..])
        );
        assert_eq!(parse(b"2026-11-20T23:50:01.1Z stdout F \n").unwrap().text, b"");
        assert_eq!(parse(b"2026-11-20T23:50:01.1Z stdout F\n").unwrap().text, b"");
        assert_eq!(
            parse(b"2026-11-20T23:50:01.1Z stdout F:x \xff\n").unwrap().text,
            b"\xff"
        );
        for bad in [&b"\n"[..], b"x", b"2026 stdin F x\n", b"2026 stdout X x\n"] {
            assert_eq!(parse(bad), None);
        }
    }

    #[test]
    fn the_last_lines_are_whole_ones() {
        let mut printer = Printer {
            timestamps: false,
            since: None,
            tail: Some(Kept::new(2)),
        };
        for line in [
            "t stdout F 1\n",
            "t stdout P 2a",
            "t stdout F 2b\n",
            "t stderr F 3\n",
            "t stdout P 4a\n",
        ] {
            printer.take(line.as_bytes()).unwrap();
        }
        let kept: Vec<String> = printer
            .tail
            .unwrap()
            .records
            .into_iter()
            .map(|line| String::from_utf8(line).unwrap())
            .collect();
        assert_eq!(
            kept,
            [
                "t stdout P 2a",
                "t stdout F 2b\n",
                "t stderr F 3\n",
                "t stdout P 4a\n"
            ]
        );
    }

    #[test]
    fn moments() {
        let now = Timestamp::parse("2026-11-20T12:00:00Z").unwrap();
        for (text, moment) in [
            ("90s", "2026-11-20T11:58:30Z"),
            ("1h30m", "2026-11-20T10:30:00Z"),
            ("2026-11-20T01:02:03Z", "2026-11-20T01:02:03Z"),
            ("0", "1970-01-01T00:00:00Z"),
        ] {
            assert_eq!(parse_since(text, now), Timestamp::parse(moment), "{text}");
        }
        for text in ["", "m", "10", "10x", "5m3", "yesterday", "99999999999999999999d"] {
            let expected = (text == "10").then(|| Timestamp::parse("1970-01-01T00:00:10Z").unwrap());
            assert_eq!(parse_since(text, now), expected, "{text}");
        }
    }
}
