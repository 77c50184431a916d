//! Limits of pods' bandwidth, by the node's two shapers: see `docs/bandwidth.md`.
//!
//! A limited pod has a class in the shaper of its direction, numbered as its OpenFlow port, and flows that lead
//! through it. The model knows which limits there are; the classes are derived from it.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;

use tenon_cni::Bandwidth;
use tenon_netdev::{Error, Limit, NetNs, Netlink, Shape, Shaper, ShaperPair, Waiting};
use thiserror::Error as ThisError;

use crate::attachment::Attachment;
use crate::bridge::{EGRESS_SHAPER_NAME, INGRESS_SHAPER_NAME};
use crate::config::Datapath;

/// The ends that have the queues.
const EGRESS_TURN_NAME: &str = "tenon-eg1";
const INGRESS_TURN_NAME: &str = "tenon-in1";

/// The node's shapers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shapers {
    /// What pods send.
    egress: Shaper,
    /// What pods receive.
    ingress: Shaper,
}

/// What is wrong with a pod's limit.
#[derive(Debug, ThisError)]
#[error("its {direction} limit is {found}, it should be {wanted}")]
pub(crate) struct LimitFault {
    pub(crate) direction: &'static str,
    pub(crate) wanted: String,
    pub(crate) found: String,
}

/// The limit for the kernel, of an interface with this MTU; `None` for a rate of 0.
pub(crate) fn limit_of(of: tenon_cni::Limit, mtu: u32) -> Option<Limit> {
    Some(Limit {
        bits_per_second: NonZeroU64::new(of.rate_bps)?,
        burst_bits: of.burst_bits.and_then(NonZeroU64::new),
        mtu,
    })
}

/// A direction's class in the kernel, for a pod.
struct Wanted {
    direction: &'static str,
    turn_index: u32,
    limit: Option<Limit>,
}

impl Shapers {
    /// Makes both shapers, or puts right what differs; classes stay. Returns also the names of the ends that are ports
    /// of the bridge and were made anew: Open vSwitch goes on listening to links that are gone.
    pub(crate) fn ensure(mtu: u32, datapath: Datapath) -> Result<(Self, Vec<String>), Error> {
        let (netlink, here) = (Netlink::open()?, NetNs::current()?);
        let waiting = match datapath {
            Datapath::System => Waiting::Packet,
            Datapath::Netdev => Waiting::Copy,
        };
        let mut renewed = Vec::new();
        let mut ensure = |port_name: &str, turn_name| {
            let before = netlink.link_by_name(port_name)?.map(|link| link.index);
            let shaper = netlink.ensure_shaper(&here, &ShaperPair { port_name, turn_name, mtu, waiting })?;
            if before != Some(shaper.port_index) {
                renewed.push(port_name.to_owned());
            }
            Ok::<_, Error>(shaper)
        };
        let egress = ensure(EGRESS_SHAPER_NAME, EGRESS_TURN_NAME)?;
        let ingress = ensure(INGRESS_SHAPER_NAME, INGRESS_TURN_NAME)?;
        Ok((Self { egress, ingress }, renewed))
    }

    /// Sets the limits that `bandwidth` has; a direction without one keeps what it has.
    pub(crate) fn set(&self, class: u16, bandwidth: Bandwidth, mtu: u32) -> Result<(), Error> {
        let netlink = Netlink::open()?;
        for wanted in self.wanted(bandwidth, mtu) {
            if let Some(limit) = wanted.limit {
                netlink.set_limit(wanted.turn_index, class, &limit)?;
            }
        }
        Ok(())
    }

    /// Lets go what waits in the directions that `bandwidth` does not limit: before their flows go past the shaper.
    pub(crate) fn open(&self, class: u16, bandwidth: Bandwidth) -> Result<(), Error> {
        self.each_unlimited(bandwidth, |netlink, turn_index| netlink.open_class(turn_index, class))
    }

    /// Removes the classes of the directions that `bandwidth` does not limit: after their flows.
    pub(crate) fn remove(&self, class: u16, bandwidth: Bandwidth) -> Result<(), Error> {
        self.each_unlimited(bandwidth, |netlink, turn_index| netlink.remove_class(turn_index, class))
    }

    fn each_unlimited(
        &self,
        bandwidth: Bandwidth,
        work: impl Fn(&Netlink, u32) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let netlink = Netlink::open()?;
        let mut unlimited = self.wanted(bandwidth, 0).into_iter().filter(|wanted| wanted.limit.is_none());
        unlimited.try_for_each(|wanted| work(&netlink, wanted.turn_index))
    }

    /// Says what is wrong with the limits of `pod`.
    pub(crate) fn check(&self, pod: &Attachment, mtu: u32) -> Result<Result<(), LimitFault>, Error> {
        let netlink = Netlink::open()?;
        let say = |shape: Option<Shape>| shape.map_or_else(|| "none".to_owned(), |shape| shape.to_string());
        for Wanted { direction, turn_index, limit } in self.wanted(pod.bandwidth, mtu) {
            let (wanted, found) = (limit.map(|limit| limit.shape()), netlink.limit(turn_index, pod.ofport)?);
            if wanted != found {
                return Ok(Err(LimitFault { direction, wanted: say(wanted), found: say(found) }));
            }
        }
        Ok(Ok(()))
    }

    /// Makes the classes those of `pods` and no others, but for the `busy` ones, which an ADD, DEL or change works on.
    /// Returns how many were wrong.
    pub(crate) fn reconcile(
        &self,
        pods: &BTreeMap<u16, Bandwidth>,
        busy: &BTreeSet<u16>,
        mtu: u32,
    ) -> Result<usize, Error> {
        let netlink = Netlink::open()?;
        let mut wrong = 0;
        for shaper in [self.egress, self.ingress] {
            let wanted: BTreeMap<u16, Limit> = pods
                .iter()
                .filter_map(|(class, bandwidth)| {
                    let of_shaper =
                        self.wanted(*bandwidth, mtu).into_iter().find(|w| w.turn_index == shaper.turn_index);
                    Some((*class, of_shaper?.limit?))
                })
                .collect();
            let found = netlink.limits(shaper.turn_index)?;
            for class in found.keys().filter(|class| !wanted.contains_key(class) && !busy.contains(class)) {
                netlink.remove_class(shaper.turn_index, *class)?;
                wrong += 1;
            }
            for (class, limit) in wanted {
                if found.get(&class).copied().flatten() != Some(limit.shape()) {
                    netlink.set_limit(shaper.turn_index, class, &limit)?;
                    wrong += 1;
                }
            }
        }
        Ok(wrong)
    }

    fn wanted(&self, bandwidth: Bandwidth, mtu: u32) -> [Wanted; 2] {
        let limit = |of: Option<tenon_cni::Limit>| of.and_then(|of| limit_of(of, mtu));
        [
            Wanted {
                direction: "egress",
                turn_index: self.egress.turn_index,
                limit: limit(bandwidth.egress),
            },
            Wanted {
                direction: "ingress",
                turn_index: self.ingress.turn_index,
                limit: limit(bandwidth.ingress),
            },
        ]
    }
}
