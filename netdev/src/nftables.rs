//! nftables over netlink (linux/netfilter/nf_tables.h): rule sets that are put in place whole, read back and deleted.

use std::result;

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, Parseable};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, ExpressionAttribute, Expressions, Hook, HookNumber, InetHookNumber,
    ListAttribute, NfTablesMessage, RuleAttribute, RuleMessage, TableAttribute, TableFlags, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::socket::{Decoded, Failure, Socket};

/// `NFNL_SUBSYS_NFTABLES`: whom a batch is for.
const NFTABLES: u16 = 10;

/// `NF_ACCEPT` and `NF_DROP`: what becomes of a packet.
const ACCEPT: u32 = 1;
pub(crate) const DROP: u32 = 0;

/// Tables that do one thing together, in the calling thread's network namespace.
#[derive(Debug)]
pub(crate) struct RuleSet {
    /// What they do, for errors.
    pub(crate) purpose: String,
    pub(crate) tables: Vec<Table>,
}

/// A table with one base chain that has one rule and accepts what the rule leaves alone.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) family: NetfilterProtoFamily,
    pub(crate) name: String,
    pub(crate) chain: &'static str,
    /// `filter` or `nat`.
    pub(crate) chain_type: &'static str,
    /// A number that means another hook in every family.
    pub(crate) hook: InetHookNumber,
    /// The name of the link whose packets come by the hook: in family `netdev`, and in no other.
    pub(crate) device: Option<String>,
    /// The place among the chains of the hook, lowest first.
    pub(crate) priority: i32,
    pub(crate) rule: Vec<Expressions>,
}

impl RuleSet {
    /// Makes every table what it is to be, in one step for all of them; one that is so already is not touched.
    ///
    /// Returns whether anything was changed.
    pub(crate) fn install(&self) -> Result<bool> {
        let mut socket = self.open("install")?;
        let mut changes = Vec::new();
        for table in &self.tables {
            let failed = |failure| self.failed("read back", failure);
            if table.found(&mut socket).map_err(failed)?.is_none() {
                changes.extend(table.creation(NLM_F_EXCL));
            } else if !table.is_in_place(&mut socket).map_err(failed)? {
                changes.extend(table.replacement());
            }
        }
        if changes.is_empty() {
            return Ok(false);
        }
        socket.change(batch(changes)).map_err(|failure| self.failed("install", failure))?;
        Ok(true)
    }

    /// Whether every table is there with what [`RuleSet::install`] would put in it, and nothing else.
    pub(crate) fn installed(&self) -> Result<bool> {
        let mut socket = self.open("read back")?;
        for table in &self.tables {
            if !table.is_in_place(&mut socket).map_err(|failure| self.failed("read back", failure))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Deletes the tables with all that is in them; one that is gone already is fine.
    pub(crate) fn remove(&self) -> Result<()> {
        let mut socket = self.open("remove")?;
        for table in &self.tables {
            match socket.change(batch(vec![table.deletion()])) {
                Ok(()) | Err(Failure::Refused { errno: Errno::ENOENT, .. }) => {}
                Err(failure) => return Err(self.failed("remove", failure)),
            }
        }
        Ok(())
    }

    /// Whether any of the tables is there, whatever is in it.
    pub(crate) fn any(&self) -> Result<bool> {
        let mut socket = self.open("read back")?;
        for table in &self.tables {
            if table.found(&mut socket).map_err(|failure| self.failed("read back", failure))?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn open(&self, operation: &'static str) -> Result<Socket> {
        for table in &self.tables {
            table.check_name(operation, &self.purpose)?;
        }
        Socket::open(netlink_sys::protocols::NETLINK_NETFILTER).map_err(|failure| match failure {
            // Without any of netfilter there is not even the protocol.
            Failure::Socket { source, .. }
                if source.raw_os_error() == Some(Errno::EPROTONOSUPPORT as i32) =>
            {
                let refusal = Failure::Refused { errno: Errno::EOPNOTSUPP, message: source.to_string() };
                self.failed(operation, refusal)
            }
            failure => self.failed(operation, failure),
        })
    }

    fn failed(&self, operation: &'static str, failure: Failure) -> Error {
        failure.during(operation, &self.purpose)
    }
}

/// A change to the rule sets, with the flags of its request.
type Change = (NetfilterMessage, u16);

impl Table {
    /// `NFT_NAME_MAXLEN` of linux/netfilter/nf_tables.h is 256 with the closing NUL.
    fn check_name(&self, operation: &'static str, purpose: &str) -> Result<()> {
        if (1..256).contains(&self.name.len()) && !self.name.contains('\0') {
            return Ok(());
        }
        Err(Error::Invalid {
            operation,
            object: purpose.escape_debug().to_string(),
            reason: "the name of an nftables table has 1 to 255 bytes and no NUL",
        })
    }

    /// By itself for a table that is not there: after a batch that deletes something, closing the socket takes the
    /// kernel some 5 to 15 ms (it waits for readers), after one that does not, nothing.
    fn creation(&self, flags: u16) -> [Change; 3] {
        let name = TableMessage { attributes: vec![TableAttribute::Name(self.name.clone())] };
        let chain = ChainMessage { attributes: self.chain() };
        let rule = RuleMessage {
            attributes: vec![
                RuleAttribute::Table(self.name.clone()),
                RuleAttribute::Chain(self.chain.to_owned()),
                RuleAttribute::Expressions(self.rule.iter().cloned().map(Into::into).collect()),
            ],
        };
        [
            (self.message(NfTablesMessage::NewTable(name)), NLM_F_CREATE | flags),
            (self.message(NfTablesMessage::NewChain(chain)), NLM_F_CREATE),
            (self.message(NfTablesMessage::NewRule(rule)), NLM_F_CREATE | NLM_F_APPEND),
        ]
    }

    fn replacement(&self) -> impl Iterator<Item = Change> {
        let name = TableMessage { attributes: vec![TableAttribute::Name(self.name.clone())] };
        // So that there is a table to delete, also if somebody was faster.
        let there = (self.message(NfTablesMessage::NewTable(name)), NLM_F_CREATE);
        [there, self.deletion()].into_iter().chain(self.creation(0))
    }

    fn deletion(&self) -> Change {
        let table = TableMessage { attributes: vec![TableAttribute::Name(self.name.clone())] };
        (self.message(NfTablesMessage::DeleteTable(table)), 0)
    }

    fn found(&self, socket: &mut Socket) -> result::Result<Option<TableMessage>, Failure> {
        let name = TableMessage { attributes: vec![TableAttribute::Name(self.name.clone())] };
        existing(socket.request(self.message(NfTablesMessage::GetTable(name)), 0, decode_table))
    }

    fn is_in_place(&self, socket: &mut Socket) -> result::Result<bool, Failure> {
        let table = self.found(socket)?;
        // Not dormant, nobody else's, and with nothing in it but one chain.
        let wanted = [TableAttribute::Flags(TableFlags::empty()), TableAttribute::Use(1)];
        if !table.is_some_and(|table| has_all(&table.attributes, &wanted)) {
            return Ok(false);
        }

        let key = ChainMessage { attributes: self.chain_key().to_vec() };
        let chain = existing(socket.request(self.message(NfTablesMessage::GetChain(key)), 0, decode_chain))?;
        if !chain.is_some_and(|chain| self.is_chain(&chain)) {
            return Ok(false);
        }

        let all = RuleMessage { attributes: vec![RuleAttribute::Table(self.name.clone())] };
        let rules = socket.dump(self.message(NfTablesMessage::GetRule(all)), decode_rule)?;
        Ok(matches!(rules.as_slice(), [Some(rule)] if self.is_rule(rule)))
    }

    fn chain_key(&self) -> [ChainAttribute; 2] {
        [ChainAttribute::Table(self.name.clone()), ChainAttribute::Name(self.chain.to_owned())]
    }

    fn chain(&self) -> Vec<ChainAttribute> {
        let mut chain = self.chain_key().to_vec();
        chain.extend(self.chain_kind());
        chain.push(ChainAttribute::Hook(self.hook()));
        chain
    }

    fn chain_kind(&self) -> [ChainAttribute; 2] {
        [ChainAttribute::Type(self.chain_type.to_owned()), ChainAttribute::Policy(ACCEPT)]
    }

    fn hook(&self) -> Vec<Hook> {
        let device = self.device.iter().map(|name| Hook::NetDeviceName(name.clone()));
        // Two's complement, as the kernel reads it.
        let priority = Hook::Priority(self.priority.cast_unsigned());
        [Hook::Number(HookNumber::Inet(self.hook)), priority].into_iter().chain(device).collect()
    }

    /// The kernel lists a device twice, alone and among those of the chain.
    fn is_chain(&self, chain: &ChainMessage) -> bool {
        let hook = chain.attributes.iter().find_map(|attribute| match attribute {
            ChainAttribute::Hook(hook) => Some(hook),
            _ => None,
        });
        has_all(&chain.attributes, &self.chain_key())
            && has_all(&chain.attributes, &self.chain_kind())
            && hook.is_some_and(|hook| has_all(hook, &self.hook()))
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
        found.len() == self.rule.len()
            && found.iter().zip(&self.rule).all(|(found, wanted)| does(found, wanted))
    }

    fn message(&self, inner: NfTablesMessage) -> NetfilterMessage {
        message(self.family, 0, inner)
    }
}

/// An expression that needs no attributes: `counter`, `masq`.
pub(crate) fn plain(name: &str) -> Expressions {
    Expressions::Other { expression_type: name.to_owned(), attributes: Vec::new() }
}

/// Whether an expression that the kernel lists does what another one asked for. The kernel adds attributes with
/// their default values, and the counter's state.
fn does(found: &Expressions, wanted: &Expressions) -> bool {
    match (found, wanted) {
        (Expressions::Payload(found), Expressions::Payload(wanted)) => has_all(found, wanted),
        (Expressions::Bitwise(found), Expressions::Bitwise(wanted)) => has_all(found, wanted),
        (Expressions::Cmp(found), Expressions::Cmp(wanted)) => has_all(found, wanted),
        (Expressions::Meta(found), Expressions::Meta(wanted)) => has_all(found, wanted),
        (Expressions::Immediate(found), Expressions::Immediate(wanted)) => has_all(found, wanted),
        (
            Expressions::Other { expression_type: found, attributes },
            Expressions::Other { expression_type: wanted, attributes: needed },
        ) => found == wanted && (found == "counter" || attributes == needed),
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

/// `None` for what is not there. EINVAL is how a kernel without nftables answers a request; to a batch it says
/// EOPNOTSUPP, which tells more.
fn existing<T>(answer: result::Result<Option<T>, Failure>) -> result::Result<Option<T>, Failure> {
    match answer {
        Err(Failure::Refused { errno: Errno::ENOENT | Errno::EINVAL, .. }) => Ok(None),
        answer => answer,
    }
}

fn message(
    family: NetfilterProtoFamily,
    resource: u16,
    inner: impl Into<NetfilterMessageInner>,
) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(family, 0, resource), inner)
}

/// Puts changes between the marks that make the kernel carry out all of them or none.
fn batch(changes: Vec<Change>) -> impl Iterator<Item = Change> {
    let mark = |mark: ControlMessage| (message(NetfilterProtoFamily::Unspec, NFTABLES, mark), 0);
    let changes = changes.into_iter().map(|(change, flags)| (change, flags | NLM_F_ACK));
    [mark(ControlMessage::BatchBegin)].into_iter().chain(changes).chain([mark(ControlMessage::BatchEnd)])
}

/// What comes after `struct nfgenmsg`.
fn attributes(body: &[u8]) -> &[u8] {
    const HEADER_BYTES: usize = 4;
    body.get(HEADER_BYTES..).unwrap_or_default()
}

// What cannot be read is not what was installed.

fn decode_table(body: &[u8]) -> Decoded<TableMessage> {
    Ok(TableMessage::parse(attributes(body)).ok())
}

fn decode_chain(body: &[u8]) -> Decoded<ChainMessage> {
    Ok(ChainMessage::parse(attributes(body)).ok())
}

/// `Some(None)` for a rule that cannot be read, so that it counts.
fn decode_rule(body: &[u8]) -> Decoded<Option<RuleMessage>> {
    Ok(Some(RuleMessage::parse(attributes(body)).ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::{CloneFlags, unshare};
    use proptest::prelude::*;

    fn rule_set(families: &[NetfilterProtoFamily]) -> RuleSet {
        let table = |family: &NetfilterProtoFamily| Table {
            family: *family,
            name: "counted".to_owned(),
            chain: "input",
            chain_type: "filter",
            hook: InetHookNumber::LocalIn,
            device: None,
            priority: 0,
            rule: vec![plain("counter")],
        };
        RuleSet { purpose: "counting".to_owned(), tables: families.iter().map(table).collect() }
    }

    #[test]
    fn a_family_that_the_kernel_lacks_is_told_and_nothing_is_changed() {
        let in_a_netns_of_its_own = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let one = rule_set(&[NetfilterProtoFamily::Inet]);
            let both = rule_set(&[NetfilterProtoFamily::Inet, NetfilterProtoFamily::DECNet]);
            let error = both.install().unwrap_err();
            assert_eq!(error.errno(), Some(Errno::EOPNOTSUPP), "{error}");
            assert!(!one.installed().unwrap());

            assert!(one.install().unwrap());
            assert!(one.installed().unwrap());
            assert!(!both.installed().unwrap());
            both.remove().unwrap();
            assert!(!one.installed().unwrap());
        });
        in_a_netns_of_its_own.join().unwrap();
    }

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
            let _ = decode_table(&body);
            let _ = decode_chain(&body);
            let _ = decode_rule(&body);
        }
    }
}
