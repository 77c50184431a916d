//! Edits that cannot be carried out leave the network as it was, and come back with the reason.

use std::time::Duration;

use serde_json::{Value, json};
use tenon_tests::{
    BedError, Cluster, Outcome, Plan,
    command::until,
    datapath::patience,
    etcd::Etcd,
    matrix::{Matrix, Place},
    pod::Pod,
    run,
};

/// Every kind of bad edit to tenant `b` that the contract names, with what it is.
fn bad_edits(good: &Value) -> Vec<(&'static str, String)> {
    let with = |changes: Value| {
        let mut record = good.clone();
        if let (Some(record), Some(changes)) = (record.as_object_mut(), changes.as_object()) {
            record.extend(changes.clone());
        }
        record.to_string()
    };
    vec![
        ("unknown action", with(json!({"Action": "explode"}))),
        ("join to an absent tenant", with(json!({"Action": "join", "Namespace": "nobody"}))),
        ("join to no tenant", with(json!({"Action": "join", "Namespace": ""}))),
        ("NetID by hand", with(json!({"NetID": 424_242}))),
        ("another tenant's NetID by hand, with an unknown action", with(json!({"NetID": 0, "Action": "x"}))),
        ("global by hand", with(json!({"NetID": 0}))),
        ("reserved NetID", with(json!({"NetID": 5}))),
        ("NetID of 25 bits", with(json!({"NetID": 16_777_216}))),
        ("negative NetID", with(json!({"NetID": -1}))),
        ("NetID as a string", with(json!({"NetID": "300924"}))),
        ("NetID as a fraction", with(json!({"NetID": 10.5}))),
        ("action that is no string", with(json!({"Action": 7}))),
        ("text that is not JSON", "{\"NetName\":".to_owned()),
        ("JSON that is no object", "[1,2]".to_owned()),
        ("empty text", String::new()),
    ]
}

/// Waits until a refused edit was answered: the good record, and why.
fn refused(cluster: &Cluster, what: &str, good: &Value) -> Result<String, BedError> {
    until(&format!("the answer to {what}"), patience(Duration::from_secs(20)), || {
        let text = cluster.etcd.get(&Etcd::tenant_key("b")).map_err(|e| e.to_string())?.unwrap_or_default();
        let record: Value = serde_json::from_str(&text).map_err(|_| text.clone())?;
        let error = record.get("Error").and_then(Value::as_str).unwrap_or_default();
        let restored = record.get("NetID") == good.get("NetID")
            && record.get("Action").and_then(Value::as_str) == Some("")
            && record.get("Owner") == good.get("Owner");
        if restored && !error.is_empty() { Ok(error.to_owned()) } else { Err(text) }
    })
}

struct Scene {
    _pods: Vec<Pod>,
    places: Vec<Place>,
}

fn scene(cluster: &Cluster) -> Result<Scene, BedError> {
    cluster.add_tenants(&["a"])?;
    let record = json!({"NetName": "b", "Owner": "a team that the program does not know"});
    cluster.etcd.put(&Etcd::tenant_key("b"), &record.to_string())?;
    cluster.etcd.settled("b")?;
    let pods = vec![
        cluster.node(1).pod("a", "a1")?,
        cluster.node(2).pod("a", "a2")?,
        cluster.node(1).pod("b", "b1")?,
        cluster.node(2).pod("b", "b2")?,
    ];
    let places = pods.iter().map(Pod::place).collect::<Result<Vec<_>, _>>()?;
    Ok(Scene { _pods: pods, places })
}

fn by_tenant(from: &str, to: &str) -> bool {
    from[..1] == to[..1]
}

fn flows(cluster: &Cluster) -> Result<Vec<Vec<String>>, BedError> {
    cluster.nodes.iter().map(|node| node.flows()).collect()
}

#[test]
fn bad_edit_is_undone_and_moves_no_packet() -> Outcome {
    run(&Plan::nodes(2), |cluster| {
        let scene = scene(cluster)?;
        let at_rest = Matrix::require(&scene.places, by_tenant)?;
        let before = flows(cluster)?;
        let good = cluster.etcd.tenant("b")?;
        let key = Etcd::tenant_key("b");
        for (what, text) in bad_edits(&good) {
            cluster.etcd.put(&key, &text)?;
            let error = refused(cluster, what, &good)?;
            assert!(error.len() > 10, "{what}: the reason is no more than {error:?}");
            assert_eq!(flows(cluster)?, before, "{what} moved flows");
        }
        assert_eq!(Matrix::measure(&scene.places)?, at_rest);

        // A stale NetID beside an action is not looked at; the good action clears the error.
        let stale =
            json!({"NetName":"b","NetID":777_777,"Action":"join","Namespace":"a","Owner":good["Owner"]});
        cluster.etcd.put(&key, &stale.to_string())?;
        let joined = cluster.etcd.settled("b")?;
        assert_eq!(joined["NetID"], json!(cluster.etcd.vni("a")?));
        assert_eq!(joined["Owner"], good["Owner"]);
        assert_eq!(joined.get("Error").and_then(Value::as_str).unwrap_or_default(), "");
        Matrix::require(&scene.places, |_, _| true)?;
        Ok(())
    })
}

/// The edit comes while no controller lives, and the history that would tell the good record is compacted away.
#[test]
fn bad_edit_is_undone_by_the_next_controller() -> Outcome {
    run(&Plan::nodes(2), |cluster| {
        let scene = scene(cluster)?;
        let at_rest = Matrix::require(&scene.places, by_tenant)?;
        let good = cluster.etcd.tenant("b")?;
        let before = flows(cluster)?;
        for text in [bad_edits(&good)[3].1.clone(), "not JSON".to_owned()] {
            for node in &cluster.nodes {
                node.kill_agent();
            }
            cluster.etcd.put(&Etcd::tenant_key("b"), &text)?;
            cluster.etcd.compact()?;
            assert_eq!(Matrix::measure(&scene.places)?, at_rest);
            for node in &cluster.nodes {
                node.launch_agent()?;
            }
            refused(cluster, &text, &good)?;
            for node in &cluster.nodes {
                node.wait_ready()?;
            }
            Matrix::require(&scene.places, by_tenant)?;
            assert_eq!(flows(cluster)?, before, "{text} moved flows");
        }
        Ok(())
    })
}

/// One agent after the other is killed while a bad edit waits: whichever was the controller, it is answered.
#[test]
fn bad_edit_is_answered_whichever_agent_dies() -> Outcome {
    run(&Plan::nodes(2), |cluster| {
        let scene = scene(cluster)?;
        let good = cluster.etcd.tenant("b")?;
        for node in &cluster.nodes {
            let edit = json!({"NetName": "b", "NetID": 31_337, "Owner": good["Owner"]});
            cluster.etcd.put(&Etcd::tenant_key("b"), &edit.to_string())?;
            node.kill_agent();
            refused(cluster, "an edit while an agent dies", &good)?;
            Matrix::require(&scene.places, by_tenant)?;
            node.start_agent()?;
        }
        Ok(())
    })
}
