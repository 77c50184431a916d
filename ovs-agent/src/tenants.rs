//! An ADD's wait for its tenant: a namespace that has no record yet asks for one.

use std::time::Duration;

use tenon_cni::Error;
use tenon_store::{Compare, Write};
use tracing::{info, warn};

use crate::node::Node;

/// Waits until `tenant` has a VNI, and asks for one when it has no record. The controller may be away, or the watch
/// behind: after `timeout` the runtime is asked to try again.
pub(crate) async fn wait_for(node: &Node, tenant: &str, timeout: Duration) -> Result<(), Error> {
    let mut changes = node.tenants_changed.subscribe();
    if node.vni(tenant).is_some() {
        return Ok(());
    }
    let key = {
        let state = node.state();
        let place = state.place.as_ref().ok_or_else(|| Error::try_again("the node has no subnet yet"))?;
        place.keys.tenant(tenant).map_err(|error| Error::invalid_environment("K8S_POD_NAMESPACE", error))?
    };
    let settled = async {
        while node.vni(tenant).is_none() {
            if changes.changed().await.is_err() {
                break;
            }
        }
    };
    let asked = ask(node, tenant, &key);
    let outcome = tokio::time::timeout(timeout, async { tokio::join!(settled, asked).1 }).await;
    if node.vni(tenant).is_some() {
        return Ok(());
    }
    let reason = match outcome {
        Ok(Some(reason)) => reason,
        _ => refusal(node, &key).await.unwrap_or_else(|| "no controller has answered".to_owned()),
    };
    Err(Error::try_again(format!("tenant {tenant} has no NetID yet: {reason} (record {key})")))
}

/// Puts a record that asks for a NetID, unless there is one. What is returned is why that failed.
async fn ask(node: &Node, tenant: &str, key: &str) -> Option<String> {
    let record = serde_json::json!({ "NetName": tenant, "Action": "", "Namespace": "" });
    let put = Write::put(key, record.to_string());
    match node.store.txn(&[Compare::absent(key)], &[put]).await {
        Ok(outcome) => {
            if outcome.applied() {
                info!(tenant, "asked for a NetID");
            }
            None
        }
        Err(error) => {
            warn!(tenant, %error, "cannot ask for a NetID");
            Some(error.to_string())
        }
    }
}

/// What the controller has written into the record, if it refused it.
async fn refusal(node: &Node, key: &str) -> Option<String> {
    let record = node.store.get(key).await.ok()??;
    let record: serde_json::Value = serde_json::from_slice(&record.value).ok()?;
    Some(record.get("Error")?.as_str()?.to_owned()).filter(|error| !error.is_empty())
}
