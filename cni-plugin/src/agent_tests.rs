use std::os::unix::net::UnixListener;
use std::thread;
use std::time::Instant;

use super::*;

const SOON: Duration = Duration::from_millis(100);
const AMPLE: Duration = Duration::from_secs(20);

fn listener() -> (tempfile::TempDir, PathBuf, UnixListener) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.sock");
    let listener = UnixListener::bind(&path).unwrap();
    (directory, path, listener)
}

fn failed(socket: &Path, frame: &[u8], allowed: Duration) -> CallError {
    let start = Instant::now();
    let error = failure(socket, exchange(socket, frame, Deadline::after(allowed)).unwrap_err());
    assert!(start.elapsed() < AMPLE, "took {:?}", start.elapsed());
    error
}

#[test]
fn an_agent_that_hangs_is_left_at_the_deadline() {
    let (_directory, path, _listener) = listener();
    // The kernel takes the connection into the backlog; nobody ever accepts it.
    assert!(matches!(failed(&path, b"x", SOON), CallError::Late { .. }));
}

#[test]
fn a_full_backlog_does_not_hold_the_plugin() {
    let (_directory, path, listener) = listener();
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = connect(&path, Deadline::after(SOON)) {
        waiting.push(stream);
        assert!(waiting.len() < 100, "the backlog has no end");
    }
    assert!(matches!(failed(&path, b"x", SOON), CallError::Late { .. }));
}

#[test]
fn an_agent_that_does_not_read_is_left_at_the_deadline() {
    let (_directory, path, _listener) = listener();
    assert!(matches!(failed(&path, &vec![0; frame::MAX_BODY_BYTES], SOON), CallError::Late { .. }));
}

#[test]
fn a_trickle_does_not_extend_the_deadline() {
    let (_directory, path, listener) = listener();
    let trickle = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = frame::encode(&[b' '; 1000]).unwrap().into_iter();
        while bytes.next().is_some_and(|byte| stream.write_all(&[byte]).is_ok()) {
            thread::sleep(Duration::from_millis(10));
        }
        bytes.len()
    });
    assert!(matches!(failed(&path, b"", 3 * SOON), CallError::Late { .. }));
    assert!(trickle.join().unwrap() > 0, "the whole reply was read");
}

#[test]
fn paths_that_are_no_sockets() {
    let directory = tempfile::tempdir().unwrap();
    let absent = directory.path().join("absent.sock");
    assert!(matches!(failed(&absent, b"x", AMPLE), CallError::Unreachable { .. }));
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(matches!(failed(&file, b"x", AMPLE), CallError::Unreachable { .. }));
    let long = directory.path().join("x".repeat(120));
    assert!(matches!(failed(&long, b"x", AMPLE), CallError::Unusable { .. }));
}
