//! All node subnets that have been granted, arranged for the next decision.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::{ClusterNetwork, SettledSubnet, SubnetPlan};

/// The controller's memory of node subnets. All of it is in the store too: a new controller makes it from the settled
/// copies and the cursor.
#[derive(Debug, Clone)]
pub struct Subnets {
    cluster: ClusterNetwork,
    settled: BTreeMap<Ipv4Addr, SettledSubnet>,
    /// Who holds a subnet. Two while a move between addresses is taken over one key after the other, else one.
    holders: BTreeMap<Ipv4Net, BTreeSet<Ipv4Addr>>,
    cursor: Option<Ipv4Net>,
}

impl Subnets {
    /// Builds the memory from what is in the store: the settled copies and the subnet that was given out last.
    ///
    /// Copies that do not suit the cluster's network (any more) are kept: their nodes have pods there.
    pub fn load(
        cluster: ClusterNetwork,
        settled: impl IntoIterator<Item = SettledSubnet>,
        cursor: Option<Ipv4Net>,
    ) -> Subnets {
        let mut subnets = Subnets { cluster, settled: BTreeMap::new(), holders: BTreeMap::new(), cursor };
        for copy in settled {
            subnets.settle(copy);
        }
        subnets
    }

    /// Takes over a plan for the node with the address `key` that has been carried out in the store.
    pub fn apply(&mut self, key: Ipv4Addr, plan: &SubnetPlan) {
        match plan {
            SubnetPlan::Nothing | SubnetPlan::PutBack { .. } => {}
            SubnetPlan::Settle { settled, cursor, .. } => {
                self.settle(settled.clone());
                self.cursor = cursor.or(self.cursor);
            }
            SubnetPlan::Forget => self.forget(key),
        }
    }

    /// Records a grant, in place of an earlier one to the same address.
    ///
    /// A node that moves to another address writes settled copies itself (see [`claim`](crate::claim)); the
    /// controller takes those over with this and [`Subnets::forget`] before it judges the records of the same
    /// transaction.
    pub fn settle(&mut self, settled: SettledSubnet) {
        self.forget(settled.host_ip);
        self.holders.entry(settled.subnet).or_default().insert(settled.host_ip);
        self.settled.insert(settled.host_ip, settled);
    }

    /// Takes a grant back.
    pub fn forget(&mut self, host_ip: Ipv4Addr) {
        if let Some(old) = self.settled.remove(&host_ip)
            && let Some(holders) = self.holders.get_mut(&old.subnet)
        {
            holders.remove(&host_ip);
            if holders.is_empty() {
                self.holders.remove(&old.subnet);
            }
        }
    }

    /// The cluster's network.
    pub fn cluster(&self) -> &ClusterNetwork {
        &self.cluster
    }

    /// What was granted to the node with this address.
    pub fn settled(&self, host_ip: Ipv4Addr) -> Option<&SettledSubnet> {
        self.settled.get(&host_ip)
    }

    /// All nodes and what was granted to them, by address.
    pub fn iter(&self) -> impl Iterator<Item = &SettledSubnet> {
        self.settled.values()
    }

    /// The subnet that was given out last.
    pub fn cursor(&self) -> Option<Ipv4Net> {
        self.cursor
    }

    /// A granted subnet that shares addresses with this one, and its node.
    pub(crate) fn overlapping(&self, subnet: Ipv4Net) -> Option<&SettledSubnet> {
        // Of two networks that overlap one holds the other. Those that hold `subnet`, and itself:
        let around = (0..=subnet.prefix_len())
            .filter_map(|length| Ipv4Net::new(subnet.network(), length).ok())
            .find_map(|around| self.holders.get_key_value(&around.trunc()));
        // Those inside `subnet` begin in it, so that the order of the map finds them.
        let last = Ipv4Net::new_assert(subnet.broadcast(), 32);
        let found = around.or_else(|| self.holders.range(subnet..=last).next());
        found.and_then(|(_, holders)| holders.first()).and_then(|host_ip| self.settled.get(host_ip))
    }

    /// The subnet that would be given out next: the first free one after the cursor, from the start again after the
    /// last, so that the subnet of a node that has left is not given to another one while pods may still talk to its
    /// addresses. `None` when all are in use.
    pub fn next_free(&self) -> Option<Ipv4Net> {
        let start = self
            .cursor
            .and_then(|cursor| self.cluster.place_of(cursor.broadcast()))
            .map_or(0, |place| place + 1);
        self.first_free(start, self.cluster.subnet_count()).or_else(|| self.first_free(0, start))
    }

    fn first_free(&self, start: u32, end: u32) -> Option<Ipv4Net> {
        let mut place = start;
        while place < end {
            let subnet = self.cluster.subnet(place)?;
            let Some(taken) = self.overlapping(subnet) else { return Some(subnet) };
            // One that is larger than a node's subnet takes several places.
            place = self.cluster.place_of(taken.subnet.broadcast()).unwrap_or(end).max(place) + 1;
        }
        None
    }

    /// The address of the node with this name.
    pub(crate) fn address_of(&self, host: &str) -> Option<Ipv4Addr> {
        self.settled.values().find(|node| node.host == host).map(|node| node.host_ip)
    }
}
