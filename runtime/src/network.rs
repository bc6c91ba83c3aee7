//! The loopback device of a new network namespace: up, with the address that the port forwarder dials.

use std::io;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// The container's second loopback address. The forwarder dials this one, so a program that trusts 127.0.0.1 does not
/// take what comes in from outside for its own.
pub const FORWARD_ADDRESS: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 88, 0, 2);

/// Index of `lo` in every network namespace.
const LOOPBACK: u32 = 1;

/// Brings `lo` up and adds [`FORWARD_ADDRESS`].
pub(crate) fn loopback() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // Protocol 0 is NETLINK_ROUTE.
        None,
    )?;
    // struct ifinfomsg: family, pad, type, index, flags, change.
    let mut up = vec![0u8; 4];
    up.extend(LOOPBACK.to_ne_bytes());
    up.extend((libc::IFF_UP as u32).to_ne_bytes());
    up.extend((libc::IFF_UP as u32).to_ne_bytes());
    request(&socket, libc::RTM_NEWLINK, 0, &up)?;

    // struct ifaddrmsg: family, prefix length, flags, scope (host), index; then the attributes.
    let mut add = vec![libc::AF_INET as u8, 32, 0, libc::RT_SCOPE_HOST];
    add.extend(LOOPBACK.to_ne_bytes());
    for kind in [libc::IFA_LOCAL, libc::IFA_ADDRESS] {
        add.extend(8u16.to_ne_bytes());
        add.extend(kind.to_ne_bytes());
        add.extend(FORWARD_ADDRESS.octets());
    }
    request(&socket, libc::RTM_NEWADDR, libc::NLM_F_CREATE as u16, &add)
}

/// Sends one request and reads the kernel's answer, which is an error number.
fn request(socket: &rustix::fd::OwnedFd, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    const HEADER: usize = 16;
    let mut message = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((libc::NLM_F_REQUEST as u16 | libc::NLM_F_ACK as u16 | flags).to_ne_bytes());
    message.extend([0u8; 8]);
    message.extend(body);
    rustix::net::send(socket, &message, SendFlags::empty())?;

    let mut answer = [0u8; 256];
    let (length, _) = rustix::net::recv(socket, &mut answer, RecvFlags::empty())?;
    let errno = answer
        .get(HEADER..length.min(HEADER + 4))
        .and_then(|bytes| bytes.try_into().ok());
    match errno.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
