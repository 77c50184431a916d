//! The one writer of the bridge's flows.
//!
//! It holds what every object wants ([`Wanted`]) and brings the switch there, by set difference over what is wanted and
//! what is installed: one path for the start, a restart of Open vSwitch, a repair, and every change. What arrives
//! together is committed in one bundle that applies all or nothing, so that a tenant moves at one stroke.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use openvswitch::openflow::{self, Connection, Flow, FlowKey, FlowMod, FlowStats};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, info, warn};

use crate::model::{Changes, Object};

/// How often the switch is compared as a whole, to find what somebody else changed.
const AUDIT_INTERVAL: Duration = Duration::from_secs(30);
const RECONNECT_MIN: Duration = Duration::from_millis(20);
const RECONNECT_MAX: Duration = Duration::from_secs(1);

/// Why a change has not reached the switch. It is still wanted, and is carried out when the switch is back.
#[derive(Debug, Clone, Error)]
pub(crate) enum FlowError {
    #[error(
        "Open vSwitch's OpenFlow socket {0} is not connected: is ovs-vswitchd running, and does the bridge exist?"
    )]
    Disconnected(PathBuf),
    #[error("Open vSwitch refused the flows: {0}")]
    Refused(String),
    #[error("the agent is stopping")]
    Stopping,
}

/// What is wanted of the switch, by object and by flow.
#[derive(Debug, Default)]
struct Wanted {
    /// With the object that wanted it last: one that goes late leaves what another has taken over.
    flows: HashMap<FlowKey, (Object, Flow)>,
    keys: HashMap<Object, Vec<FlowKey>>,
}

impl Wanted {
    /// Takes `changes` in and gives the flows that they touch.
    fn apply(&mut self, changes: Changes, touched: &mut BTreeSet<FlowKey>) {
        for (object, flows) in changes {
            for key in self.keys.remove(&object).unwrap_or_default() {
                if self.flows.get(&key).is_some_and(|(owner, _)| *owner == object) {
                    self.flows.remove(&key);
                    touched.insert(key);
                }
            }
            if flows.is_empty() {
                continue;
            }
            let keys: Vec<FlowKey> = flows.iter().map(Flow::key).collect();
            touched.extend(keys.iter().cloned());
            for (key, flow) in keys.iter().zip(flows) {
                self.flows.insert(key.clone(), (object.clone(), flow));
            }
            self.keys.insert(object, keys);
        }
    }

    /// What makes the touched flows of the switch right. A flow that is gone before it was ever installed is deleted in
    /// vain, which Open vSwitch allows.
    fn modifications(&self, touched: &BTreeSet<FlowKey>) -> Vec<FlowMod> {
        touched
            .iter()
            .map(|key| match self.flows.get(key) {
                Some((_, flow)) => FlowMod::Add(flow.clone()),
                None => FlowMod::Delete(key.clone()),
            })
            .collect()
    }

    /// What makes a switch that has `installed` right, touching nothing that is right already.
    fn difference(&self, installed: Vec<FlowStats>) -> Vec<FlowMod> {
        let mut right = HashSet::new();
        let mut modifications = Vec::new();
        for FlowStats { flow, .. } in installed {
            let key = flow.key();
            match self.flows.get(&key) {
                Some((_, wanted)) if *wanted == flow => drop(right.insert(key)),
                Some(_) => {}
                None => modifications.push(FlowMod::Delete(key)),
            }
        }
        let missing = self.flows.iter().filter(|(key, _)| !right.contains(*key));
        modifications.extend(missing.map(|(_, (_, flow))| FlowMod::Add(flow.clone())));
        modifications
    }
}

/// A change on its way to the switch.
#[must_use = "it fails when the switch cannot be reached"]
pub(crate) struct Committed(oneshot::Receiver<Result<(), FlowError>>);

impl Committed {
    /// Waits until the switch has the change.
    pub(crate) async fn installed(self) -> Result<(), FlowError> {
        self.0.await.unwrap_or(Err(FlowError::Stopping))
    }
}

enum Message {
    Change(Changes, Option<oneshot::Sender<Result<(), FlowError>>>),
    Everything(Changes),
    /// Asks for a flow that the object wants and the switch has not.
    Audit(Object, oneshot::Sender<Result<Option<FlowKey>, FlowError>>),
}

/// A handle on the reconciler's task.
#[derive(Clone)]
pub(crate) struct Reconciler {
    messages: mpsc::UnboundedSender<Message>,
    synced: watch::Receiver<Option<Connection>>,
}

impl Reconciler {
    /// Starts the task that writes the flows of the bridge whose management socket is `socket`. It writes nothing until
    /// it is told everything that is wanted.
    pub(crate) fn start(socket: PathBuf) -> Self {
        let (messages, inbox) = mpsc::unbounded_channel();
        let (synced_sender, synced) = watch::channel(None);
        let task = Task { socket, inbox, synced: synced_sender, wanted: None };
        tokio::spawn(task.run());
        Self { messages, synced }
    }

    /// Replaces all that is wanted at one stroke.
    pub(crate) fn replace(&self, everything: Changes) {
        // The task lives as long as any handle; a send can fail only while the process ends.
        let _ = self.messages.send(Message::Everything(everything));
    }

    /// Wants `changes`; order of calls is order of effect.
    pub(crate) fn change(&self, changes: Changes) {
        if !changes.is_empty() {
            let _ = self.messages.send(Message::Change(changes, None));
        }
    }

    /// Wants `changes`; what is returned tells when the switch has them, or that it cannot get them now.
    pub(crate) fn commit(&self, changes: Changes) -> Committed {
        let (done, outcome) = oneshot::channel();
        let _ = self.messages.send(Message::Change(changes, Some(done)));
        Committed(outcome)
    }

    /// A flow that `object` wants and the switch has not, if there is one.
    pub(crate) async fn missing(&self, object: Object) -> Result<Option<FlowKey>, FlowError> {
        let (answer, outcome) = oneshot::channel();
        let _ = self.messages.send(Message::Audit(object, answer));
        outcome.await.unwrap_or(Err(FlowError::Stopping))
    }

    /// The connection to the switch while it has all that is wanted.
    pub(crate) fn synced(&self) -> watch::Receiver<Option<Connection>> {
        self.synced.clone()
    }
}

struct Task {
    socket: PathBuf,
    inbox: mpsc::UnboundedReceiver<Message>,
    synced: watch::Sender<Option<Connection>>,
    /// `None` until told.
    wanted: Option<Wanted>,
}

impl Task {
    async fn run(mut self) {
        let mut pause = RECONNECT_MIN;
        loop {
            match Connection::connect(&self.socket).await {
                Ok(connection) => {
                    pause = RECONNECT_MIN;
                    info!(socket = %self.socket.display(), "connected to the switch");
                    if !self.serve(&connection).await {
                        return;
                    }
                    self.synced.send_replace(None);
                    warn!(socket = %self.socket.display(), "lost the switch; trying again");
                }
                Err(error) => debug!(%error, "cannot reach the switch"),
            }
            let retry = tokio::time::sleep(pause);
            tokio::pin!(retry);
            loop {
                tokio::select! {
                    () = &mut retry => break,
                    message = self.inbox.recv() => match message {
                        Some(message) => self.take_while_disconnected(message),
                        None => return,
                    },
                }
            }
            pause = (pause * 2).min(RECONNECT_MAX);
        }
    }

    fn take_while_disconnected(&mut self, message: Message) {
        let mut batch = Batch::default();
        self.take(message, &mut batch);
        let disconnected = FlowError::Disconnected(self.socket.clone());
        for (_, answer) in batch.audits.drain(..) {
            let _ = answer.send(Err(disconnected.clone()));
        }
        batch.answer(&Err(disconnected));
    }

    /// Writes until the connection ends (true) or the agent does (false).
    async fn serve(&mut self, connection: &Connection) -> bool {
        let mut audit = tokio::time::interval(AUDIT_INTERVAL);
        audit.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let mut batch = Batch::default();
            tokio::select! {
                biased;
                _ = connection.closed() => return true,
                message = self.inbox.recv() => match message {
                    Some(message) => self.take(message, &mut batch),
                    None => return false,
                },
                _ = audit.tick() => batch.everything = true,
            }
            // What has piled up meanwhile goes into the same bundle.
            while let Ok(message) = self.inbox.try_recv() {
                self.take(message, &mut batch);
            }
            let outcome = self.write(connection, &batch).await;
            if let Err(error) = &outcome {
                self.synced.send_replace(None);
                warn!(%error, "the switch does not have what is wanted; comparing all of it");
                audit.reset_after(Duration::from_millis(500));
            } else if batch.everything && self.wanted.is_some() {
                self.synced.send_replace(Some(connection.clone()));
            }
            if !batch.audits.is_empty() {
                let audits = std::mem::take(&mut batch.audits);
                self.audit(connection, audits).await;
            }
            batch.answer(&outcome);
        }
    }

    /// Answers audits with one look at the switch.
    async fn audit(&self, connection: &Connection, audits: Vec<Audit>) {
        let installed =
            connection.flow_stats(None, 0, 0).await.map_err(|error| FlowError::Refused(error.to_string()));
        let installed =
            installed.map(|stats| stats.into_iter().map(|stats| stats.flow).collect::<HashSet<_>>());
        for (object, answer) in audits {
            let missing = installed.as_ref().map_err(Clone::clone).map(|installed| {
                let wanted = self.wanted.as_ref();
                let keys = wanted.and_then(|wanted| wanted.keys.get(&object)).into_iter().flatten();
                let is_missing = |key: &&FlowKey| {
                    let flow = wanted.and_then(|wanted| wanted.flows.get(*key));
                    flow.is_some_and(|(_, flow)| !installed.contains(flow))
                };
                keys.into_iter().find(is_missing).cloned()
            });
            let _ = answer.send(missing);
        }
    }

    fn take(&mut self, message: Message, batch: &mut Batch) {
        match message {
            Message::Everything(changes) => {
                let mut wanted = Wanted::default();
                wanted.apply(changes, &mut BTreeSet::new());
                self.wanted = Some(wanted);
                batch.everything = true;
            }
            Message::Change(changes, done) => {
                if let Some(wanted) = &mut self.wanted {
                    wanted.apply(changes, &mut batch.touched);
                }
                batch.waiting.extend(done);
            }
            Message::Audit(object, answer) => batch.audits.push((object, answer)),
        }
    }

    async fn write(&self, connection: &Connection, batch: &Batch) -> Result<(), FlowError> {
        let Some(wanted) = &self.wanted else { return Ok(()) };
        let refused = |error: openflow::Error| FlowError::Refused(error.to_string());
        let modifications = if batch.everything {
            wanted.difference(connection.flow_stats(None, 0, 0).await.map_err(refused)?)
        } else {
            wanted.modifications(&batch.touched)
        };
        if modifications.is_empty() {
            return Ok(());
        }
        if batch.everything {
            info!(
                flows = modifications.len(),
                "the switch differs from what is wanted; writing the difference"
            );
        }
        connection.flow_mods_atomically(&modifications).await.map_err(refused)
    }
}

#[derive(Default)]
struct Batch {
    touched: BTreeSet<FlowKey>,
    everything: bool,
    waiting: Vec<oneshot::Sender<Result<(), FlowError>>>,
    audits: Vec<Audit>,
}

type Audit = (Object, oneshot::Sender<Result<Option<FlowKey>, FlowError>>);

impl Batch {
    fn answer(self, outcome: &Result<(), FlowError>) {
        for done in self.waiting {
            // Who asked may have given up.
            let _ = done.send(outcome.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openvswitch::openflow::{Action, Match, PortNo};

    fn flow(priority: u16, port: u32) -> Flow {
        Flow::new(0, priority, Match::new().in_port(9)).actions([Action::Output(PortNo(port))])
    }

    fn stats(flow: Flow) -> FlowStats {
        FlowStats { flow, packets: 0, bytes: 0, duration: Duration::ZERO }
    }

    #[test]
    fn an_object_that_goes_late_leaves_the_flow_another_has_taken_over() {
        let mut wanted = Wanted::default();
        let (old, new) = (Object::Vtep([10, 0, 0, 1].into()), Object::Vtep([10, 0, 0, 2].into()));
        wanted.apply(vec![(old.clone(), vec![flow(1, 5)]), (new, vec![flow(1, 6)])], &mut BTreeSet::new());
        let mut touched = BTreeSet::new();
        wanted.apply(vec![(old, Vec::new())], &mut touched);
        assert_eq!(wanted.modifications(&touched), []);
        assert_eq!(wanted.difference(Vec::new()), [FlowMod::Add(flow(1, 6))]);
    }

    #[test]
    fn the_difference_touches_only_what_is_wrong() {
        let mut wanted = Wanted::default();
        let all = vec![flow(1, 5), flow(2, 5), flow(3, 5)];
        wanted.apply(vec![(Object::Base, all)], &mut BTreeSet::new());
        let installed = vec![stats(flow(1, 5)), stats(flow(2, 7)), stats(flow(4, 5))];
        let mut difference = wanted.difference(installed);
        difference.sort_by_key(|m| matches!(m, FlowMod::Add(flow) if flow.priority == 3));
        assert_eq!(
            difference,
            [FlowMod::Delete(flow(4, 5).key()), FlowMod::Add(flow(2, 5)), FlowMod::Add(flow(3, 5))]
        );
    }
}
