//! Where each record lives in etcd: builders for keys and the parser that is their inverse.
//!
//! Every key is `<prefix>/config` or `<prefix>/<Name>/<kind>/…`, where Name is the network's name as `/config` has
//! it. A name is one segment of a path: not empty and without a `/`.

use thiserror::Error;

const SUBNETS: &str = "subnets";
const TENANTS: &str = "netnamespaces";
const SEGMENTS: &str = "segments";
const LEASES: &str = "leases";
const SETTLED: &str = "settled";
const SETTLED_TENANTS: &str = "tenants";
const SETTLED_SUBNETS: &str = "subnets";
const SETTLED_CURSORS: &str = "cursors";
const CONTROLLER: &str = "controller";
const AGENTS: &str = "agents";

/// A name that cannot be part of a key.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{what} {name:?} cannot be part of an etcd key: it must not be empty or contain '/'")]
pub struct NameError {
    what: &'static str,
    name: String,
}

/// The keys under one prefix, for instance `/k8s.ovs.com/ovs/network`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
}

/// A key as [`Keys::parse`] understood it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key<'a> {
    /// `<prefix>/config`: the cluster's configuration.
    Config,
    /// `<prefix>/<network>/…`: a record of the network of that name.
    Of {
        /// The network's name, as in the configuration.
        network: &'a str,
        /// Which record.
        record: Record<'a>,
    },
}

/// The records of one network. Names are as they stand in the key: nothing here says that an address is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Record<'a> {
    /// `/subnets/<HostIP>`: a host's subnet.
    Subnet(&'a str),
    /// `/netnamespaces/<ns>`: a tenant, as people edit it.
    Tenant(&'a str),
    /// `/segments/<segment>`: a macvlan segment.
    Segment(&'a str),
    /// `/leases/<segment>/<ip>`: an address given out on a segment.
    Lease {
        /// The segment's name.
        segment: &'a str,
        /// The address, as text.
        ip: &'a str,
    },
    /// `/settled/tenants/<ns>`: the last good state of a tenant, the controller's own.
    SettledTenant(&'a str),
    /// `/settled/subnets/<HostIP>`: the last good state of a host's subnet, the controller's own.
    SettledSubnet(&'a str),
    /// `/settled/cursors`: how far the controller has got, its own.
    SettledCursors,
    /// `/controller/<candidate>`: a candidate in the controllers' election.
    Candidate(&'a str),
    /// `/agents/<HostIP>`: a live agent; the key is bound to its etcd lease.
    Agent(&'a str),
}

impl Keys {
    /// The keys under `prefix`; a missing leading and a surplus trailing `/` are mended.
    pub fn new(prefix: &str) -> Self {
        let trimmed = prefix.trim_matches('/');
        let prefix = if trimmed.is_empty() { String::new() } else { format!("/{trimmed}") };
        Self { prefix }
    }

    /// The prefix of every key, with its trailing `/`: one watch on it sees everything.
    pub fn all(&self) -> String {
        format!("{}/", self.prefix)
    }

    /// The key of the cluster's configuration.
    pub fn config(&self) -> String {
        format!("{}/config", self.prefix)
    }

    /// The keys of the network called `name`.
    pub fn network(&self, name: &str) -> Result<NetworkKeys, NameError> {
        Ok(NetworkKeys { base: format!("{}/{}", self.prefix, segment("the network's Name", name)?) })
    }

    /// What `key` stands for; `None` when it is none of Tenon's: outside the prefix, of an unknown kind, with an
    /// empty name or one that contains a `/`.
    pub fn parse<'a>(&self, key: &'a str) -> Option<Key<'a>> {
        let path = key.strip_prefix(self.prefix.as_str())?.strip_prefix('/')?;
        let mut parts = path.split('/');
        // Five parts can tell every key; a sixth would be ignored, so the rest is refused below.
        let parts = [parts.next(), parts.next(), parts.next(), parts.next(), parts.next()];
        if parts.iter().flatten().any(|part| part.is_empty()) {
            return None;
        }
        let (network, record) = match parts {
            [Some("config"), None, ..] => return Some(Key::Config),
            [Some(network), Some(SUBNETS), Some(ip), None, _] => (network, Record::Subnet(ip)),
            [Some(network), Some(TENANTS), Some(ns), None, _] => (network, Record::Tenant(ns)),
            [Some(network), Some(SEGMENTS), Some(name), None, _] => (network, Record::Segment(name)),
            [Some(network), Some(LEASES), Some(segment), Some(ip), None] => {
                (network, Record::Lease { segment, ip })
            }
            [Some(network), Some(SETTLED), Some(SETTLED_TENANTS), Some(ns), None] => {
                (network, Record::SettledTenant(ns))
            }
            [Some(network), Some(SETTLED), Some(SETTLED_SUBNETS), Some(ip), None] => {
                (network, Record::SettledSubnet(ip))
            }
            [Some(network), Some(SETTLED), Some(SETTLED_CURSORS), None, _] => {
                (network, Record::SettledCursors)
            }
            [Some(network), Some(CONTROLLER), Some(candidate), None, _] => {
                (network, Record::Candidate(candidate))
            }
            [Some(network), Some(AGENTS), Some(ip), None, _] => (network, Record::Agent(ip)),
            _ => return None,
        };
        Some(Key::Of { network, record })
    }
}

/// The keys of one network. Functions in the plural give prefixes, with their trailing `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkKeys {
    base: String,
}

impl NetworkKeys {
    /// The prefix of the network's keys, with its trailing `/`.
    pub fn all(&self) -> String {
        format!("{}/", self.base)
    }

    /// A host's subnet.
    pub fn subnet(&self, host_ip: &str) -> Result<String, NameError> {
        self.leaf(SUBNETS, "the host address", host_ip)
    }

    /// The prefix of the hosts' subnets.
    pub fn subnets(&self) -> String {
        format!("{}/{SUBNETS}/", self.base)
    }

    /// A tenant's record.
    pub fn tenant(&self, namespace: &str) -> Result<String, NameError> {
        self.leaf(TENANTS, "the tenant", namespace)
    }

    /// The prefix of the tenants' records.
    pub fn tenants(&self) -> String {
        format!("{}/{TENANTS}/", self.base)
    }

    /// A macvlan segment.
    pub fn segment(&self, name: &str) -> Result<String, NameError> {
        self.leaf(SEGMENTS, "the segment", name)
    }

    /// The prefix of the macvlan segments.
    pub fn segments(&self) -> String {
        format!("{}/{SEGMENTS}/", self.base)
    }

    /// The lease of one address on a segment.
    pub fn lease(&self, segment_name: &str, ip: &str) -> Result<String, NameError> {
        let segment_name = segment("the segment", segment_name)?;
        self.leaf(&format!("{LEASES}/{segment_name}"), "the address", ip)
    }

    /// The prefix of all leases.
    pub fn leases(&self) -> String {
        format!("{}/{LEASES}/", self.base)
    }

    /// The prefix of one segment's leases.
    pub fn leases_of(&self, segment_name: &str) -> Result<String, NameError> {
        Ok(format!("{}/{LEASES}/{}/", self.base, segment("the segment", segment_name)?))
    }

    /// The prefix of everything that the controller keeps for itself.
    pub fn settled(&self) -> String {
        format!("{}/{SETTLED}/", self.base)
    }

    /// The controller's last good state of a tenant.
    pub fn settled_tenant(&self, namespace: &str) -> Result<String, NameError> {
        self.leaf(&format!("{SETTLED}/{SETTLED_TENANTS}"), "the tenant", namespace)
    }

    /// The prefix of the controller's last good states of tenants.
    pub fn settled_tenants(&self) -> String {
        format!("{}/{SETTLED}/{SETTLED_TENANTS}/", self.base)
    }

    /// The controller's last good state of a host's subnet.
    pub fn settled_subnet(&self, host_ip: &str) -> Result<String, NameError> {
        self.leaf(&format!("{SETTLED}/{SETTLED_SUBNETS}"), "the host address", host_ip)
    }

    /// The prefix of the controller's last good states of hosts' subnets.
    pub fn settled_subnets(&self) -> String {
        format!("{}/{SETTLED}/{SETTLED_SUBNETS}/", self.base)
    }

    /// How far the controller has got in giving out VNIs and subnets.
    pub fn settled_cursors(&self) -> String {
        format!("{}/{SETTLED}/{SETTLED_CURSORS}", self.base)
    }

    /// The prefix of the controllers' election, for [`Election`](crate::Election).
    pub fn controller(&self) -> String {
        format!("{}/{CONTROLLER}/", self.base)
    }

    /// The liveness key of an agent.
    pub fn agent(&self, host_ip: &str) -> Result<String, NameError> {
        self.leaf(AGENTS, "the host address", host_ip)
    }

    /// The prefix of the agents' liveness keys.
    pub fn agents(&self) -> String {
        format!("{}/{AGENTS}/", self.base)
    }

    fn leaf(&self, kind: &str, what: &'static str, name: &str) -> Result<String, NameError> {
        Ok(format!("{}/{kind}/{}", self.base, segment(what, name)?))
    }
}

fn segment<'a>(what: &'static str, name: &'a str) -> Result<&'a str, NameError> {
    if name.is_empty() || name.contains('/') {
        return Err(NameError { what, name: name.to_owned() });
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_builder_is_understood_by_the_parser() {
        for prefix in ["/k8s.ovs.com/ovs/network", "tenon/", ""] {
            let keys = Keys::new(prefix);
            let network = keys.network("k8ssdn").unwrap();
            for (key, record) in [
                (network.subnet("10.0.0.1").unwrap(), Record::Subnet("10.0.0.1")),
                (network.tenant("a").unwrap(), Record::Tenant("a")),
                (network.segment("vlan100").unwrap(), Record::Segment("vlan100")),
                (
                    network.lease("vlan100", "10.100.0.10").unwrap(),
                    Record::Lease { segment: "vlan100", ip: "10.100.0.10" },
                ),
                (network.settled_tenant("a").unwrap(), Record::SettledTenant("a")),
                (network.settled_subnet("10.0.0.1").unwrap(), Record::SettledSubnet("10.0.0.1")),
                (network.settled_cursors(), Record::SettledCursors),
                (format!("{}694d", network.controller()), Record::Candidate("694d")),
                (network.agent("10.0.0.1").unwrap(), Record::Agent("10.0.0.1")),
            ] {
                assert_eq!(keys.parse(&key), Some(Key::Of { network: "k8ssdn", record }), "{key}");
                assert!(key.starts_with(&keys.all()) && key.starts_with(&network.all()), "{key}");
            }
            assert_eq!(keys.parse(&keys.config()), Some(Key::Config));
        }
    }

    #[test]
    fn keys_are_laid_out_as_people_know_them() {
        let keys = Keys::new("/k8s.ovs.com/ovs/network/");
        assert_eq!(keys.config(), "/k8s.ovs.com/ovs/network/config");
        let network = keys.network("k8ssdn").unwrap();
        assert_eq!(network.tenant("a").unwrap(), "/k8s.ovs.com/ovs/network/k8ssdn/netnamespaces/a");
        assert_eq!(network.leases_of("v").unwrap(), "/k8s.ovs.com/ovs/network/k8ssdn/leases/v/");
        assert!(network.tenant("a").unwrap().starts_with(&network.tenants()));
        assert!(network.settled_tenants().starts_with(&network.settled()));
    }

    #[test]
    fn what_is_none_of_ours_is_not_parsed() {
        let keys = Keys::new("/p");
        for key in [
            "",
            "/",
            "/p",
            "/p/",
            "/p/config/",
            "/p/configs",
            "/pp/config",
            "p/config",
            "/p//netnamespaces/a",
            "/p/n/netnamespaces/",
            "/p/n/netnamespaces//",
            "/p/n/netnamespaces/a/b",
            "/p/n/netnamespaces/a/",
            "/p/n/leases/s",
            "/p/n/leases/s/",
            "/p/n/leases//1.2.3.4",
            "/p/n/leases/s/1.2.3.4/5",
            "/p/n/leases/s/1.2.3.4/",
            "/p/n/settled/cursors/x",
            "/p/n/settled/other/x",
            "/p/n/unknown/x",
        ] {
            assert_eq!(keys.parse(key), None, "{key:?}");
        }
    }

    #[test]
    fn a_name_that_would_change_the_layout_is_refused() {
        let keys = Keys::new("/p");
        let network = keys.network("n").unwrap();
        for name in ["", "a/b", "/", "../x"] {
            assert!(keys.network(name).is_err());
            for result in [
                network.tenant(name),
                network.lease("s", name),
                network.lease(name, "1.2.3.4"),
                network.leases_of(name),
                network.agent(name),
            ] {
                let text = result.unwrap_err().to_string();
                assert!(text.contains(&format!("{name:?}")), "{text}");
            }
        }
    }
}
