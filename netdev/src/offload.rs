//! Checksum offload: who fills in the checksums of packets.

use std::os::fd::AsRawFd;
use std::ptr;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::error::{Error, Result};

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

nix::ioctl_readwrite_bad!(siocethtool, libc::SIOCETHTOOL, libc::ifreq);

/// Has the kernel fill in the checksums of what is sent by a link of the calling thread's network namespace, as
/// `ethtool -K LINK tx off` does; TCP segmentation offload, which needs it,
/// goes off with it.
///
/// Packets that stay on one machine usually travel with unfilled checksums. Who takes them out of the kernel, as the
/// userspace datapath of Open vSwitch does, hands them on to others who drop them.
pub fn checksum_offload_off(name: &str) -> Result<()> {
    /// Of linux/ethtool.h.
    const ETHTOOL_STXCSUM: u32 = 0x17;
    let refused = |errno| Error::Refused {
        operation: "switch off checksum offload of link",
        object: name.to_owned(),
        errno,
        message: String::new(),
    };

    // SAFETY: ifreq is plain data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0: the name's closing NUL.
    if name.is_empty() || name.len() >= request.ifr_name.len() || name.contains('\0') {
        return Err(refused(Errno::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let mut value = EthtoolValue { command: ETHTOOL_STXCSUM, data: 0 };
    request.ifr_ifru.ifru_data = ptr::from_mut(&mut value).cast();
    let socket =
        socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).map_err(refused)?;
    // SAFETY: the request holds a name that ends in NUL and points to a live ethtool_value, as the command wants.
    unsafe { siocethtool(socket.as_raw_fd(), &mut request) }.map_err(refused)?;
    Ok(())
}
