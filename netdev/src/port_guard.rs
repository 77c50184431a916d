//! Keeping what comes in by a switch's ports out of the node's own IP stack, with nftables over netlink.

use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    Cmp, DataAttribute, Expressions, Immediate, InetHookNumber, Meta, MetaKey, Operator, Register, Verdict,
    VerdictAttribute,
};

use crate::error::{Error, Result};
use crate::nftables::{DROP, RuleSet, Table, plain};

/// `NF_IP_PRI_RAW`: before connection tracking (-200), so that what is dropped costs no entry there.
const RAW_PRIORITY: i32 = -300;

/// `NF_IP_PRI_FILTER`.
const FILTER_PRIORITY: i32 = 0;

/// `NF_ARP_IN` of linux/netfilter_arp.h.
const ARP_INPUT: u32 = 0;

/// Drops whatever enters the node's own IPv4, IPv6 or ARP code by a link whose name starts with a prefix:
/// `iifname "PREFIX*" counter drop`, in a table of family `inet` (hook prerouting, priority raw) and in one of
/// family `arp` (hook input, priority filter). Two rules serve any number of links, also links made later.
///
/// A switch in user space reads its ports through packet sockets, which get a copy: the kernel's own stack takes
/// every frame as well, answers ARP for any of the node's addresses, and delivers and forwards packets past the
/// switch's flows. Packet sockets see frames before these rules do, so the switch loses nothing. A switch in the
/// kernel takes the frames of its ports for itself, and the rules see none.
///
/// What the node itself sends by such a link is not held back. All of it works in the calling thread's network
/// namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortGuard {
    /// The name of both nftables tables; everything else in them is deleted by [`PortGuard::install`].
    pub table: String,
    /// What the names of the links start with, 1 to 15 bytes. No link that the node itself is reached by may have
    /// such a name.
    pub link_prefix: String,
}

impl PortGuard {
    /// Puts both rules in place, in one step; a table that is as it is to be already is not touched.
    ///
    /// Returns whether anything was changed. A kernel without nftables, or without its family `inet` or `arp`,
    /// refuses with `EOPNOTSUPP`, and nothing is changed.
    pub fn install(&self) -> Result<bool> {
        self.rule_set("install")?.install()
    }

    /// Whether both rules, and nothing else, are in place as [`PortGuard::install`] would put them.
    pub fn installed(&self) -> Result<bool> {
        self.rule_set("read back")?.installed()
    }

    /// Deletes both tables with all that is in them; a table that is gone already is fine.
    pub fn remove(&self) -> Result<()> {
        self.rule_set("remove")?.remove()
    }

    fn rule_set(&self, operation: &'static str) -> Result<RuleSet> {
        let purpose =
            format!("guard of the links {}* (nftables tables inet and arp {})", self.link_prefix, self.table);
        if !is_link_prefix(&self.link_prefix) {
            return Err(Error::Invalid {
                operation,
                object: purpose.escape_debug().to_string(),
                reason: "what a link's name starts with has 1 to 15 bytes, none of them white space, '/', ':' or NUL",
            });
        }
        let table = |family, chain, hook, priority| Table {
            family,
            name: self.table.clone(),
            chain,
            chain_type: "filter",
            hook,
            device: None,
            priority,
            rule: self.rule(),
        };
        Ok(RuleSet {
            purpose,
            tables: vec![
                table(NetfilterProtoFamily::Inet, "prerouting", InetHookNumber::PreRouting, RAW_PRIORITY),
                table(NetfilterProtoFamily::ARP, "input", InetHookNumber::from(ARP_INPUT), FILTER_PRIORITY),
            ],
        })
    }

    /// The register holds the name padded with NULs; comparing no more than the prefix leaves the rest open.
    fn rule(&self) -> Vec<Expressions> {
        let prefix = DataAttribute::Value(self.link_prefix.clone().into_bytes());
        let drop = DataAttribute::Verdict(vec![VerdictAttribute::Code(Verdict::Other(DROP))]);
        vec![
            Expressions::Meta(vec![Meta::DestinationRegister(Register::Reg1), Meta::Key(MetaKey::Iifname)]),
            Expressions::Cmp(vec![
                Cmp::SourceRegister(Register::Reg1),
                Cmp::Op(Operator::Equal),
                Cmp::Data(prefix),
            ]),
            plain("counter"),
            Expressions::Immediate(vec![
                Immediate::DestinationRegister(Register::Verdict),
                Immediate::Data(drop),
            ]),
        ]
    }
}

/// `IFNAMSIZ` of linux/if.h is 16 with the closing NUL; the kernel refuses link names with these characters.
fn is_link_prefix(text: &str) -> bool {
    (1..16).contains(&text.len())
        && !text.contains(|c: char| matches!(c, '\0' | '/' | ':') || c.is_whitespace())
}
