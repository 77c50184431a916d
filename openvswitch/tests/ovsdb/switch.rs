//! A private Open vSwitch: an `ovsdb-server` in a directory of its own and, where a test needs it, an
//! `ovs-vswitchd` in a network namespace of its own. All of it is gone when the value is dropped.

use openvswitch::ovsdb::{Client, Endpoint, Monitor, Settings};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub(crate) const DATABASE: &str = "Open_vSwitch";
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A process that is killed and reaped when dropped, and also when the test's thread dies.
pub(crate) struct Process(Child);

impl Process {
    fn start(command: &[&str]) -> Self {
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .args(command)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) struct Switch {
    directory: TempDir,
    pub(crate) server: Option<Process>,
    daemon: Option<Process>,
}

impl Switch {
    /// A database with the schema of Open vSwitch and its one root row, and no `ovs-vswitchd`.
    pub(crate) fn database() -> Self {
        let directory = tempfile::Builder::new().prefix("tenon-ovsdb-").tempdir().unwrap();
        let mut switch = Self { directory, server: None, daemon: None };
        let file = switch.file("conf.db");
        run("ovsdb-tool", &["create", &file, "/usr/share/openvswitch/vswitch.ovsschema"]);
        switch.start_server();
        switch.vsctl(&["init"]);
        switch
    }

    /// The same with an `ovs-vswitchd` and a bridge `br0` on the userspace datapath.
    pub(crate) fn running() -> Self {
        let mut switch = Self::database();
        let database = switch.address();
        let control = format!("--unixctl={}", switch.file("vs.ctl"));
        let pidfile = format!("--pidfile={}", switch.file("vs.pid"));
        let log = format!("--log-file={}", switch.file("vs.log"));
        let rundir = format!("OVS_RUNDIR={}", switch.directory.path().display());
        let command =
            ["env", &rundir, "unshare", "--net", "ovs-vswitchd", &database, &control, &pidfile, &log];
        switch.daemon = Some(Process::start(&command));
        run(
            "ovs-vsctl",
            &[
                "--timeout=10",
                &format!("--db={database}"),
                "add-br",
                "br0",
                "--",
                "set",
                "bridge",
                "br0",
                "datapath_type=netdev",
            ],
        );
        switch
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    pub(crate) fn address(&self) -> String {
        format!("unix:{}", self.file("db.sock"))
    }

    pub(crate) fn start_server(&mut self) {
        self.start_server_at("db.sock");
    }

    /// Starts the server with a socket of another name, which a client of this switch does not know.
    pub(crate) fn start_server_at(&mut self, socket: &str) {
        let remote = format!("--remote=punix:{}", self.file(socket));
        let control = format!("--unixctl={}", self.file("ovsdb.ctl"));
        let pidfile = format!("--pidfile={}", self.file("ovsdb.pid"));
        let database = self.file("conf.db");
        let command = ["ovsdb-server", &database, &remote, &control, &pidfile, "--log-file=/dev/null"];
        self.server = Some(Process::start(&command));
        let socket = PathBuf::from(self.file(socket));
        let deadline = Instant::now() + SOON;
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < deadline, "ovsdb-server does not come up");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Kills the server with SIGKILL and waits until it is gone.
    pub(crate) fn kill_server(&mut self) {
        assert!(self.server.take().is_some());
    }

    /// Runs a command in the network namespace of `ovs-vswitchd`.
    pub(crate) fn in_namespace(&self, command: &[&str]) {
        let pid = self.daemon.as_ref().unwrap().pid().to_string();
        let mut arguments = vec!["--target", &pid, "--net"];
        arguments.extend(command);
        run("nsenter", &arguments);
    }

    /// `ovs-vsctl` that does not wait for `ovs-vswitchd`.
    pub(crate) fn vsctl(&self, arguments: &[&str]) -> String {
        let database = format!("--db={}", self.address());
        let mut all = vec!["--timeout=10", "--no-wait", &database];
        all.extend(arguments);
        run("ovs-vsctl", &all)
    }

    pub(crate) fn settings(&self, monitor: Monitor) -> Settings {
        let endpoint: Endpoint = self.address().parse().unwrap();
        Settings::new(endpoint, DATABASE, monitor)
    }

    pub(crate) async fn client(&self, monitor: Monitor) -> Client {
        Client::connect(self.settings(monitor)).await.unwrap()
    }
}

/// Runs a program to its end and returns what it printed, without the final line end.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = Command::new(program).args(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{program} {arguments:?}: {stderr}");
    String::from_utf8(stdout).unwrap().trim_end().to_owned()
}
