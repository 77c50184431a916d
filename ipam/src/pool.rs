//! The pod addresses of one node.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use rangemap::RangeInclusiveSet;

/// The addresses of a node's subnet, and which of them pods have.
///
/// The network's address, its broadcast address and the gateway (the first host address) are never given out.
/// Addresses are given out in turn, so that one that was released stays unused for as long as possible and nobody's
/// stale neighbour entry or open connection meets a new pod.
#[derive(Debug, Clone)]
pub struct NodePool {
    subnet: Ipv4Net,
    /// As runs of consecutive addresses, so that the next gap is found without a walk.
    taken: RangeInclusiveSet<u32>,
    used: u32,
    last: Option<Ipv4Addr>,
}

/// Why an address is not to be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// The subnet has no room for a pod.
    #[error("subnet {0} has no address for a pod: it takes a /30 or larger")]
    TooSmall(Ipv4Net),
    /// All addresses are in use.
    #[error("all {capacity} pod addresses of this node's subnet {subnet} are in use")]
    Exhausted {
        /// The node's subnet.
        subnet: Ipv4Net,
        /// How many addresses pods can have.
        capacity: u32,
    },
    /// Not one of this node's addresses.
    #[error("{address} is not in this node's subnet {subnet}")]
    Outside {
        /// What was asked for.
        address: IpAddr,
        /// The node's subnet.
        subnet: Ipv4Net,
    },
    /// The network's, the gateway's or the broadcast address.
    #[error("{address} is the {role} of this node's subnet {subnet}, not an address for a pod")]
    Reserved {
        /// What was asked for.
        address: Ipv4Addr,
        /// What it is.
        role: &'static str,
        /// The node's subnet.
        subnet: Ipv4Net,
    },
    /// Another pod has it.
    #[error("{0} is in use by another pod")]
    Taken(Ipv4Addr),
}

/// The addresses before the first one for a pod: the network's and the gateway's.
const BEFORE_FIRST: u32 = 2;

impl NodePool {
    /// An unused pool.
    ///
    /// # Errors
    /// The subnet is a /31 or /32.
    pub fn new(subnet: Ipv4Net) -> Result<NodePool, PoolError> {
        if subnet.prefix_len() > 30 {
            return Err(PoolError::TooSmall(subnet));
        }
        Ok(NodePool { subnet: subnet.trunc(), taken: RangeInclusiveSet::new(), used: 0, last: None })
    }

    /// The node's subnet.
    pub fn subnet(&self) -> Ipv4Net {
        self.subnet
    }

    /// The first host address: the node's own in its subnet, and its pods' default gateway.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.subnet.network().to_bits() | 1)
    }

    /// How many addresses pods can have.
    pub fn capacity(&self) -> u32 {
        self.last_bits() - self.first_bits() + 1
    }

    /// How many addresses pods have.
    pub fn used(&self) -> u32 {
        self.used
    }

    /// The address that was given out last, to be kept across restarts.
    pub fn last(&self) -> Option<Ipv4Addr> {
        self.last
    }

    /// Goes on after this address. One outside the subnet (the node has another subnet now) counts as none.
    pub fn set_last(&mut self, last: Option<Ipv4Addr>) {
        self.last = last.filter(|last| self.subnet.contains(last));
    }

    /// Whether a pod has this address.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        self.taken.contains(&address.to_bits())
    }

    /// Takes the first free address after the last one that was given out, from the start again after the end.
    ///
    /// # Errors
    /// All are in use.
    pub fn allocate(&mut self) -> Result<Ipv4Addr, PoolError> {
        let (first, last) = (self.first_bits(), self.last_bits());
        // Nothing is given out above `last`, which is below the broadcast address: adding one cannot overflow.
        let start = self.last.map_or(first, |given| given.to_bits().min(last) + 1).max(first);
        let gap = |from: u32, to: u32| {
            if from > to { None } else { self.taken.gaps(&(from..=to)).next().map(|gap| *gap.start()) }
        };
        let free = gap(start, last)
            .or_else(|| gap(first, start - 1))
            .ok_or(PoolError::Exhausted { subnet: self.subnet, capacity: self.capacity() })?;
        let address = Ipv4Addr::from_bits(free);
        self.take(address);
        self.last = Some(address);
        Ok(address)
    }

    /// Takes the address that somebody asked for. Where [`NodePool::allocate`] goes on does not change.
    ///
    /// # Errors
    /// It is not in the subnet, never given out, or in use.
    pub fn allocate_specific(&mut self, address: IpAddr) -> Result<Ipv4Addr, PoolError> {
        let address = self.check(address)?;
        if self.contains(address) {
            return Err(PoolError::Taken(address));
        }
        self.take(address);
        Ok(address)
    }

    /// Marks an address that a running pod is known to have. Saying so twice is fine.
    ///
    /// # Errors
    /// It is not in the subnet, or never given out.
    pub fn reserve(&mut self, address: IpAddr) -> Result<(), PoolError> {
        let address = self.check(address)?;
        if !self.contains(address) {
            self.take(address);
        }
        Ok(())
    }

    /// Gives an address back. Returns whether it was in use.
    pub fn release(&mut self, address: Ipv4Addr) -> bool {
        let held = self.contains(address);
        if held {
            self.taken.remove(address.to_bits()..=address.to_bits());
            self.used -= 1;
        }
        held
    }

    fn take(&mut self, address: Ipv4Addr) {
        self.taken.insert(address.to_bits()..=address.to_bits());
        self.used += 1;
    }

    fn check(&self, address: IpAddr) -> Result<Ipv4Addr, PoolError> {
        let subnet = self.subnet;
        let IpAddr::V4(v4) = address else { return Err(PoolError::Outside { address, subnet }) };
        if !subnet.contains(&v4) {
            return Err(PoolError::Outside { address, subnet });
        }
        let reserved = |role| Err(PoolError::Reserved { address: v4, role, subnet });
        match v4 {
            v4 if v4 == subnet.network() => reserved("network address"),
            v4 if v4 == self.gateway() => reserved("gateway"),
            v4 if v4 == subnet.broadcast() => reserved("broadcast address"),
            v4 => Ok(v4),
        }
    }

    fn first_bits(&self) -> u32 {
        self.subnet.network().to_bits() | BEFORE_FIRST
    }

    fn last_bits(&self) -> u32 {
        self.subnet.broadcast().to_bits() - 1
    }
}
