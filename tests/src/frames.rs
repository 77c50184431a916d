//! Ethernet frames of any content, sent and captured on a namespace's interface by packet sockets (packet(7)).

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::{
    libc,
    net::if_::if_nametoindex,
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket},
};

use crate::{
    error::{BedError, Outcome},
    netns,
    probe::checksum,
};

/// All hosts of a link.
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// A packet socket bound to one interface of a namespace.
fn packet_socket(netns: &Path, interface: &str) -> Result<UdpSocket, BedError> {
    let opened = netns::inside(netns, || -> io::Result<OwnedFd> {
        let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
        let index = if_nametoindex(interface)?;
        bind_packet(&fd, index)?;
        Ok(fd)
    })?;
    // Sending and receiving whole frames is all that the type is used for.
    opened
        .map(UdpSocket::from)
        .map_err(|e| BedError::system(format!("open a packet socket on {interface}"), e))
}

fn bind_packet(fd: &OwnedFd, interface_index: u32) -> io::Result<()> {
    // SAFETY: all of sockaddr_ll is plain integers, for which zero is valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET.cast_unsigned() as libc::c_ushort;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = interface_index.cast_signed();
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the address is a sockaddr_ll of `length` bytes that outlives the call.
    let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
    if bound == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends frames out of an interface, as they are.
pub fn send(netns: &Path, interface: &str, frames: &[Vec<u8>]) -> Outcome {
    let socket = packet_socket(netns, interface)?;
    for frame in frames {
        socket.send(frame).map_err(|e| BedError::system(format!("send a frame on {interface}"), e))?;
    }
    Ok(())
}

/// Which frames a capture keeps.
type Filter = Box<dyn Fn(&[u8]) -> bool + Send>;

/// Frames that arrive at, or leave, an interface.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Vec<u8>>>,
}

impl Capture {
    /// Starts to keep the frames that `filter` holds for.
    pub fn start(
        netns: &Path,
        interface: &str,
        filter: impl Fn(&[u8]) -> bool + Send + 'static,
    ) -> Result<Self, BedError> {
        let socket = packet_socket(netns, interface)?;
        socket
            .set_read_timeout(Some(Duration::from_millis(10)))
            .map_err(|e| BedError::system("set a read timeout", e))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let filter: Filter = Box::new(filter);
        let thread = thread::spawn(move || keep(&socket, &filter, &stopped));
        Ok(Self { stop, thread })
    }

    /// Waits for what is still under way and returns the frames that were kept.
    pub fn stop(self, linger: Duration) -> Vec<Vec<u8>> {
        thread::sleep(linger);
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn keep(socket: &UdpSocket, filter: &Filter, stopped: &AtomicBool) -> Vec<Vec<u8>> {
    let mut kept = Vec::new();
    let mut buffer = vec![0; 65_536];
    while !stopped.load(Ordering::Relaxed) {
        let Ok(length) = socket.recv(&mut buffer) else { continue };
        if let Some(frame) = buffer.get(..length).filter(|frame| filter(frame)) {
            kept.push(frame.to_vec());
        }
    }
    kept
}

/// An Ethernet frame.
pub fn ethernet(destination: [u8; 6], source: [u8; 6], ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(14 + payload.len());
    frame.extend(destination);
    frame.extend(source);
    frame.extend(ether_type.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IPv4 packet (RFC 791) with a header of 20 bytes.
pub fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let total = u16::try_from(20 + payload.len()).unwrap_or(u16::MAX);
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 1, 0, 0, 64, protocol, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let sum = checksum(&packet);
    packet.splice(10..12, sum.to_be_bytes());
    packet.extend(payload);
    packet
}

/// A UDP datagram (RFC 768) without a checksum, which IPv4 allows.
pub fn udp(source_port: u16, destination_port: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
    let mut datagram = Vec::with_capacity(8 + payload.len());
    datagram.extend(source_port.to_be_bytes());
    datagram.extend(destination_port.to_be_bytes());
    datagram.extend(length.to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    datagram
}

/// An ICMP echo request (RFC 792).
pub fn icmp_echo(identifier: u16, sequence: u16) -> Vec<u8> {
    crate::probe::echo_request(identifier, sequence)
}

/// The payload of a VXLAN datagram (RFC 7348): header with the VNI, then the inner frame.
pub fn vxlan(vni: u32, inner: &[u8]) -> Vec<u8> {
    let mut payload = vec![0x08, 0, 0, 0];
    payload.extend((vni << 8).to_be_bytes());
    payload.extend(inner);
    payload
}

/// An ARP message (RFC 826); `operation` 1 asks, 2 answers.
pub fn arp(operation: u16, sender: ([u8; 6], Ipv4Addr), target: ([u8; 6], Ipv4Addr)) -> Vec<u8> {
    let mut message = vec![0, 1, 8, 0, 6, 4];
    message.extend(operation.to_be_bytes());
    message.extend(sender.0);
    message.extend(sender.1.octets());
    message.extend(target.0);
    message.extend(target.1.octets());
    message
}

/// Whether a frame holds these bytes anywhere: how a test knows its own frames again.
pub fn contains(frame: &[u8], mark: &[u8]) -> bool {
    frame.windows(mark.len()).any(|window| window == mark)
}
