//! Random flows go to the switch and come back the same, by our own encoding and by ovs-ofctl's.

use std::collections::BTreeSet;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use crate::arbitrary;
use crate::of::{Connection, Error, Flow, FlowMod};
use crate::switch::Switch;

const FLOWS: u16 = 2000;

/// Flows that differ in their priority, so that none replaces another.
fn sample() -> Vec<Flow> {
    let mut runner = TestRunner::deterministic();
    let strategy = arbitrary::flow();
    (0..FLOWS)
        .map(|priority| Flow { priority, ..strategy.new_tree(&mut runner).unwrap().current() })
        .collect()
}

async fn installed(connection: &Connection) -> BTreeSet<Flow> {
    connection.flow_stats(None, 0, 0).await.unwrap().into_iter().map(|stats| stats.flow).collect()
}

fn assert_same(wanted: &[Flow], found: &BTreeSet<Flow>) {
    for flow in wanted {
        if !found.contains(flow) {
            let there = found.iter().find(|other| other.priority == flow.priority);
            panic!("sent  {flow}\nfound {}", there.map(Flow::to_string).unwrap_or_default());
        }
    }
    assert_eq!(found.len(), wanted.len());
}

#[tokio::test]
async fn what_we_install_comes_back_the_same() {
    let switch = Switch::start();
    let connection = Connection::connect(switch.socket()).await.unwrap();
    let flows = sample();
    let mods: Vec<_> = flows.iter().cloned().map(FlowMod::Add).collect();
    if let Err(Error::RefusedMod { index, error }) = connection.flow_mods_atomically(&mods).await {
        panic!("{error}: {}", flows[index]);
    }
    assert_same(&flows, &installed(&connection).await);

    let deletes: Vec<_> = flows.iter().map(|flow| FlowMod::Delete(flow.key())).collect();
    connection.flow_mods_atomically(&deletes).await.unwrap();
    assert_eq!(switch.dump(), Vec::<String>::new());
}

/// The text of a flow goes through ovs-ofctl's parser and encoder, which share nothing with ours.
#[tokio::test]
async fn what_ovs_ofctl_installs_comes_back_as_meant() {
    let switch = Switch::start();
    let connection = Connection::connect(switch.socket()).await.unwrap();
    let flows = sample();
    switch.add_flows(&flows.iter().map(Flow::to_string).collect::<Vec<_>>());
    assert_same(&flows, &installed(&connection).await);
}
