//! The monitor's event loop.
//!
//! ```text
//!              create ok, waitAttach             first client
//!  Preparing -----------------------> Created ----------------\
//!      |   \                             |                     v       start ok
//!      |    \------ create ok ---------- | ----------------> Starting ----------> Running
//!      |                                 |                     |                     |
//!      | create failed      ended before |        start failed |          init ended |
//!      v                                 v                     v                     v
//!  Deleting <------------------------------------------------------------------------/
//!      |     `observed` is final and durable before `delete` runs
//!      v
//!  Leaving: the lock is released, creator and clients are told
//! ```
//!
//! What always holds: from `create` on, the container's processes are this process's children; nothing waits for ever
//! for a client or for space in the log; every byte that was in a pipe when init ended is in the log, or counted as
//! lost, before the final `observed`.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{Event, EventFlags};
use rustix::fs::AtFlags;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

use super::attach::{Attach, FIRST_TOKEN};
use super::init::{self, Init};
use super::log::{Log, Stream};
use super::observed::{Observed, Record, Status};
use super::poll::{Poll, Source};
use super::settings::Settings;
use super::streams::{STDERR, STDIN, STDOUT, Streams};
use super::verb::{self, Kind, Verb};
use super::{Report, console, frame, sys, timestamp};
use crate::forward::{self, Listener};

const SIGNALS: u64 = 0;
const CONSOLE: u64 = 1;
const VERB_ERRORS: u64 = 2;
const ATTACH: u64 = 6;

const ATTACH_SOCKET: &str = "attach.sock";

/// A forwarder that ends sooner than this after its start is not started again.
const FORWARDER_MIN_LIFE: Duration = Duration::from_secs(1);

/// Where the container is on its way; see the diagram above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Preparing,
    Created,
    Starting,
    Running,
    Deleting,
    Leaving,
}

/// Why the container was not started.
#[derive(Debug)]
struct Failure {
    /// The creator's exit code.
    code: u8,
    reason: String,
}

/// The process that carries connections into the container.
#[derive(Debug)]
struct Forwarder {
    pid: Pid,
    since: Instant,
}

/// One container and everything that is held for it.
#[derive(Debug)]
pub(crate) struct Monitor {
    path: PathBuf,
    directory: Rc<OwnedFd>,
    lock: Option<OwnedFd>,
    settings: Settings,
    poll: Poll,
    signals: Source,
    phase: Phase,
    verb: Option<Verb>,
    init: Option<Init>,
    record: Record,
    observed: Observed,
    /// The way to the creator, until it has been told.
    report: Option<Report>,
    streams: Streams,
    console: Option<Source>,
    listeners: Vec<Listener>,
    forwarder: Option<Forwarder>,
    failure: Option<Failure>,
}

impl Monitor {
    /// Everything that is needed before the runtime is called.
    pub(crate) fn new(
        path: PathBuf,
        directory: Rc<OwnedFd>,
        lock: OwnedFd,
        settings: Settings,
        listeners: Vec<Listener>,
    ) -> Result<Self, Errno> {
        let poll = Poll::new()?;
        let mut signals = Source::new(sys::signal_descriptor()?, SIGNALS);
        signals.want(&poll, EventFlags::IN)?;
        let record = Record::new(directory.clone())?;
        let stall = Duration::from_secs(settings.attach_stall_seconds.into());
        let attach = Attach::listen(&poll, &directory, ATTACH_SOCKET, ATTACH, stall)?;
        let log = Log::new(directory.clone(), settings.log.clone());
        let own = rustix::process::getpid().as_raw_nonzero().get();
        Ok(Self {
            path,
            directory,
            lock: Some(lock),
            streams: Streams::new(&settings, log, attach),
            settings,
            poll,
            signals,
            phase: Phase::Preparing,
            verb: None,
            init: None,
            record,
            observed: Observed::new(init::boot_id(), own, timestamp::now_text()),
            report: None,
            console: None,
            listeners,
            forwarder: None,
            failure: None,
        })
    }

    /// Runs the container from `create` to `delete`.
    pub(crate) fn run(mut self, report: Report) {
        self.report = Some(report);
        if self.has_runtime_state() {
            self.call(Kind::Clear);
        } else {
            self.create();
        }
        let mut events = Vec::with_capacity(16);
        loop {
            self.streams.settle(&self.poll);
            match self.phase {
                Phase::Leaving if !self.streams.attach.has_backlog() => return,
                Phase::Created | Phase::Running if self.record.sync() => {
                    // Should it fail, this process stays a little larger than it needs to be.
                    let _ = sys::forget_program_pages();
                }
                _ => {}
            }
            let timeout = self
                .deadline()
                .map(|at| at.saturating_duration_since(Instant::now()));
            if self.poll.wait(&mut events, timeout).is_err() {
                // Nothing can be supervised without epoll. Ending frees the lock, and the next reader of `observed`
                // sees that the container has no monitor.
                return;
            }
            for event in events.drain(..) {
                self.handle(event);
            }
            self.expire(Instant::now());
        }
    }

    /// Tells the creator, once, how the start went.
    fn tell(&mut self, code: u8, reason: &str) {
        if let Some(report) = self.report.take() {
            report.send(code, reason);
        }
    }

    fn handle(&mut self, event: Event) {
        let flags = event.flags;
        match event.data.u64() {
            SIGNALS => self.take_signals(),
            CONSOLE => self.take_console(),
            VERB_ERRORS => self.hear_verb(),
            STDOUT => self.streams.pump(Stream::Stdout),
            STDERR => self.streams.pump(Stream::Stderr),
            STDIN if flags.contains(EventFlags::ERR) => self.streams.close_input(),
            STDIN => self.streams.write_input(),
            ATTACH => {
                let accepted = self.streams.attach.accept(&self.poll);
                if accepted && self.phase == Phase::Created {
                    self.start();
                }
            }
            token if token >= FIRST_TOKEN => self.streams.client_event(token, flags),
            _ => {}
        }
    }

    /// The next moment at which something has to be given up.
    fn deadline(&self) -> Option<Instant> {
        let verb = self.verb.as_ref().and_then(|verb| verb.deadline);
        [verb, self.streams.attach.deadline()].into_iter().flatten().min()
    }

    fn expire(&mut self, now: Instant) {
        if let Some(verb) = &mut self.verb
            && verb.deadline.is_some_and(|deadline| now >= deadline)
        {
            verb.deadline = None;
            verb.kill();
        }
        self.streams.attach.expire(now);
    }

    // The runtime's verbs.

    fn has_runtime_state(&self) -> bool {
        self.settings
            .runtime_root
            .join(&self.settings.id)
            .symlink_metadata()
            .is_ok()
    }

    fn create(&mut self) {
        if let Err(reason) = self.try_create() {
            self.fail(1, reason);
        }
    }

    fn try_create(&mut self) -> Result<(), String> {
        let _ = rustix::fs::unlinkat(&*self.directory, verb::PID_FILE, AtFlags::empty());
        let mut console = None;
        if self.settings.terminal {
            let listener =
                console::listen(&self.directory).map_err(|error| format!("{}: {error}", console::NAME))?;
            let mut listener = Source::new(listener, CONSOLE);
            listener
                .want(&self.poll, EventFlags::IN)
                .map_err(|error| error.to_string())?;
            self.console = Some(listener);
            console = Some(console::path(&self.directory));
        }
        let ends = self
            .streams
            .ends(self.settings.open_stdin)
            .map_err(|error| format!("stdio: {error}"))?;
        let errors = self.listen_to(ends.errors)?;
        let three = [ends.stdin, ends.stdout, ends.stderr];
        let console = console.as_deref();
        self.verb = Some(Verb::start(
            &self.settings,
            &self.path,
            Kind::Create,
            console,
            three,
            Some(errors),
        )?);
        Ok(())
    }

    fn start(&mut self) {
        self.phase = Phase::Starting;
        self.call(Kind::Start);
    }

    /// Starts a verb that has nothing to do with the container's streams.
    fn call(&mut self, kind: Kind) {
        let verb = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .and_then(|(read, write)| rustix::io::ioctl_fionbio(&read, true).map(|()| (read, write)))
            .map_err(|error| error.to_string())
            .and_then(|(read, write)| {
                let errors = self.listen_to(read)?;
                let three = [Stdio::null(), Stdio::null(), write.into()];
                Verb::start(&self.settings, &self.path, kind, None, three, Some(errors))
            });
        match verb {
            Ok(verb) => self.verb = Some(verb),
            Err(reason) => self.verb_done(kind, Err((1, reason))),
        }
    }

    fn listen_to(&self, errors: OwnedFd) -> Result<Source, String> {
        let mut errors = Source::new(errors, VERB_ERRORS);
        errors
            .want(&self.poll, EventFlags::IN)
            .map_err(|error| error.to_string())?;
        Ok(errors)
    }

    fn hear_verb(&mut self) {
        let Some(verb) = &mut self.verb else {
            return;
        };
        let mut bytes = [0; 1024];
        while let Some(errors) = &mut verb.errors {
            match rustix::io::retry_on_intr(|| rustix::io::read(&*errors, &mut bytes)) {
                Ok(count) if count > 0 => verb.hear(&bytes[..count]),
                Err(Errno::AGAIN) => return,
                Ok(_) | Err(_) => {
                    // At its end; the descriptor is still wanted when it is the container's standard error.
                    let _ = errors.want(&self.poll, EventFlags::empty());
                    return;
                }
            }
        }
    }

    fn verb_ended(&mut self, status: WaitStatus) {
        self.hear_verb();
        if let Some(mut verb) = self.verb.take() {
            let verdict = verb.verdict(status);
            if verb.kind == Kind::Create
                && let Some(errors) = verb.errors.take()
            {
                self.streams.take_stderr(errors.release(&self.poll));
                if verdict.is_ok() {
                    self.streams.log_text(verb.text());
                }
            }
            self.verb_done(verb.kind, verdict);
        }
    }

    fn verb_done(&mut self, kind: Kind, verdict: Result<(), (u8, String)>) {
        match (kind, verdict) {
            // Should it have failed, `create` will say that the container exists.
            (Kind::Clear, _) => self.create(),
            (Kind::Create, Ok(())) => {
                if let Err(reason) = self.created() {
                    self.fail(1, reason);
                }
            }
            (Kind::Start, Ok(())) => {
                match self.start_forwarder() {
                    // It has ended already.
                    Ok(())
                    | Err(forward::Error::Namespace {
                        source: Errno::NOENT | Errno::SRCH,
                        ..
                    }) => {}
                    Err(error) => return self.fail(1, error.to_string()),
                }
                self.phase = Phase::Running;
                self.observed.status = Status::Running;
                self.observed.started_at = Some(timestamp::now_text());
                self.put();
                self.tell(0, "");
                self.check_ended();
            }
            (Kind::Create | Kind::Start, Err((code, reason))) => self.fail(code, reason),
            (Kind::Delete | Kind::DeleteForce, verdict) => {
                if let Err((_, reason)) = verdict {
                    self.observed.add_error(&reason);
                    self.put();
                }
                self.leave();
            }
        }
    }

    /// `create` has succeeded: the container's processes are ours and wait for `start`.
    fn created(&mut self) -> Result<(), String> {
        let init = Init::take(&self.directory)?;
        self.observed.pid = init.pid.as_raw_nonzero().get();
        self.observed.pid_start = init.start;
        self.init = Some(init);
        self.take_console();
        if !self.streams.has_output() {
            return Err("the runtime did not send the container's terminal".to_owned());
        }
        self.close_console();
        match self.start_forwarder() {
            // A runtime may hide its waiting process even from us; the container's own program will not be hidden.
            Err(forward::Error::Namespace {
                source: Errno::ACCESS,
                ..
            }) => {}
            result => result.map_err(|error| error.to_string())?,
        }
        self.phase = Phase::Created;
        self.put();
        if self.settings.wait_attach {
            self.tell(0, "");
        }
        if !self.settings.wait_attach || !self.streams.attach.clients.is_empty() {
            self.start();
        }
        Ok(())
    }

    fn take_console(&mut self) {
        let master = self
            .console
            .as_ref()
            .and_then(|listener| console::receive(listener).ok());
        if let Some(master) = master {
            // Without it there is no output, which `created` refuses.
            let _ = self.streams.take_terminal(master, self.settings.open_stdin);
            self.close_console();
        }
    }

    fn close_console(&mut self) {
        if self.console.take().is_some() {
            let _ = rustix::fs::unlinkat(&*self.directory, console::NAME, AtFlags::empty());
        }
    }

    // Processes and signals.

    fn take_signals(&mut self) {
        let mut children = false;
        while let Some(signal) = sys::next_signal(&self.signals) {
            match Signal::from_named_raw(signal) {
                Some(Signal::CHILD) => children = true,
                Some(signal) => self.forward_signal(signal),
                None => {}
            }
        }
        if children {
            self.reap();
        }
    }

    fn forward_signal(&mut self, signal: Signal) {
        match self.phase {
            Phase::Preparing => {
                if let Some(verb) = &self.verb {
                    verb.kill();
                }
            }
            // As a namespace's first process that has no handler yet it would ignore anything else.
            Phase::Created => self.signal_init(Signal::KILL),
            Phase::Starting | Phase::Running => self.signal_init(signal),
            Phase::Deleting | Phase::Leaving => {}
        }
    }

    fn signal_init(&self, signal: Signal) {
        if let Some(init) = self.init.as_ref().filter(|init| init.status.is_none()) {
            // Not reaped yet, so the number is still its own.
            let _ = rustix::process::kill_process(init.pid, signal);
        }
    }

    fn reap(&mut self) {
        loop {
            // Until init is known nobody else is reaped: a child that has ended already may be init.
            let awaited = match (&self.init, &self.verb) {
                (None, Some(verb)) => rustix::process::waitpid(Some(verb.pid), WaitOptions::NOHANG),
                _ => rustix::process::wait(WaitOptions::NOHANG),
            };
            let Ok(Some((pid, status))) = awaited else {
                return;
            };
            if self.verb.as_ref().is_some_and(|verb| verb.pid == pid) {
                self.verb_ended(status);
            } else if let Some(init) = self.init.as_mut().filter(|init| init.pid == pid) {
                init.status = Some(status);
                self.check_ended();
            } else if let Some(forwarder) = self.forwarder.take_if(|forwarder| forwarder.pid == pid) {
                self.forwarder_ended(&forwarder);
            }
        }
    }

    /// Goes on once init has ended and nothing else is under way.
    fn check_ended(&mut self) {
        let Some(status) = self.init.as_ref().and_then(|init| init.status) else {
            return;
        };
        match self.phase {
            Phase::Created => {
                self.observed.add_error("ended before it was started");
                self.ended(Some(status));
            }
            Phase::Running => self.ended(Some(status)),
            // With a failure, init was killed because of it. Otherwise the verdict of `start` comes first.
            Phase::Preparing | Phase::Starting if self.failure.is_some() => self.ended(Some(status)),
            Phase::Preparing | Phase::Starting | Phase::Deleting | Phase::Leaving => {}
        }
    }

    // The published ports.

    /// Starts the forwarder, unless there is one or nothing to forward.
    fn start_forwarder(&mut self) -> Result<(), forward::Error> {
        if let (false, None, Some(init)) = (self.listeners.is_empty(), &self.forwarder, &self.init) {
            let pid = forward::spawn(&self.listeners, &forward::Target::of(init.pid)?)?;
            self.forwarder = Some(Forwarder {
                pid,
                since: Instant::now(),
            });
        }
        Ok(())
    }

    /// The listening sockets are still ours, so that another forwarder can go on with them.
    fn forwarder_ended(&mut self, forwarder: &Forwarder) {
        let again = if forwarder.since.elapsed() < FORWARDER_MIN_LIFE {
            Err("it ended at once".to_owned())
        } else {
            self.start_forwarder().map_err(|error| error.to_string())
        };
        if let Err(reason) = again {
            self.listeners.clear();
            self.observed
                .add_error(&format!("published ports are closed, port forwarder: {reason}"));
            self.put();
        }
    }

    fn stop_forwarder(&mut self) {
        self.listeners.clear();
        if let Some(forwarder) = self.forwarder.take() {
            let _ = rustix::process::kill_process(forwarder.pid, Signal::KILL);
            let _ = rustix::process::waitpid(Some(forwarder.pid), WaitOptions::empty());
        }
    }

    // The end.

    /// The container cannot be started. If it has a first process, that has to end first.
    fn fail(&mut self, code: u8, reason: String) {
        self.observed.add_error(&reason);
        self.failure = Some(Failure { code, reason });
        match &self.init {
            None => self.ended(None),
            Some(init) if init.status.is_some() => self.check_ended(),
            Some(_) => self.signal_init(Signal::KILL),
        }
    }

    fn ended(&mut self, status: Option<WaitStatus>) {
        self.phase = Phase::Deleting;
        self.stop_forwarder();
        self.close_console();
        self.streams.drain();
        self.observed.status = Status::Exited;
        self.observed.finished_at = Some(timestamp::now_text());
        let code = match (&self.failure, status) {
            (Some(failure), _) => i32::from(failure.code),
            (None, Some(status)) => verb::exit_code(status),
            (None, None) => 1,
        };
        self.observed.exit_code = Some(code);
        if self.failure.is_none() {
            self.observed.signal = status.and_then(WaitStatus::terminating_signal);
        }
        self.observed.oom_killed = self.init.as_ref().is_some_and(Init::oom_killed);
        if let Some(loss) = self.streams.log.loss() {
            self.observed.add_error(&loss);
        }
        self.put();
        if self.init.is_some() && self.failure.is_none() {
            self.call(Kind::Delete);
        } else if self.has_runtime_state() {
            self.call(Kind::DeleteForce);
        } else {
            self.leave();
        }
    }

    fn leave(&mut self) {
        self.phase = Phase::Leaving;
        self.streams.attach.close();
        let _ = rustix::fs::unlinkat(&*self.directory, ATTACH_SOCKET, AtFlags::empty());
        self.record.release();
        self.lock = None;
        if let Some(Failure { code, reason }) = self.failure.take() {
            self.tell(code, &reason);
            let line = format!("wherry-runtime: {reason}\n");
            self.streams.attach.broadcast(frame::STDERR, line.as_bytes());
        }
        let code = u32::try_from(self.observed.exit_code.unwrap_or(1)).unwrap_or(1);
        self.streams.attach.broadcast(frame::EXIT, &code.to_be_bytes());
    }

    /// Writes `observed`. On a full disk the rotated logs give way to it.
    fn put(&mut self) {
        let put = |record: &mut Record, observed: &Observed| match observed.status {
            Status::Exited => record.put_final(observed),
            Status::Created | Status::Running => record.put(observed),
        };
        if let Err(Errno::NOSPC | Errno::DQUOT) = put(&mut self.record, &self.observed) {
            self.streams.log.drop_rotated();
            let _ = put(&mut self.record, &self.observed);
        }
    }
}
