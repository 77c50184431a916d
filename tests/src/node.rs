//! Nodes: a namespace on the underlay with its own Open vSwitch and `tenon-agent`.

use std::{
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    cni::Cni,
    command::{Process, Tool, until},
    datapath::{Datapath, patience},
    error::{BedError, Outcome},
    etcd::POD_NETWORK,
    ground::{Ground, binary},
    matrix::Place,
    netns::Netns,
    ovs::Ovs,
    pod::Pod,
    underlay::{PREFIX_LENGTH, ROUTER, Underlay, fill_checksums},
};

/// The bridge that the agent keeps.
pub const BRIDGE: &str = "br0";
/// In the userspace datapath, the bridge that holds the uplink and the node's address.
const UPLINK_BRIDGE: &str = "br-phy";
/// How long an agent may take until it is ready.
const READY: Duration = Duration::from_secs(20);

/// What pods leave on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces {
    /// Interfaces in the switch's database.
    pub interfaces: Vec<String>,
    /// Links in the node's namespace.
    pub links: Vec<String>,
    /// Flows, without counters and cookies.
    pub flows: Vec<String>,
}

impl Traces {
    fn beyond(&self, before: &Self) -> String {
        let differ = |now: &[String], then: &[String]| {
            let added = now.iter().filter(|x| !then.contains(x)).map(|x| format!("+{x}"));
            let gone = then.iter().filter(|x| !now.contains(x)).map(|x| format!("-{x}"));
            added.chain(gone).collect::<Vec<_>>().join("\n  ")
        };
        format!(
            "interfaces {}; links {}; flows\n  {}",
            differ(&self.interfaces, &before.interfaces),
            differ(&self.links, &before.links),
            differ(&self.flows, &before.flows)
        )
    }
}

/// One node.
#[derive(Debug)]
pub struct Node {
    name: String,
    address: Ipv4Addr,
    datapath: Datapath,
    dir: PathBuf,
    etcd_endpoints: Vec<String>,
    // Ended in this order: the agent first, so that it does not mourn its Open vSwitch in the log.
    agent: Mutex<Option<Process>>,
    ovs: Mutex<Ovs>,
    netns: Netns,
    ground: Arc<Ground>,
}

impl Node {
    /// Plugs a node into the underlay and starts its Open vSwitch, if it is to have one. The agent is started apart.
    pub fn create(
        ground: &Arc<Ground>,
        underlay: &Underlay,
        datapath: Option<Datapath>,
        name: &str,
        address: Ipv4Addr,
        etcd_endpoints: Vec<String>,
    ) -> Result<Self, BedError> {
        let netns = Netns::create(ground, name)?;
        underlay.plug(&netns, name)?;
        let dir = ground.dir().join(name);
        let ovs = match datapath {
            Some(datapath) => Ovs::start(ground, &dir.join("ovs"), netns.path(), datapath)?,
            None => Ovs::absent(ground, &dir.join("ovs"), netns.path())?,
        };
        // Without Open vSwitch the uplink is as with the kernel's datapath.
        let datapath = datapath.unwrap_or(Datapath::Kernel);
        if datapath == Datapath::Userspace {
            let mtu = format!("mtu_request={}", underlay.mtu());
            ovs.vsctl(&[
                "add-br",
                UPLINK_BRIDGE,
                "--",
                "set",
                "bridge",
                UPLINK_BRIDGE,
                "datapath_type=netdev",
                "fail_mode=standalone",
                "--",
                "set",
                "interface",
                UPLINK_BRIDGE,
                &mtu,
                "--",
                "add-port",
                UPLINK_BRIDGE,
                "eth0",
            ])?;
        }
        let node = Self {
            name: name.to_owned(),
            address,
            datapath,
            dir,
            etcd_endpoints,
            agent: Mutex::new(None),
            ovs: Mutex::new(ovs),
            netns,
            ground: Arc::clone(ground),
        };
        node.configure_uplink()?;
        node.masquerade_without_nftables()?;
        Ok(node)
    }

    /// User-Mode Linux's kernel has nftables for bridges alone, so no agent can masquerade there. A rule of the
    /// older kind takes its place, so that the way out of the kernel datapath is tested all the same.
    fn masquerade_without_nftables(&self) -> Outcome {
        let nft = |line: &str| Tool::new("nft").inside(self.netns.path()).args([line]).output();
        if nft("add table ip tenon-bed-probe")?.status.success() {
            return nft("delete table ip tenon-bed-probe").map(|_| ());
        }
        let rule =
            ["-t", "nat", "-A", "POSTROUTING", "-s", POD_NETWORK, "!", "-d", POD_NETWORK, "-j", "MASQUERADE"];
        Tool::new("iptables-legacy").inside(self.netns.path()).args(rule).run().map(|_| ())
    }

    /// Gives the uplink the node's address and default route, as the machine's own network scripts do; again
    /// after the userspace datapath's interfaces went with their daemon.
    pub fn configure_uplink(&self) -> Outcome {
        let link = self.uplink();
        until("the uplink", patience(Duration::from_secs(5)), || {
            self.netns.ip(&["link", "set", link, "up"]).map_err(|e| e.to_string())
        })?;
        if self.datapath == Datapath::Userspace {
            fill_checksums(&self.netns, link)?;
        }
        self.netns.ip(&["addr", "replace", &format!("{}/{PREFIX_LENGTH}", self.address), "dev", link])?;
        self.netns.ip(&["route", "replace", "default", "via", &ROUTER.to_string()])?;
        Ok(())
    }

    /// Gives the uplink another address in place of the one it has.
    pub fn change_address(&self, address: Ipv4Addr) -> Outcome {
        let link = self.uplink();
        self.netns.ip(&["addr", "flush", "dev", link])?;
        self.netns.ip(&["addr", "add", &format!("{address}/{PREFIX_LENGTH}"), "dev", link])?;
        self.netns.ip(&["route", "replace", "default", "via", &ROUTER.to_string()])?;
        Ok(())
    }

    /// The link with the underlay address.
    pub fn uplink(&self) -> &'static str {
        match self.datapath {
            Datapath::Userspace => UPLINK_BRIDGE,
            Datapath::Kernel => "eth0",
        }
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node's underlay address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The node's namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The node itself as a place, known by its underlay address.
    pub fn place(&self) -> Place {
        Place { name: self.name.clone(), netns: self.netns.path(), address: self.address }
    }

    /// Its Open vSwitch.
    pub fn ovs(&self) -> MutexGuard<'_, Ovs> {
        self.ovs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("agent.sock")
    }

    /// What the agent has logged, over all its lives.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default()
    }

    fn config(&self, name: &str, address: Ipv4Addr) -> String {
        let endpoints: Vec<String> = self.etcd_endpoints.iter().map(|url| format!("{url:?}")).collect();
        let ovs = self.dir.join("ovs");
        format!(
            "[node]\nname = {:?}\nip = \"{}\"\nsocket = {:?}\n\n[etcd]\nendpoints = [{}]\n\n\
             [ovs]\ndb = \"unix:{}\"\nrundir = {:?}\nbridge = \"{BRIDGE}\"\ndatapath = \"{}\"\n\n\
             [kubernetes]\nenabled = false\n",
            name,
            address,
            self.socket(),
            endpoints.join(", "),
            ovs.join("db.sock").display(),
            ovs,
            self.datapath.name(),
        )
    }

    fn agent(&self) -> MutexGuard<'_, Option<Process>> {
        self.agent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes agent.toml and starts the agent, without waiting for it to be ready.
    pub fn launch_agent(&self) -> Outcome {
        self.launch_agent_as(&self.name, self.address)
    }

    /// The same with another name or address in agent.toml than the machine has.
    pub fn launch_agent_as(&self, name: &str, address: Ipv4Addr) -> Outcome {
        self.launch(&self.config(name, address))
    }

    /// The same with further sections in agent.toml.
    pub fn launch_agent_with(&self, sections: &str) -> Outcome {
        self.launch(&format!("{}\n{sections}", self.config(&self.name, self.address)))
    }

    fn launch(&self, config: &str) -> Outcome {
        let file = self.dir.join("agent.toml");
        fs::write(&file, config).map_err(|e| BedError::system(format!("write {}", file.display()), e))?;
        let agent = Tool::new(binary("tenon-agent")?)
            .inside(self.netns.path())
            .args(["--config", &file.display().to_string()])
            .serve(&self.ground, &self.dir.join("agent.log"))?;
        *self.agent() = Some(agent);
        Ok(())
    }

    /// Starts the agent and waits until it says by STATUS that pods can be attached.
    pub fn start_agent(&self) -> Outcome {
        self.launch_agent()?;
        self.wait_ready()
    }

    /// Waits until the agent says by STATUS that pods can be attached to the overlay.
    pub fn wait_ready(&self) -> Outcome {
        self.wait_ready_for("overlay")
    }

    /// Waits until the agent says by STATUS that pods can be attached in this mode.
    pub fn wait_ready_for(&self, mode: &str) -> Outcome {
        let cni = self.cni()?.with("mode", json!(mode)).version("1.1.0");
        until(&format!("a ready agent on {}", self.name), patience(READY), || {
            let reply = cni.call("STATUS", None).map_err(|e| e.to_string())?;
            if reply.success { Ok(()) } else { Err(reply.text) }
        })
    }

    /// `kill -9` to the agent.
    pub fn kill_agent(&self) {
        if let Some(agent) = self.agent().take() {
            agent.kill();
        }
    }

    /// SIGTERM to the agent, and waits for its end.
    pub fn stop_agent(&self) {
        drop(self.agent().take());
    }

    /// Sends the agent a signal, such as SIGSTOP.
    pub fn signal_agent(&self, signal: Signal) -> Outcome {
        match &*self.agent() {
            Some(agent) => agent.signal(signal),
            None => Err(BedError::answer(format!("signal the agent of {}", self.name), "it does not run")),
        }
    }

    /// Whether the agent runs.
    pub fn agent_alive(&self) -> bool {
        self.agent().as_mut().is_some_and(Process::alive)
    }

    /// The agent's process id, while it runs.
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent().as_ref().map(Process::pid)
    }

    /// How a runtime on this node calls the plugin.
    pub fn cni(&self) -> Result<Cni, BedError> {
        Cni::new(self.netns.path(), self.socket())
    }

    /// Makes a pod's namespace and attaches nothing yet. Without a tenant, the runtime names none.
    pub fn sandbox<'a>(&self, tenant: impl Into<Option<&'a str>>, name: &str) -> Result<Pod, BedError> {
        Pod::sandbox(&self.ground, self.cni()?, tenant.into(), name)
    }

    /// Makes a pod and attaches it.
    pub fn pod<'a>(&self, tenant: impl Into<Option<&'a str>>, name: &str) -> Result<Pod, BedError> {
        let mut pod = self.sandbox(tenant, name)?;
        pod.add()?;
        Ok(pod)
    }

    /// The bridge's flows without counters.
    pub fn flows(&self) -> Result<Vec<String>, BedError> {
        self.ovs().flows(BRIDGE)
    }

    /// Packets counted by the bridge's drop flows.
    pub fn dropped(&self) -> Result<u64, BedError> {
        self.ovs().dropped(BRIDGE, "")
    }

    /// The bridge's ports.
    pub fn ports(&self) -> Result<Vec<String>, BedError> {
        let text = self.ovs().vsctl(&["list-ports", BRIDGE])?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    }

    /// All that attaching a pod leaves on the node: ports in the database, links and flows.
    pub fn traces(&self) -> Result<Traces, BedError> {
        let mut interfaces: Vec<String> = {
            let text = self.ovs().vsctl(&["--bare", "--columns=name", "list", "interface"])?;
            text.split_whitespace().map(str::to_owned).collect()
        };
        interfaces.sort_unstable();
        Ok(Traces { interfaces, links: self.links()?, flows: self.flows()? })
    }

    /// Waits until the node is as it was, and fails with what is left over.
    pub fn wait_for_traces(&self, before: &Traces) -> Outcome {
        until(&format!("no trace of a pod on {}", self.name), patience(Duration::from_secs(10)), || {
            let now = self.traces().map_err(|e| e.to_string())?;
            if now == *before { Ok(()) } else { Err(now.beyond(before)) }
        })
    }

    /// The names of the links in the node's namespace.
    pub fn links(&self) -> Result<Vec<String>, BedError> {
        let text = self.netns.ip(&["-o", "link"])?;
        let name = |line: &str| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned());
        let mut links: Vec<String> = text.lines().filter_map(name).collect();
        links.sort_unstable();
        Ok(links)
    }
}
