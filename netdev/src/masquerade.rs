//! Masquerading: source translation of what leaves a network, with nftables over netlink.

use ipnet::Ipv4Net;
use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, Parseable};
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, ExpressionAttribute, Expressions, Hook,
    HookNumber, InetHookNumber, ListAttribute, NfTablesMessage, Operator, Payload, Register, RuleAttribute,
    RuleMessage, TableAttribute, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::socket::{Decoded, Failure, Socket};

/// The chain's name in the table.
const CHAIN: &str = "postrouting";

/// `NF_IP_PRI_NAT_SRC`: where source translation belongs among the chains of a hook.
const SOURCE_NAT_PRIORITY: u32 = 100;

/// `NFNL_SUBSYS_NFTABLES`: whom a batch is for.
const NFTABLES: u16 = 10;

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
    /// Returns whether anything was changed.
    pub fn install(&self) -> Result<bool> {
        self.check("install")?;
        let mut socket = self.open("install")?;
        if self.is_in_place(&mut socket).map_err(|failure| self.failed("read back", failure))? {
            return Ok(false);
        }
        let changes = vec![
            // So that there is a table to delete.
            (NfTablesMessage::NewTable(self.table()), NLM_F_CREATE),
            (NfTablesMessage::DeleteTable(self.table()), 0),
            (NfTablesMessage::NewTable(self.table()), NLM_F_CREATE),
            (NfTablesMessage::NewChain(self.chain()), NLM_F_CREATE),
            (NfTablesMessage::NewRule(self.rule()), NLM_F_CREATE | NLM_F_APPEND),
        ];
        socket.change(batch(changes)).map_err(|failure| self.failed("install", failure))?;
        Ok(true)
    }

    /// Whether the rule, and nothing else, is in place as [`Masquerade::install`] would put it.
    pub fn installed(&self) -> Result<bool> {
        self.check("read back")?;
        let mut socket = self.open("read back")?;
        self.is_in_place(&mut socket).map_err(|failure| self.failed("read back", failure))
    }

    /// Deletes the table with all that is in it; a table that is gone already is fine.
    ///
    /// With the last nat chain of a network namespace its kernel stops translating: connections that were translated
    /// break.
    pub fn remove(&self) -> Result<()> {
        self.check("remove")?;
        let mut socket = self.open("remove")?;
        match socket.change(batch(vec![(NfTablesMessage::DeleteTable(self.table()), 0)])) {
            Ok(()) | Err(Failure::Refused { errno: Errno::ENOENT, .. }) => Ok(()),
            Err(failure) => Err(self.failed("remove", failure)),
        }
    }

    fn open(&self, operation: &'static str) -> Result<Socket> {
        Socket::open(netlink_sys::protocols::NETLINK_NETFILTER)
            .map_err(|failure| self.failed(operation, failure))
    }

    /// `NFT_NAME_MAXLEN` of linux/netfilter/nf_tables.h is 256 with the closing NUL.
    fn check(&self, operation: &'static str) -> Result<()> {
        if (1..256).contains(&self.table.len()) && !self.table.contains('\0') {
            return Ok(());
        }
        Err(Error::Invalid {
            operation,
            object: format!("masquerading with nftables table {:?}", self.table),
            reason: "a table's name has 1 to 255 bytes and no NUL",
        })
    }

    fn failed(&self, operation: &'static str, failure: Failure) -> Error {
        failure.during(
            operation,
            &format_args!("masquerading of {} (nftables table {})", self.network, self.table),
        )
    }

    fn is_in_place(&self, socket: &mut Socket) -> std::result::Result<bool, Failure> {
        let chain =
            match socket.request(message(NfTablesMessage::GetChain(self.chain_key())), 0, decode_chain) {
                Err(Failure::Refused { errno: Errno::ENOENT, .. }) => return Ok(false),
                answer => answer?,
            };
        let table = RuleMessage { attributes: vec![RuleAttribute::Table(self.table.clone())] };
        let rules = socket.dump(message(NfTablesMessage::GetRule(table)), decode_rule)?;
        let (Some(chain), [Some(rule)]) = (chain, rules.as_slice()) else { return Ok(false) };
        Ok(has_all(&chain.attributes, &self.chain().attributes) && self.is_rule(rule))
    }

    fn table(&self) -> TableMessage {
        TableMessage { attributes: vec![TableAttribute::Name(self.table.clone())] }
    }

    fn chain_key(&self) -> ChainMessage {
        ChainMessage {
            attributes: vec![
                ChainAttribute::Table(self.table.clone()),
                ChainAttribute::Name(CHAIN.to_owned()),
            ],
        }
    }

    fn chain(&self) -> ChainMessage {
        let mut chain = self.chain_key();
        chain.attributes.push(ChainAttribute::Type("nat".to_owned()));
        chain.attributes.push(ChainAttribute::Hook(vec![
            Hook::Number(HookNumber::Inet(InetHookNumber::PostRouting)),
            Hook::Priority(SOURCE_NAT_PRIORITY),
        ]));
        chain
    }

    fn rule(&self) -> RuleMessage {
        RuleMessage {
            attributes: vec![
                RuleAttribute::Table(self.table.clone()),
                RuleAttribute::Chain(CHAIN.to_owned()),
                RuleAttribute::Expressions(self.expressions().into_iter().map(Into::into).collect()),
            ],
        }
    }

    fn expressions(&self) -> Vec<Expressions> {
        let elsewhere = [self.network].into_iter().chain(self.except.iter().copied());
        let mut expressions = address_test(SOURCE_ADDRESS, Operator::Equal, self.network).to_vec();
        expressions
            .extend(elsewhere.flat_map(|net| address_test(DESTINATION_ADDRESS, Operator::NotEqual, net)));
        expressions.extend(
            ["counter", "masq"]
                .map(|name| Expressions::Other { expression_type: name.to_owned(), attributes: Vec::new() }),
        );
        expressions
    }

    fn is_rule(&self, rule: &RuleMessage) -> bool {
        let found: Vec<&Expressions> = rule
            .attributes
            .iter()
            .filter_map(|attribute| match attribute {
                RuleAttribute::Expressions(list) => Some(list.iter().filter_map(expression)),
                _ => None,
            })
            .flatten()
            .collect();
        let wanted = self.expressions();
        found.len() == wanted.len() && found.iter().zip(&wanted).all(|(found, wanted)| does(found, wanted))
    }
}

/// Compares an address in the IPv4 header with a network: load it, mask it, compare it.
fn address_test(offset: u32, operator: Operator, network: Ipv4Net) -> [Expressions; 3] {
    const NETWORK_HEADER: u32 = 1;
    const ADDRESS_BYTES: u32 = 4;
    let value = |ip: std::net::Ipv4Addr| DataAttribute::Value(ip.octets().to_vec());
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
            Bitwise::Xor(value(std::net::Ipv4Addr::UNSPECIFIED)),
        ]),
        Expressions::Cmp(vec![
            Cmp::SourceRegister(Register::Reg1),
            Cmp::Op(operator),
            Cmp::Data(value(network.network())),
        ]),
    ]
}

/// Whether an expression that the kernel lists does what another one asked for. The kernel adds attributes with
/// their default values, and the counter's state.
fn does(found: &Expressions, wanted: &Expressions) -> bool {
    match (found, wanted) {
        (Expressions::Payload(found), Expressions::Payload(wanted)) => has_all(found, wanted),
        (Expressions::Bitwise(found), Expressions::Bitwise(wanted)) => has_all(found, wanted),
        (Expressions::Cmp(found), Expressions::Cmp(wanted)) => has_all(found, wanted),
        (
            Expressions::Other { expression_type: found, attributes },
            Expressions::Other { expression_type: wanted, .. },
        ) => found == wanted && (found == "counter" || attributes.is_empty()),
        _ => false,
    }
}

fn has_all<T: PartialEq>(found: &[T], wanted: &[T]) -> bool {
    wanted.iter().all(|attribute| found.contains(attribute))
}

fn expression(element: &ListAttribute<ExpressionAttribute>) -> Option<&Expressions> {
    let ListAttribute::Element(attributes) = element else { return None };
    attributes.iter().find_map(|attribute| match attribute {
        ExpressionAttribute::Data(expression) => Some(expression),
        _ => None,
    })
}

fn message(inner: impl Into<NetfilterMessageInner>) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0), inner)
}

/// Puts changes between the marks that make the kernel carry out all of them or none.
fn batch(changes: Vec<(NfTablesMessage, u16)>) -> Vec<(NetfilterMessage, u16)> {
    let mark = |mark: ControlMessage| {
        (NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFTABLES), mark), 0)
    };
    let changes = changes.into_iter().map(|(change, flags)| (message(change), flags | NLM_F_ACK));
    [mark(ControlMessage::BatchBegin)]
        .into_iter()
        .chain(changes)
        .chain([mark(ControlMessage::BatchEnd)])
        .collect()
}

/// What comes after `struct nfgenmsg`.
fn attributes(body: &[u8]) -> &[u8] {
    const HEADER_BYTES: usize = 4;
    body.get(HEADER_BYTES..).unwrap_or_default()
}

fn decode_chain(body: &[u8]) -> Decoded<ChainMessage> {
    // What cannot be read is not what was installed.
    Ok(ChainMessage::parse(attributes(body)).ok())
}

/// `None` for a rule that cannot be read, which is not what was installed.
fn decode_rule(body: &[u8]) -> Decoded<Option<RuleMessage>> {
    Ok(Some(RuleMessage::parse(attributes(body)).ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(
            header in prop::collection::vec(any::<u8>(), 4),
            attributes in prop::collection::vec((0_u8..28, 0_u8..28, prop::collection::vec(0_u8..28, 0..24)), 0..6),
            length in 0_usize..200,
        ) {
            let mut body = header;
            for (length, kind, value) in attributes {
                body.extend([length, 0, kind, 0]);
                body.extend(value);
            }
            body.truncate(length);
            let _ = decode_chain(&body);
            let _ = decode_rule(&body);
        }
    }
}
