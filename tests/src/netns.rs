//! Network namespaces: made with `ip netns`, entered on a thread of their own.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use nix::sched::{CloneFlags, setns};

use crate::{
    command::Tool,
    error::{BedError, Outcome},
    ground::Ground,
};

/// Does `work` in the network namespace at `path`, on a thread that ends with it, so that no other thread of
/// the process is ever left in the wrong namespace. Processes that `work` spawns belong to the namespace.
pub fn inside<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, BedError> {
    let entered = thread::scope(|scope| {
        scope
            .spawn(|| {
                let namespace = File::open(path)?;
                setns(namespace, CloneFlags::CLONE_NEWNET)?;
                Ok::<T, std::io::Error>(work())
            })
            .join()
    });
    match entered {
        Ok(result) => result.map_err(|e| BedError::system(format!("enter {}", path.display()), e)),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// A named network namespace that is deleted with this value, after whatever still runs in it was killed.
#[derive(Debug)]
pub struct Netns {
    name: String,
    ground: Arc<Ground>,
}

impl Netns {
    /// Makes a namespace called after the ground and `suffix`, with its loopback up.
    pub fn create(ground: &Arc<Ground>, suffix: &str) -> Result<Self, BedError> {
        let name = format!("{}-{suffix}", ground.name());
        Tool::new("ip").args(["netns", "add", &name]).run()?;
        let netns = Self { name, ground: Arc::clone(ground) };
        netns.ip(&["link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// The name, as `ip netns exec` takes it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace; the value of `CNI_NETNS`.
    pub fn path(&self) -> PathBuf {
        path_of(&self.name)
    }

    /// Runs `ip ARGS` in the namespace.
    pub fn ip(&self, args: &[&str]) -> Result<String, BedError> {
        Tool::new("ip").args(["-n", &self.name]).args(args).run()
    }

    /// Writes a sysctl of the namespace; `key` as a path below /proc/sys/net.
    pub fn sysctl(&self, key: &str, value: &str) -> Outcome {
        let file = format!("/proc/sys/net/{key}");
        inside(&self.path(), || std::fs::write(&file, value))?
            .map_err(|e| BedError::system(format!("write {value} to {file} in {}", self.name), e))
    }

    /// Deletes the namespace now, as a container runtime does with a dead pod's.
    pub fn delete(self) {}
}

impl Drop for Netns {
    fn drop(&mut self) {
        if !self.ground.kept() {
            remove(&self.name);
        }
    }
}

/// Kills what runs in a namespace and deletes it; a fault is told, for there is nobody to hand it to.
pub(crate) fn remove(name: &str) {
    if let Ok(pids) = Tool::new("ip").args(["netns", "pids", name]).run() {
        for pid in pids.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            // A process that has just ended by itself is as good.
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
    if path_of(name).exists()
        && let Err(e) = Tool::new("ip").args(["netns", "del", name]).run()
    {
        eprintln!("bed: namespace {name} is left behind: {e}");
    }
}

/// Where `ip netns` keeps a namespace's file.
pub fn path_of(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}
