//! The client.

use super::message;
use super::session::supervise;
use super::state::{CallFault, Command, Link, RowWaiter, State};
use super::{Error, Event, Fault, Row, Settings, Status, Transaction, TransactionResults, Uuid, View};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, oneshot, watch};
use tokio::task::AbortHandle;

/// A connection to an OVSDB server that is kept up, with a replica of the monitored tables.
///
/// Clones share the connection, which ends with the last of them. See the [module](super) on the order in which
/// transactions and updates are seen.
#[derive(Clone, Debug)]
pub struct Client {
    state: Arc<State>,
    _task: Arc<Task>,
}

/// Ends the background task when the last client is dropped.
#[derive(Debug)]
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Client {
    /// Connects, and returns when the view shows the database. If the first attempt fails, so does this.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn connect(settings: Settings) -> Result<Self, Error> {
        let client = Self::start(settings);
        let mut status = client.watch_status();
        let tried = |status: &Status| match status {
            Status::Connected => true,
            Status::Disconnected(cause) => !matches!(cause.as_ref(), Fault::Starting),
        };
        // The sender lives in the client, so this does not fail.
        let _ = status.wait_for(tried).await;
        match client.status() {
            Status::Connected => Ok(client),
            Status::Disconnected(cause) => Err(client.state.disconnected(cause)),
        }
    }

    /// Starts to connect in the background. The view is empty until the first sync.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(settings: Settings) -> Self {
        let state = Arc::new(State::new(settings));
        let task = tokio::spawn(supervise(state.clone()));
        Self { state, _task: Arc::new(Task(task.abort_handle())) }
    }

    /// Has the server carry out a transaction, and returns the results of its operations.
    ///
    /// When this returns `Ok`, the view shows what the transaction changed. There is no timeout: a server that
    /// falls silent ends in [`Error::Interrupted`] after [`Settings::dead_after`]. If the future is dropped, the
    /// transaction may still be carried out.
    ///
    /// # Errors
    /// [`Error::Disconnected`] at once without a connection, with nothing done; [`Error::Interrupted`] when the
    /// connection breaks before the reply, and it may or may not be done; [`Error::Operation`] or
    /// [`Error::Commit`] when it failed and [`Error::Refused`] when the server would not even try, with nothing
    /// done; [`Error::Unencodable`] when it cannot be sent.
    pub async fn transact(&self, transaction: &Transaction) -> Result<TransactionResults, Error> {
        let link = match self.state.link() {
            Link::Up(link) => link,
            Link::Down(cause) => return Err(self.state.disconnected(cause)),
        };
        let id = self.state.next_id();
        let text = message::request("transact", transaction, id)?;
        let (reply, answer) = oneshot::channel();
        let command = Command { id, text, expected: transaction.expected(), reply };
        if link.send(command).await.is_err() {
            return Err(self.state.disconnected(self.cause()));
        }
        // A request whose answer is dropped was cut off by the end of the runtime.
        match answer.await.unwrap_or_else(|_| Err(CallFault::Unanswered(self.cause()))) {
            Ok(outcome) => outcome.into_result(transaction),
            Err(CallFault::Unsent(cause)) => Err(self.state.disconnected(cause)),
            Err(CallFault::Unanswered(cause)) => {
                Err(Error::Interrupted { endpoint: self.state.settings.endpoint.clone(), cause })
            }
            Err(CallFault::Refused(error)) => Err(Error::Refused { method: "transact", error }),
        }
    }

    /// The monitored tables as they are now, or without a connection as they were last seen.
    ///
    /// This is cheap. What was returned does not change; ask again for what is newer.
    pub fn view(&self) -> Arc<View> {
        self.state.view.borrow().clone()
    }

    /// Everything that happens to the view from now on. To miss nothing, call this before [`Client::view`].
    pub fn changes(&self) -> Changes {
        Changes { events: self.state.events.subscribe() }
    }

    /// Waits until `check` finds in the view what it looks for.
    ///
    /// `check` is called once at the start and again after every update, so with many rows changing it should
    /// be quick; [`Client::wait_row`] is woken only by the changes of one row. A lost connection does not end the
    /// wait: `check` sees what the next sync brings.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub async fn wait_until<T>(
        &self,
        timeout: Duration,
        mut check: impl FnMut(&View) -> Option<T>,
    ) -> Result<T, Error> {
        let mut views = self.state.view.subscribe();
        let found = async {
            loop {
                let view = views.borrow_and_update().clone();
                if let Some(found) = check(&view) {
                    return found;
                }
                drop(view);
                // The sender lives in the client, so this does not fail.
                let _ = views.changed().await;
            }
        };
        tokio::time::timeout(timeout, found).await.map_err(|_| self.timeout("a change of the view", timeout))
    }

    /// Waits until `check` finds in one row what it looks for; `None` stands for a row that is not there.
    ///
    /// Like [`Client::wait_until`], but `check` is called again only when this row has changed, or after a sync.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub async fn wait_row<T>(
        &self,
        table: &str,
        uuid: Uuid,
        timeout: Duration,
        mut check: impl FnMut(Option<&Row>) -> Option<T>,
    ) -> Result<T, Error> {
        let waiter = RowWaiter::new(&self.state, uuid);
        let found = async {
            loop {
                if let Some(found) = check(self.view().row(table, uuid).map(Arc::as_ref)) {
                    return found;
                }
                waiter.changed().await;
            }
        };
        tokio::time::timeout(timeout, found)
            .await
            .map_err(|_| self.timeout(&format!("a change of row {uuid} in table {table}"), timeout))
    }

    /// Whether there is a connection and the view follows the database.
    pub fn connected(&self) -> bool {
        matches!(*self.state.status.borrow(), Status::Connected)
    }

    /// The state of the connection.
    pub fn status(&self) -> Status {
        self.state.status.borrow().clone()
    }

    /// The state of the connection, to wait for its changes.
    pub fn watch_status(&self) -> watch::Receiver<Status> {
        self.state.status.subscribe()
    }

    /// Waits until there is a connection and the view follows the database.
    ///
    /// # Errors
    /// [`Error::Timeout`], which says why there is no connection.
    pub async fn wait_connected(&self, timeout: Duration) -> Result<(), Error> {
        let mut status = self.watch_status();
        let connected = status.wait_for(|status| matches!(status, Status::Connected));
        match tokio::time::timeout(timeout, connected).await {
            Ok(_) => Ok(()),
            Err(_) => Err(self.timeout("a connection", timeout)),
        }
    }

    fn cause(&self) -> Arc<Fault> {
        match self.status() {
            Status::Disconnected(cause) => cause,
            Status::Connected => Arc::new(Fault::Closed { unfinished_bytes: 0 }),
        }
    }

    fn timeout(&self, what: &str, waited: Duration) -> Error {
        Error::Timeout {
            endpoint: self.state.settings.endpoint.clone(),
            what: what.to_owned(),
            waited,
            status: self.status(),
        }
    }
}

/// The events of a client's view, from when it was made.
#[derive(Debug)]
pub struct Changes {
    events: broadcast::Receiver<Event>,
}

impl Changes {
    /// The next event; `None` when the client is gone. Cancelling loses no event.
    ///
    /// A receiver that falls far behind gets one [`Event::Synced`] for all that it missed.
    pub async fn next(&mut self) -> Option<Event> {
        match self.events.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Closed) => None,
            Err(broadcast::error::RecvError::Lagged(_)) => {
                // What is still queued is older than the view that is to be read now.
                self.events = self.events.resubscribe();
                Some(Event::Synced)
            }
        }
    }
}
