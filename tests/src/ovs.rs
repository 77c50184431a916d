//! A node's own Open vSwitch: database, switch daemon, and the project's own tools to ask them.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crate::{
    command::{Process, Tool, until},
    datapath::{Datapath, patience},
    error::{BedError, Outcome},
    ground::Ground,
};

/// Where Debian puts the database's schema.
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// An ovs-vswitchd that starts earlier under User-Mode Linux counts no CPU and loses every upcall.
const EARLIEST_UPTIME_SECONDS: f64 = 10.0;

/// One instance of Open vSwitch.
#[derive(Debug)]
pub struct Ovs {
    vswitchd: Option<Process>,
    ovsdb: Option<Process>,
    dir: PathBuf,
    netns: PathBuf,
    ground: Arc<Ground>,
}

impl Ovs {
    /// Makes an empty database in `dir` and starts both daemons in the namespace `netns`.
    pub fn start(
        ground: &Arc<Ground>,
        dir: &Path,
        netns: PathBuf,
        datapath: Datapath,
    ) -> Result<Self, BedError> {
        let mut ovs = Self::absent(ground, dir, netns)?;
        if datapath == Datapath::Kernel {
            until("an uptime of 10 s", Duration::from_secs(15), || {
                let uptime = fs::read_to_string("/proc/uptime").map_err(|e| e.to_string())?;
                let seconds: f64 = uptime.split(' ').next().and_then(|s| s.parse().ok()).unwrap_or(0.0);
                if seconds > EARLIEST_UPTIME_SECONDS { Ok(()) } else { Err(uptime) }
            })?;
        }
        Tool::new("ovsdb-tool").args(["create", &ovs.file("conf.db"), SCHEMA]).run()?;
        ovs.start_ovsdb()?;
        ovs.start_vswitchd()?;
        Ok(ovs)
    }

    /// A place for one that is not there.
    pub fn absent(ground: &Arc<Ground>, dir: &Path, netns: PathBuf) -> Result<Self, BedError> {
        fs::create_dir_all(dir).map_err(|e| BedError::system(format!("make {}", dir.display()), e))?;
        Ok(Self { vswitchd: None, ovsdb: None, dir: dir.to_owned(), netns, ground: Arc::clone(ground) })
    }

    fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn daemon(&self, program: &str) -> Tool {
        Tool::new(program)
            .inside(&self.netns)
            .env("OVS_RUNDIR", &self.dir)
            .env("OVS_LOGDIR", &self.dir)
            .env("OVS_DBDIR", &self.dir)
    }

    /// The directory of its sockets, OVS_RUNDIR.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The database's address, as `--db` takes it.
    pub fn db(&self) -> String {
        format!("unix:{}", self.file("db.sock"))
    }

    /// Starts ovsdb-server and waits until it answers.
    pub fn start_ovsdb(&mut self) -> Outcome {
        let remote = format!("--remote=punix:{}", self.file("db.sock"));
        let control = format!("--unixctl={}", self.file("ovsdb.ctl"));
        let log = self.dir.join("ovsdb-server.log");
        let server = self
            .daemon("ovsdb-server")
            .args([&self.file("conf.db"), &remote, &control, "-vconsole:warn"])
            .serve(&self.ground, &log)?;
        self.ovsdb = Some(server);
        until("an answer of ovsdb-server", patience(Duration::from_secs(10)), || {
            self.vsctl(&["--no-wait", "init"]).map_err(|e| e.to_string())
        })?;
        Ok(())
    }

    /// Starts ovs-vswitchd and waits until it has taken the database's content over.
    pub fn start_vswitchd(&mut self) -> Outcome {
        let control = format!("--unixctl={}", self.file("vs.ctl"));
        let pid_file = format!("--pidfile={}", self.file("ovs-vswitchd.pid"));
        let log = self.dir.join("ovs-vswitchd.log");
        let server = self
            .daemon("ovs-vswitchd")
            .args([&self.db(), &control, &pid_file, "-vconsole:warn"])
            .serve(&self.ground, &log)?;
        self.vswitchd = Some(server);
        self.vsctl(&["--timeout=30", "init"])?;
        Ok(())
    }

    /// Ends ovs-vswitchd: by SIGKILL when `hard`, else by SIGTERM. What its datapath does then differs: the
    /// kernel's goes on with the flows it has cached.
    pub fn end_vswitchd(&mut self, hard: bool) {
        end(self.vswitchd.take(), hard);
    }

    /// Ends ovsdb-server.
    pub fn end_ovsdb(&mut self, hard: bool) {
        end(self.ovsdb.take(), hard);
    }

    /// How many files ovs-vswitchd has open. On the userspace datapath every port has one, which is closed some time
    /// after the port has gone.
    pub fn open_files(&self) -> Result<usize, BedError> {
        let pid = self.vswitchd.as_ref().map_or(0, Process::pid);
        let dir = format!("/proc/{pid}/fd");
        Ok(fs::read_dir(&dir).map_err(|e| BedError::system(format!("list {dir}"), e))?.count())
    }

    /// `ovs-vsctl ARGS`.
    pub fn vsctl(&self, args: &[&str]) -> Result<String, BedError> {
        self.daemon("ovs-vsctl").args([format!("--db={}", self.db())]).args(args).run()
    }

    /// `ovs-ofctl COMMAND BRIDGE ARGS` in OpenFlow 1.4, the one with bundles.
    pub fn ofctl(&self, command: &str, bridge: &str, args: &[&str]) -> Result<String, BedError> {
        let target = format!("unix:{}", self.file(&format!("{bridge}.mgmt")));
        self.daemon("ovs-ofctl").args(["-O", "OpenFlow14", command, &target]).args(args).run()
    }

    /// `ovs-appctl` to ovs-vswitchd.
    pub fn appctl(&self, args: &[&str]) -> Result<String, BedError> {
        self.daemon("ovs-appctl").args(["-t", &self.file("vs.ctl")]).args(args).run()
    }

    /// The flows of a bridge, sorted, without counters and cookies: what of them decides about packets.
    pub fn flows(&self, bridge: &str) -> Result<Vec<String>, BedError> {
        let dump = self.ofctl("dump-flows", bridge, &["--no-stats"])?;
        let without_cookie = |line: &str| {
            let parts = line.trim().split(", ").filter(|part| !part.starts_with("cookie="));
            parts.collect::<Vec<_>>().join(", ")
        };
        let mut flows: Vec<String> =
            dump.lines().filter(|line| line.contains("actions=")).map(without_cookie).collect();
        flows.sort_unstable();
        Ok(flows)
    }

    /// How many packets the flows of a bridge whose action is `drop` have counted, and whose text has `part`.
    pub fn dropped(&self, bridge: &str, part: &str) -> Result<u64, BedError> {
        let dump = self.ofctl("dump-flows", bridge, &[])?;
        let drops = dump.lines().filter(|line| line.ends_with("actions=drop") && line.contains(part));
        Ok(drops
            .filter_map(|line| line.split("n_packets=").nth(1)?.split(',').next()?.parse::<u64>().ok())
            .sum())
    }
}

fn end(process: Option<Process>, hard: bool) {
    match process {
        Some(process) if hard => process.kill(),
        other => drop(other),
    }
}
