//! Deletes pods' macvlans, and the devices of their limits, away from the answers' path: the kernel takes some 20 ms for
//! each.
//!
//! What is handed over has no addresses any more. Nothing is lost if the agent dies meanwhile: the interface goes with
//! its pod's namespace.

use std::sync::mpsc;
use std::time::Duration;

use tenon_netdev::{LinkShaper, NetNs, Netlink};
use tokio::sync::watch;
use tracing::warn;

/// A handle on the thread.
#[derive(Debug)]
pub(super) struct Reaper {
    doomed: mpsc::Sender<(NetNs, Option<u32>)>,
    /// How many have been handed over and not been deleted.
    waiting: watch::Sender<usize>,
}

impl Reaper {
    /// Starts the thread.
    pub(super) fn start() -> std::io::Result<Self> {
        let (doomed, inbox) = mpsc::channel::<(NetNs, Option<u32>)>();
        let waiting = watch::Sender::new(0);
        let counter = waiting.clone();
        std::thread::Builder::new().name("pod-reaper".into()).spawn(move || {
            for (netns, index) in inbox {
                let deleted = netns.run(|| {
                    let pod = Netlink::open()?;
                    index.map_or(Ok(()), |index| pod.delete_link(index))?;
                    LinkShaper::remove_leftovers(&pod)
                });
                if let Err(error) = deleted.and_then(|deleted| deleted) {
                    warn!(%error, netns = %netns.path().display(), "cannot delete a pod's interface; it goes with the pod's namespace");
                }
                // The handle would keep the namespace alive.
                drop(netns);
                counter.send_modify(|waiting| *waiting -= 1);
            }
        })?;
        Ok(Self { doomed, waiting })
    }

    /// Has the link of this index in a pod's namespace deleted soon, and what the limits of links that are gone have
    /// left there.
    pub(super) fn doom(&self, netns: NetNs, index: Option<u32>) {
        self.waiting.send_modify(|waiting| *waiting += 1);
        // The thread lives as long as any handle.
        let _ = self.doomed.send((netns, index));
    }

    /// Waits, not for ever, until everything handed over so far has been deleted.
    pub(super) async fn idle(&self) {
        let mut waiting = self.waiting.subscribe();
        let _ = tokio::time::timeout(Duration::from_secs(5), waiting.wait_for(|waiting| *waiting == 0)).await;
    }

    pub(super) fn is_busy(&self) -> bool {
        *self.waiting.borrow() > 0
    }
}
