//! Masquerading: source translation of what leaves a network, with nftables over netlink.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, Expressions, InetHookNumber, Operator, Payload, Register,
};

use crate::error::Result;
use crate::nftables::{RuleSet, Table, plain};

/// `NF_IP_PRI_NAT_SRC`: where source translation belongs among the chains of a hook.
const SOURCE_NAT_PRIORITY: i32 = 100;

/// Where the two addresses are in the IPv4 header (RFC 791 section 3.1), in bytes.
const SOURCE_ADDRESS: u32 = 12;
const DESTINATION_ADDRESS: u32 = 16;

/// Packets from a network to elsewhere leave with the address of the interface that they leave by:
/// `ip saddr NETWORK ip daddr != NETWORK counter masquerade`, in a table of its own.
///
/// All of it works in the calling thread's network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masquerade {
    /// The nftables table of family `ip`; everything else in it is deleted by [`Masquerade::install`].
    pub table: String,
    /// The network whose addresses are not to be seen elsewhere.
    pub network: Ipv4Net,
    /// Destinations that may see them all the same.
    pub except: Vec<Ipv4Net>,
}

impl Masquerade {
    /// Puts the rule in place, in one step; nothing is done if it is in place already. Connections that are
    /// translated now stay so.
    ///
    /// Returns whether anything was changed. A kernel without nftables for IPv4 refuses with `EOPNOTSUPP`.
    pub fn install(&self) -> Result<bool> {
        self.rule_set().install()
    }

    /// Whether the rule, and nothing else, is in place as [`Masquerade::install`] would put it.
    pub fn installed(&self) -> Result<bool> {
        self.rule_set().installed()
    }

    /// Deletes the table with all that is in it; a table that is gone already is fine.
    ///
    /// With the last nat chain of a network namespace its kernel stops translating: connections that were translated
    /// break.
    pub fn remove(&self) -> Result<()> {
        self.rule_set().remove()
    }

    fn rule_set(&self) -> RuleSet {
        RuleSet {
            purpose: format!("masquerading of {} (nftables table {})", self.network, self.table),
            tables: vec![Table {
                family: NetfilterProtoFamily::IPv4,
                name: self.table.clone(),
                chain: "postrouting",
                chain_type: "nat",
                hook: InetHookNumber::PostRouting,
                device: None,
                priority: SOURCE_NAT_PRIORITY,
                rule: self.rule(),
            }],
        }
    }

    fn rule(&self) -> Vec<Expressions> {
        let elsewhere = [self.network].into_iter().chain(self.except.iter().copied());
        let mut expressions = address_test(SOURCE_ADDRESS, Operator::Equal, self.network).to_vec();
        expressions
            .extend(elsewhere.flat_map(|net| address_test(DESTINATION_ADDRESS, Operator::NotEqual, net)));
        expressions.extend(["counter", "masq"].map(plain));
        expressions
    }
}

/// Compares an address in the IPv4 header with a network: load it, mask it, compare it.
fn address_test(offset: u32, operator: Operator, network: Ipv4Net) -> [Expressions; 3] {
    const NETWORK_HEADER: u32 = 1;
    const ADDRESS_BYTES: u32 = 4;
    let value = |ip: Ipv4Addr| DataAttribute::Value(ip.octets().to_vec());
    [
        Expressions::Payload(vec![
            Payload::DestinationRegister(Register::Reg1),
            Payload::Base(NETWORK_HEADER),
            Payload::Offset(offset),
            Payload::Len(ADDRESS_BYTES),
        ]),
        Expressions::Bitwise(vec![
            Bitwise::SourceRegister(Register::Reg1),
            Bitwise::DestinationRegister(Register::Reg1),
            Bitwise::Length(ADDRESS_BYTES),
            Bitwise::Mask(value(network.netmask())),
            Bitwise::Xor(value(Ipv4Addr::UNSPECIFIED)),
        ]),
        Expressions::Cmp(vec![
            Cmp::SourceRegister(Register::Reg1),
            Cmp::Op(operator),
            Cmp::Data(value(network.network())),
        ]),
    ]
}
