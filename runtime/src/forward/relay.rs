//! The forwarder's event loop: accept, dial, splice both ways.
//!
//! Both sockets of a connection are watched edge-triggered from beginning to end. Each event moves bytes in both
//! directions until the sockets would block; a connection that has used its turn is put at the end of a queue, so that
//! no stream starves another. A pipe is held only while it holds bytes that the receiver has not taken.
//!
//! ```text
//!  Flow:  Open --end of input, shutdown sent--> Ended        a connection goes when both flows have ended,
//!                                                            or at the first error, with a reset to both sides
//! ```

use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::{Errno, Result};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, sockopt};
use rustix::pipe::{PipeFlags, SpliceFlags};
use rustix::process::{Resource, Rlimit};

use super::{CONTAINER_ADDRESS, Listener};

/// Descriptors of a connection at its worst: two sockets and a pipe each way.
const FDS_PER_CONNECTION: u64 = 6;

/// Descriptors that are not a connection's: the standard ones, epoll, the watched process and some to spare.
const FDS_RESERVED: u64 = 16;

/// Connections at once, whatever the descriptor limit allows: bounds the memory of both this process and the kernel.
const MAX_CONNECTIONS: u64 = 16_384;

/// Idle pipes that are kept for the next bytes.
const SPARE_PIPES: usize = 16;

/// One splice.
const CHUNK: usize = 1 << 20;

/// Splices in one turn of a connection.
const TURN: usize = 16;

/// Connections accepted before the established ones have their turn.
const ACCEPTS: usize = 64;

/// After this much silence a peer is asked whether it is still there: behind NAT and LTE most vanish without a word,
/// and each would hold two descriptors for ever.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(600);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
const KEEPALIVE_PROBES: u32 = 5;

/// Tokens of listeners and of the watched process have this bit; the others are `generation << 32 | index << 1 | side`.
const NOT_A_CONNECTION: u64 = 1 << 63;
const UNTIL: u64 = u64::MAX;

/// Serves until `until` (a process descriptor) is readable; without one, until the process is killed.
pub(super) fn serve(listeners: &[Listener], until: Option<OwnedFd>) -> Result<()> {
    let mut relay = Relay::new(listeners)?;
    if let Some(until) = &until {
        epoll::add(&relay.poll, until, EventData::new_u64(UNTIL), EventFlags::IN)?;
    }
    let mut events: Vec<Event> = Vec::with_capacity(64);
    loop {
        // With connections in the queue only a look is taken at what else has happened.
        let look = (!relay.queue.is_empty()).then_some(Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        });
        events.clear();
        match epoll::wait(&relay.poll, spare_capacity(&mut events), look.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        for event in &events {
            let token = event.data.u64();
            if token == UNTIL {
                return Ok(());
            }
            if token & NOT_A_CONNECTION != 0 {
                relay.accept((token & !NOT_A_CONNECTION) as usize);
            } else {
                relay.happened(token);
            }
        }
        for _ in 0..relay.queue.len() {
            if let Some(index) = relay.queue.pop_front() {
                relay.turn(index);
            }
        }
        relay.listen_again();
    }
}

struct Relay<'a> {
    poll: OwnedFd,
    listeners: &'a [Listener],
    connections: Vec<Slot>,
    free: Vec<usize>,
    live: usize,
    limit: usize,
    /// False while the listeners are left alone because there is no room.
    listening: bool,
    queue: VecDeque<usize>,
    pipes: Vec<Pipe>,
}

/// A place for a connection; the generation tells an event of the present one from one of its predecessors.
#[derive(Default)]
struct Slot {
    generation: u32,
    connection: Option<Connection>,
}

struct Connection {
    client: OwnedFd,
    server: OwnedFd,
    connected: bool,
    queued: bool,
    inwards: Flow,
    outwards: Flow,
}

#[derive(Default)]
struct Flow {
    /// Holds `held` bytes; absent when there are none.
    pipe: Option<Pipe>,
    held: usize,
    ended: bool,
}

struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

/// What a flow waits for after its turn.
#[derive(PartialEq, Eq)]
enum Waits {
    /// For an event of one of its sockets.
    Event,
    /// For its next turn.
    Turn,
}

impl Flow {
    /// Moves bytes until one of the sockets would block or the turn is over.
    fn turn(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, spare: &mut Vec<Pipe>) -> Result<Waits> {
        if self.ended {
            return Ok(Waits::Event);
        }
        for _ in 0..TURN {
            let pipe = match self.pipe.take().or_else(|| spare.pop()) {
                Some(pipe) => pipe,
                None => Pipe::new()?,
            };
            if self.held == 0 {
                match splice(from, pipe.write.as_fd(), CHUNK) {
                    Ok(0) => {
                        self.ended = true;
                        pipe.put_back(spare);
                        // The other direction may still be used: this passes on the end of one direction only.
                        match rustix::net::shutdown(to, Shutdown::Write) {
                            Ok(()) | Err(Errno::NOTCONN) => return Ok(Waits::Event),
                            Err(error) => return Err(error),
                        }
                    }
                    Ok(count) => self.held = count,
                    Err(Errno::AGAIN) => {
                        pipe.put_back(spare);
                        return Ok(Waits::Event);
                    }
                    Err(error) => return Err(error),
                }
            }
            let sent = splice(pipe.read.as_fd(), to, self.held);
            self.held -= *sent.as_ref().unwrap_or(&0);
            if self.held == 0 {
                pipe.put_back(spare);
            } else {
                self.pipe = Some(pipe);
            }
            match sent {
                Ok(_) => {}
                Err(Errno::AGAIN) => return Ok(Waits::Event),
                Err(error) => return Err(error),
            }
        }
        Ok(Waits::Turn)
    }
}

impl Pipe {
    fn new() -> Result<Self> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { read, write })
    }

    fn put_back(self, spare: &mut Vec<Pipe>) {
        if spare.len() < SPARE_PIPES {
            spare.push(self);
        }
    }
}

fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, length: usize) -> Result<usize> {
    rustix::io::retry_on_intr(|| {
        rustix::pipe::splice(
            from,
            None,
            to,
            None,
            length,
            SpliceFlags::NONBLOCK | SpliceFlags::MOVE,
        )
    })
}

impl<'a> Relay<'a> {
    fn new(listeners: &'a [Listener]) -> Result<Self> {
        let descriptors = raise_descriptor_limit().saturating_sub(FDS_RESERVED + listeners.len() as u64);
        let limit = (descriptors / FDS_PER_CONNECTION).clamp(1, MAX_CONNECTIONS);
        let poll = epoll::create(CreateFlags::CLOEXEC)?;
        let mut relay = Self {
            poll,
            listeners,
            connections: Vec::new(),
            free: Vec::new(),
            live: 0,
            limit: limit as usize,
            listening: false,
            queue: VecDeque::new(),
            pipes: Vec::new(),
        };
        relay.listen_again();
        if relay.listening {
            Ok(relay)
        } else {
            Err(Errno::NOMEM)
        }
    }

    /// Waits for new connections while there is room for them; without, they wait in the kernel's backlog.
    fn listen_again(&mut self) {
        let room = self.live < self.limit;
        if room == self.listening {
            return;
        }
        let mut done = true;
        for (index, listener) in self.listeners.iter().enumerate() {
            let data = EventData::new_u64(NOT_A_CONNECTION | index as u64);
            done &= match if room {
                epoll::add(&self.poll, &listener.socket, data, EventFlags::IN)
            } else {
                epoll::delete(&self.poll, &listener.socket)
            } {
                Ok(()) | Err(Errno::EXIST | Errno::NOENT) => true,
                Err(_) => false,
            };
        }
        if done {
            self.listening = room;
        }
    }

    fn accept(&mut self, index: usize) {
        let Some(listener) = self.listeners.get(index) else {
            return;
        };
        for _ in 0..ACCEPTS.min(self.limit - self.live) {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match rustix::net::accept_with(&listener.socket, flags) {
                Ok(client) => self.connect(client, listener.container_port),
                // The client has given up already.
                Err(Errno::CONNABORTED | Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    fn connect(&mut self, client: OwnedFd, port: u16) {
        match dial(&client, port) {
            Ok((server, connected)) => self.insert(Connection {
                client,
                server,
                connected,
                queued: false,
                inwards: Flow::default(),
                outwards: Flow::default(),
            }),
            Err(_) => reset(&client),
        }
    }

    fn insert(&mut self, connection: Connection) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.connections.push(Slot::default());
            self.connections.len() - 1
        });
        let slot = &mut self.connections[index];
        let token = u64::from(slot.generation & (u32::MAX >> 1)) << 32 | (index as u64) << 1;
        let interest = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let watched = epoll::add(
            &self.poll,
            &connection.client,
            EventData::new_u64(token),
            interest,
        )
        .and_then(|()| {
            epoll::add(
                &self.poll,
                &connection.server,
                EventData::new_u64(token | 1),
                interest,
            )
        });
        let connection = slot.connection.insert(connection);
        self.live += 1;
        if watched.is_err() {
            reset(&connection.client);
            self.remove(index);
        }
    }

    fn remove(&mut self, index: usize) {
        let slot = &mut self.connections[index];
        if slot.connection.take().is_some() {
            slot.generation = slot.generation.wrapping_add(1);
            self.free.push(index);
            self.live -= 1;
        }
    }

    fn happened(&mut self, token: u64) {
        let index = ((token & 0xffff_ffff) >> 1) as usize;
        let Some(slot) = self.connections.get_mut(index) else {
            return;
        };
        if u64::from(slot.generation & (u32::MAX >> 1)) != token >> 32 {
            return;
        }
        let Some(connection) = &mut slot.connection else {
            return;
        };
        if !connection.connected {
            if token & 1 == 0 {
                // The client's events wait; all its bytes are found once the server has answered.
                return;
            }
            if !matches!(sockopt::socket_error(&connection.server), Ok(Ok(()))) {
                reset(&connection.client);
                self.remove(index);
                return;
            }
            connection.connected = true;
        }
        if !connection.queued {
            connection.queued = true;
            self.queue.push_back(index);
        }
    }

    fn turn(&mut self, index: usize) {
        let Some(connection) = self
            .connections
            .get_mut(index)
            .and_then(|slot| slot.connection.as_mut())
        else {
            return;
        };
        connection.queued = false;
        let (client, server) = (connection.client.as_fd(), connection.server.as_fd());
        let inwards = connection.inwards.turn(client, server, &mut self.pipes);
        let outwards = connection.outwards.turn(server, client, &mut self.pipes);
        match (inwards, outwards) {
            (Ok(_), Ok(_)) if connection.inwards.ended && connection.outwards.ended => self.remove(index),
            (Ok(Waits::Event), Ok(Waits::Event)) => {}
            (Ok(_), Ok(_)) => {
                connection.queued = true;
                self.queue.push_back(index);
            }
            (Err(_), _) | (_, Err(_)) => {
                reset(&connection.client);
                reset(&connection.server);
                self.remove(index);
            }
        }
    }
}

/// Begins a connection to the container; the flag says whether it stands already.
fn dial(client: &OwnedFd, port: u16) -> Result<(OwnedFd, bool)> {
    // Bytes are passed on as they come: what the sender gathers is its own choice.
    sockopt::set_tcp_nodelay(client, true)?;
    sockopt::set_socket_keepalive(client, true)?;
    sockopt::set_tcp_keepidle(client, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(client, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(client, KEEPALIVE_PROBES)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let server = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    sockopt::set_tcp_nodelay(&server, true)?;
    match rustix::net::connect(&server, &SocketAddrV4::new(CONTAINER_ADDRESS, port)) {
        Ok(()) => Ok((server, true)),
        Err(Errno::INPROGRESS) => Ok((server, false)),
        Err(error) => Err(error),
    }
}

/// Makes the close of `socket` a reset, so that the peer learns of an error and not of an ordinary end.
fn reset(socket: &OwnedFd) {
    // On a socket whose connection has gone already there is nothing to reset.
    let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}

/// Raises the soft limit of descriptors to the hard one and returns it.
fn raise_descriptor_limit() -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let current = match rustix::process::setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    current.unwrap_or(u64::MAX)
}
