//! An OVSDB client (RFC 7047) for a local `ovsdb-server`, with an in-memory replica of the tables it watches.
//!
//! - [`Client`] keeps one connection to the server, connects again when it breaks, and answers and sends echoes.
//! - [`Transaction`] is what a client asks the server to do, all or nothing; [`Client::transact`] does it.
//! - [`Monitor`] names the tables and columns to replicate; [`Client::view`] is the replica as it is now,
//!   [`Client::changes`] tells what changes in it, [`Client::wait_row`] and [`Client::wait_until`] wait for it to
//!   show something.
//!
//! # Order
//! `ovsdb-server` sends the `update` for the changes of a transaction before it sends the reply to that
//! transaction (ovsdb-server(7), on section 4.1.6 of the RFC), and [`Client`] handles messages in the order in
//! which they come. So when [`Client::transact`] returns `Ok`, [`Client::view`] already shows what the
//! transaction did to the monitored columns, and a view read before the call cannot show it. What others do in
//! answer to it (`ovs-vswitchd` filling in an interface's `ofport`) comes in later updates.
//!
//! One `update` is one committed transaction or several, never a part of one, and it enters the view at one
//! stroke.
//!
//! # Example
//! ```no_run
//! # async fn example() -> Result<(), openvswitch::ovsdb::Error> {
//! use openvswitch::ovsdb::{Client, Columns, Condition, Monitor, Mutation, Settings, Transaction};
//! use std::time::Duration;
//!
//! let monitor = Monitor::new().table("Interface", ["name", "ofport"]);
//! let endpoint = "unix:/var/run/openvswitch/db.sock".parse()?;
//! let client = Client::connect(Settings::new(endpoint, "Open_vSwitch", monitor)).await?;
//!
//! let mut transaction = Transaction::new("Open_vSwitch");
//! let interface = transaction.insert("Interface", Columns::new().set("name", "veth0"));
//! let port = transaction.insert("Port", Columns::new().set("name", "veth0").set("interfaces", &interface));
//! transaction.mutate("Bridge", [Condition::equal("name", "br0")], [Mutation::insert("ports", &port)]);
//! let results = client.transact(&transaction).await?;
//!
//! let interface = results.inserted(&interface)?;
//! let ofport = client
//!     .wait_row("Interface", interface, Duration::from_secs(5), |row| row?.optional_integer("ofport").ok()?)
//!     .await?;
//! # let _ = ofport;
//! # Ok(())
//! # }
//! ```

mod client;
mod endpoint;
mod error;
mod framing;
mod message;
mod monitor;
mod result;
mod row;
mod session;
mod settings;
mod state;
mod transaction;
mod value;
mod view;

pub use client::{Changes, Client};
pub use endpoint::Endpoint;
pub use error::{ColumnError, Error, Fault};
pub use monitor::Monitor;
pub use result::{OperationResult, TransactionResults};
pub use row::Row;
pub use settings::Settings;
pub use state::{Event, Status};
pub use transaction::{Condition, Function, InsertedRow, Mutation, Mutator, Transaction, Until};
pub use uuid::Uuid;
pub use value::{Atom, Columns, Value};
pub use view::{ChangeKind, RowChange, Table, View};
