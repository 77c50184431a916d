//! Node subnets and pod addresses.
//!
//! [`ClusterNetwork`] is what an admin laid down for the whole cluster. Every node gets a subnet of it: [`claim`] is
//! what a node writes to get (or keep) one, [`plan_subnet`] what the controller answers. As with tenants, people edit
//! the [`NodeRecord`]s and nodes apply the [`SettledSubnet`]s. Within its subnet a node gives out pod addresses from
//! a [`NodePool`].
//!
//! Macvlan pods get real addresses instead: a [`Segment`] says which, and every one that is given out is a [`Lease`] in
//! the store. A [`LeaseBook`] is a node's view of a segment's leases and decides what to write there; as every write
//! has its condition, a view that lags behind makes a node try again, never two pods hold one address.
//!
//! This crate is pure: it reads no clock, waits for nothing and does no I/O.

mod addresses;
mod book;
mod choice;
mod claim;
mod config;
mod lease;
mod mac;
mod node_record;
mod overlaps;
mod plan;
mod pool;
mod reclaim;
mod rotation;
mod segment;
mod segment_error;
mod spread;
mod subnets;

pub use addresses::{Family, Pool};
pub use book::{LeaseBook, LeaseChange, LeaseWrite, SET_ASIDE_SECONDS};
pub use choice::{Choice, Refusal, Request};
pub use claim::{Claim, Key, Reason, Registered, Write, claim};
pub use config::{ClusterNetwork, ConfigError, DEFAULT_VXLAN_PORT};
pub use lease::{Attachment, Lease, LeaseError, PodName};
pub use mac::{Mac, MacError, mac_of, mac_of_lease};
pub use node_record::{NodeRecord, NodeRecordError, SettledSubnet};
pub use overlaps::{SegmentOverlap, overlaps};
pub use plan::{SubnetPlan, SubnetRefusal, plan_subnet};
pub use pool::{NodePool, PoolError};
pub use reclaim::release;
pub use segment::{DEFAULT_PROBE_MS, DEFAULT_QUARANTINE_SECONDS, Mode, Segment, SegmentRoute, SegmentSubnet};
pub use segment_error::SegmentError;
pub use subnets::Subnets;
pub use tenon_tenant::PluginName;
