//! Macvlan links: interfaces with a hardware address of their own on the network of another link, their master
//! (`ip-link(8)`, type macvlan).

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::fd::AsRawFd;
use std::str::FromStr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoMacVlan, LinkAttribute, LinkInfo, LinkMessage, MacVlanMode,
};
use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::frame::MacText;
use crate::link::{Link, check_name, up_message};
use crate::netns::NetNs;
use crate::socket::Netlink;

const OPERATION: &str = "create macvlan";

/// Who the macvlans of one master can reach beside the network itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MacvlanMode {
    /// One another, at once.
    Bridge,
    /// Nobody on this master, even if the switch sends their packets back.
    Private,
    /// One another, if the switch sends their packets back (IEEE 802.1Qbg, "hairpin").
    Vepa,
    /// There is only one: it takes the master over, with its hardware address.
    Passthru,
}

impl MacvlanMode {
    const ALL: [Self; 4] = [Self::Bridge, Self::Private, Self::Vepa, Self::Passthru];

    /// As `ip link` writes it: `bridge`, `private`, `vepa`, `passthru`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Private => "private",
            Self::Vepa => "vepa",
            Self::Passthru => "passthru",
        }
    }

    /// The kernel's number (`enum macvlan_mode` of linux/if_link.h); none of ours for its mode `source`.
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| u32::from(mode.kernel()) == number)
    }

    const fn kernel(self) -> MacVlanMode {
        match self {
            Self::Bridge => MacVlanMode::Bridge,
            Self::Private => MacVlanMode::Private,
            Self::Vepa => MacVlanMode::Vepa,
            Self::Passthru => MacVlanMode::Passthrough,
        }
    }
}

impl fmt::Display for MacvlanMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that names no mode of a macvlan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no mode of a macvlan: it is one of bridge, private, vepa and passthru")]
pub struct UnknownMacvlanMode(String);

impl FromStr for MacvlanMode {
    type Err = UnknownMacvlanMode;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.name() == text)
            .ok_or_else(|| UnknownMacvlanMode(text.to_owned()))
    }
}

/// A macvlan to be made.
#[derive(Debug, Clone, Copy)]
pub struct Macvlan<'a> {
    /// Its name, in the namespace where it will be.
    pub name: &'a str,
    /// The index of the link whose network it joins, in the handle's namespace.
    pub master: u32,
    /// The namespace where it will be, and a handle on it; `None`: the namespace of `master`.
    pub netns: Option<(&'a NetNs, &'a Netlink)>,
    /// Who it can reach.
    pub mode: MacvlanMode,
    /// Its hardware address; random if not given. In mode passthru it has its master's.
    pub mac: Option<[u8; 6]>,
    /// In bytes; its master's if not given, and at most that.
    pub mtu: Option<u32>,
    /// Whether it is up from the start. One that is down sends nothing, and its hardware address need not be settled
    /// until it is [raised](Netlink::raise_macvlan).
    pub up: bool,
}

impl Netlink {
    /// Makes a macvlan straight in its namespace, in one request; before Linux 6.15 it takes two if a link of the
    /// handle's namespace has the same name, as `eth0` often does. Returns the link as it is there.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name or address that cannot be. [`Error::Refused`], and nothing was made, with
    /// `EEXIST` if the name is taken, `ENODEV` if there is no such master, `EBUSY` if the master is a port of a
    /// switch, `EADDRINUSE` if the address is taken on this master, and `EINVAL` for an MTU above the master's or
    /// when passthru cannot share the master.
    pub fn create_macvlan(&self, macvlan: &Macvlan<'_>) -> Result<Link> {
        check_name(OPERATION, macvlan.name)?;
        let reason = match macvlan.mac {
            Some(_) if macvlan.mode == MacvlanMode::Passthru => {
                Some("in mode passthru it has its master's hardware address and none of its own")
            }
            mac => mac.and_then(impossible_mac),
        };
        if let Some(reason) = reason {
            return Err(Error::Invalid { operation: OPERATION, object: macvlan.name.to_owned(), reason });
        }
        let there = macvlan.netns.map_or(self, |(_, netlink)| netlink);
        match self.request_macvlan(macvlan, macvlan.name, macvlan.up) {
            Err(error)
                if error.errno() == Some(Errno::EEXIST) && there.link_by_name(macvlan.name)?.is_none() =>
            {
                self.create_under_another_name(macvlan, there)
            }
            other => other.and_then(|()| find(there, macvlan.name)),
        }
        .map_err(|error| self.name_the_culprit(error, macvlan))
    }

    /// Older kernels look for a link of this name in the namespace where they are asked.
    fn create_under_another_name(&self, macvlan: &Macvlan<'_>, there: &Netlink) -> Result<Link> {
        let name = passing_name();
        self.request_macvlan(macvlan, &name, false)?;
        let link = find(there, &name)?;
        let named = if macvlan.up {
            there.set_name_and_up(link.index, macvlan.name)
        } else {
            there.set_name(link.index, macvlan.name)
        };
        match named {
            Ok(()) => find(there, macvlan.name),
            Err(error) => {
                there.delete_link(link.index)?;
                Err(error)
            }
        }
    }

    /// Gives a macvlan that is down a hardware address, if one is given, and sets it up, in one request. Returns the
    /// link as it is then. What failed can be done again.
    ///
    /// # Errors
    /// [`Error::Refused`] with `EADDRINUSE` if the address is taken on its master; the macvlan is then still down.
    /// [`Error::Invalid`] for an address that cannot be.
    pub fn raise_macvlan(&self, index: u32, mac: Option<[u8; 6]>) -> Result<Link> {
        const OPERATION: &str = "set up macvlan";
        if let Some(reason) = mac.and_then(impossible_mac) {
            return Err(Error::Invalid { operation: OPERATION, object: format!("link {index}"), reason });
        }
        self.set_up_with(index, mac).map_err(|error| match (error, mac) {
            (Error::Refused { object, errno: Errno::EADDRINUSE, .. }, Some(mac)) => {
                let mac = MacText(mac);
                let message = format!("its master or another macvlan there has the address {mac} already");
                Error::Refused { operation: OPERATION, object, errno: Errno::EADDRINUSE, message }
            }
            (error, _) => error,
        })?;
        self.link_by_index(index)?.ok_or_else(|| Error::vanished(OPERATION, format!("link {index}")))
    }

    fn request_macvlan(&self, macvlan: &Macvlan<'_>, name: &str, up: bool) -> Result<()> {
        let mut message = if up { up_message() } else { LinkMessage::default() };
        message.attributes =
            vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::Link(macvlan.master)];
        message.attributes.extend(macvlan.netns.map(|(netns, _)| LinkAttribute::NetNsFd(netns.as_raw_fd())));
        message.attributes.extend(macvlan.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
        message.attributes.extend(macvlan.mtu.map(LinkAttribute::Mtu));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::MacVlan),
            LinkInfo::Data(InfoData::MacVlan(vec![InfoMacVlan::Mode(macvlan.mode.kernel())])),
        ]));
        let object = format_args!("{} on link {}", macvlan.name, macvlan.master);
        self.change(OPERATION, &object, RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// The kernel tells most of this by a number alone.
    fn name_the_culprit(&self, error: Error, macvlan: &Macvlan<'_>) -> Error {
        let Error::Refused { object, errno, message, .. } = error else { return error };
        let (object, reason) = match self.link_by_index(macvlan.master) {
            Ok(Some(master)) => {
                let object = format!("{} on {}", macvlan.name, master.name);
                (object, reason(errno, macvlan, &master))
            }
            Ok(None) => (object, Some(format!("there is no link {}", macvlan.master))),
            Err(_) => (object, None),
        };
        let words = [Some(message).filter(|message| !message.is_empty()), reason];
        let message = words.into_iter().flatten().collect::<Vec<_>>().join(": ");
        Error::Refused { operation: OPERATION, object, errno, message }
    }
}

/// The link that was just made.
fn find(netlink: &Netlink, name: &str) -> Result<Link> {
    netlink.link_by_name(name)?.ok_or_else(|| Error::vanished(OPERATION, name))
}

/// A name that nobody else thinks of.
fn passing_name() -> String {
    format!("mv{:012x}", RandomState::new().build_hasher().finish() >> 16)
}

/// What a macvlan's hardware address cannot be.
fn impossible_mac(mac: [u8; 6]) -> Option<&'static str> {
    if mac == [0; 6] {
        Some("its hardware address cannot be all zeroes")
    } else if mac[0] & 1 != 0 {
        Some("its hardware address cannot be a group's")
    } else {
        None
    }
}

fn reason(errno: Errno, macvlan: &Macvlan<'_>, master: &Link) -> Option<String> {
    let name = &master.name;
    Some(match errno {
        Errno::EEXIST => format!("a link {} is there already", macvlan.name),
        Errno::EBUSY => match master.master {
            Some(of) => format!("{name} is a port of link {of} and can carry no macvlan"),
            None => format!("{name} hands its packets to something else and can carry no macvlan"),
        },
        Errno::EADDRINUSE => match macvlan.mac {
            Some(mac) => format!("{name} or another macvlan on it has the address {} already", MacText(mac)),
            None => return None,
        },
        Errno::EINVAL => match macvlan.mtu {
            Some(mtu) if mtu > master.mtu => {
                format!("an MTU of {mtu} bytes is more than the {} of {name}", master.mtu)
            }
            _ if macvlan.mode == MacvlanMode::Passthru => {
                format!("passthru needs {name} for itself, and another macvlan is on it")
            }
            _ => format!("{name} is taken by a macvlan in mode passthru, or is no Ethernet link"),
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_written_as_they_are_read() {
        for mode in MacvlanMode::ALL {
            assert_eq!(mode.to_string().parse(), Ok(mode));
            assert_eq!(MacvlanMode::from_number(mode.kernel().into()), Some(mode));
        }
        assert_eq!(MacvlanMode::from_number(16), None);
        let error = "Bridge".parse::<MacvlanMode>().unwrap_err().to_string();
        assert!(error.starts_with("\"Bridge\" is no mode of a macvlan"), "{error}");
    }
}
