//! How a node registers, and what it does when its address or its name has changed.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::{NodeRecord, SettledSubnet};

/// What the store has under one node address. A record that does not parse counts as none: the controller will put it
/// right.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Registered {
    /// The record that people edit.
    pub record: Option<NodeRecord>,
    /// What the controller has granted.
    pub settled: Option<SettledSubnet>,
}

/// What a node has to do to have a subnet.
#[derive(Debug, Clone, PartialEq)]
pub enum Claim {
    /// Nothing: this is its subnet.
    Held(SettledSubnet),
    /// Nothing but wait: the record is there and the controller has yet to answer it.
    Waiting,
    /// The controller has refused the record. These writes ask again, as in [`Claim::Write`]: to be done after a pause
    /// (a subnet may have become free), or the node and the controller would go round in circles.
    Refused {
        /// The record's Error.
        error: String,
        /// To ask again.
        writes: Vec<Write>,
    },
    /// Write all of this in one transaction that holds only if every key in it is as it was read.
    Write {
        /// What for.
        reason: Reason,
        /// One for every key that the decision rests on, also where nothing changes there.
        writes: Vec<Write>,
    },
}

/// Why a node writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It asks for a subnet.
    Register,
    /// Its record was deleted (or damaged) before the controller took the grant back: it puts it in again.
    Restore,
    /// Its own address changed: its subnet follows its name.
    Move {
        /// The address it had.
        from: Ipv4Addr,
    },
    /// Its address changed to one that another node had: the two exchange places, and both keep their subnets. Should
    /// the other one have yet another address by now, it will move on from there by itself.
    Swap {
        /// The other node.
        with: String,
        /// The address this node had.
        from: Ipv4Addr,
    },
    /// Its address is registered for a name that is not its own, and it has no record elsewhere: it was renamed, or the
    /// other node is gone and its address was given to this one. It takes over record and subnet. While the other
    /// node is alive (it has moved and not claimed its new place yet), do not write this but wait.
    TakeOver {
        /// The name in the record.
        from: String,
    },
}

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Which key.
    pub key: Key,
    /// The text to store; `None` deletes the key (or, where there is none, only asks that there be none).
    pub value: Option<Vec<u8>>,
}

/// The keys of one node address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The record that people edit.
    Record(Ipv4Addr),
    /// The settled copy.
    Settled(Ipv4Addr),
}

/// Decides what the node `host` with the underlay address `host_ip` has to write, given all that is registered.
pub fn claim(registered: &BTreeMap<Ipv4Addr, Registered>, host: &str, host_ip: Ipv4Addr) -> Claim {
    let nothing = Registered::default();
    let here = registered.get(&host_ip).unwrap_or(&nothing);
    let places = || registered.iter().filter(|(ip, there)| **ip != host_ip && there.host() == Some(host));
    let granted = places().find(|(_, there)| there.settled.is_some());

    match here.host() {
        Some(owner) if owner == host => match (&here.settled, &here.record, granted) {
            (Some(settled), Some(_), _) => Claim::Held(settled.clone()),
            (Some(_), None, _) => Claim::Write { reason: Reason::Restore, writes: here.writes_at(host_ip) },
            (None, _, Some((from, there))) => move_to(host_ip, *from, there),
            (None, Some(record), None) => answer_to(record, host_ip),
            (None, None, None) => register(host, host_ip),
        },
        Some(owner) => match granted.or_else(|| places().next()) {
            Some((from, there)) => {
                let mut writes = there.writes_at(host_ip);
                writes.extend(here.writes_at(*from));
                Claim::Write { reason: Reason::Swap { with: owner.to_owned(), from: *from }, writes }
            }
            None if here.settled.is_some() => {
                let reason = Reason::TakeOver { from: owner.to_owned() };
                Claim::Write { reason, writes: here.renamed(host).writes_at(host_ip) }
            }
            // The other one has nothing to lose, and will register where it is now.
            None => register(host, host_ip),
        },
        None => match granted.or_else(|| places().next()) {
            Some((from, there)) => move_to(host_ip, *from, there),
            None => register(host, host_ip),
        },
    }
}

fn register(host: &str, host_ip: Ipv4Addr) -> Claim {
    let asking = Registered { record: Some(NodeRecord::new(host, host_ip)), settled: None };
    Claim::Write { reason: Reason::Register, writes: asking.writes_at(host_ip) }
}

fn move_to(host_ip: Ipv4Addr, from: Ipv4Addr, there: &Registered) -> Claim {
    let mut writes = there.writes_at(host_ip);
    writes.extend(Registered::default().writes_at(from));
    Claim::Write { reason: Reason::Move { from }, writes }
}

/// The node's record is there, without a grant.
fn answer_to(record: &NodeRecord, host_ip: Ipv4Addr) -> Claim {
    if record.assign || record.subnet.is_some() {
        return Claim::Waiting;
    }
    let asking = Registered { record: Some(record.asking()), settled: None };
    let writes = asking.writes_at(host_ip);
    match record.error.clone() {
        Some(error) => Claim::Refused { error, writes },
        None => Claim::Write { reason: Reason::Register, writes },
    }
}

impl Registered {
    /// Whose this is: what was granted counts before what a person may have edited.
    fn host(&self) -> Option<&str> {
        let granted = self.settled.as_ref().map(|settled| settled.host.as_str());
        granted.or_else(|| self.record.as_ref().map(|record| record.host.as_str()))
    }

    fn renamed(&self, host: &str) -> Registered {
        let mut renamed = self.clone();
        if let Some(record) = &mut renamed.record {
            record.host = host.to_owned();
        }
        if let Some(settled) = &mut renamed.settled {
            settled.host = host.to_owned();
        }
        renamed
    }

    /// Both keys of an address, so that this is registered there. The record of a granted place is made anew from the
    /// grant: an edit that nobody has judged yet does not move along.
    fn writes_at(&self, host_ip: Ipv4Addr) -> Vec<Write> {
        let settled = self.settled.as_ref().map(|settled| settled.moved_to(host_ip));
        let record = match &settled {
            Some(settled) => Some(settled.record(None)),
            None => self.record.as_ref().map(|record| record.moved_to(host_ip)),
        };
        vec![
            Write { key: Key::Record(host_ip), value: record.map(|record| record.to_json()) },
            Write { key: Key::Settled(host_ip), value: settled.map(|settled| settled.to_json()) },
        ]
    }
}
