//! All that has been granted, arranged for the next decision.

use std::collections::BTreeMap;

use rangemap::RangeInclusiveSet;

use crate::{Plan, Settled, Vni};

/// The controller's memory: the settled tenants, who shares a VNI, and which was given out last.
///
/// All of it is in the store too: a new controller makes it from the settled copies and the cursor.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    settled: BTreeMap<String, Settled>,
    tenants_per_vni: BTreeMap<Vni, usize>,
    /// The keys of `tenants_per_vni`, as runs of consecutive numbers, so that the next gap is found without a walk.
    used: RangeInclusiveSet<u32>,
    cursor: Option<Vni>,
}

impl Snapshot {
    /// Builds the memory from what is in the store: the settled copies and the VNI that was given out last.
    pub fn load(settled: impl IntoIterator<Item = (String, Settled)>, cursor: Option<Vni>) -> Snapshot {
        let mut snapshot = Snapshot { cursor, ..Snapshot::default() };
        for (tenant, copy) in settled {
            snapshot.settle(&tenant, copy);
        }
        snapshot
    }

    /// Takes over a plan that has been carried out in the store.
    pub fn apply(&mut self, tenant: &str, plan: &Plan) {
        match plan {
            Plan::Nothing | Plan::PutBack { .. } => {}
            Plan::Settle { settled, cursor, .. } => {
                self.settle(tenant, settled.clone());
                self.cursor = cursor.or(self.cursor);
            }
            Plan::Forget => self.forget(tenant),
        }
    }

    /// Records a grant, in place of an earlier one to the same tenant.
    pub fn settle(&mut self, tenant: &str, settled: Settled) {
        let vni = settled.net_id();
        *self.tenants_per_vni.entry(vni).or_default() += 1;
        self.used.insert(vni.get()..=vni.get());
        if let Some(old) = self.settled.insert(tenant.to_owned(), settled) {
            self.release(old.net_id());
        }
    }

    /// Takes a grant back.
    pub fn forget(&mut self, tenant: &str) {
        if let Some(old) = self.settled.remove(tenant) {
            self.release(old.net_id());
        }
    }

    fn release(&mut self, vni: Vni) {
        if let Some(tenants) = self.tenants_per_vni.get_mut(&vni) {
            *tenants -= 1;
            if *tenants == 0 {
                self.tenants_per_vni.remove(&vni);
                self.used.remove(vni.get()..=vni.get());
            }
        }
    }

    /// What was granted to a tenant.
    pub fn settled(&self, tenant: &str) -> Option<&Settled> {
        self.settled.get(tenant)
    }

    /// All tenants and what was granted to them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Settled)> {
        self.settled.iter().map(|(tenant, settled)| (tenant.as_str(), settled))
    }

    /// How many tenants have a VNI.
    pub fn tenants_with(&self, vni: Vni) -> usize {
        self.tenants_per_vni.get(&vni).copied().unwrap_or(0)
    }

    /// The VNI that was given out last.
    pub fn cursor(&self) -> Option<Vni> {
        self.cursor
    }

    /// The VNI that would be given out next: the first free one after the cursor, from the start again after the
    /// last, so that a freed VNI is not given to somebody else while a node may still know its old owner. `None` when
    /// all are in use.
    pub fn next_free(&self) -> Option<Vni> {
        let (first, last) = (Vni::FIRST.get(), Vni::LAST.get());
        let start = self.cursor.map_or(first, |cursor| cursor.get() + 1).clamp(first, last + 1);
        let gap = |from: u32, to: u32| {
            if from > to { None } else { self.used.gaps(&(from..=to)).next().map(|gap| *gap.start()) }
        };
        gap(start, last).or_else(|| gap(first, start - 1)).and_then(|number| Vni::new(number).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Edit, Refusal, plan};

    fn vni(number: u32) -> Option<Vni> {
        Vni::new(number).ok()
    }

    #[test]
    fn the_search_wraps_round_and_skips_what_is_used() {
        let mut snapshot = Snapshot { cursor: vni(100), ..Snapshot::default() };
        assert_eq!(snapshot.next_free(), vni(101));
        snapshot.used.insert(101..=0xff_ffff);
        assert_eq!(snapshot.next_free(), vni(10));
        snapshot.used.insert(10..=99);
        assert_eq!(snapshot.next_free(), vni(100));
        snapshot.used.insert(0..=0);
        snapshot.cursor = vni(0xff_ffff);
        assert_eq!(snapshot.next_free(), vni(100));
        snapshot.cursor = vni(0);
        assert_eq!(snapshot.next_free(), vni(100));
    }

    #[test]
    fn when_all_are_in_use_the_edit_is_refused() {
        let mut snapshot = Snapshot::default();
        snapshot.used.insert(10..=0xff_ffff);
        for text in ["{}", r#"{"Action":"isolate"}"#] {
            let answer = plan(&snapshot, "late", Edit::Put(text.as_bytes()));
            assert!(matches!(&answer, Plan::PutBack { refusal: Refusal::Exhausted, .. }), "{answer:?}");
        }
    }
}
