//! Packet sockets: whole frames to and from one link (packet(7)).

use std::io;
use std::mem::size_of;
use std::net::{Ipv6Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::thread;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, bind, recvfrom, send, socket,
};

use crate::frame::EtherType;
use crate::ndp;

/// More than the packets that are read here have; what is longer is cut off.
const FRAME_BYTES: usize = 512;

/// Sends and receives without waiting.
#[derive(Debug)]
pub(crate) struct PacketSocket {
    socket: OwnedFd,
}

impl PacketSocket {
    /// Opens a socket in the calling thread's network namespace; it receives nothing yet.
    pub(crate) fn open() -> Result<Self, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
        Ok(Self { socket })
    }

    /// Sends by this link from now on, and receives frames of this type from it; `None`: receives nothing.
    pub(crate) fn bind(&self, link: u32, receive: Option<EtherType>) -> Result<(), Errno> {
        // SAFETY: sockaddr_ll is plain data, for which all zeroes is a valid value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = receive.map_or(0, |ether_type| (ether_type as u16).to_be());
        address.sll_ifindex = i32::try_from(link).map_err(|_| Errno::ENODEV)?;
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the pointer is to a whole sockaddr_ll of this length, which is copied.
        let address = unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) };
        bind(self.socket.as_raw_fd(), &address.ok_or(Errno::EINVAL)?)
    }

    /// Has the kernel pass on neighbour discovery alone of all IPv6 packets: a busy link has many others.
    pub(crate) fn only_neighbour_discovery(&self) -> Result<(), Errno> {
        /// Where in a frame the two bytes are: IPv6's next header, and the type after IPv6's 40 bytes.
        const NEXT_HEADER: u32 = 14 + 6;
        const MESSAGE_TYPE: u32 = 14 + 40;
        const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
        const JUMP_IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
        let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
        let mut steps = [
            step(LOAD_BYTE, 0, 0, NEXT_HEADER),
            step(JUMP_IF_EQUAL, 0, 4, ndp::ICMPV6.into()),
            step(LOAD_BYTE, 0, 0, MESSAGE_TYPE),
            step(JUMP_IF_EQUAL, 1, 0, ndp::SOLICITATION.into()),
            step(JUMP_IF_EQUAL, 0, 1, ndp::ADVERTISEMENT.into()),
            step(RETURN, 0, 0, FRAME_BYTES as u32),
            step(RETURN, 0, 0, 0),
        ];
        let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
        // SAFETY: the option takes a sock_fprog of this size; it points to as many steps as it says, and the kernel
        // copies them.
        let done = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const program).cast(),
                size_of::<libc::sock_fprog>() as libc::socklen_t,
            )
        };
        Errno::result(done).map(|_| ())
    }

    pub(crate) fn send(&self, frame: &[u8]) -> Result<(), Errno> {
        send(self.socket.as_raw_fd(), frame, MsgFlags::empty()).map(|_| ())
    }

    /// The next frame, if there is one; an empty one in place of one that was for somebody else.
    ///
    /// For somebody else are also the frames of a VLAN that this link has no part in: a card may have taken the tag
    /// off, and then the frame itself looks like any other.
    pub(crate) fn receive(&self) -> Result<Option<Vec<u8>>, Errno> {
        let mut frame = vec![0; FRAME_BYTES];
        match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut frame) {
            Ok((_, Some(from))) if from.pkttype() == libc::PACKET_OTHERHOST => Ok(Some(Vec::new())),
            Ok((length, _)) => {
                frame.truncate(length);
                Ok(Some(frame))
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Closes packet sockets on a thread of their own: the kernel waits some 10 ms for all CPUs to be done with each.
pub(crate) fn close_aside(sockets: impl Send + 'static) {
    // Without a thread they are closed here.
    let _ = thread::Builder::new().name("close".to_owned()).spawn(move || drop(sockets));
}

/// Membership of multicast groups on one link, for as long as this lives: the link passes their packets on, and
/// switches that keep count of members are told (MLD, RFC 3810).
#[derive(Debug)]
pub(crate) struct Groups {
    socket: UdpSocket,
}

impl Groups {
    /// Opens a socket in the calling thread's network namespace. It has no port, so it receives nothing.
    pub(crate) fn open() -> Result<Self, Errno> {
        let socket = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(Self { socket: socket.into() })
    }

    pub(crate) fn join(&self, link: u32, group: Ipv6Addr) -> io::Result<()> {
        match self.socket.join_multicast_v6(&group, link) {
            // A member already: addresses can share their group.
            Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) => Ok(()),
            other => other,
        }
    }
}
