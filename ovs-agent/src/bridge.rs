//! What the agent keeps in OVSDB: the bridge with its tunnel and gateway ports, and a port for every attachment.
//!
//! The attachments' Interface rows are the node's record of its pods. Everything here is idempotent, and can be done
//! again after the agent, ovsdb-server or ovs-vswitchd died at any point.

use std::collections::BTreeMap;
use std::time::Duration;

use openvswitch::openflow::Mac;
use openvswitch::ovsdb::{
    Client, Columns, Condition, Error, InsertedRow, Monitor, Mutation, Row, Settings, Transaction, Uuid,
    Value, View,
};
use thiserror::Error as ThisError;
use tracing::warn;

use crate::attachment::Attachment;
use crate::config;
use crate::pipeline::{EGRESS_SHAPER_PORT, GATEWAY_PORT, INGRESS_SHAPER_PORT, VXLAN_PORT};

const DATABASE: &str = "Open_vSwitch";
/// The tunnel port's name; kernel interfaces are not made for it on Linux.
const VXLAN_NAME: &str = "vxlan0";
/// The internal interface that carries the node's gateway address.
pub(crate) const GATEWAY_NAME: &str = "tun0";
/// The ends of the shapers that are ports of the bridge.
pub(crate) const EGRESS_SHAPER_NAME: &str = "tenon-eg0";
pub(crate) const INGRESS_SHAPER_NAME: &str = "tenon-in0";
/// The node's own ports.
pub(crate) const NODE_PORTS: [&str; 4] = [VXLAN_NAME, GATEWAY_NAME, EGRESS_SHAPER_NAME, INGRESS_SHAPER_NAME];
/// How long ovs-vswitchd may take to add a port before the attach fails.
const PORT_TIMEOUT: Duration = Duration::from_secs(10);
/// In the bridge's `external_ids`: the pod address given out last.
const LAST_ADDRESS: &str = "tenon-last-address";

/// Why the bridge is not as it should be.
#[derive(Debug, ThisError)]
pub(crate) enum BridgeError {
    #[error("OVSDB: {0}")]
    Ovsdb(#[from] Error),
    #[error("bridge {0} does not exist in OVSDB (yet)")]
    NoBridge(String),
    #[error("port {0} is not on the bridge")]
    NoPort(String),
    #[error("ovs-vswitchd did not add port {port} within {} s: is it running?", PORT_TIMEOUT.as_secs())]
    NotAdded { port: String },
    #[error("ovs-vswitchd could not add port {port}: {reason}")]
    Refused { port: String, reason: String },
}

/// What makes the two ports that are the node's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodePorts {
    pub(crate) gateway_mac: Mac,
    pub(crate) mtu: u32,
    pub(crate) vxlan_port: u16,
    /// Whether there are shapers to be ports.
    pub(crate) shapers: bool,
}

/// Our bridge in OVSDB.
#[derive(Debug, Clone)]
pub(crate) struct Bridge {
    client: Client,
    config: config::Ovs,
}

/// What the bridge's Interface rows say about our attachments.
#[derive(Debug, Default)]
pub(crate) struct Recorded {
    pub(crate) attachments: Vec<Attachment>,
    /// Ports that are ours but whose record cannot be read: nobody can be told that they exist, so they go.
    pub(crate) unreadable: Vec<String>,
}

/// Starts a client that mirrors what the agent needs of the database.
pub(crate) fn client(config: &config::Ovs) -> Result<Client, Error> {
    let monitor = Monitor::new()
        .table("Open_vSwitch", ["bridges", "other_config"])
        .table("Bridge", ["name", "ports", "fail_mode", "datapath_type", "external_ids", "protocols"])
        .table("Port", ["name", "interfaces"])
        .table(
            "Interface",
            [
                "name",
                "type",
                "ofport",
                "ofport_request",
                "external_ids",
                "options",
                "error",
                "mac",
                "mtu_request",
            ],
        );
    Ok(Client::start(Settings::new(config.db.parse()?, DATABASE, monitor)))
}

impl Bridge {
    pub(crate) fn new(client: Client, config: config::Ovs) -> Self {
        Self { client, config }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn name(&self) -> &str {
        &self.config.bridge
    }

    /// The attachments in the database; `None` when the bridge is not there.
    pub(crate) fn recorded(&self) -> Option<Recorded> {
        let view = self.client.view();
        let mut recorded = Recorded::default();
        for (name, interface) in interfaces(&view, self.name())? {
            let external_ids = interface.map("external_ids").unwrap_or_default();
            if !Attachment::is_recorded_in(&external_ids) {
                continue;
            }
            // What ovs-vswitchd has given counts; what was asked for, while it has not given any.
            let given = |column| {
                interface.optional_integer(column).ok().flatten().and_then(|n| u16::try_from(n).ok())
            };
            let ofport = given("ofport").or_else(|| given("ofport_request"));
            match ofport.map(|ofport| Attachment::from_external_ids(&name, &external_ids, ofport)) {
                Some(Ok(attachment)) => recorded.attachments.push(attachment),
                Some(Err(error)) => {
                    warn!(%error, "an attachment's record cannot be read; removing the port");
                    recorded.unreadable.push(name);
                }
                None => recorded.unreadable.push(name),
            }
        }
        Some(recorded)
    }

    /// The pod address that was given out last, as the bridge's record has it.
    pub(crate) fn last_address(&self) -> Option<std::net::Ipv4Addr> {
        let view = self.client.view();
        let (_, bridge) = view.find("Bridge", "name", self.name())?;
        bridge.map_entry("external_ids", LAST_ADDRESS).ok()??.parse().ok()
    }

    /// Makes the bridge and the node's ports, or puts right what differs. Touches nothing that is right.
    pub(crate) async fn ensure(&self, ports: &NodePorts) -> Result<(), BridgeError> {
        let transaction = self.repair(ports);
        if !transaction.is_empty() {
            self.client.transact(&transaction).await?;
        }
        let names = if ports.shapers { &NODE_PORTS[..] } else { &[VXLAN_NAME, GATEWAY_NAME] };
        for name in names {
            self.added(name).await?;
        }
        Ok(())
    }

    /// The transaction that makes the bridge right; empty when it is.
    fn repair(&self, ports: &NodePorts) -> Transaction {
        let view = self.client.view();
        let mut transaction = Transaction::new(DATABASE);
        let datapath = self.config.datapath.as_str();
        let mut wanted = vec![(VXLAN_NAME, vxlan_columns(ports)), (GATEWAY_NAME, gateway_columns(ports))];
        if ports.shapers {
            wanted.push((EGRESS_SHAPER_NAME, link_columns(EGRESS_SHAPER_PORT)));
            wanted.push((INGRESS_SHAPER_NAME, link_columns(INGRESS_SHAPER_PORT)));
        }
        let Some((bridge, row)) = view.find("Bridge", "name", self.name()) else {
            let ports: Vec<_> = wanted
                .into_iter()
                .map(|(name, interface)| insert_port(&mut transaction, name, interface).1)
                .collect();
            let ports = Value::set(&ports);
            let bridge = transaction.insert(
                "Bridge",
                Columns::new()
                    .set("name", self.name())
                    .set("fail_mode", "secure")
                    .set("datapath_type", datapath)
                    .set("ports", ports),
            );
            transaction.mutate("Open_vSwitch", [], [Mutation::insert("bridges", &bridge)]);
            return transaction;
        };
        let differs = row.optional_string("fail_mode") != Ok(Some("secure"))
            || row.string("datapath_type") != Ok(datapath);
        if differs {
            let right = Columns::new().set("fail_mode", "secure").set("datapath_type", datapath);
            transaction.update("Bridge", [Condition::uuid(bridge)], right);
        }
        let existing: BTreeMap<_, _> = interfaces(&view, self.name()).into_iter().flatten().collect();
        for (name, interface) in wanted {
            match existing.get(name) {
                Some(row) if interface.0.iter().all(|(column, value)| row.value(column) == Ok(value)) => {}
                Some(_) => drop(transaction.update("Interface", [Condition::equal("name", name)], interface)),
                None => {
                    let (_, port) = insert_port(&mut transaction, name, interface);
                    transaction.mutate(
                        "Bridge",
                        [Condition::uuid(bridge)],
                        [Mutation::insert("ports", &port)],
                    );
                }
            }
        }
        transaction
    }

    /// Records `attachment` and has its port added, and gives the OpenFlow port that it got.
    pub(crate) async fn add(&self, attachment: &Attachment) -> Result<u16, BridgeError> {
        let name = attachment.id.link_name();
        let mut transaction = Transaction::new(DATABASE);
        let interface = self.insert_attachment(&mut transaction, attachment)?;
        let interface = self.client.transact(&transaction).await?.inserted(&interface)?;
        let given = |row: Option<&Row>| ofport_given(&name, row?);
        // Woken by changes of this row alone: many pods may come at once.
        match self.client.wait_row("Interface", interface, PORT_TIMEOUT, given).await {
            Ok(outcome) => outcome,
            Err(_) => Err(BridgeError::NotAdded { port: name.clone() }),
        }
    }

    /// Puts back the ports of `attachments` that the database has lost, as after somebody deleted the bridge.
    pub(crate) async fn restore(&self, attachments: &[Attachment]) -> Result<(), BridgeError> {
        let mut transaction = Transaction::new(DATABASE);
        for attachment in attachments {
            self.insert_attachment(&mut transaction, attachment)?;
        }
        if !transaction.is_empty() {
            self.client.transact(&transaction).await?;
        }
        Ok(())
    }

    fn insert_attachment(
        &self,
        transaction: &mut Transaction,
        attachment: &Attachment,
    ) -> Result<InsertedRow, BridgeError> {
        let bridge = self.uuid()?;
        let interface = link_columns(attachment.ofport).set("external_ids", attachment.external_ids());
        let (interface, port) = insert_port(transaction, &attachment.id.link_name(), interface);
        let last = BTreeMap::from([(LAST_ADDRESS, attachment.ip.to_string())]);
        transaction.mutate(
            "Bridge",
            [Condition::uuid(bridge)],
            [
                Mutation::insert("ports", &port),
                // A map's insert keeps what a key has (RFC 7047 section 5.1), so the old value goes first.
                Mutation::delete("external_ids", LAST_ADDRESS),
                Mutation::insert("external_ids", last),
            ],
        );
        Ok(interface)
    }

    /// Records `attachment` as it is now.
    pub(crate) async fn update(&self, attachment: &Attachment) -> Result<(), BridgeError> {
        let name = attachment.id.link_name();
        let mut transaction = Transaction::new(DATABASE);
        let row = Columns::new().set("external_ids", attachment.external_ids());
        let updated = transaction.update("Interface", [Condition::equal("name", &name)], row);
        match self.client.transact(&transaction).await?.count(updated)? {
            0 => Err(BridgeError::NoPort(name)),
            _ => Ok(()),
        }
    }

    /// Says what is wrong with the recorded port of `attachment`.
    pub(crate) fn check(&self, attachment: &Attachment) -> Result<(), BridgeError> {
        let port = attachment.id.link_name();
        let view = self.client.view();
        let interfaces: BTreeMap<_, _> = interfaces(&view, self.name())
            .ok_or_else(|| BridgeError::NoBridge(self.name().to_owned()))?
            .into_iter()
            .collect();
        let row = interfaces.get(&port).ok_or_else(|| BridgeError::NoPort(port.clone()))?;
        match row.optional_integer("ofport") {
            Ok(Some(ofport)) if ofport == i64::from(attachment.ofport) => Ok(()),
            _ => {
                let reason = row.optional_string("error").ok().flatten().unwrap_or("it has no OpenFlow port");
                Err(BridgeError::Refused { port, reason: reason.to_owned() })
            }
        }
    }

    /// Removes the ports called `names`, and with them the record of their attachments. Gone already is done.
    pub(crate) async fn remove(&self, names: &[String]) -> Result<(), BridgeError> {
        let view = self.client.view();
        let bridge = match self.uuid() {
            Ok(bridge) => bridge,
            // A client that has no view cannot say that the bridge is gone.
            Err(_) if self.client.connected() => return Ok(()),
            Err(error) => return Err(error),
        };
        let ports: Vec<Uuid> =
            names.iter().filter_map(|name| view.find("Port", "name", name)).map(|(uuid, _)| uuid).collect();
        if ports.is_empty() {
            return Ok(());
        }
        let mut transaction = Transaction::new(DATABASE);
        // Rows of Port and Interface that nothing refers to are garbage collected by the server.
        transaction.mutate("Bridge", [Condition::uuid(bridge)], [Mutation::delete("ports", ports)]);
        self.client.transact(&transaction).await?;
        Ok(())
    }

    /// Takes back the wish, which a start script may have left behind, that Open vSwitch forward nothing until its
    /// flows are restored (ovs-vswitchd.conf.db(5), `flow-restore-wait`): they are.
    pub(crate) async fn end_flow_restore(&self) -> Result<(), BridgeError> {
        const FLOW_RESTORE_WAIT: &str = "flow-restore-wait";
        let waiting = self
            .client
            .view()
            .rows("Open_vSwitch")
            .any(|(_, row)| matches!(row.map_entry("other_config", FLOW_RESTORE_WAIT), Ok(Some(_))));
        if waiting {
            let mut transaction = Transaction::new(DATABASE);
            transaction.mutate("Open_vSwitch", [], [Mutation::delete("other_config", FLOW_RESTORE_WAIT)]);
            self.client.transact(&transaction).await?;
        }
        Ok(())
    }

    fn uuid(&self) -> Result<Uuid, BridgeError> {
        let view = self.client.view();
        view.find("Bridge", "name", self.name())
            .map(|(uuid, _)| uuid)
            .ok_or_else(|| BridgeError::NoBridge(self.name().to_owned()))
    }

    /// Waits until ovs-vswitchd has added the port of this name.
    async fn added(&self, name: &str) -> Result<(), BridgeError> {
        let given = |view: &View| ofport_given(name, view.find("Interface", "name", name)?.1);
        match self.client.wait_until(PORT_TIMEOUT, given).await {
            Ok(outcome) => outcome.map(drop),
            Err(_) => Err(BridgeError::NotAdded { port: name.to_owned() }),
        }
    }
}

/// The OpenFlow port that ovs-vswitchd has given to an interface, once it has tried.
fn ofport_given(name: &str, row: &Row) -> Option<Result<u16, BridgeError>> {
    let refused =
        |reason: &str| Err(BridgeError::Refused { port: name.to_owned(), reason: reason.to_owned() });
    let ofport = row.optional_integer("ofport").ok()??;
    // It says -1 when it could not.
    Some(
        u16::try_from(ofport)
            .or_else(|_| refused(row.optional_string("error").ok().flatten().unwrap_or("no reason given"))),
    )
}

/// The Interface rows of the bridge called `bridge`, by name; `None` when there is no such bridge.
fn interfaces<'v>(view: &'v View, bridge: &str) -> Option<Vec<(String, &'v Row)>> {
    let (_, bridge) = view.find("Bridge", "name", bridge)?;
    let ports = bridge.uuid_set("ports").unwrap_or_default();
    let interfaces = ports
        .into_iter()
        .filter_map(|port| view.row("Port", port))
        .flat_map(|port| port.uuid_set("interfaces").unwrap_or_default())
        .filter_map(|interface| view.row("Interface", interface))
        .filter_map(|row| Some((row.string("name").ok()?.to_owned(), row.as_ref())));
    Some(interfaces.collect())
}

/// Inserts an Interface and its Port, both called `name`.
fn insert_port(transaction: &mut Transaction, name: &str, interface: Columns) -> (InsertedRow, InsertedRow) {
    let interface = transaction.insert("Interface", interface.set("name", name));
    let port = transaction.insert("Port", Columns::new().set("name", name).set("interfaces", &interface));
    (interface, port)
}

fn vxlan_columns(ports: &NodePorts) -> Columns {
    let options = BTreeMap::from([
        ("remote_ip", "flow".to_owned()),
        ("key", "flow".to_owned()),
        ("dst_port", ports.vxlan_port.to_string()),
    ]);
    Columns::new().set("type", "vxlan").set("ofport_request", VXLAN_PORT).set("options", options)
}

/// A link that exists already.
fn link_columns(ofport: u16) -> Columns {
    Columns::new().set("ofport_request", ofport)
}

fn gateway_columns(ports: &NodePorts) -> Columns {
    Columns::new()
        .set("type", "internal")
        .set("ofport_request", GATEWAY_PORT)
        .set("mac", ports.gateway_mac.to_string())
        .set("mtu_request", ports.mtu)
}
