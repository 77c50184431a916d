//! Clusters of network namespaces on one machine, and the end-to-end tests on them.
//!
//! A [`Cluster`] is what a test works with: a switch in a namespace of its own (the underlay), etcd members on
//! it, nodes with their own Open vSwitch and `tenon-agent`, and pods that were attached by running the `tenon`
//! binary as a container runtime does. All parts are real programs; what they did is asked of `ip`,
//! `ovs-ofctl`, `etcdctl` and the wire itself, none of which shares code with what is tested.
//!
//! Everything that a cluster makes carries the process id in its name and ends with the value that owns it,
//! also when a test panics. What a killed test process left is removed by [`ground::sweep`] when the next one
//! starts.
//!
//! The environment chooses the parts: `TENON_DATAPATH` is `netdev` (userspace, the default) or `system` (the
//! kernel's), `TENON_BIN_DIR` holds the binaries under test (default: where cargo built this one).

pub mod cluster;
pub mod cni;
pub mod command;
pub mod datapath;
pub mod error;
pub mod etcd;
pub mod frames;
pub mod ground;
pub mod iperf;
pub mod limits;
pub mod matrix;
pub mod netns;
pub mod node;
pub mod numbers;
pub mod ovs;
pub mod pod;
pub mod probe;
pub mod segment;
pub mod stream;
pub mod threads;
pub mod underlay;

pub use cluster::{Cluster, Plan, run};
pub use error::{BedError, Outcome};
