//! What a client and its background task share: the view, the state of the connection, and who waits for what.

use super::result::Outcome;
use super::transaction::Expected;
use super::{Error, Fault, RowChange, Settings, Uuid, View};
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};

/// How many events a receiver may fall behind before it is told to read the whole view again.
const EVENTS_KEPT: usize = 1024;

/// The state of a client's connection.
#[derive(Clone, Debug)]
pub enum Status {
    /// Connected, and the view follows the database.
    Connected,
    /// Not connected, and why; the view is as it was last seen. The client keeps trying.
    Disconnected(Arc<Fault>),
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected => formatter.write_str("connected"),
            Self::Disconnected(cause) => write!(formatter, "not connected ({cause})"),
        }
    }
}

/// Something that happened to a client's view. The view already shows it, and may already show more.
#[derive(Clone, Debug)]
pub enum Event {
    /// The view was replaced as a whole by the database's present state, after a connection was made; or this
    /// receiver fell behind and missed events. Either way: read the view anew.
    Synced,
    /// These rows changed, all of them together.
    Updated(Arc<[RowChange]>),
    /// The connection is gone, and why. The view stays as it was; `Synced` follows when the server is back.
    Disconnected(Arc<Fault>),
}

/// A request on its way to the background task.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) id: u64,
    pub(super) text: Vec<u8>,
    pub(super) expected: Vec<Expected>,
    pub(super) reply: oneshot::Sender<Result<Outcome, CallFault>>,
}

/// Why a request got no result.
#[derive(Debug)]
pub(super) enum CallFault {
    /// It was not sent.
    Unsent(Arc<Fault>),
    /// It was sent, and the connection broke before the reply.
    Unanswered(Arc<Fault>),
    /// The server refused it as a whole.
    Refused(String),
}

/// The way to the background task's present connection.
#[derive(Clone, Debug)]
pub(super) enum Link {
    /// Requests go here.
    Up(mpsc::Sender<Command>),
    /// There is none, and why.
    Down(Arc<Fault>),
}

/// Shared between the clones of a client and its background task.
#[derive(Debug)]
pub(super) struct State {
    pub(super) settings: Settings,
    pub(super) view: watch::Sender<Arc<View>>,
    pub(super) status: watch::Sender<Status>,
    pub(super) events: broadcast::Sender<Event>,
    link: Mutex<Link>,
    row_waiters: Mutex<HashMap<Uuid, Vec<Arc<Notify>>>>,
    last_id: AtomicU64,
}

impl State {
    pub(super) fn new(settings: Settings) -> Self {
        let starting = Arc::new(Fault::Starting);
        Self {
            view: watch::Sender::new(Arc::new(View::new(&settings.monitor))),
            status: watch::Sender::new(Status::Disconnected(starting.clone())),
            events: broadcast::Sender::new(EVENTS_KEPT),
            link: Mutex::new(Link::Down(starting)),
            row_waiters: Mutex::default(),
            last_id: AtomicU64::new(0),
            settings,
        }
    }

    /// An id for a request that no other request of this client has.
    pub(super) fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn link(&self) -> Link {
        locked(&self.link).clone()
    }

    pub(super) fn disconnected(&self, cause: Arc<Fault>) -> Error {
        Error::Disconnected { endpoint: self.settings.endpoint.clone(), cause }
    }

    /// The connection is made and `view` is the database's state.
    pub(super) fn synced(&self, view: View, commands: mpsc::Sender<Command>) {
        self.view.send_replace(Arc::new(view));
        *locked(&self.link) = Link::Up(commands);
        self.status.send_replace(Status::Connected);
        // Without receivers there is nobody to tell, here and below.
        let _ = self.events.send(Event::Synced);
        for waiter in locked(&self.row_waiters).values().flatten() {
            waiter.notify_one();
        }
    }

    /// Rows changed.
    pub(super) fn updated(&self, changes: Vec<RowChange>) {
        if changes.is_empty() {
            return;
        }
        self.view.send_modify(|view| Arc::make_mut(view).apply(&changes));
        {
            let row_waiters = locked(&self.row_waiters);
            for change in &changes {
                for waiter in row_waiters.get(&change.uuid).into_iter().flatten() {
                    waiter.notify_one();
                }
            }
        }
        let _ = self.events.send(Event::Updated(changes.into()));
    }

    /// The connection broke, or could not be made.
    pub(super) fn down(&self, cause: Arc<Fault>) {
        *locked(&self.link) = Link::Down(cause.clone());
        let before = self.status.send_replace(Status::Disconnected(cause.clone()));
        if matches!(before, Status::Connected) {
            let _ = self.events.send(Event::Disconnected(cause));
        }
    }
}

/// Is woken when its row changes, and on a sync.
pub(super) struct RowWaiter<'a> {
    state: &'a State,
    uuid: Uuid,
    notify: Arc<Notify>,
}

impl<'a> RowWaiter<'a> {
    pub(super) fn new(state: &'a State, uuid: Uuid) -> Self {
        let notify = Arc::new(Notify::new());
        locked(&state.row_waiters).entry(uuid).or_default().push(notify.clone());
        Self { state, uuid, notify }
    }

    /// Returns once the row has changed since the waiter was made or this returned last.
    pub(super) async fn changed(&self) {
        // A wake-up that comes while nobody waits is kept by `Notify`.
        self.notify.notified().await;
    }
}

impl Drop for RowWaiter<'_> {
    fn drop(&mut self) {
        let mut row_waiters = locked(&self.state.row_waiters);
        if let Some(waiters) = row_waiters.get_mut(&self.uuid) {
            waiters.retain(|waiter| !Arc::ptr_eq(waiter, &self.notify));
            if waiters.is_empty() {
                row_waiters.remove(&self.uuid);
            }
        }
    }
}

/// Locks a mutex whose content is sound also after a panic, since it is never left half changed.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
