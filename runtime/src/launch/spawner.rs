//! The spawner: a small process outside of the container's pid namespace, inside of its Landlock domain. It makes init
//! and, until init ends, the processes that `exec` asks for, so that all of them share one domain.
//!
//! It is undumpable, holds no standard streams of the container, and listens on `exec.sock`, which only the container's
//! owner can reach (SO_PEERCRED is checked as well). A request is one packet:
//!
//! | kind | descriptors | answer |
//! |---|---|---|
//! | `status` | - | `status` with 1 once `start` was asked for, else 0 |
//! | `start` | - | `done` when the program is executed, else `error` |
//! | `signal-all` (number) | - | `done` |
//! | `exec` (number) | specification (JSON), report socket, stdin, stdout, stderr, preserved... | `pids`, then `exited` |
//!
//! With 1 as its number, the process of an `exec` is killed when who asked for it is gone; otherwise it goes on.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::net::SocketFlags;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use super::plan::{Pids, Plan};
use super::{Inherited, Message, program};
use crate::cgroup::Entry;
use crate::error::{Context, Error};
use crate::seccomp::Filter;
use crate::sys::{self, Side, Signals};
use crate::{confine, wire};

/// Clients served at once; each costs a descriptor here.
const MAX_CLIENTS: usize = 256;

/// How often init is looked at where the kernel has no pidfd (before 5.3).
const WITHOUT_PIDFD: Duration = Duration::from_millis(200);

/// Runs the spawner. It never returns: it is init for a moment's child, and ends with it.
pub(super) fn run(plan: &Plan, inherited: &Inherited, mounter: OwnedFd, root: BorrowedFd<'_>) -> ! {
    if let Err(error) = spawn(plan, inherited, mounter, root) {
        super::report(inherited.setup.as_fd(), &error);
        sys::exit_now(1)
    }
    sys::exit_now(0)
}

fn spawn(plan: &Plan, inherited: &Inherited, mounter: OwnedFd, root: BorrowedFd<'_>) -> Result<(), Error> {
    program::hide(true)?;
    let stdio = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ];
    confine::enter_domain(&plan.policy, root, &stdio, plan.credentials.no_new_privileges)?;
    match &plan.pids {
        Pids::New => sys::unshare(UnshareFlags::NEWPID).context(|| "new pid namespace")?,
        Pids::Join(pids) => {
            rustix::thread::move_into_link_name_space(pids.as_fd(), Some(LinkNameSpaceType::ProcessID))
                .context(|| "config.json: linux.namespaces: join by path as ProcessID")?;
        }
        Pids::Host => {}
    }
    let children = Signals::new(Some(&[libc::SIGCHLD]));
    let (ours, theirs) = wire::pair().context(|| "socketpair")?;
    let entry = inherited.cgroup.as_ref();
    let (side, born) = fork_into(entry, libc::CLONE_PARENT).context(|| "fork init")?;
    let init = match side {
        Side::Child => {
            drop((ours, mounter));
            program::init(plan, inherited, theirs, born)
        }
        Side::Parent(pid) => pid,
    };
    drop(theirs);
    Signals::new(None).block().context(|| "signals")?;
    let children = children.descriptor().context(|| "signalfd")?;
    let pidfd = rustix::process::pidfd_open(init, PidfdFlags::empty()).ok();

    let number = init.as_raw_nonzero().get().to_ne_bytes();
    let namespace = match plan.pids {
        Pids::Host => None,
        // The host's procfs is still in sight: the root is entered when the mounter is done.
        _ => Some(
            rustix::fs::open(
                "/proc/self/ns/pid_for_children",
                OFlags::RDONLY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .context(|| "pid namespace")?,
        ),
    };
    let cgroups = if inherited.roots_cgroup(plan) {
        let packet = wire::receive(&ours).context(|| "init")?;
        match packet.and_then(|packet| packet.fds.into_iter().next()) {
            Some(cgroups) => Some(cgroups),
            // It has told the creator why.
            None => return Ok(()),
        }
    } else {
        None
    };
    // Init's channel first: the mounter lets it go on by itself.
    let mut fds = vec![ours.as_fd()];
    fds.extend(namespace.iter().chain(&cgroups).map(AsFd::as_fd));
    if wire::send(&mounter, Message::Pids as u8, &number, &fds).is_err() {
        // It failed meanwhile, and tells the creator why. Init ends when this process does.
        return Ok(());
    }
    drop(namespace);
    let mut spawner = Spawner {
        plan,
        owner: rustix::process::Uid::ROOT,
        filter: None,
        listener: inherited.listener.as_fd(),
        entry,
        cgroups,
        init,
        pidfd,
        init_channel: Some(ours),
        children,
        starting: None,
        started: false,
        clients: Vec::new(),
    };
    let result = spawner.hand_over(inherited, mounter);
    if result.is_err() {
        // The creator is gone before it could record the container: nobody knows of init.
        let _ = rustix::process::kill_process(init, Signal::KILL);
        return Ok(());
    }
    spawner.serve()
}

/// Forks into a cgroup; false if the kernel could not make the child there and it has to enter by itself.
fn fork_into(entry: Option<&Entry>, flags: i32) -> std::io::Result<(Side, bool)> {
    if let Some(directory) = entry.and_then(Entry::directory) {
        match sys::fork_into(flags, directory) {
            Ok(side) => return Ok((side, true)),
            // Before 5.7, or a filter of an outer container.
            Err(e)
                if matches!(
                    e.raw_os_error(),
                    Some(libc::ENOSYS | libc::EINVAL | libc::E2BIG | libc::EPERM)
                ) => {}
            // Of the cgroup: its limit of processes, which entering later would pass by; and a new pid namespace whose
            // first process could not be made takes no other.
            Err(e) => return Err(e),
        }
    }
    Ok((sys::fork(flags)?, false))
}

/// A process made for `exec`, and who asked for it.
struct Client {
    pid: Option<Pid>,
    /// The process ends with the connection.
    bound: bool,
    connection: OwnedFd,
}

struct Spawner<'a> {
    plan: &'a Plan,
    owner: rustix::process::Uid,
    /// The system call filter of processes of `exec`, once one was asked for.
    filter: Option<Option<Filter>>,
    listener: BorrowedFd<'a>,
    entry: Option<&'a Entry>,
    /// The container's cgroup namespace.
    cgroups: Option<OwnedFd>,
    init: Pid,
    pidfd: Option<OwnedFd>,
    /// Open until init has executed its program, or failed to.
    init_channel: Option<OwnedFd>,
    children: OwnedFd,
    /// Who asked for the start that is under way.
    starting: Option<OwnedFd>,
    started: bool,
    clients: Vec<Client>,
}

impl Spawner<'_> {
    /// Waits for the mounter and then for the creator to have recorded the container.
    fn hand_over(&mut self, inherited: &Inherited, mounter: OwnedFd) -> Result<(), Error> {
        let lost = || Error::Corrupt("the launch was given up".into());
        // The mounter has let init go on by itself.
        wire::receive(&mounter).context(|| "mounter")?.ok_or_else(lost)?;
        drop(mounter);
        // In the creator's user namespace this is whoever may ask for something later, as this process sees it now that
        // the ids are mapped.
        self.owner = rustix::net::sockopt::socket_peercred(&inherited.setup)
            .context(|| "creator")?
            .uid;
        // Init reports to the creator by itself; the creator answers here.
        match wire::receive(&inherited.setup).context(|| "creator")? {
            Some(packet) if packet.kind == Message::Commit as u8 => {}
            // `run` need not connect first.
            Some(packet) if packet.kind == Message::Start as u8 => {
                let creator = rustix::io::fcntl_dupfd_cloexec(&inherited.setup, 0).context(|| "creator")?;
                self.start(creator);
            }
            _ => return Err(lost()),
        }
        self.settle(inherited)
    }

    /// Lets go of everything that the launch needed and the service does not.
    fn settle(&self, inherited: &Inherited) -> Result<(), Error> {
        for target in 0..3 {
            sys::dup_onto(inherited.null.as_fd(), target).context(|| "standard streams")?;
        }
        let mut keep = vec![
            rustix::stdio::stdin(),
            rustix::stdio::stdout(),
            rustix::stdio::stderr(),
            self.listener,
            self.children.as_fd(),
        ];
        keep.extend(self.entry.iter().flat_map(|entry| entry.descriptors()));
        keep.extend(self.cgroups.iter().map(AsFd::as_fd));
        keep.extend(self.pidfd.iter().map(AsFd::as_fd));
        keep.extend(self.init_channel.iter().map(AsFd::as_fd));
        keep.extend(self.starting.iter().map(AsFd::as_fd));
        sys::close_all_but(&keep).context(|| "close_range")?;
        rustix::process::setsid().context(|| "setsid")?;
        sys::trim_heap();
        Ok(())
    }

    fn serve(&mut self) -> Result<(), Error> {
        while self.init_lives() {
            let (mut readable, left, init_readable, children, listener) = {
                let listening = if self.clients.len() < MAX_CLIENTS {
                    PollFlags::IN
                } else {
                    PollFlags::empty()
                };
                let mut fds = vec![
                    PollFd::new(&self.listener, listening),
                    PollFd::new(&self.children, PollFlags::IN),
                ];
                fds.extend(self.pidfd.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
                let channel = fds.len();
                fds.extend(self.init_channel.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
                let clients = fds.len();
                // A client that waits for its process has nothing to say; that it left is noticed when we answer, unless
                // the process is to end with it.
                let positions = |which: fn(&Client) -> bool| -> Vec<usize> {
                    let chosen = self
                        .clients
                        .iter()
                        .enumerate()
                        .filter(|(_, client)| which(client));
                    chosen.map(|(index, _)| index).collect()
                };
                let idle = positions(|client| client.pid.is_none());
                let bound = positions(|client| client.bound);
                for (list, events) in [(&idle, PollFlags::IN), (&bound, PollFlags::empty())] {
                    for client in list.iter().filter_map(|index| self.clients.get(*index)) {
                        fds.push(PollFd::new(&client.connection, events));
                    }
                }
                let timeout = self.pidfd.is_none().then_some(Timespec {
                    tv_sec: 0,
                    tv_nsec: i64::from(WITHOUT_PIDFD.subsec_nanos()),
                });
                match rustix::event::poll(&mut fds, timeout.as_ref()) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(e) => return Err(e).context(|| "poll"),
                }
                let ready = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
                let among = |first: usize, list: Vec<usize>| -> Vec<usize> {
                    let slots = (first..).zip(list).filter(|(slot, _)| ready(*slot));
                    slots.map(|(_, index)| index).collect()
                };
                let left = among(clients + idle.len(), bound);
                let readable = among(clients, idle);
                (
                    readable,
                    left,
                    clients > channel && ready(channel),
                    ready(1),
                    ready(0),
                )
            };
            if init_readable {
                self.init_spoke();
            }
            // Before what moves clients: these are positions.
            for index in left {
                if let Some(client) = self.clients.get_mut(index) {
                    client.bound = false;
                    if let Some(pid) = client.pid {
                        // A child of this process that is not reaped yet, so the id is its own.
                        let _ = rustix::process::kill_process(pid, Signal::KILL);
                    }
                }
            }
            // Before the reaping, too; the highest first.
            while let Some(index) = readable.pop() {
                let client = self.clients.swap_remove(index);
                self.request(client.connection);
            }
            if children {
                while sys::next_signal(self.children.as_fd()).is_some() {}
                self.reap();
            }
            if listener {
                self.accept();
            }
        }
        // It may have said why before it ended.
        while self.init_channel.is_some() {
            self.init_spoke();
        }
        // The kernel has killed what was left in the pid namespace; tell those who wait.
        while !self.clients.iter().all(|client| client.pid.is_none()) {
            match rustix::process::wait(WaitOptions::empty()) {
                Ok(Some((pid, status))) => self.ended(pid, status.as_raw()),
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => break,
            }
        }
        Ok(())
    }

    fn init_lives(&self) -> bool {
        match &self.pidfd {
            Some(pidfd) => {
                let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
                let now = Timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                };
                !matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(1))
            }
            None => rustix::process::test_kill_process(self.init).is_ok(),
        }
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            self.ended(pid, status.as_raw());
        }
    }

    fn ended(&mut self, pid: Pid, status: i32) {
        if let Some(index) = self.clients.iter().position(|client| client.pid == Some(pid)) {
            let client = self.clients.swap_remove(index);
            let _ = wire::send_numbers(&client.connection, Message::Exited as u8, &[status]);
        }
    }

    /// Init's channel: an error, or the end when its program is executed.
    fn init_spoke(&mut self) {
        let packet = self
            .init_channel
            .as_ref()
            .and_then(|channel| wire::receive(channel).ok().flatten());
        if let Some(packet) = packet
            .as_ref()
            .filter(|packet| packet.kind == Message::Listener as u8)
        {
            // It goes on with its program: that is told next.
            if let Some(client) = &self.starting {
                let fds: Vec<_> = packet.fds.iter().map(AsFd::as_fd).collect();
                let _ = wire::send(client, packet.kind, &[], &fds);
            }
            return;
        }
        self.init_channel = None;
        if let Some(client) = self.starting.take() {
            let _ = match packet {
                Some(packet) => wire::send(&client, packet.kind, &packet.payload, &[]),
                None => wire::send(&client, Message::Done as u8, &[], &[]),
            };
        }
    }

    fn accept(&mut self) {
        let Ok(connection) =
            rustix::net::accept_with(self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
        else {
            return;
        };
        // Whoever is neither the owner nor this container's root cannot reach the socket either; checked all the same.
        if rustix::net::sockopt::socket_peercred(&connection).is_ok_and(|peer| peer.uid == self.owner) {
            self.clients.push(Client {
                pid: None,
                bound: false,
                connection,
            });
        }
    }

    fn request(&mut self, connection: OwnedFd) {
        let Ok(Some(packet)) = wire::receive(&connection) else {
            return;
        };
        let answer = |error: &Error| super::report(connection.as_fd(), error);
        match Message::from(packet.kind) {
            Some(Message::Status) => {
                let _ = wire::send_numbers(&connection, Message::Status as u8, &[i32::from(self.started)]);
            }
            Some(Message::Start) => self.start(connection),
            Some(Message::SignalAll) => match self.signal_all(packet.number(0).unwrap_or(0)) {
                Ok(()) => {
                    let _ = wire::send(&connection, Message::Done as u8, &[], &[]);
                }
                Err(error) => answer(&error),
            },
            // Until then init could be traced by what exec would bring in.
            Some(Message::Exec) if self.init_channel.is_some() => {
                answer(&Error::Usage(
                    "exec: the container's program is not executed yet".into(),
                ));
            }
            Some(Message::Exec) => match self.exec(packet) {
                Ok((pid, bound)) => {
                    let _ =
                        wire::send_numbers(&connection, Message::Pids as u8, &[pid.as_raw_nonzero().get()]);
                    self.clients.push(Client {
                        pid: Some(pid),
                        bound,
                        connection,
                    });
                }
                Err(error) => answer(&error),
            },
            _ => answer(&Error::Usage("an unknown request".into())),
        }
    }

    /// Lets init execute its program; `connection` is answered when it has, or cannot.
    fn start(&mut self, connection: OwnedFd) {
        match &self.init_channel {
            Some(channel) if !self.started => {
                self.started = wire::send(channel, Message::Start as u8, &[], &[]).is_ok();
                self.starting = Some(connection);
            }
            _ => {
                let error = Error::Usage("start: the container was started already".into());
                super::report(connection.as_fd(), &error);
            }
        }
    }

    fn exec(&mut self, packet: wire::Packet) -> Result<(Pid, bool), Error> {
        let bound = packet.number(0) == Some(1);
        if self.filter.is_none() {
            // What it warns of is known from init's.
            self.filter = Some(self.plan.compile_filter(&mut Vec::new())?);
        }
        let (side, born) = fork_into(self.entry, 0).context(|| "exec: fork")?;
        match side {
            Side::Parent(pid) => Ok((pid, bound)),
            Side::Child => {
                let enter = || -> Result<(), Error> {
                    self.entry.map_or(Ok(()), |entry| entry.enter(born))?;
                    self.cgroups.as_ref().map_or(Ok(()), |namespace| {
                        rustix::thread::move_into_link_name_space(namespace.as_fd(), None)
                            .context(|| "exec: join the cgroup namespace")
                    })
                };
                let filter = self.filter.as_ref().and_then(Option::as_ref);
                program::exec(self.plan, filter, packet.fds, enter())
            }
        }
    }

    /// Signals every process of the container. `kill(-1)` in a child of the pid namespace reaches all but init.
    fn signal_all(&self, signal: i32) -> Result<(), Error> {
        if !matches!(self.plan.pids, Pids::New) {
            return Err(Error::Usage(
                "kill --all: the container does not have a pid namespace of its own".into(),
            ));
        }
        let signal = crate::state::signal_of(signal)?;
        match sys::fork(0).context(|| "kill --all: fork")? {
            Side::Child => {
                let _ = sys::kill_every(signal.as_raw());
                sys::exit_now(0)
            }
            Side::Parent(pid) => {
                let _ = sys::wait(pid);
            }
        }
        rustix::process::kill_process(self.init, signal).context(|| "kill --all: init")
    }
}
