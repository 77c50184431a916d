//! Peers that are no switch.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::of::{Connection, DecodeError, Error};

const HELLO: [u8; 8] = [5, 0, 0, 8, 0, 0, 0, 1];

/// A connection to a peer that says these bytes, and the peer.
async fn connect(says: &[u8]) -> (Result<Connection, Error>, UnixStream) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let peer = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(says).await.unwrap();
        stream
    };
    tokio::join!(Connection::connect(&path), peer)
}

#[tokio::test]
async fn hellos_that_do_not_fit() {
    let with_bitmap = |bits: u32| {
        let mut hello = vec![6, 0, 0, 16, 0, 0, 0, 1, 0, 1, 0, 8];
        hello.extend(bits.to_be_bytes());
        hello
    };
    for good in [HELLO.to_vec(), vec![6, 0, 0, 8, 0, 0, 0, 0], with_bitmap(0b110_0000)] {
        assert!(connect(&good).await.0.is_ok(), "{good:?}");
    }
    for bad in [vec![4, 0, 0, 8, 0, 0, 0, 0], with_bitmap(0b101_0010)] {
        let error = connect(&bad).await.0.err();
        assert!(matches!(error, Some(Error::Version { offered }) if offered == bad[0]), "{error:?}");
    }
    for bad in [
        vec![5, 0, 0, 7, 0, 0, 0, 0],
        vec![5, 0, 0, 0, 0, 0, 0, 0],
        vec![5, 6, 0, 8, 0, 0, 0, 0],
        vec![5, 0, 0, 12, 0, 0, 0, 0, 0, 1, 0, 200],
        vec![5, 0, 0, 12, 0, 0, 0, 0, 0, 1, 0, 2],
        vec![5, 0, 0, 12, 0, 0, 0, 0, 0, 1, 0, 4],
    ] {
        let error = connect(&bad).await.0.err();
        assert!(matches!(error, Some(Error::Protocol(_))), "{bad:?}: {error:?}");
    }
    // OFPET_HELLO_FAILED, in the peer's own version.
    let error = connect(&[1, 1, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0]).await.0.err().unwrap();
    assert_eq!(error.to_string(), "the switch refused a hello: OFPET_HELLO_FAILED OFPHFC_INCOMPATIBLE");
}

#[tokio::test]
async fn messages_that_are_none_end_the_connection() {
    for (bytes, wanted) in [
        (&[5u8, 2, 0, 7, 0, 0, 0, 0][..], DecodeError::BadLength { what: "message", length: 7 }),
        (&[4, 2, 0, 8, 0, 0, 0, 0], DecodeError::Version(4)),
        (&[5, 12, 0, 8, 0, 0, 0, 0], DecodeError::Truncated { what: "port status", wanted: 1, there: 0 }),
    ] {
        let (connection, _peer) = connect(&[&HELLO[..], bytes].concat()).await;
        let connection = connection.unwrap();
        let reason = tokio::time::timeout(Duration::from_secs(5), connection.closed()).await.unwrap();
        assert!(matches!(&reason, Error::Protocol(found) if *found == wanted), "{reason:?}");
        assert!(matches!(connection.barrier().await, Err(Error::Protocol(_))));
    }
}

#[tokio::test]
async fn a_silent_peer_is_given_up_on() {
    let (connection, _peer) = connect(&HELLO).await;
    let connection = connection.unwrap().with_deadline(Duration::from_millis(50));
    match connection.barrier().await {
        Err(Error::Timeout { request: "barrier request", .. }) => {}
        other => panic!("{other:?}"),
    }
}

/// Echoes are answered, word for word, also when a request is stuck because the peer does not read.
#[tokio::test]
async fn echoes_are_answered() {
    let (connection, mut peer) = connect(&HELLO).await;
    let _connection = connection.unwrap();
    let mut hello = [0; 16];
    peer.read_exact(&mut hello).await.unwrap();
    assert_eq!(hello, [5, 0, 0, 16, 0, 0, 0, 0, 0, 1, 0, 8, 0, 0, 0, 0x20]);
    // In two halves, and two at once.
    let echo = [5, 2, 0, 11, 1, 2, 3, 4, b'a', b'b', b'c'];
    peer.write_all(&echo[..5]).await.unwrap();
    tokio::task::yield_now().await;
    peer.write_all(&[&echo[5..], &echo].concat()).await.unwrap();
    let mut answers = [0; 22];
    peer.read_exact(&mut answers).await.unwrap();
    let answer = [5, 3, 0, 11, 1, 2, 3, 4, b'a', b'b', b'c'];
    assert_eq!(answers.as_slice(), [answer, answer].concat());
}

/// A peer that sends without end and reads nothing costs neither memory without end nor a deadlock.
#[tokio::test]
async fn a_flood_of_echoes_is_bounded() {
    let (connection, mut peer) = connect(&HELLO).await;
    let connection = connection.unwrap();
    let mut echo = vec![5, 2, 0xff, 0xf8, 0, 0, 0, 9];
    echo.resize(0xfff8, 0);
    // Far more than the socket buffers of both sides hold: it goes through only if the client reads on.
    for _ in 0..200 {
        tokio::time::timeout(Duration::from_secs(5), peer.write_all(&echo)).await.unwrap().unwrap();
    }
    drop(peer);
    assert!(matches!(connection.closed().await, Error::Closed | Error::Io(_)));
}

#[tokio::test]
async fn the_last_handle_closes_the_socket() {
    let (connection, mut peer) = connect(&HELLO).await;
    let connection = connection.unwrap();
    let clone = connection.clone();
    drop(connection);
    drop(clone);
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(5), peer.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert_eq!(rest.len(), 16);
}
