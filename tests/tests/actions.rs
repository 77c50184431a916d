//! An administrator's actions, each put with etcdctl, and the matrix after each.

use serde_json::{Value, json};
use tenon_tests::{
    BedError, Cluster, Outcome, Plan,
    etcd::Etcd,
    matrix::{Matrix, Place},
    pod::Pod,
    run,
};

/// Two pods of each tenant, never both on one node.
fn pods(cluster: &Cluster) -> Result<Vec<Pod>, BedError> {
    cluster.add_tenants(&["a", "b", "c"])?;
    [("a1", 1), ("a2", 2), ("b1", 2), ("b2", 3), ("c1", 3), ("c2", 1)]
        .into_iter()
        .map(|(name, node)| cluster.node(node).pod(&name[..1], name))
        .collect()
}

fn places(pods: &[Pod]) -> Result<Vec<Place>, BedError> {
    pods.iter().map(Pod::place).collect()
}

/// The tenants in one group reach each other, and those in `global` all.
fn require(places: &[Place], groups: &[&str], global: &str) -> Outcome {
    let tenant = |name: &str| name.chars().next().unwrap_or_default();
    Matrix::require(places, |from, to| {
        let (from, to) = (tenant(from), tenant(to));
        let together = groups.iter().any(|group| group.contains(from) && group.contains(to));
        together || global.contains(from) || global.contains(to)
    })?;
    Ok(())
}

#[test]
fn join_isolate_and_global_move_a_tenant_on_every_node() -> Outcome {
    run(&Plan::nodes(3), |cluster| {
        let pods = pods(cluster)?;
        let places = places(&pods)?;
        let etcd = &cluster.etcd;
        let own = |tenant| etcd.vni(tenant);
        let (a, b, c) = (own("a")?, own("b")?, own("c")?);
        assert!(a != b && b != c && a != c, "{a} {b} {c}");
        require(&places, &["a", "b", "c"], "")?;

        let joined = etcd.act("b", "join", "a")?;
        assert_eq!(joined["NetID"], json!(a));
        assert_eq!(joined["Action"], json!(""));
        assert_eq!(joined["Namespace"], json!(""));
        require(&places, &["ab", "c"], "")?;

        // Joining one that has joined: all three share.
        assert_eq!(etcd.act("c", "join", "b")?["NetID"], json!(a));
        require(&places, &["abc"], "")?;

        // The one that the others joined leaves; they stay together.
        let isolated = etcd.act("a", "isolate", "")?;
        assert_ne!(isolated["NetID"], json!(a));
        require(&places, &["a", "bc"], "")?;

        // Alone already: nothing changes.
        assert_eq!(etcd.act("a", "isolate", "")?["NetID"], isolated["NetID"]);
        require(&places, &["a", "bc"], "")?;

        assert_eq!(etcd.act("c", "global", "")?["NetID"], json!(0));
        require(&places, &["a", "b"], "c")?;

        // Leaving global closes on all nodes.
        assert_ne!(etcd.act("c", "isolate", "")?["NetID"], json!(0));
        require(&places, &["a", "b", "c"], "")
    })
}

#[test]
fn deleted_tenant_fails_closed_and_a_new_record_opens_it() -> Outcome {
    run(&Plan::nodes(3), |cluster| {
        let pods = pods(cluster)?;
        let places = places(&pods)?;
        require(&places, &["a", "b", "c"], "")?;

        cluster.etcd.delete(&Etcd::tenant_key("a"))?;
        require(&places, &["b", "c"], "")?;

        cluster.etcd.add_tenant("a")?;
        require(&places, &["a", "b", "c"], "")
    })
}

/// An import keeps its VNIs, and what the program does not know.
#[test]
fn new_record_brings_its_own_vni() -> Outcome {
    run(&Plan::nodes(2), |cluster| {
        let record = json!({"NetName":"i","NetID":300_924,"Action":"","Namespace":"","Owner":{"team":"x"}});
        cluster.etcd.put(&Etcd::tenant_key("i"), &record.to_string())?;
        let pods = [cluster.node(1).pod("i", "i1")?, cluster.node(2).pod("i", "i2")?];
        require(&places(&pods)?, &["i"], "")?;
        let settled = cluster.etcd.settled("i")?;
        assert_eq!(settled["NetID"], json!(300_924));
        assert_eq!(settled["Owner"], json!({"team":"x"}));
        let error = settled.get("Error").and_then(Value::as_str).unwrap_or_default();
        assert!(error.is_empty(), "{error}");

        // What the program does not know stays through an action as well.
        cluster.etcd.add_tenant("j")?;
        let joined = cluster.etcd.act("i", "join", "j")?;
        assert_eq!(joined["Owner"], json!({"team":"x"}));
        assert_eq!(joined["NetID"], json!(cluster.etcd.vni("j")?));
        Ok(())
    })
}
