//! Node subnets and pod addresses.
//!
//! [`ClusterNetwork`] is what an admin laid down for the whole cluster. Every node gets a subnet of it: [`claim`] is
//! what a node writes to get (or keep) one, [`plan_subnet`] what the controller answers. As with tenants, people edit
//! the [`NodeRecord`]s and nodes apply the [`SettledSubnet`]s. Within its subnet a node gives out pod addresses from
//! a [`NodePool`].
//!
//! This crate is pure: it reads no clock, waits for nothing and does no I/O.

mod claim;
mod config;
mod mac;
mod node_record;
mod plan;
mod pool;
mod subnets;

pub use claim::{Claim, Key, Reason, Registered, Write, claim};
pub use config::{ClusterNetwork, ConfigError, DEFAULT_VXLAN_PORT};
pub use mac::mac_of;
pub use node_record::{NodeRecord, NodeRecordError, SettledSubnet};
pub use plan::{SubnetPlan, SubnetRefusal, plan_subnet};
pub use pool::{NodePool, PoolError};
pub use subnets::Subnets;
pub use tenon_tenant::PluginName;
