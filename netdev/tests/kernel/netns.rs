use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use nix::errno::Errno;
use tenon_netdev::{Error, NetNs, Netlink};

use crate::ground::Ground;

fn current_netns() -> PathBuf {
    fs::read_link("/proc/thread-self/ns/net").unwrap()
}

#[test]
fn code_runs_in_the_namespace_and_the_caller_stays_where_it_is() {
    let ground = Ground::new();
    let before = current_netns();
    let inside = ground.netns.run(current_netns).unwrap();
    assert_ne!(inside, before);
    assert_eq!(inside.to_str().unwrap(), ground.netns.id().to_string());
    assert_eq!(current_netns(), before);
}

#[test]
fn a_panic_in_a_namespace_is_an_error_and_moves_nobody() {
    let ground = Ground::new();
    let before = current_netns();
    for _ in 0..3 {
        let error = ground.netns.run(|| -> () { panic!("on purpose {}", 7) }).unwrap_err();
        assert!(matches!(&error, Error::Panicked { message, .. } if message == "on purpose 7"), "{error}");
        assert!(error.to_string().contains(&ground.name), "{error}");
    }
    assert_eq!(current_netns(), before);
    assert_eq!(NetNs::current().unwrap().id().to_string(), before.to_str().unwrap());
}

#[test]
fn a_namespace_is_the_same_by_every_path() {
    let (one, other) = (Ground::new(), Ground::new());
    let by_thread = one.netns.run(NetNs::current).unwrap().unwrap();
    assert_eq!(by_thread.id(), one.netns.id());
    assert_ne!(other.netns.id(), one.netns.id());
    assert_eq!(one.netns.path(), PathBuf::from(format!("/run/netns/{}", one.name)));
}

#[test]
fn what_is_no_network_namespace_is_refused_by_name() {
    let dir = std::env::temp_dir().join(format!("tndev-paths-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join("file");
    fs::write(&file, "").unwrap();
    let fifo = dir.join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let socket = dir.join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    // A namespace, but of mounts.
    let mounts = PathBuf::from("/proc/self/ns/mnt");
    for path in [&file, &fifo, &socket, &dir, &mounts] {
        let error = NetNs::open(path).unwrap_err();
        assert!(matches!(error, Error::NotANetNs { .. }), "{path:?}: {error:?}");
        assert_eq!(error.to_string(), format!("{} is not a network namespace", path.display()));
    }
    for path in [dir.join("gone"), file.join("below"), PathBuf::from("/proc/4194305/ns/net")] {
        let error = NetNs::open(&path).unwrap_err();
        assert!(matches!(error, Error::NetNsNotFound { .. }), "{path:?}: {error:?}");
        assert_eq!(error.to_string(), format!("network namespace {} does not exist", path.display()));
    }
    drop(listener);
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_handle_outlives_the_path_of_its_namespace() {
    let ground = Ground::new();
    let netns = NetNs::open(ground.netns.path()).unwrap();
    let path = ground.netns.path().to_owned();
    drop(ground);
    assert!(matches!(NetNs::open(path), Err(Error::NetNsNotFound { .. })));
    let netlink = Netlink::open_in(&netns).unwrap();
    assert_eq!(netlink.links().unwrap().len(), 1);
}

#[test]
fn entering_without_privilege_says_so() {
    let ground = Ground::new();
    let error = ground
        .netns
        .run(|| {
            // This thread alone becomes nobody; the threads that it starts inherit that.
            // SAFETY: a system call on the calling thread's own identity.
            let result = unsafe { nix::libc::syscall(nix::libc::SYS_setuid, 65534) };
            assert_eq!(result, 0);
            ground.netns.run(|| ())
        })
        .unwrap()
        .unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EPERM));
    assert!(error.to_string().starts_with("cannot enter network namespace /run/netns/tndev-"), "{error}");
}

#[test]
fn a_handle_can_be_used_by_any_thread_and_in_any_namespace() {
    let (one, other) = (Ground::new(), Ground::new());
    let veth = one.connect(&other, "h0", "p0");
    // Asked from inside the other namespace, it still answers for its own.
    let link = other.netns.run(|| one.netlink.link_by_name("h0")).unwrap().unwrap().unwrap();
    assert_eq!(link.index, veth.host_index);
    assert!(other.netns.as_fd().try_clone_to_owned().is_ok());
}
