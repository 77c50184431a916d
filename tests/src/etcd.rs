//! etcd, one member or three, and `etcdctl` as an administrator types it.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    command::{Process, Tool, until},
    datapath::patience,
    error::{BedError, Outcome},
    ground::Ground,
    underlay::{Underlay, etcd_address},
};

/// Where the contract puts the records.
pub const PREFIX: &str = "/k8s.ovs.com/ovs/network";
/// The network's name in `/config`.
pub const NETWORK: &str = "k8ssdn";

/// The network of all pods in `/config`.
pub const POD_NETWORK: &str = "172.11.0.0/16";

/// The members of one etcd.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
    netns: PathBuf,
    ground: Arc<Ground>,
}

#[derive(Debug)]
struct Member {
    index: u8,
    process: Mutex<Option<Process>>,
}

impl Etcd {
    /// Starts `count` members on the underlay and waits until they have a leader.
    pub fn start(ground: &Arc<Ground>, underlay: &Underlay, count: u8) -> Result<Self, BedError> {
        let members = (1..=count).map(|index| Member { index, process: Mutex::new(None) }).collect();
        let etcd = Self { members, netns: underlay.netns().path(), ground: Arc::clone(ground) };
        for index in 1..=count {
            underlay.add_address(etcd_address(index))?;
        }
        for index in 0..etcd.members.len() {
            etcd.start_member(index)?;
        }
        until("a healthy etcd", patience(Duration::from_secs(20)), || {
            etcd.ctl(&["endpoint", "health"]).map_err(|e| e.to_string())
        })?;
        Ok(etcd)
    }

    /// The client URLs, as agent.toml and `--endpoints` take them.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|m| format!("http://{}:2379", etcd_address(m.index))).collect()
    }

    fn member(&self, position: usize) -> Result<&Member, BedError> {
        self.members
            .get(position)
            .ok_or_else(|| BedError::answer("find an etcd member", format!("there is no number {position}")))
    }

    /// Starts a member that does not run, counted from 0, on the data it has.
    pub fn start_member(&self, position: usize) -> Outcome {
        let member = self.member(position)?;
        let name = format!("m{}", member.index);
        let dir = self.ground.dir().join("etcd");
        fs::create_dir_all(&dir).map_err(|e| BedError::system(format!("make {}", dir.display()), e))?;
        let address = etcd_address(member.index);
        let (client, peer) = (format!("http://{address}:2379"), format!("http://{address}:2380"));
        let cluster: Vec<String> = self
            .members
            .iter()
            .map(|m| format!("m{}=http://{}:2380", m.index, etcd_address(m.index)))
            .collect();
        let process = Tool::new("etcd")
            .inside(&self.netns)
            .args(["--name", &name, "--data-dir", &dir.join(&name).display().to_string()])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &cluster.join(","), "--initial-cluster-state", "new"])
            .args([
                "--heartbeat-interval",
                "100",
                "--election-timeout",
                "1000",
                "--logger",
                "zap",
                "--log-level",
                "error",
            ])
            .serve(&self.ground, &dir.join(format!("{name}.log")))?;
        *member.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
        Ok(())
    }

    /// `kill -9` to a member, counted from 0.
    pub fn kill_member(&self, position: usize) -> Outcome {
        let process = self.member(position)?.process.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(process) = process {
            process.kill();
        }
        Ok(())
    }

    /// Sends a member, counted from 0, a signal, such as SIGSTOP: its clients hear nothing, and what they have sent
    /// meanwhile reaches it with SIGCONT.
    pub fn signal_member(&self, position: usize, signal: Signal) -> Outcome {
        match &*self.member(position)?.process.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(process) => process.signal(signal),
            None => Err(BedError::answer(format!("signal etcd member {position}"), "it does not run")),
        }
    }

    /// `etcdctl ARGS`, tried again for a while when a member has just died: etcdctl gives up on the call it had
    /// sent there. All that the bed does is as good done twice.
    pub fn ctl(&self, args: &[&str]) -> Result<String, BedError> {
        let end = Instant::now() + patience(Duration::from_secs(10));
        loop {
            let done = Tool::new("etcdctl")
                .inside(&self.netns)
                .env("ETCDCTL_API", "3")
                .args(["--command-timeout=5s", &format!("--endpoints={}", self.endpoints().join(","))])
                .args(args)
                .run();
            match done {
                Err(BedError::Failed { output, .. }) if transient(&output) && Instant::now() < end => {}
                done => return done,
            }
        }
    }

    /// The value at a key below the prefix.
    pub fn get(&self, key: &str) -> Result<Option<String>, BedError> {
        let text = self.ctl(&["get", "--print-value-only", &format!("{PREFIX}{key}")])?;
        Ok(Some(text.trim().to_owned()).filter(|t| !t.is_empty()))
    }

    /// The JSON record at a key below the prefix.
    pub fn record(&self, key: &str) -> Result<Option<Value>, BedError> {
        let Some(text) = self.get(key)? else { return Ok(None) };
        serde_json::from_str(&text).map(Some).map_err(|_| BedError::answer(format!("read {key}"), text))
    }

    /// Puts any text at a key below the prefix.
    pub fn put(&self, key: &str, value: &str) -> Outcome {
        self.ctl(&["put", "--", &format!("{PREFIX}{key}"), value]).map(|_| ())
    }

    /// Deletes a key below the prefix.
    pub fn delete(&self, key: &str) -> Outcome {
        self.ctl(&["del", &format!("{PREFIX}{key}")]).map(|_| ())
    }

    /// The store's revision now.
    pub fn revision(&self) -> Result<i64, BedError> {
        let text = self.ctl(&["get", "--write-out=json", PREFIX])?;
        serde_json::from_str::<Value>(&text)
            .ok()
            .and_then(|v| v.pointer("/header/revision")?.as_i64())
            .ok_or_else(|| BedError::answer("the revision", text))
    }

    /// Forgets all history below the present revision.
    pub fn compact(&self) -> Outcome {
        let revision = self.revision()?.to_string();
        self.ctl(&["compact", &revision]).map(|_| ())
    }

    /// Writes `/config`.
    pub fn put_config(&self, config: &Value) -> Outcome {
        self.put("/config", &config.to_string())
    }

    /// The key of a tenant's record.
    pub fn tenant_key(tenant: &str) -> String {
        format!("/{NETWORK}/netnamespaces/{tenant}")
    }

    /// The key of a node's record.
    pub fn subnet_key(address: impl std::fmt::Display) -> String {
        format!("/{NETWORK}/subnets/{address}")
    }

    /// A tenant's record.
    pub fn tenant(&self, tenant: &str) -> Result<Value, BedError> {
        let key = Self::tenant_key(tenant);
        self.record(&key)?.ok_or_else(|| BedError::answer(format!("read {key}"), "there is none"))
    }

    /// The VNI that a tenant has now.
    pub fn vni(&self, tenant: &str) -> Result<u64, BedError> {
        let record = self.tenant(tenant)?;
        record
            .get("NetID")
            .and_then(Value::as_u64)
            .ok_or_else(|| BedError::answer(format!("the NetID of {tenant}"), record.to_string()))
    }

    /// Adds a tenant when there is none of the name, and waits until the controller has given it a VNI.
    pub fn add_tenant(&self, tenant: &str) -> Result<u64, BedError> {
        let key = Self::tenant_key(tenant);
        if self.get(&key)?.is_none() {
            self.put(&key, &json!({ "NetName": tenant }).to_string())?;
        }
        until(&format!("a VNI for tenant {tenant}"), patience(Duration::from_secs(10)), || {
            self.vni(tenant).map_err(|e| e.to_string())
        })
    }

    /// The value that an administrator puts back to have `action` done to a tenant (`other` is whom to join).
    pub fn action_record(&self, tenant: &str, action: &str, other: &str) -> Result<String, BedError> {
        let mut record = self.tenant(tenant)?;
        if let Some(fields) = record.as_object_mut() {
            fields.insert("Action".into(), json!(action));
            fields.insert("Namespace".into(), json!(other));
        }
        Ok(record.to_string())
    }

    /// Puts an action and waits until the controller has answered it: `Action` is empty again.
    pub fn act(&self, tenant: &str, action: &str, other: &str) -> Result<Value, BedError> {
        let value = self.action_record(tenant, action, other)?;
        self.put(&Self::tenant_key(tenant), &value)?;
        self.settled(tenant)
    }

    /// Waits until a tenant's record is JSON, has a NetID in the valid range and no action left to do.
    pub fn settled(&self, tenant: &str) -> Result<Value, BedError> {
        until(&format!("a settled record of tenant {tenant}"), patience(Duration::from_secs(10)), || {
            let record = self.tenant(tenant).map_err(|e| e.to_string())?;
            let idle = record.get("Action").and_then(Value::as_str).unwrap_or_default().is_empty();
            let vni = record.get("NetID").and_then(Value::as_u64);
            let valid = vni.is_some_and(|vni| vni == 0 || (10..=0xff_ffff).contains(&vni));
            if idle && valid { Ok(record) } else { Err(record.to_string()) }
        })
    }
}

/// Whether etcdctl failed because a member or the leader was away.
fn transient(output: &str) -> bool {
    ["Unavailable", "timed out", "deadline exceeded"].iter().any(|cause| output.contains(cause))
}
