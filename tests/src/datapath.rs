//! The two datapaths of Open vSwitch that the same tests run on.

use std::{env, time::Duration};

use crate::error::BedError;

/// Which datapath the nodes' bridges have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datapath {
    /// `datapath_type=netdev`: packets are switched by ovs-vswitchd itself.
    Userspace,
    /// `datapath_type=system`: packets are switched by the kernel's openvswitch module.
    Kernel,
}

impl Datapath {
    /// The one that `TENON_DATAPATH` names.
    pub fn from_env() -> Result<Self, BedError> {
        match env::var("TENON_DATAPATH").as_deref() {
            Err(env::VarError::NotPresent) | Ok("netdev") => Ok(Self::Userspace),
            Ok("system") => Ok(Self::Kernel),
            other => {
                Err(BedError::answer("TENON_DATAPATH", format!("{other:?} is neither netdev nor system")))
            }
        }
    }

    /// Its name in `datapath_type` and in agent.toml.
    pub fn name(self) -> &'static str {
        match self {
            Self::Userspace => "netdev",
            Self::Kernel => "system",
        }
    }
}

/// A time limit for a machine of the usual speed, stretched where `TENON_PATIENCE` (a whole number) says that
/// this one is slower, as User-Mode Linux is.
pub fn patience(limit: Duration) -> Duration {
    let factor = env::var("TENON_PATIENCE").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    limit * factor
}
