//! Probes that need an answer: ICMP echo (RFC 792) and TCP, sent by the kernel of the namespace they start in.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    path::Path,
    process, thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use crate::{
    command::Tool,
    datapath::patience,
    error::{BedError, Outcome},
    matrix::Place,
    netns,
    threads::joined,
};

/// How often an unanswered echo request is repeated.
const REPEAT: Duration = Duration::from_millis(100);

/// A raw ICMP socket of the namespace at `path`. Reads give packets from the IP header on.
pub(crate) fn icmp_socket(path: &Path) -> Result<UdpSocket, BedError> {
    let opened = netns::inside(path, || {
        socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp)
    })?;
    let fd: OwnedFd = opened.map_err(|e| BedError::system("open an ICMP socket", e))?;
    // Sending to and receiving from an IPv4 address is all that the type is used for.
    Ok(UdpSocket::from(fd))
}

/// An echo request.
pub(crate) fn echo_request(identifier: u16, sequence: u16) -> Vec<u8> {
    let mut packet = vec![8, 0, 0, 0];
    packet.extend(identifier.to_be_bytes());
    packet.extend(sequence.to_be_bytes());
    packet.extend([0x5a; 32]);
    let sum = checksum(&packet);
    packet.splice(2..4, sum.to_be_bytes());
    packet
}

/// The identifier and sequence number, if an IP packet is an echo reply.
pub(crate) fn echo_reply(packet: &[u8]) -> Option<(u16, u16)> {
    let header_bytes = usize::from(packet.first()? & 0x0f) * 4;
    let icmp = packet.get(header_bytes..)?;
    let word = |at: usize| Some(u16::from_be_bytes([*icmp.get(at)?, *icmp.get(at + 1)?]));
    (icmp.first() == Some(&0)).then_some(())?;
    Some((word(4)?, word(6)?))
}

/// The Internet checksum (RFC 1071).
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        let high = pair.first().copied().unwrap_or(0);
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u32::from(u16::from_be_bytes([high, low]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

/// Which of `targets` answer an echo request from the namespace `from` within `window`. Returns early when all do.
pub fn reach(from: &Path, targets: &[Ipv4Addr], window: Duration) -> Result<Vec<bool>, BedError> {
    let socket = icmp_socket(from)?;
    let system = |e| BedError::system("probe with ICMP echo", e);
    socket.set_read_timeout(Some(Duration::from_millis(10))).map_err(system)?;
    // Unlike any other prober's: raw sockets see all replies to the namespace.
    let identifier = u16::try_from(process::id() & 0x7fff).unwrap_or(1);
    let mut answered = vec![false; targets.len()];
    let end = Instant::now() + window;
    let mut due = Instant::now();
    let mut packet = [0; 2048];
    while Instant::now() < end && answered.contains(&false) {
        if Instant::now() >= due {
            for (sequence, target) in (0..).zip(targets) {
                if answered.get(usize::from(sequence)) == Some(&false) {
                    // No route and the like is an answer too: not reachable.
                    let _ = socket.send_to(&echo_request(identifier, sequence), (*target, 0));
                }
            }
            due += REPEAT;
        }
        let Ok((length, SocketAddr::V4(sender))) = socket.recv_from(&mut packet) else { continue };
        let Some((id, sequence)) = packet.get(..length).and_then(echo_reply) else { continue };
        let at = usize::from(sequence);
        if id == identifier
            && targets.get(at) == Some(sender.ip())
            && let Some(seen) = answered.get_mut(at)
        {
            *seen = true;
        }
    }
    Ok(answered)
}

/// Whether one place answers another's echo request, waiting up to a second.
pub fn ping(from: &Path, to: Ipv4Addr) -> Result<bool, BedError> {
    Ok(reach(from, &[to], patience(Duration::from_secs(1)))?.contains(&true))
}

/// Whether `ping` with don't-fragment passes for an IP packet of exactly `bytes`.
pub fn passes_unfragmented(from: &Path, to: Ipv4Addr, bytes: u32) -> Result<bool, BedError> {
    // 20 bytes of IP header and 8 of ICMP surround the payload.
    let payload = bytes.saturating_sub(28).to_string();
    let output = Tool::new("ping")
        .inside(from)
        .args(["-n", "-q", "-M", "do", "-c", "3", "-i", "0.1", "-W", "1", "-s", &payload, &to.to_string()])
        .output()?;
    Ok(output.status.success())
}

/// Sends `length` bytes by TCP from one place to another, which sends them back, and compares every byte.
pub fn tcp_echo(from: &Place, to: &Place, length: usize) -> Outcome {
    let system = |e| BedError::system(format!("TCP from {} to {}", from.name, to.name), e);
    let listener =
        netns::inside(&to.netns, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))?.map_err(system)?;
    let port = listener.local_addr().map_err(system)?.port();
    listener.set_nonblocking(true).map_err(system)?;
    let limit = patience(Duration::from_secs(10));
    let end = Instant::now() + limit;
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut stream = loop {
                match listener.accept() {
                    Ok((stream, _)) => break stream,
                    Err(_) if Instant::now() < end => thread::sleep(Duration::from_millis(2)),
                    Err(_) => return,
                }
            };
            let served = stream
                .set_nonblocking(false)
                .and_then(|()| stream.set_read_timeout(Some(limit)))
                .and_then(|()| stream.set_write_timeout(Some(limit)));
            let mut chunk = [0; 16384];
            while served.is_ok() {
                match stream.read(&mut chunk) {
                    Ok(0) | Err(_) => return,
                    Ok(n) => {
                        if stream.write_all(chunk.get(..n).unwrap_or_default()).is_err() {
                            return;
                        }
                    }
                }
            }
        });
        let target = SocketAddr::V4(SocketAddrV4::new(to.address, port));
        let mut stream =
            netns::inside(&from.netns, || TcpStream::connect_timeout(&target, limit))?.map_err(system)?;
        stream.set_read_timeout(Some(limit)).map_err(system)?;
        stream.set_write_timeout(Some(limit)).map_err(system)?;
        let sent: Vec<u8> = (0..=250).cycle().take(length).collect();
        let mut reader = stream.try_clone().map_err(system)?;
        let sending = scope.spawn({
            let sent = sent.clone();
            move || stream.write_all(&sent).and_then(|()| stream.shutdown(std::net::Shutdown::Write))
        });
        let mut back = Vec::new();
        reader.read_to_end(&mut back).map_err(system)?;
        joined(sending).map_err(system)?;
        if back == sent {
            Ok(())
        } else {
            let what = format!("TCP from {} to {}", from.name, to.name);
            Err(BedError::answer(what, format!("{} of {length} bytes came back as sent", back.len())))
        }
    })
}
