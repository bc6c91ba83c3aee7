//! Packets between the processes of a launch, and between the spawner and its clients.
//!
//! A packet is one kind byte, a payload of at most [`LIMIT`] bytes, and descriptors. Sequenced-packet sockets keep the
//! borders, so there is no length to trust.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// A payload's longest: an error line, never a document (documents travel as descriptors).
pub(crate) const LIMIT: usize = 1024;

/// Descriptors in one packet: specification, status, standard streams, and those of `--preserve-fds`.
pub(crate) const MAX_FDS: usize = 64;

/// One packet as received.
#[derive(Debug, Default)]
pub(crate) struct Packet {
    pub(crate) kind: u8,
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

impl Packet {
    /// The payload as text, for errors and warnings.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }

    /// The payload as numbers in the machine's order.
    pub(crate) fn number(&self, index: usize) -> Option<i32> {
        let bytes = self.payload.get(index * 4..index * 4 + 4)?;
        Some(i32::from_ne_bytes(bytes.try_into().ok()?))
    }
}

/// Two connected ends, both close-on-exec.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Sends one packet; a peer that is gone is an error, never a signal. The payload is cut at [`LIMIT`].
pub(crate) fn send(to: impl AsFd, kind: u8, payload: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    let payload = payload.get(..LIMIT).unwrap_or(payload);
    let parts = [IoSlice::new(std::slice::from_ref(&kind)), IoSlice::new(payload)];
    loop {
        match rustix::net::sendmsg(&to, &parts, &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Sends a document with a descriptor over a stream socket of somebody else's.
pub(crate) fn send_stream(to: impl AsFd, document: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let fds = [fd];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    let mut rest = document;
    while !rest.is_empty() {
        match rustix::net::sendmsg(&to, &[IoSlice::new(rest)], &mut control, SendFlags::NOSIGNAL) {
            Ok(sent) => {
                rest = rest.get(sent..).unwrap_or_default();
                // The descriptor goes with the first byte.
                control.clear();
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Sends numbers as [`Packet::number`] reads them.
pub(crate) fn send_numbers(to: impl AsFd, kind: u8, numbers: &[i32]) -> io::Result<()> {
    let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_ne_bytes()).collect();
    send(to, kind, &bytes, &[])
}

/// Receives one packet; `None` at the end, when every other holder of the peer's end is gone.
pub(crate) fn receive(from: impl AsFd) -> io::Result<Option<Packet>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = [0u8; LIMIT + 1];
    let message = loop {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        match rustix::net::recvmsg(&from, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => break message,
            Err(rustix::io::Errno::INTR) => {}
            // A peer closed with unread data. That is told once, and before what it had sent: then comes that, then the end.
            Err(rustix::io::Errno::CONNRESET) => {}
            Err(e) => return Err(e.into()),
        }
    };
    let mut fds = Vec::new();
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = ancillary {
            fds.extend(received);
        }
    }
    if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    let received = buffer.get(..message.bytes).and_then(<[u8]>::split_first);
    Ok(received.map(|(kind, payload)| Packet {
        kind: *kind,
        payload: payload.to_vec(),
        fds,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_keep_their_borders_and_descriptors() {
        let (a, b) = pair().unwrap();
        send(&a, b'x', b"one", &[a.as_fd()]).unwrap();
        send_numbers(&a, b'n', &[7, -1]).unwrap();
        send(&a, b'l', &[1; LIMIT + 9], &[]).unwrap();
        let first = receive(&b).unwrap().unwrap();
        assert_eq!(
            (first.kind, first.text().as_str(), first.fds.len()),
            (b'x', "one", 1)
        );
        let second = receive(&b).unwrap().unwrap();
        assert_eq!(
            (second.number(0), second.number(1), second.number(2)),
            (Some(7), Some(-1), None)
        );
        assert_eq!(receive(&b).unwrap().unwrap().payload.len(), LIMIT);
        drop((a, first));
        assert!(receive(&b).unwrap().is_none());
    }
}
