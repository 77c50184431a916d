//! Which addresses and which MAC address an attachment gets.

use std::net::IpAddr;

use serde_json::Map;

use crate::addresses::{Family, role_in};
use crate::book::{LeaseBook, LeaseChange, LeaseWrite};
use crate::{Attachment, Lease, Mac, PodName, mac_of_lease};

/// What an attachment asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Who asks.
    pub attachment: Attachment,
    /// The pod, where the runtime tells its name: it may have addresses kept for it.
    pub pod: Option<PodName>,
    /// Addresses to have, at most one of each family; for a family without one any will do.
    pub ips: Vec<IpAddr>,
    /// The MAC address to have.
    pub mac: Option<Mac>,
}

/// What to write for an attachment to hold its addresses.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The leases it then holds, one for each subnet of the segment and in that order, all with the same MAC address.
    pub leases: Vec<Lease>,
    /// One for each lease, to be carried out in one transaction that holds only if every key is as expected. Where the
    /// attachment holds an address already, nothing is written but the condition still counts: the view may be old.
    pub writes: Vec<LeaseWrite>,
}

/// Why an attachment cannot have what it asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Two addresses of one family.
    #[error("{first} and {second} were asked for, but an interface gets one {family} address of a segment")]
    FamilyTwice {
        /// One address.
        first: IpAddr,
        /// The other.
        second: IpAddr,
        /// Their family.
        family: Family,
    },
    /// Outside the segment's ranges.
    #[error("{ip} is outside segment {segment:?}, which gives out {ranges}")]
    Outside {
        /// What was asked for.
        ip: IpAddr,
        /// The segment.
        segment: String,
        /// What it gives out.
        ranges: String,
    },
    /// Inside the segment's ranges, but never given out.
    #[error("{ip} is {role} of segment {segment:?}, not an address for a pod")]
    Reserved {
        /// What was asked for.
        ip: IpAddr,
        /// The segment.
        segment: String,
        /// What the address is.
        role: String,
    },
    /// Somebody has the address.
    #[error("{ip} is held by {holder}")]
    Taken {
        /// What was asked for.
        ip: IpAddr,
        /// Who has it.
        holder: String,
    },
    /// The address was released a moment ago.
    #[error("{ip} is in quarantine for {seconds_left} s more; it was held by {holder}")]
    Quarantined {
        /// What was asked for.
        ip: IpAddr,
        /// Who had it.
        holder: String,
        /// How long until anybody can have it.
        seconds_left: u64,
    },
    /// The address is kept for another pod.
    #[error("{ip} is kept for pod {pod} for {seconds_left} s more")]
    Kept {
        /// What was asked for.
        ip: IpAddr,
        /// The pod.
        pod: PodName,
        /// How long until anybody can have it.
        seconds_left: u64,
    },
    /// Somebody has the MAC address.
    #[error("{mac} is the MAC address of {ip}, held by {holder}")]
    MacTaken {
        /// The MAC address.
        mac: Mac,
        /// The address it comes with.
        ip: IpAddr,
        /// Who has it.
        holder: String,
    },
    /// The attachment has something else already.
    #[error(
        "{if_name} of container {container_id} holds {held} already, and {wanted} was asked for: delete it first"
    )]
    Holds {
        /// The interface.
        if_name: String,
        /// The container.
        container_id: String,
        /// What it has.
        held: String,
        /// What was asked for.
        wanted: String,
    },
    /// No address is left.
    #[error(
        "segment {segment:?} has no {family} address left: of {total}, {held} are held, {quarantined} in quarantine, {set_aside} set aside after a conflict and {unreadable} under records that do not parse"
    )]
    Exhausted {
        /// The segment.
        segment: String,
        /// The family.
        family: Family,
        /// How many addresses it gives out.
        total: u128,
        /// How many pods have, or cannot be had because of their MAC address.
        held: u128,
        /// How many were released a moment ago.
        quarantined: u128,
        /// How many machines outside have answered for.
        set_aside: u128,
        /// How many are blocked by records that nobody understands.
        unreadable: u128,
    },
}

/// How others see a lease.
enum State {
    Held,
    Quarantined,
    Kept,
    Free,
}

impl LeaseBook {
    /// Decides what an attachment gets at `now` (Unix seconds).
    ///
    /// For each subnet of the segment, the first of these that there is:
    /// 1. what the attachment holds already;
    /// 2. the address it asks for, if nobody has it. Its own pod may have it back at any time, and an address that was
    ///    set aside after a conflict may be asked for by name: the machine may have left;
    /// 3. what it, or on a segment with StickySeconds the pod of the same namespace and name on an interface of the same
    ///    name, has released; the last one of several. Pods are told by name and not by UID, which changes when a
    ///    StatefulSet makes its pod anew;
    /// 4. the next free address after the last one that this node has given out;
    /// 5. of the addresses that are kept for other pods and have left quarantine, the one that was released first: a pod
    ///    that runs is worth more than one that may come back.
    ///
    /// The MAC address is the one asked for, else the one that comes with 1. to 3., else [`mac_of_lease`] of the first
    /// address.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn choose(&mut self, request: &Request, now: u64) -> Result<Choice, Refusal> {
        self.settle(now);
        self.check_request(request, now)?;
        let families = self.rotations.iter().map(|rotation| rotation.family());
        let own: Vec<Option<IpAddr>> = families.map(|family| self.own_address(request, family)).collect();
        let mut mac = match request.mac {
            Some(mac) => Some(self.check_mac(mac, request, None)?),
            None => self.own_mac(request, &own),
        };
        let mut leases = Vec::new();
        for (place, own) in own.into_iter().enumerate() {
            let ip = match own {
                // A released address whose own MAC somebody has (the rest of the same release is yet to be seen) is no
                // reason to fail.
                Some(ip) if mac.is_some() || self.derived_mac(ip, request).is_ok() => ip,
                Some(ip) if request.ips.contains(&ip) || self.is_held(ip) => ip,
                _ => self.next_address(place, request, mac, now)?,
            };
            let mac = match mac {
                Some(mac) => mac,
                None => *mac.insert(self.derived_mac(ip, request)?),
            };
            leases.push(self.lease_for(request, ip, mac));
        }
        let writes = leases.iter().map(|lease| self.write_of(lease)).collect();
        Ok(Choice { leases, writes })
    }

    /// Whether the request's addresses and MAC address can be had.
    fn check_request(&self, request: &Request, now: u64) -> Result<(), Refusal> {
        let mut asked = request.ips.as_slice();
        while let Some((first, others)) = asked.split_first() {
            let family = Family::of(*first);
            if let Some(second) = others.iter().find(|other| Family::of(**other) == family) {
                return Err(Refusal::FamilyTwice { first: *first, second: *second, family });
            }
            asked = others;
        }
        for held in self.held_by(&request.attachment) {
            let other_ip = |ip: &&IpAddr| Family::of(**ip) == Family::of(held.ip) && **ip != held.ip;
            let other_mac = request.mac.zip(held.mac).filter(|(asked, held)| asked != held);
            let clash = match (request.ips.iter().find(other_ip), other_mac) {
                (Some(ip), _) => Some((held.ip.to_string(), ip.to_string())),
                (None, Some((asked, held))) => Some((held.to_string(), asked.to_string())),
                (None, None) => None,
            };
            if let Some((held, wanted)) = clash {
                let Attachment { container_id, if_name } = request.attachment.clone();
                return Err(Refusal::Holds { if_name, container_id, held, wanted });
            }
        }
        request.ips.iter().try_for_each(|ip| self.check_address(*ip, request, now))
    }

    fn check_address(&self, ip: IpAddr, request: &Request, now: u64) -> Result<(), Refusal> {
        let holds = |lease: &&Lease| lease.released.is_none() && is_own(lease, request);
        if !self.rotations.iter().any(|rotation| rotation.pool().contains(ip))
            && self.lease(ip).filter(holds).is_none()
        {
            return Err(self.not_given_out(ip));
        }
        let Some(entry) = self.entries.get(&ip) else { return Ok(()) };
        let Some(lease) = &entry.lease else {
            return Err(Refusal::Taken { ip, holder: "a record that does not parse".to_owned() });
        };
        if is_own(lease, request) || lease.conflict.is_some() {
            return Ok(());
        }
        let holder = lease.holder();
        let seconds_left = |end: u64| end.saturating_sub(now);
        match (self.state(lease, entry.ended, now), &lease.pod) {
            (State::Free, _) => Ok(()),
            (State::Held, _) => Err(Refusal::Taken { ip, holder }),
            (State::Kept, Some(pod)) => {
                let seconds_left = seconds_left(self.end(lease).unwrap_or(now));
                Err(Refusal::Kept { ip, pod: pod.clone(), seconds_left })
            }
            (State::Kept | State::Quarantined, _) => {
                let seconds_left = seconds_left(self.quarantine_end(lease));
                Err(Refusal::Quarantined { ip, holder, seconds_left })
            }
        }
    }

    fn not_given_out(&self, ip: IpAddr) -> Refusal {
        let segment = self.segment.name.clone();
        match self.segment.subnet_of(ip) {
            Some(subnet) if (subnet.first..=subnet.last).contains(&ip) => {
                let role = match role_in(subnet.subnet, ip) {
                    Some(role) => format!("the {role}"),
                    None if subnet.gateway == Some(ip) => "the Gateway".to_owned(),
                    None => "in Exclude".to_owned(),
                };
                Refusal::Reserved { ip, segment, role }
            }
            _ => {
                let ranges: Vec<String> =
                    self.segment.subnets.iter().map(|s| format!("{} to {}", s.first, s.last)).collect();
                Refusal::Outside { ip, segment, ranges: ranges.join(" and ") }
            }
        }
    }

    /// The address of a family that is the attachment's by its own right.
    fn own_address(&self, request: &Request, family: Family) -> Option<IpAddr> {
        let mut held = self.held_by(&request.attachment).map(|lease| lease.ip);
        let of_family = |ip: &IpAddr| Family::of(*ip) == family;
        if let Some(ip) = held.find(of_family).or_else(|| request.ips.iter().copied().find(of_family)) {
            return Some(ip);
        }
        let of_attachment = self.by_attachment.get(&request.attachment);
        let sticky = request.pod.clone().filter(|_| self.segment.sticky_seconds > 0);
        let of_pod = sticky.and_then(|pod| self.by_pod.get(&(pod, request.attachment.if_name.clone())));
        let leases = of_attachment.into_iter().chain(of_pod).flatten().filter_map(|ip| self.lease(*ip));
        let given_out = |ip| self.rotations.iter().any(|rotation| rotation.pool().contains(ip));
        leases
            .filter(|lease| of_family(&lease.ip) && lease.conflict.is_none() && given_out(lease.ip))
            .filter_map(|lease| Some((lease.released?, lease.ip)))
            .max()
            .map(|(_, ip)| ip)
    }

    /// The MAC address that came with the attachment's own addresses, unless somebody has it by now.
    fn own_mac(&self, request: &Request, own: &[Option<IpAddr>]) -> Option<Mac> {
        let leases = own.iter().flatten().filter_map(|ip| self.lease(*ip));
        let mut macs = leases.filter(|lease| is_own(lease, request)).filter_map(|lease| lease.mac);
        macs.find(|mac| self.check_mac(*mac, request, None).is_ok())
    }

    /// An address that anybody could get. Without a MAC address yet, one whose own is free.
    fn next_address(
        &mut self,
        place: usize,
        request: &Request,
        mac: Option<Mac>,
        now: u64,
    ) -> Result<IpAddr, Refusal> {
        // Every MAC address in the way is that of some lease: after as many tries only an address without remains.
        for _ in 0..=self.entries.len() {
            let (entries, node) = (&self.entries, &self.node);
            let is_others = |ip| {
                let lease = entries.get(&ip).and_then(|entry| entry.lease.as_ref());
                lease.is_some_and(|lease| lease.released.is_none() && lease.node != *node)
            };
            let Some(rotation) = self.rotations.get_mut(place) else { break };
            let Some(ip) = rotation.next(is_others) else { break };
            rotation.go_on_after(ip);
            if mac.is_some() || self.derived_mac(ip, request).is_ok() {
                return Ok(ip);
            }
        }
        self.kept_longest(place, request, mac, now).ok_or_else(|| self.exhausted(place, now))
    }

    /// Of the addresses that are kept for pods and have left quarantine, the one that was released first.
    fn kept_longest(&self, place: usize, request: &Request, mac: Option<Mac>, now: u64) -> Option<IpAddr> {
        let pool = self.rotations.get(place)?.pool();
        let quarantine = u64::from(self.segment.quarantine_seconds);
        let mut kept =
            self.kept.iter().take_while(|(released, _)| released.saturating_add(quarantine) <= now);
        let had = |ip| pool.contains(ip) && (mac.is_some() || self.derived_mac(ip, request).is_ok());
        kept.find(|(_, ip)| had(*ip)).map(|(_, ip)| *ip)
    }

    fn is_held(&self, ip: IpAddr) -> bool {
        self.lease(ip).is_some_and(|lease| lease.released.is_none())
    }

    fn derived_mac(&self, ip: IpAddr, request: &Request) -> Result<Mac, Refusal> {
        self.check_mac(mac_of_lease(&self.segment.name, ip), request, Some(ip))
    }

    /// A MAC address, unless somebody else has it. Whoever takes the address `over` from the pod that it is kept for,
    /// takes over that pod's MAC address too.
    fn check_mac(&self, mac: Mac, request: &Request, over: Option<IpAddr>) -> Result<Mac, Refusal> {
        let former = over.and_then(|ip| self.lease(ip)).and_then(|lease| lease.pod.as_ref());
        let in_the_way = |lease: &&Lease| {
            let ended = self.entries.get(&lease.ip).is_some_and(|entry| entry.ended);
            let passed_on = lease.released.is_some() && former.is_some() && lease.pod.as_ref() == former;
            !ended && !passed_on && !is_own(lease, request)
        };
        let leases = self.by_mac.get(&mac).into_iter().flatten().filter_map(|ip| self.lease(*ip));
        match leases.filter(|lease| Some(lease.ip) != over).find(in_the_way) {
            None => Ok(mac),
            Some(lease) => Err(Refusal::MacTaken { mac, ip: lease.ip, holder: lease.holder() }),
        }
    }

    fn lease_for(&self, request: &Request, ip: IpAddr, mac: Mac) -> Lease {
        let own = self.lease(ip).filter(|lease| is_own(lease, request));
        Lease {
            ip,
            mac: Some(mac),
            node: self.node.clone(),
            attachment: request.attachment.clone(),
            pod: request.pod.clone(),
            released: None,
            conflict: None,
            extra: own.map_or_else(Map::new, |lease| lease.extra.clone()),
        }
    }

    fn write_of(&self, lease: &Lease) -> LeaseWrite {
        let entry = self.entries.get(&lease.ip);
        let change = match entry {
            Some(entry) if entry.lease.as_ref() == Some(lease) => LeaseChange::Keep,
            _ => LeaseChange::Put(lease.clone()),
        };
        LeaseWrite { ip: lease.ip, expected: entry.map(|entry| entry.revision), change }
    }

    fn exhausted(&self, place: usize, now: u64) -> Refusal {
        let rotation = self.rotations.get(place);
        let (mut quarantined, mut set_aside, mut unreadable) = (0, 0, 0);
        let in_pool = |ip| rotation.is_some_and(|rotation| rotation.pool().contains(ip));
        for (_, entry) in self.entries.iter().filter(|(ip, _)| in_pool(**ip)) {
            match &entry.lease {
                None => unreadable += 1,
                Some(lease) => match self.state(lease, entry.ended, now) {
                    State::Quarantined if lease.conflict.is_some() => set_aside += 1,
                    State::Quarantined => quarantined += 1,
                    State::Held | State::Kept | State::Free => {}
                },
            }
        }
        let total = rotation.map_or(0, |rotation| rotation.pool().count());
        Refusal::Exhausted {
            segment: self.segment.name.clone(),
            family: rotation.map_or(Family::V4, |rotation| rotation.family()),
            total,
            held: total - quarantined - set_aside - unreadable,
            quarantined,
            set_aside,
            unreadable,
        }
    }

    fn state(&self, lease: &Lease, ended: bool, now: u64) -> State {
        if lease.released.is_none() {
            State::Held
        } else if ended {
            State::Free
        } else if now < self.quarantine_end(lease) {
            State::Quarantined
        } else {
            State::Kept
        }
    }

    /// Until when a released lease is in quarantine, or set aside.
    fn quarantine_end(&self, lease: &Lease) -> u64 {
        let quarantine = u64::from(self.segment.quarantine_seconds);
        match (lease.conflict, self.end(lease)) {
            (Some(_), Some(end)) => end,
            _ => lease.released.unwrap_or_default().saturating_add(quarantine),
        }
    }
}

/// Whether a lease is the attachment's, or was released by it or its pod.
fn is_own(lease: &Lease, request: &Request) -> bool {
    let of_attachment = lease.is_attached() && lease.attachment == request.attachment;
    let of_pod = lease.released.is_some() && lease.pod.is_some() && lease.pod == request.pod;
    of_attachment || of_pod
}
