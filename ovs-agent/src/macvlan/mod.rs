//! Pods on segments of the physical network: `mode: macvlan`.
//!
//! A pod gets a macvlan interface on a segment, and a real address there, which is leased for the whole cluster in etcd.
//! The [leases](leases) are also the node's only record of its pods, so that a restarted agent has nothing to recover:
//! they name the node, the container and its network namespace. What cannot be in etcd, because etcd is away or another
//! plugin gives the addresses, is kept in [notes](notes) on disk, and so is what running pods [hold](holdings), in case
//! others give it back.
//!
//! [`attach`], [`detach`] and [`check`] carry out the verbs, and [`limits`] changes the limits of pods that run. [`upkeep`]
//! does the rest, in passes: what DEL had to put off, pods that are gone, links that nobody needs any more. [`tidy`] is the
//! elected controller's part: nodes that are gone.
//!
//! Nothing here needs Open vSwitch, and nothing the overlay does comes by here.

pub(crate) mod attach;
pub(crate) mod check;
mod delegation;
pub(crate) mod detach;
mod holdings;
mod leases;
pub(crate) mod limits;
mod links;
mod notes;
mod pod;
mod reaper;
pub(crate) mod segments;
pub(crate) mod tidy;
#[cfg(test)]
mod tidy_etcd;
pub(crate) mod upkeep;

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tenon_cni::Error;
use tenon_ipam::Segment;
use tenon_store::{Change, KeyValue, Keys, NetworkKeys};
use tokio::sync::{Notify, watch};

use crate::config::Config;
use limits::Suspects;
use links::Links;
use notes::Notes;
use reaper::Reaper;
use segments::{SegmentFault, Segments};

/// What a call hears before etcd has told everything.
const NO_VIEW: &str = "etcd has not told this node the segments and their leases yet";
/// How long an ADD waits for a segment that is just being put into etcd.
const SEGMENT_TIMEOUT: Duration = Duration::from_secs(1);

/// The node's part in macvlan.
pub(crate) struct Macvlan {
    segments: Mutex<Segments>,
    /// The revision that the view of etcd has reached.
    seen: watch::Sender<i64>,
    links: Arc<Links>,
    reaper: Reaper,
    /// Attachments whose leases are to be given back when etcd can be reached.
    releases: Arc<Notes>,
    /// What attachments hold.
    holdings: Arc<Notes>,
    /// Attachments whose addresses another plugin has given.
    delegated: Arc<Notes>,
    /// Attachments whose limits may be others than they should be.
    suspects: Suspects,
    /// Raised when a pass of the upkeep may find something to do.
    keep: Notify,
}

impl Macvlan {
    pub(crate) fn start(config: &Config, underlay: Ipv4Addr) -> io::Result<Self> {
        let dir = config.socket.parent().unwrap_or(Path::new("/run/tenon"));
        Ok(Self {
            segments: Mutex::new(Segments::new(&config.node)),
            seen: watch::Sender::new(0),
            links: Arc::new(Links::new(config.masters.clone(), underlay).map_err(io::Error::other)?),
            reaper: Reaper::start()?,
            releases: Arc::new(Notes::new(dir.join("releases"))),
            holdings: Arc::new(Notes::unsynced(dir.join("holdings"))),
            delegated: Arc::new(Notes::new(dir.join("delegated"))),
            suspects: Suspects::everybody(),
            keep: Notify::new(),
        })
    }

    fn segments(&self) -> MutexGuard<'_, Segments> {
        // A panic while the lock was held would be a defect; what the view holds is still the best there is.
        self.segments.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Takes over everything that is in etcd at `revision`.
    pub(crate) fn replace(
        &self,
        keys: &Keys,
        name: &str,
        network: NetworkKeys,
        kvs: &[KeyValue],
        revision: i64,
    ) {
        self.segments().replace(keys, name, network, kvs, revision);
        self.seen.send_replace(revision);
        self.keep.notify_one();
    }

    /// Takes in what has changed in etcd.
    pub(crate) fn take_in(&self, keys: &Keys, name: &str, changes: &[Change]) {
        let revision = {
            let mut segments = self.segments();
            changes.iter().for_each(|change| segments.take(keys, name, change));
            segments.review();
            segments.revision()
        };
        self.seen.send_replace(revision);
    }

    /// Why no pod can be attached now, whatever its segment; `None`: they can.
    pub(crate) fn obstacle(&self) -> Option<String> {
        self.segments().network().is_none().then(|| NO_VIEW.to_owned())
    }

    /// The segment of this name, if pods can join it. One that is not known may be on its way.
    async fn segment(&self, name: &str) -> Result<Segment, Error> {
        let mut seen = self.seen.subscribe();
        let look = async {
            loop {
                match self.usable(name) {
                    Err(Some(SegmentFault::Missing(_))) => {}
                    other => return other,
                }
                // The sender is a field of self.
                let _ = seen.changed().await;
            }
        };
        let found = match tokio::time::timeout(SEGMENT_TIMEOUT, look).await {
            Ok(found) => found,
            Err(_) => self.usable(name),
        };
        found.map_err(|fault| match fault {
            Some(fault) => Error::invalid_config(fault.to_string()),
            None => Error::try_again(NO_VIEW),
        })
    }

    fn usable(&self, name: &str) -> Result<Segment, Option<SegmentFault>> {
        let mut segments = self.segments();
        if segments.network().is_none() {
            return Err(None);
        }
        segments.usable(name).map(|book| book.segment().clone()).map_err(Some)
    }
}
