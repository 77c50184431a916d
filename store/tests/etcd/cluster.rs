//! etcd clusters on this machine's loopback, which end with the test, also when it fails.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tenon_store::{Options, Store};

/// Nothing here may take longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Cluster {
    pub(crate) dir: TempDir,
    pub(crate) members: Vec<Member>,
    /// Flags that `etcdctl` needs to get in.
    pub(crate) etcdctl_flags: Vec<String>,
}

pub(crate) struct Member {
    pub(crate) port: u16,
    arguments: Vec<String>,
    data: PathBuf,
    log: PathBuf,
    process: Option<Child>,
}

impl Cluster {
    pub(crate) fn start(size: usize) -> Self {
        Self::start_with(size, "http", |_| Vec::new())
    }

    /// A cluster whose clients come by `scheme`, with more flags for each member.
    pub(crate) fn start_with(size: usize, scheme: &str, flags: impl Fn(&TempDir) -> Vec<String>) -> Self {
        let mut cluster = Self::prepare(size, scheme, flags);
        cluster.members.iter_mut().for_each(Member::run);
        cluster.members.iter().for_each(Member::wait);
        cluster
    }

    /// A cluster of one that was never started.
    pub(crate) fn down() -> Self {
        Self::prepare(1, "http", |_| Vec::new())
    }

    fn prepare(size: usize, scheme: &str, flags: impl Fn(&TempDir) -> Vec<String>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ports = free_ports(size * 2);
        let (clients, peers) = ports.split_at(size);
        let initial: Vec<_> =
            peers.iter().enumerate().map(|(i, port)| format!("m{i}=http://127.0.0.1:{port}")).collect();
        let more = flags(&dir);
        let mut members = Vec::new();
        for (i, (client, peer)) in clients.iter().zip(peers).enumerate() {
            let data = dir.path().join(format!("m{i}"));
            let log = dir.path().join(format!("m{i}.log"));
            let mut arguments = vec![
                format!("--name=m{i}"),
                format!("--data-dir={}", data.display()),
                format!("--listen-client-urls={scheme}://127.0.0.1:{client}"),
                format!("--advertise-client-urls={scheme}://127.0.0.1:{client}"),
                format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
                format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
                format!("--initial-cluster={}", initial.join(",")),
                "--initial-cluster-state=new".to_owned(),
                format!("--initial-cluster-token=tenon-{}-{}", std::process::id(), peers[0]),
                "--heartbeat-interval=100".to_owned(),
                "--election-timeout=1000".to_owned(),
                "--logger=zap".to_owned(),
                "--log-level=warn".to_owned(),
            ];
            arguments.extend(more.clone());
            members.push(Member { port: *client, arguments, data, log, process: None });
        }
        Self { dir, members, etcdctl_flags: Vec::new() }
    }

    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(Member::endpoint).collect()
    }

    pub(crate) fn options(&self) -> Options {
        Options { endpoints: self.endpoints(), ..Options::default() }
    }

    pub(crate) fn store(&self) -> Store {
        Store::connect(self.options()).unwrap()
    }

    /// What `etcdctl` says, asked at the members that run.
    pub(crate) fn etcdctl(&self, arguments: &[&str]) -> String {
        let running: Vec<_> =
            self.members.iter().filter(|member| member.process.is_some()).map(Member::endpoint).collect();
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(&self.etcdctl_flags)
            .arg(format!("--endpoints={}", running.join(",")))
            .args(arguments)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "etcdctl {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// The member behind an endpoint's URL.
    pub(crate) fn member(&mut self, endpoint: &str) -> &mut Member {
        self.members.iter_mut().find(|member| endpoint.ends_with(&format!(":{}", member.port))).unwrap()
    }
}

impl Member {
    pub(crate) fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn run(&mut self) {
        let log = std::fs::File::create(&self.log).unwrap();
        let process = Command::new("/usr/bin/etcd")
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(process);
    }

    /// Until it is part of a cluster with a leader. An etcd that is killed before that, at its first start, never
    /// comes up again.
    pub(crate) fn wait(&self) {
        let started = Instant::now();
        while !self.is_healthy() {
            let log = std::fs::read_to_string(&self.log).unwrap();
            assert!(started.elapsed() < PATIENCE, "etcd does not start: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn is_healthy(&self) -> bool {
        // Over TLS, being there has to do.
        if self.arguments.iter().any(|argument| argument.starts_with("--cert-file")) {
            return TcpStream::connect(("127.0.0.1", self.port)).is_ok();
        }
        self.http("/health").is_ok_and(|text| text.contains("\"health\":\"true\""))
    }

    fn http(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.write_all(
            format!("GET {path} HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\n\r\n").as_bytes(),
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.process.as_ref().unwrap().id();
        kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
    }

    /// Comes back without its data, in a cluster of its own by this token.
    pub(crate) fn forget(&mut self, token: Option<&str>) {
        self.kill();
        std::fs::remove_dir_all(&self.data).unwrap();
        if let Some(token) = token {
            self.arguments.retain(|argument| !argument.starts_with("--initial-cluster-token"));
            self.arguments.push(format!("--initial-cluster-token={token}"));
        }
    }

    /// How many calls of a gRPC method the member has taken since its start, by its own count.
    pub(crate) fn calls(&self, method: &str) -> u64 {
        let text = self.http("/metrics").unwrap();
        let name = format!("grpc_method=\"{method}\"");
        text.lines()
            .filter(|line| line.starts_with("grpc_server_started_total") && line.contains(&name))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64)
            .sum()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Ports that nobody listens on. They are held together, so that they differ.
pub(crate) fn free_ports(count: usize) -> Vec<u16> {
    let held: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

/// The future's value, or a failed test.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    within(PATIENCE, what, future).await
}

pub(crate) async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {limit:?}: {what}"),
    }
}

/// The value at this share of the sorted measurements.
pub(crate) fn quantile(measured: &mut [Duration], share: f64) -> Duration {
    measured.sort_unstable();
    measured[((measured.len() - 1) as f64 * share) as usize]
}
