//! Network namespaces: naming, comparing and entering them.

use std::any::Any;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, setns};

use crate::error::{Error, Result};

/// The calling thread's network namespace; `/proc/self` would be the main thread's.
const CURRENT: &str = "/proc/thread-self/ns/net";

/// An open network namespace (network_namespaces(7)). It lives as long as this handle, whatever happens to its path.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    path: PathBuf,
    id: NetNsId,
}

/// Which network namespace it is: equal for two handles on the same one, whatever their paths.
/// A number may come back for a new namespace once the old one is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetNsId {
    /// The device number of the kernel's nsfs.
    pub device: u64,
    /// The inode number in it: the number in `net:[4026531840]`.
    pub inode: u64,
}

impl fmt::Display for NetNsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.inode)
    }
}

impl NetNs {
    /// Opens the network namespace at `path`, such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// [`Error::NetNsNotFound`] if there is nothing there, [`Error::NotANetNs`] if it is something else.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let failed = |source| Error::NetNs { step: "open", netns: path.display().to_string(), source };
        // Without O_NONBLOCK, opening a FIFO would wait for its other end.
        let file =
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(|error| {
                match error.raw_os_error().map(Errno::from_raw) {
                    // ESRCH: the process of /proc/PID/ns/net has ended.
                    Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ESRCH) => {
                        Error::NetNsNotFound { path: path.to_owned() }
                    }
                    // ENXIO: a socket.
                    Some(Errno::ENXIO) => Error::NotANetNs { path: path.to_owned() },
                    _ => failed(error),
                }
            })?;
        if !is_netns(&file).map_err(failed)? {
            return Err(Error::NotANetNs { path: path.to_owned() });
        }
        let metadata = file.metadata().map_err(failed)?;
        let id = NetNsId { device: metadata.dev(), inode: metadata.ino() };
        Ok(Self { file, path: path.to_owned(), id })
    }

    /// The same, of one that may be gone: `None` if nothing is at `path`, or something else.
    pub fn open_if_there(path: impl AsRef<Path>) -> Result<Option<Self>> {
        match Self::open(path) {
            Err(Error::NetNsNotFound { .. } | Error::NotANetNs { .. }) => Ok(None),
            opened => opened.map(Some),
        }
    }

    /// The calling thread's network namespace.
    pub fn current() -> Result<Self> {
        Self::open(CURRENT)
    }

    /// Which namespace this is, to compare it with another.
    pub fn id(&self) -> NetNsId {
        self.id
    }

    /// The path it was opened at.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `code` in this namespace, on a thread of its own that ends with it: no other thread ever changes
    /// namespace, also when `code` panics. What `code` opens (a socket, say) stays in this namespace for good.
    ///
    /// # Errors
    /// [`Error::NetNs`] if it cannot be entered (that takes CAP_SYS_ADMIN), [`Error::Panicked`] if `code` panicked.
    pub fn run<T: Send>(&self, code: impl FnOnce() -> T + Send) -> Result<T> {
        let failed =
            |step| move |source| Error::NetNs { step, netns: self.path.display().to_string(), source };
        thread::scope(|scope| {
            thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, || {
                    setns(&self.file, CloneFlags::CLONE_NEWNET)?;
                    Ok(code())
                })
                .map_err(failed("start a thread for"))?
                .join()
                .map_err(|payload| Error::Panicked {
                    netns: self.path.display().to_string(),
                    message: panic_message(payload.as_ref()),
                })?
                .map_err(|errno: Errno| failed("enter")(io::Error::from(errno)))
        })
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for NetNs {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.file.as_raw_fd()
    }
}

/// Asks the kernel for the namespace's type (ioctl_nsfs(2)); anything but a namespace has no such ioctl.
fn is_netns(file: &File) -> io::Result<bool> {
    /// `NSIO` of linux/nsfs.h.
    const NSFS: u8 = 0xb7;
    nix::ioctl_none!(ns_get_nstype, NSFS, 0x3);

    let magic = nix::sys::statfs::fstatfs(file)?.filesystem_type();
    if magic != nix::sys::statfs::NSFS_MAGIC {
        return Ok(false);
    }
    // SAFETY: the ioctl takes no argument and the descriptor is open.
    let kind = unsafe { ns_get_nstype(file.as_raw_fd()) };
    match kind {
        Ok(kind) => Ok(kind == libc::CLONE_NEWNET),
        Err(Errno::ENOTTY) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn panic_message(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
