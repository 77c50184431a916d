//! A private Open vSwitch with a bridge `br0` whose data path and ports exist in its process alone, and the tools
//! that come with it as witnesses.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a part of the switch may take to start.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// A process that ends with its owner.
struct Daemon(Child);

impl Daemon {
    fn start(command: &mut Command, log: &Path) -> Daemon {
        let log = File::create(log).unwrap();
        Daemon(command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The switch; the daemons end before their directory goes.
pub(crate) struct Switch {
    vswitchd: Option<Daemon>,
    _database: Daemon,
    directory: TempDir,
}

impl Switch {
    pub(crate) fn start() -> Switch {
        let directory = tempfile::Builder::new().prefix("openflow-test-").tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let schema = "/usr/share/openvswitch/vswitch.ovsschema";
        succeed(Command::new("ovsdb-tool").arg("create").arg(path("conf.db")).arg(schema));
        let database = Daemon::start(
            Command::new("ovsdb-server")
                .arg(path("conf.db"))
                .arg(format!("--remote=punix:{}", path("db.sock").display()))
                .arg(format!("--unixctl={}", path("ovsdb.ctl").display()))
                .env("OVS_RUNDIR", directory.path()),
            &path("ovsdb.log"),
        );
        wait_for(&path("db.sock"));
        let mut switch = Switch { vswitchd: None, _database: database, directory };
        switch.vsctl(&["--no-wait", "init"]);
        switch.start_vswitchd();
        switch.vsctl(&[
            "add-br",
            "br0",
            "--",
            "set",
            "bridge",
            "br0",
            "datapath_type=dummy",
            "fail_mode=secure",
        ]);
        wait_for(&switch.socket());
        switch
    }

    fn start_vswitchd(&mut self) {
        self.vswitchd = Some(Daemon::start(
            Command::new("ovs-vswitchd")
                .arg(format!("unix:{}", self.path("db.sock").display()))
                .arg(format!("--unixctl={}", self.path("vswitchd.ctl").display()))
                .args(["--enable-dummy=override", "--disable-system", "--disable-system-route"])
                .env("OVS_RUNDIR", self.directory.path()),
            &self.path("vswitchd.log"),
        ));
    }

    /// Ends ovs-vswitchd as a crash would.
    pub(crate) fn kill(&mut self) {
        self.vswitchd = None;
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The management socket of the bridge.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path("br0.mgmt")
    }

    pub(crate) fn vsctl(&self, arguments: &[&str]) -> String {
        succeed(
            Command::new("ovs-vsctl")
                .arg(format!("--db=unix:{}", self.path("db.sock").display()))
                .args(arguments),
        )
    }

    pub(crate) fn appctl(&self, arguments: &[&str]) -> String {
        succeed(Command::new("ovs-appctl").arg("-t").arg(self.path("vswitchd.ctl")).args(arguments))
    }

    /// ovs-ofctl in OpenFlow 1.4 on the bridge.
    pub(crate) fn ofctl(&self, command: &str, arguments: &[&str]) -> String {
        succeed(
            Command::new("ovs-ofctl")
                .args(["-O", "OpenFlow14", "--no-names", "--no-stats", command])
                .arg(format!("unix:{}", self.socket().display()))
                .args(arguments),
        )
    }

    /// Adds flows in the text of ovs-ofctl.
    pub(crate) fn add_flows(&self, flows: &[String]) {
        let mut file = tempfile::NamedTempFile::new_in(self.directory.path()).unwrap();
        for flow in flows {
            writeln!(file, "{flow}").unwrap();
        }
        self.ofctl("add-flows", &[&file.path().display().to_string()]);
    }

    /// The flows as ovs-ofctl sees them, one a line, sorted.
    pub(crate) fn dump(&self) -> Vec<String> {
        let text = self.ofctl("dump-flows", &[]);
        let mut flows: Vec<_> = text.lines().map(|line| line.trim().to_owned()).collect();
        flows.sort_unstable();
        flows
    }
}

fn succeed(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{command:?}: {status}: {stderr}");
    String::from_utf8_lossy(&stdout).into_owned()
}

fn wait_for(path: &Path) {
    let start = Instant::now();
    while !path.exists() {
        assert!(start.elapsed() < START_DEADLINE, "{} has not appeared", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}
