//! Tenants, their VNIs, and what an admin's edit of a record means.
//!
//! Every namespace is a tenant with a VNI of its own, unless it was joined to another one or made global. People
//! edit the tenant *records* in etcd; the controller answers every edit with a [`Plan`] and keeps beside each record
//! a [`Settled`] copy of what it has granted. Nodes apply settled copies only, so that an edit moves no packet before
//! it has been judged, and so that a new controller knows what the last one had granted.
//!
//! This crate is pure: it reads no clock, waits for nothing and does no I/O.
//!
//! ```
//! use tenon_tenant::{Edit, Plan, Snapshot, Vni, plan};
//!
//! let mut tenants = Snapshot::default();
//! let answer = plan(&tenants, "blue", Edit::Put(br#"{"NetName":"blue"}"#));
//! assert!(matches!(&answer, Plan::Settle { settled, .. } if settled.net_id() == Vni::FIRST));
//! tenants.apply("blue", &answer);
//! assert_eq!(tenants.settled("blue").map(|tenant| tenant.net_id()), Some(Vni::FIRST));
//! ```

mod fields;
mod plan;
mod plugin_name;
mod record;
mod settled;
mod snapshot;
mod vni;

pub use fields::{FieldError, Fields, MAX_EXTRA_BYTES, MAX_EXTRA_DEPTH, bounded_error, shorten};
pub use plan::{Edit, Plan, Refusal, plan};
pub use plugin_name::{PluginName, UnknownPluginName};
pub use record::{Action, Record, RecordError};
pub use settled::{Settled, SettledError};
pub use snapshot::Snapshot;
pub use vni::{Vni, VniError};
