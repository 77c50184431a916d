//! What tcpdump sees on a link.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::ground::Ground;

/// How long to wait for packets that should have come.
const PATIENCE: Duration = Duration::from_secs(10);

/// A tcpdump that ends when it has seen this many packets.
pub(crate) struct Capture {
    tcpdump: Child,
    output: BufReader<ChildStdout>,
}

impl Capture {
    /// Returns when it is listening.
    pub(crate) fn start(ground: &Ground, link: &str, packets: u32, filter: &str) -> Self {
        let mut tcpdump = Command::new("ip")
            .args(["netns", "exec", &ground.name, "tcpdump"])
            .args(["-nevvtl", "--immediate-mode", "-i", link, "-c", &packets.to_string(), filter])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut errors = BufReader::new(tcpdump.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            assert_ne!(errors.read_line(&mut line).unwrap(), 0, "tcpdump ended");
        }
        let output = BufReader::new(tcpdump.stdout.take().unwrap());
        // Its last words do not matter, but it must be able to say them.
        std::thread::spawn(move || errors.read_to_end(&mut Vec::new()));
        Self { tcpdump, output }
    }

    /// Each packet's description, in one line, when all have been seen or none came for long.
    pub(crate) fn packets(mut self) -> Vec<String> {
        let start = Instant::now();
        while self.tcpdump.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < PATIENCE, "packets are missing");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut text = String::new();
        self.output.read_to_string(&mut text).unwrap();
        // A packet's further lines are indented.
        let packets = text.replace("\n\t", " ").replace("\n  ", " ");
        packets.lines().map(str::to_owned).collect()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if self.tcpdump.try_wait().unwrap().is_none() {
            // `ip netns exec` has become tcpdump.
            let _ = kill(Pid::from_raw(self.tcpdump.id() as i32), Signal::SIGKILL);
            let _ = self.tcpdump.wait();
        }
    }
}
