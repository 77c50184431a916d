//! Deletes links away from the answers' path.
//!
//! The kernel takes some 20 ms to delete a link, however many go at once. A DEL hands its link over and answers; a
//! thread of its own puts what has been handed over into one link group and deletes that. Nothing is lost if the agent
//! dies meanwhile: a pod's link without a record in OVSDB is found and deleted at the next start.

use std::sync::mpsc;
use std::time::Duration;

use tenon_netdev::{Error, Netlink};
use tokio::sync::watch;
use tracing::{error, warn};

/// The link group of what is to be deleted (`ip link show group`).
const DOOMED_GROUP: u32 = 0x7465_6e6f;

/// A handle on the thread.
#[derive(Debug, Clone)]
pub(crate) struct Reaper {
    doomed: mpsc::Sender<String>,
    /// How many links have been handed over and not been deleted.
    waiting: watch::Sender<usize>,
}

impl Reaper {
    /// Starts the thread.
    pub(crate) fn start() -> std::io::Result<Self> {
        let (doomed, inbox) = mpsc::channel();
        let waiting = watch::Sender::new(0);
        let counter = waiting.clone();
        std::thread::Builder::new().name("reaper".into()).spawn(move || reap(&inbox, &counter))?;
        Ok(Self { doomed, waiting })
    }

    /// Has the link of this name deleted soon; one that is gone already is fine.
    pub(crate) fn doom(&self, link: String) {
        self.waiting.send_modify(|waiting| *waiting += 1);
        // The thread lives as long as any handle.
        let _ = self.doomed.send(link);
    }

    /// Waits, not for ever, until everything handed over so far has been deleted.
    pub(crate) async fn idle(&self) {
        let mut waiting = self.waiting.subscribe();
        let _ = tokio::time::timeout(Duration::from_secs(5), waiting.wait_for(|waiting| *waiting == 0)).await;
    }

    /// Whether links wait to be deleted.
    pub(crate) fn is_busy(&self) -> bool {
        *self.waiting.borrow() > 0
    }
}

fn reap(inbox: &mpsc::Receiver<String>, waiting: &watch::Sender<usize>) {
    while let Ok(first) = inbox.recv() {
        let mut links = vec![first];
        links.extend(inbox.try_iter());
        if let Err(error) = delete(&links) {
            error!(%error, ?links, "cannot delete pods' links; they are deleted with their pods or at the next start");
        }
        waiting.send_modify(|waiting| *waiting -= links.len());
    }
}

fn delete(links: &[String]) -> Result<(), Error> {
    let netlink = Netlink::open()?;
    for name in links {
        match netlink.link_by_name(name) {
            Ok(Some(link)) => {
                if let Err(error) = netlink.set_group(link.index, DOOMED_GROUP) {
                    // It may have gone with its pod's namespace in between.
                    warn!(%error, name, "cannot mark a link for deletion");
                }
            }
            Ok(None) => {}
            Err(error) => warn!(%error, name, "cannot look a link up"),
        }
    }
    netlink.delete_group(DOOMED_GROUP)
}
