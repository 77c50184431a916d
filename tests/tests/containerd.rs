//! A real container runtime calls the plugin: containerd with its CRI plugin and runc, driven as a kubelet does.
//!
//! The runtime's side is the same whichever datapath is below, so this runs on the userspace datapath alone.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_cri::v1::{
    LinuxPodSandboxConfig, ListPodSandboxRequest, PodSandboxConfig, PodSandboxMetadata,
    PodSandboxStatusRequest, RemovePodSandboxRequest, RunPodSandboxRequest, StatusRequest,
    StopPodSandboxRequest, runtime_service_client::RuntimeServiceClient,
};
use serde_json::{Value, json};
use tenon_tests::{
    BedError, Cluster, Outcome, Plan,
    command::{Process, Tool, until},
    ground,
    iperf::{Load, measure},
    limits::require_limit,
    matrix::{Matrix, Place},
    node::Node,
    run,
    segment::{on_segments, place, record},
};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

const IMAGE: &str = "localhost/pause:1";
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";

/// containerd on a node, with everything it writes below one directory.
struct Containerd {
    runtime: Runtime,
    socket: PathBuf,
    process: Option<Process>,
}

fn io(what: &str) -> impl Fn(std::io::Error) -> BedError + '_ {
    move |e| BedError::system(what, e)
}

fn rpc(what: &str, status: impl std::fmt::Display) -> BedError {
    BedError::answer(what, status.to_string())
}

/// An image archive with `sleep` as its only program, since none can be pulled.
fn make_image(dir: &Path) -> Result<PathBuf, BedError> {
    let root = dir.join("root");
    let sleep = Tool::new("which").args(["sleep"]).run()?.trim().to_owned();
    let libraries = Tool::new("ldd").args([&sleep]).run()?;
    let files = libraries.split_whitespace().filter(|word| word.starts_with('/')).chain([sleep.as_str()]);
    for file in files {
        let inside = root.join(file.trim_start_matches('/'));
        fs::create_dir_all(inside.parent().unwrap_or(&root)).map_err(io("make the image's root"))?;
        fs::copy(file, &inside).map_err(io("fill the image's root"))?;
    }
    let layer = dir.join("layer.tar");
    let text = |path: &Path| path.display().to_string();
    Tool::new("tar").args(["-C", &text(&root), "-cf", &text(&layer), "."]).run()?;
    let sum = Tool::new("sha256sum").args([text(&layer)]).run()?;
    let digest = sum.split(' ').next().unwrap_or_default();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": [sleep, "infinity"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
    fs::write(dir.join("config.json"), config.to_string()).map_err(io("write the image's config"))?;
    fs::write(dir.join("manifest.json"), manifest.to_string()).map_err(io("write the image's manifest"))?;
    let image = dir.join("image.tar");
    Tool::new("tar")
        .args(["-C", &text(dir), "-cf", &text(&image), "manifest.json", "config.json", "layer.tar"])
        .run()?;
    Ok(image)
}

impl Containerd {
    /// Starts containerd in a node's namespace, with a conflist for the node's agent that has these keys.
    fn start(cluster: &Cluster, node: &Node, keys: Value) -> Result<Self, BedError> {
        let dir = cluster.ground.dir().join("containerd");
        let conf = dir.join("net.d");
        fs::create_dir_all(&conf).map_err(io("make containerd's directories"))?;
        // Besides the network's own plugin, containerd runs `loopback` for every pod.
        let bin_dir = dir.join("bin");
        fs::create_dir_all(&bin_dir).map_err(io("make the plugins' directory"))?;
        for plugin in [ground::binary("tenon")?, PathBuf::from("/usr/lib/cni/loopback")] {
            let link = bin_dir.join(plugin.file_name().unwrap_or_default());
            std::os::unix::fs::symlink(&plugin, link).map_err(io("link a plugin"))?;
        }
        let mut plugin = json!({"type": "tenon", "agentSocket": node.socket()});
        if let (Some(fields), Value::Object(keys)) = (plugin.as_object_mut(), keys) {
            fields.extend(keys);
        }
        let conflist = json!({"cniVersion": "1.0.0", "name": "tenon", "plugins": [plugin]});
        fs::write(conf.join("10-tenon.conflist"), conflist.to_string()).map_err(io("write the conflist"))?;
        let socket = dir.join("containerd.sock");
        let config = format!(
            "version = 2\nroot = {root:?}\nstate = {state:?}\n[grpc]\naddress = {socket:?}\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{IMAGE}\"\n\
             restrict_oom_score_adj = true\nnetns_mounts_under_state_dir = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = {bin_dir:?}\nconf_dir = {conf:?}\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\n",
            root = dir.join("root"),
            state = dir.join("state"),
        );
        let file = dir.join("config.toml");
        fs::write(&file, config).map_err(io("write containerd's configuration"))?;
        let process = Tool::new("containerd")
            .inside(node.netns().path())
            .args(["--config", &file.display().to_string(), "--log-level", "warn"])
            .serve(&cluster.ground, &dir.join("containerd.log"))?;
        let runtime = Runtime::new().map_err(io("start a runtime"))?;
        let containerd = Self { runtime, socket, process: Some(process) };
        let address = containerd.socket.display().to_string();
        until("containerd", Duration::from_secs(30), || {
            Tool::new("ctr").args(["--address", &address, "version"]).run().map_err(|e| e.to_string())
        })?;
        let work = dir.join("image");
        fs::create_dir_all(&work).map_err(io("make the image's directory"))?;
        let image = make_image(&work)?.display().to_string();
        Tool::new("ctr")
            .args([
                "--address",
                &address,
                "-n",
                "k8s.io",
                "images",
                "import",
                "--snapshotter",
                "native",
                &image,
            ])
            .run()?;
        until("containerd's network to be ready", Duration::from_secs(20), || {
            let status = containerd.network().map_err(|e| e.to_string())?;
            if status.is_empty() { Ok(()) } else { Err(status) }
        })?;
        Ok(containerd)
    }

    fn client(&self) -> Result<RuntimeServiceClient<Channel>, BedError> {
        let address = format!("unix://{}", self.socket.display());
        self.runtime
            .block_on(RuntimeServiceClient::connect(address))
            .map_err(|e| rpc("connect to containerd", e))
    }

    /// Why the network is not ready; empty when it is.
    fn network(&self) -> Result<String, BedError> {
        let mut client = self.client()?;
        let status = self.runtime.block_on(client.status(StatusRequest::default()));
        let status = status.map_err(|e| rpc("the status of containerd", e))?.into_inner().status;
        let conditions = status.map(|s| s.conditions).unwrap_or_default();
        let unready = conditions.into_iter().filter(|c| !c.status);
        Ok(unready.map(|c| format!("{}: {}", c.r#type, c.message)).collect())
    }

    /// Runs a pod sandbox with these annotations and returns its place.
    fn run_pod(&self, tenant: &str, name: &str, annotations: &[(&str, &str)]) -> Result<Place, BedError> {
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-of-{name}"),
                namespace: tenant.into(),
                attempt: 0,
            }),
            linux: Some(LinuxPodSandboxConfig::default()),
            annotations: annotations.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
            ..PodSandboxConfig::default()
        };
        let mut client = self.client()?;
        let request = RunPodSandboxRequest { config: Some(config), ..RunPodSandboxRequest::default() };
        let ran = self.runtime.block_on(client.run_pod_sandbox(request));
        let id = ran.map_err(|e| rpc("run a pod sandbox", e))?.into_inner().pod_sandbox_id;
        let request = PodSandboxStatusRequest { pod_sandbox_id: id, verbose: true };
        let status = self.runtime.block_on(client.pod_sandbox_status(request));
        let status = status.map_err(|e| rpc("the status of a pod sandbox", e))?.into_inner();
        let ip = status.status.and_then(|s| s.network).map(|n| n.ip).unwrap_or_default();
        let info: Value =
            status.info.get("info").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let pid = info.get("pid").and_then(Value::as_u64).unwrap_or_default();
        let address = ip.parse().map_err(|_| rpc("the address of a pod sandbox", &ip))?;
        Ok(Place { name: name.into(), netns: format!("/proc/{pid}/ns/net").into(), address })
    }

    /// Stops and removes every sandbox, as a kubelet does: DEL comes more than once.
    fn remove_pods(&self) -> Outcome {
        let mut client = self.client()?;
        let listed = self.runtime.block_on(client.list_pod_sandbox(ListPodSandboxRequest::default()));
        for sandbox in listed.map_err(|e| rpc("list the sandboxes", e))?.into_inner().items {
            for _ in 0..2 {
                let request = StopPodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
                self.runtime
                    .block_on(client.stop_pod_sandbox(request))
                    .map_err(|e| rpc("stop a sandbox", e))?;
            }
            let request = RemovePodSandboxRequest { pod_sandbox_id: sandbox.id };
            self.runtime
                .block_on(client.remove_pod_sandbox(request))
                .map_err(|e| rpc("remove a sandbox", e))?;
        }
        Ok(())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let Err(e) = self.remove_pods() {
            eprintln!("containerd: sandboxes are left behind: {e}");
        }
        drop(self.process.take());
    }
}

#[test]
fn containerd_runs_and_removes_pods() -> Outcome {
    run(&Plan::nodes(2), |cluster| {
        cluster.add_tenants(&["a", "b"])?;
        let node = cluster.node(1);
        let far = [cluster.node(2).pod("a", "a-far")?, cluster.node(2).pod("b", "b-far")?];
        let before = node.limit_traces()?;
        let capabilities = json!({"bandwidth": true, "ips": true, "mac": true});
        let containerd =
            Containerd::start(cluster, node, json!({"mode": "overlay", "capabilities": capabilities}))?;
        let limited = containerd.run_pod("a", "a-1", &[(INGRESS, "10M"), (EGRESS, "5M")])?;
        let mut places = vec![limited, containerd.run_pod("b", "b-1", &[])?];
        for pod in &far {
            places.push(pod.place()?);
        }
        Matrix::require(&places, |from, to| from[..1] == to[..1])?;
        has_limits(cluster, &places[0], &places[2])?;
        containerd.remove_pods()?;
        node.wait_for_limit_traces(&before)
    })
}

/// That a pod receives 10 Mbit/s and sends 5.
fn has_limits(cluster: &Cluster, pod: &Place, peer: &Place) -> Outcome {
    require_limit("ingress", 10_000_000, &measure(cluster, peer, pod, Load::Tcp, 2)?);
    require_limit("egress", 5_000_000, &measure(cluster, pod, peer, Load::Tcp, 2)?);
    Ok(())
}

/// A pod's annotations reach the plugin by a capability that the conflist declares.
#[test]
fn containerd_s_pods_choose_segment_and_limits_by_annotations() -> Outcome {
    let other = json!({"Subnet": "10.101.0.0/24", "Gateway": "", "RangeStart": "", "RangeEnd": ""});
    on_segments(1, &[record("lan", &json!({})), record("other", &other)], |cluster, switch| {
        let machine = switch.machine("machine", &["10.101.0.200/24"])?;
        let keys = json!({
            "mode": "macvlan",
            "segment": "lan",
            "capabilities": {"bandwidth": true, "io.kubernetes.cri.pod-annotations": true},
        });
        let containerd = Containerd::start(cluster, cluster.node(1), keys)?;
        let annotations = [("tenon.io/segment", "other"), (INGRESS, "10M"), (EGRESS, "5M")];
        let pod = containerd.run_pod("a", "chooser", &annotations)?;
        let default = containerd.run_pod("a", "default", &[])?;
        assert!(pod.address.octets().starts_with(&[10, 101, 0]), "{}", pod.address);
        assert!(default.address.octets().starts_with(&[10, 100, 0]), "{}", default.address);
        has_limits(cluster, &pod, &place("machine", &machine, "10.101.0.200"))?;
        containerd.remove_pods()?;
        for segment in ["lan", "other"] {
            cluster.etcd.wait_for_held(segment, &BTreeMap::new(), Duration::from_secs(10))?;
        }
        Ok(())
    })
}
