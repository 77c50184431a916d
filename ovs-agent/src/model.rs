//! What this node should forward, as memory derived from etcd (tenants, VTEPs) and OVSDB (attachments).
//!
//! The model is pure: each event gives the objects whose flows it changes, and nothing else, so that the work of an
//! event is in proportion to what changed and not to the number of tenants. All that one event changes is one
//! [`Changes`], which reaches the switch in one bundle.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use openvswitch::openflow::Flow;
use tenon_tenant::Vni;

use crate::attachment::{Attachment, AttachmentId};
use crate::pipeline;

/// What owns flows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Object {
    /// What every node has.
    Base,
    /// Another node, by its underlay address.
    Vtep(Ipv4Addr),
    /// A VNI that a pod of this node has.
    Vni(Vni),
    /// A pod's interface.
    Attachment(AttachmentId),
}

/// The flows that each changed object shall have from now on; none: the object is gone.
pub(crate) type Changes = Vec<(Object, Vec<Flow>)>;

/// This node's place in the cluster network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeNetwork {
    pub(crate) network: Ipv4Net,
    pub(crate) subnet: Ipv4Net,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) vxlan_port: u16,
    /// `k8s-ovs-subnet`: every pod has VNI 0.
    pub(crate) single_tenant: bool,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Model {
    node: Option<NodeNetwork>,
    tenants: HashMap<String, Vni>,
    vteps: BTreeMap<Ipv4Addr, Ipv4Net>,
    attachments: BTreeMap<AttachmentId, Attachment>,
    by_tenant: HashMap<String, BTreeSet<AttachmentId>>,
    /// How many attachments of this node have a VNI.
    vni_users: BTreeMap<Vni, usize>,
}

impl Model {
    pub(crate) fn attachments(&self) -> impl Iterator<Item = &Attachment> {
        self.attachments.values()
    }

    pub(crate) fn attachment(&self, id: &AttachmentId) -> Option<&Attachment> {
        self.attachments.get(id)
    }

    /// The VNI that a pod of `tenant` has on this network; `None`: no such tenant yet.
    pub(crate) fn vni(&self, tenant: &str) -> Option<Vni> {
        match &self.node {
            Some(node) if node.single_tenant => Some(Vni::GLOBAL),
            _ => self.tenants.get(tenant).copied(),
        }
    }

    /// Sets everything that comes from etcd at one stroke, and gives every object there is.
    pub(crate) fn replace(
        &mut self,
        node: NodeNetwork,
        tenants: HashMap<String, Vni>,
        vteps: BTreeMap<Ipv4Addr, Ipv4Net>,
    ) -> Changes {
        self.node = Some(node);
        self.tenants = tenants;
        self.vteps = vteps;
        self.vni_users.clear();
        for attachment in self.attachments.values() {
            if let Some(vni) = self.vni(&attachment.tenant) {
                *self.vni_users.entry(vni).or_default() += 1;
            }
        }
        self.everything()
    }

    /// Every object with its flows; empty until the node has its place in the network.
    pub(crate) fn everything(&self) -> Changes {
        let Some(node) = &self.node else { return Vec::new() };
        let base = (Object::Base, pipeline::base(node));
        let vteps =
            self.vteps.iter().map(|(ip, subnet)| (Object::Vtep(*ip), pipeline::vtep(node, *ip, *subnet)));
        let vnis = self.vni_users.keys().map(|vni| (Object::Vni(*vni), pipeline::vni(*vni)));
        let attachments = self.attachments.values().filter_map(|a| self.attachment_change(a));
        [base].into_iter().chain(vteps).chain(vnis).chain(attachments).collect()
    }

    /// A tenant appeared, moved to another VNI, or went (`None`): its pods then reach nobody.
    pub(crate) fn set_tenant(&mut self, tenant: &str, vni: Option<Vni>) -> Changes {
        let before = self.vni(tenant);
        match vni {
            Some(vni) => self.tenants.insert(tenant.to_owned(), vni),
            None => self.tenants.remove(tenant),
        };
        let after = self.vni(tenant);
        let Some(ids) = self.by_tenant.get(tenant).filter(|_| before != after) else { return Vec::new() };
        let (ids, mut changes) = (ids.clone(), Vec::new());
        changes.extend(after.and_then(|vni| self.count_vni(vni, ids.len())));
        changes.extend(ids.iter().filter_map(|id| self.attachment_change(self.attachments.get(id)?)));
        changes.extend(before.and_then(|vni| self.discount_vni(vni, ids.len())));
        changes
    }

    /// Another node appeared, got another subnet, or went (`None`).
    pub(crate) fn set_vtep(&mut self, ip: Ipv4Addr, subnet: Option<Ipv4Net>) -> Changes {
        let before = match subnet {
            Some(subnet) => self.vteps.insert(ip, subnet),
            None => self.vteps.remove(&ip),
        };
        let Some(node) = self.node.as_ref().filter(|_| before != subnet) else { return Vec::new() };
        vec![(Object::Vtep(ip), subnet.map(|subnet| pipeline::vtep(node, ip, subnet)).unwrap_or_default())]
    }

    /// A pod was attached, or its attachment is another now.
    pub(crate) fn attach(&mut self, attachment: Attachment) -> Changes {
        let mut changes = Vec::new();
        if self.attachments.contains_key(&attachment.id) {
            changes.extend(self.detach(&attachment.id.clone()));
        }
        self.by_tenant.entry(attachment.tenant.clone()).or_default().insert(attachment.id.clone());
        changes.extend(self.vni(&attachment.tenant).and_then(|vni| self.count_vni(vni, 1)));
        changes.extend(self.attachment_change(&attachment));
        self.attachments.insert(attachment.id.clone(), attachment);
        changes
    }

    /// A pod was detached.
    pub(crate) fn detach(&mut self, id: &AttachmentId) -> Changes {
        let Some(attachment) = self.attachments.remove(id) else { return Vec::new() };
        if let Some(ids) = self.by_tenant.get_mut(&attachment.tenant) {
            ids.remove(id);
            if ids.is_empty() {
                self.by_tenant.remove(&attachment.tenant);
            }
        }
        let mut changes = vec![(Object::Attachment(id.clone()), Vec::new())];
        changes.extend(self.vni(&attachment.tenant).and_then(|vni| self.discount_vni(vni, 1)));
        changes
    }

    fn attachment_change(&self, attachment: &Attachment) -> Option<(Object, Vec<Flow>)> {
        self.node.as_ref()?;
        let flows = pipeline::attachment(attachment, self.vni(&attachment.tenant));
        Some((Object::Attachment(attachment.id.clone()), flows))
    }

    fn count_vni(&mut self, vni: Vni, attachments: usize) -> Option<(Object, Vec<Flow>)> {
        let users = self.vni_users.entry(vni).or_default();
        let first = *users == 0;
        *users += attachments;
        (first && self.node.is_some()).then(|| (Object::Vni(vni), pipeline::vni(vni)))
    }

    fn discount_vni(&mut self, vni: Vni, attachments: usize) -> Option<(Object, Vec<Flow>)> {
        let users = self.vni_users.get_mut(&vni)?;
        *users = users.saturating_sub(attachments);
        if *users > 0 {
            return None;
        }
        self.vni_users.remove(&vni);
        self.node.is_some().then(|| (Object::Vni(vni), Vec::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attachment::tests::attachment;

    fn node() -> NodeNetwork {
        NodeNetwork {
            network: "172.11.0.0/16".parse().unwrap(),
            subnet: "172.11.0.0/22".parse().unwrap(),
            gateway: Ipv4Addr::new(172, 11, 0, 1),
            vxlan_port: 4789,
            single_tenant: false,
        }
    }

    fn vni(n: u32) -> Vni {
        Vni::new(n).unwrap()
    }

    /// What a reconciler would hold after `changes`.
    fn apply(held: &mut BTreeMap<Object, Vec<Flow>>, changes: Changes) {
        for (object, flows) in changes {
            if flows.is_empty() {
                held.remove(&object)
            } else {
                held.insert(object, flows)
            };
        }
    }

    #[test]
    fn the_changes_of_any_history_add_up_to_everything() {
        let mut model = Model::default();
        let mut held = BTreeMap::new();
        let check = |model: &Model, held: &BTreeMap<Object, Vec<Flow>>, step: &str| {
            let everything = model.everything().into_iter().filter(|(_, flows)| !flows.is_empty());
            let everything: BTreeMap<_, _> = everything.collect();
            assert_eq!(held, &everything, "after {step}");
        };
        apply(&mut held, model.attach(attachment("c1", "a", 2, 3)));
        assert!(held.is_empty(), "no flows before the node has its place in the network");
        let tenants = HashMap::from([("a".to_owned(), vni(10)), ("b".to_owned(), vni(11))]);
        let vteps = BTreeMap::from([(Ipv4Addr::new(10, 0, 0, 2), "172.11.4.0/22".parse().unwrap())]);
        apply(&mut held, model.replace(node(), tenants, vteps));
        check(&model, &held, "the first view");
        apply(&mut held, model.attach(attachment("c2", "a", 3, 4)));
        check(&model, &held, "a second pod of a");
        apply(&mut held, model.attach(attachment("c3", "b", 4, 5)));
        check(&model, &held, "a pod of b");
        apply(&mut held, model.set_tenant("b", Some(vni(10))));
        check(&model, &held, "b joined a");
        assert!(!held.contains_key(&Object::Vni(vni(11))));
        apply(&mut held, model.set_tenant("a", Some(Vni::GLOBAL)));
        check(&model, &held, "a went global");
        apply(&mut held, model.set_tenant("b", None));
        check(&model, &held, "b was deleted");
        apply(&mut held, model.attach(attachment("c1", "a", 2, 9)));
        check(&model, &held, "c1 has another ofport");
        apply(&mut held, model.set_vtep(Ipv4Addr::new(10, 0, 0, 3), Some("172.11.8.0/22".parse().unwrap())));
        apply(&mut held, model.set_vtep(Ipv4Addr::new(10, 0, 0, 2), None));
        check(&model, &held, "nodes came and went");
        for id in ["c1", "c2", "c3"] {
            apply(&mut held, model.detach(&attachment(id, "", 0, 0).id));
            check(&model, &held, id);
        }
        assert_eq!(held.len(), 2, "the base and one VTEP are left");
    }

    #[test]
    fn a_tenant_without_pods_here_changes_nothing() {
        let mut model = Model::default();
        model.replace(node(), HashMap::new(), BTreeMap::new());
        model.attach(attachment("c1", "a", 2, 3));
        assert_eq!(model.set_tenant("elsewhere", Some(vni(77))), Vec::new());
        assert_eq!(model.set_tenant("a", Some(vni(78))).len(), 2, "the VNI and the pod");
        assert_eq!(model.set_tenant("a", Some(vni(78))), Vec::new(), "told again");
    }

    #[test]
    fn a_single_tenant_network_knows_no_tenants() {
        let mut model = Model::default();
        model.replace(NodeNetwork { single_tenant: true, ..node() }, HashMap::new(), BTreeMap::new());
        assert_eq!(model.vni("any"), Some(Vni::GLOBAL));
        model.attach(attachment("c1", "a", 2, 3));
        assert_eq!(model.set_tenant("a", Some(vni(78))), Vec::new());
    }
}
