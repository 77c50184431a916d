//! What all parts of one cluster share: a name that nothing else has, a directory, and what becomes of it all
//! at the end.

use std::{
    env,
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    process,
    sync::{
        Arc, Once,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use nix::{
    libc,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
};

use crate::{
    command::Tool,
    error::{BedError, Outcome},
    netns,
};

/// All names that the bed gives begin so, followed by the process id.
const PREFIX: &str = "tenon";
/// A file in the directory of a cluster that outlives its process on purpose.
const KEPT: &str = "kept";

static COUNTER: AtomicU32 = AtomicU32::new(0);
static SWEPT: Once = Once::new();

/// The name and directory of one cluster.
#[derive(Debug)]
pub struct Ground {
    name: String,
    dir: PathBuf,
    kept: AtomicBool,
    failed: AtomicBool,
}

impl Ground {
    /// A fresh ground; the first one of a process removes what dead ones left.
    pub fn new() -> Result<Arc<Self>, BedError> {
        SWEPT.call_once(sweep);
        let name = format!("{PREFIX}-{}-{}", process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let dir = home().join(&name);
        fs::create_dir_all(&dir).map_err(|e| BedError::system(format!("make {}", dir.display()), e))?;
        Ok(Arc::new(Self { name, dir, kept: AtomicBool::new(false), failed: AtomicBool::new(false) }))
    }

    /// The name that all namespaces of the cluster begin with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory for sockets, databases and logs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Leaves everything standing when the process ends.
    pub fn keep(&self) -> Result<(), BedError> {
        let mark = self.dir.join(KEPT);
        fs::write(&mark, "").map_err(|e| BedError::system(format!("write {}", mark.display()), e))?;
        self.kept.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether everything is to be left standing.
    pub fn kept(&self) -> bool {
        self.kept.load(Ordering::Relaxed)
    }

    /// Notes that the test failed, so that the servers' logs are printed when they end.
    pub fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Whether the test failed or is panicking.
    pub fn troubled(&self) -> bool {
        self.failed.load(Ordering::Relaxed) || thread::panicking()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if !self.kept() {
            remove_dir(&self.dir);
        }
    }
}

fn home() -> PathBuf {
    env::temp_dir()
}

/// Removes the clusters of processes that are gone, save those that were kept on purpose.
pub fn sweep() {
    remove_where(|name, pid| {
        !Path::new("/proc").join(pid.to_string()).exists() && !home().join(name).join(KEPT).exists()
    });
}

/// Removes the clusters that were kept on purpose, and returns their names.
pub fn remove_kept() -> Vec<String> {
    remove_where(|name, _| home().join(name).join(KEPT).exists())
}

/// Removes this process's own clusters.
fn remove_own() {
    remove_where(|_, pid| pid == process::id());
}

/// Has this process remove its own clusters when it is interrupted.
///
/// By handlers, because programs that this process starts would inherit blocked signals, and not end by SIGTERM.
pub fn remove_own_on_signals() -> Outcome {
    static INTERRUPTED: AtomicBool = AtomicBool::new(false);
    extern "C" fn note(_: libc::c_int) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler does nothing but store to an atomic, which is safe at any time (signal-safety(7)).
        unsafe { sigaction(signal, &action) }.map_err(|e| BedError::system(format!("handle {signal}"), e))?;
    }
    thread::spawn(|| {
        while !INTERRUPTED.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(50));
        }
        remove_own();
        process::exit(130);
    });
    Ok(())
}

/// Removes the clusters for which `condemned` holds, by name and process id.
fn remove_where(condemned: impl Fn(&str, u32) -> bool) -> Vec<String> {
    let mut names: Vec<String> = entries(Path::new("/run/netns"))
        .chain(entries(&home()))
        .filter_map(|entry| cluster_of(&entry))
        .filter(|(name, pid)| condemned(name, *pid))
        .map(|(name, _)| name)
        .collect();
    names.sort_unstable();
    names.dedup();
    for name in &names {
        remove(name);
    }
    names
}

/// Removes the cluster of this name, whoever owns it: its processes, namespaces and files.
pub fn remove(name: &str) {
    for namespace in entries(Path::new("/run/netns")).filter(|n| n.starts_with(&format!("{name}-"))) {
        netns::remove(&namespace);
    }
    remove_dir(&home().join(name));
}

fn remove_dir(dir: &Path) {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            eprintln!("bed: {} is left behind: {e}", dir.display());
        }
        _ => {}
    }
}

fn entries(dir: &Path) -> impl Iterator<Item = String> + use<> {
    let listing = fs::read_dir(dir).into_iter().flatten().flatten();
    listing.filter_map(|entry| entry.file_name().into_string().ok())
}

/// The cluster that a namespace or directory belongs to, and the process that made it.
fn cluster_of(entry: &str) -> Option<(String, u32)> {
    let mut parts = entry.split('-');
    let (prefix, pid, counter) = (parts.next()?, parts.next()?, parts.next()?);
    (prefix == PREFIX).then_some(())?;
    let (pid, counter): (u32, u32) = (pid.parse().ok()?, counter.parse().ok()?);
    Some((format!("{PREFIX}-{pid}-{counter}"), pid))
}

/// The path of a binary under test.
pub fn binary(name: &str) -> Result<PathBuf, BedError> {
    let found = match env::var_os("TENON_BIN_DIR") {
        Some(dir) => Some(PathBuf::from(dir).join(name)),
        None => env::current_exe().ok().and_then(|exe| {
            // Test binaries are in target/PROFILE/deps, other ones in target/PROFILE.
            let dir = exe.parent()?;
            let profile = if dir.file_name() == Some(OsStr::new("deps")) { dir.parent()? } else { dir };
            Some(profile.join(name))
        }),
    };
    found.filter(|path| path.exists()).ok_or_else(|| {
        BedError::answer(
            format!("look for the binary {name}"),
            "not there: run `cargo build --workspace`, or set TENON_BIN_DIR",
        )
    })
}

/// Whether a program is in PATH; the error says which package brings it.
pub fn require(program: &str, package: &str) -> Result<(), BedError> {
    match Tool::new("which").args([program]).run() {
        Ok(_) => Ok(()),
        Err(_) => Err(BedError::answer(
            format!("look for the program {program}"),
            format!("not there: install the package {package}"),
        )),
    }
}
