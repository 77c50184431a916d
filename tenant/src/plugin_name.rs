//! PluginName in the cluster's configuration: whether tenants are kept apart.

use crate::Vni;

/// What the cluster's configuration says under `PluginName`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PluginName {
    /// `k8s-ovs-multitenant`: every tenant has the VNI that was settled for it.
    Multitenant,
    /// `k8s-ovs-subnet`: one tenant, everybody may talk to everybody.
    Subnet,
}

/// A text that is no [`PluginName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("PluginName is {0:?}; it must be \"k8s-ovs-multitenant\" or \"k8s-ovs-subnet\"")]
pub struct UnknownPluginName(pub String);

impl PluginName {
    /// The text in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            PluginName::Multitenant => "k8s-ovs-multitenant",
            PluginName::Subnet => "k8s-ovs-subnet",
        }
    }

    /// The VNI that the packets of a tenant's pods carry, given the one that was settled for the tenant.
    pub const fn effective_vni(self, settled: Vni) -> Vni {
        match self {
            PluginName::Multitenant => settled,
            PluginName::Subnet => Vni::GLOBAL,
        }
    }
}

impl std::str::FromStr for PluginName {
    type Err = UnknownPluginName;

    fn from_str(text: &str) -> Result<PluginName, UnknownPluginName> {
        [PluginName::Multitenant, PluginName::Subnet]
            .into_iter()
            .find(|name| name.as_str() == text)
            .ok_or_else(|| UnknownPluginName(crate::shorten(text)))
    }
}

impl std::fmt::Display for PluginName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_tenant_cluster_puts_every_pod_in_vni_0() {
        assert_eq!("k8s-ovs-subnet".parse::<PluginName>().unwrap().effective_vni(Vni::LAST), Vni::GLOBAL);
        assert_eq!("k8s-ovs-multitenant".parse::<PluginName>().unwrap().effective_vni(Vni::LAST), Vni::LAST);
    }

    #[test]
    fn an_unknown_name_is_told_the_known_ones() {
        let error = "K8s-ovs-subnet".parse::<PluginName>().unwrap_err().to_string();
        assert!(
            error.contains("K8s-ovs-subnet")
                && error.contains("\"k8s-ovs-subnet\"")
                && error.contains("k8s-ovs-multitenant")
        );
    }
}
