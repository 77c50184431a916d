//! A wire between a client and a member that can be cut, quietly or not.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wire {
    Good,
    /// Connections are closed, and new ones refused at once.
    Cut,
    /// Nothing gets through, and nobody is told.
    Silent,
    /// The member hears the client, the client hears nothing.
    Deaf,
}

pub(crate) struct Proxy {
    pub(crate) endpoint: String,
    wire: Arc<watch::Sender<Wire>>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn start(member: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let wire = Arc::new(watch::Sender::new(Wire::Good));
        let state = wire.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let (member, state) = (member.clone(), state.subscribe());
                connections.spawn(async move {
                    if *state.borrow() == Wire::Cut {
                        return;
                    }
                    let Ok(server) = TcpStream::connect(member).await else { return };
                    client.set_nodelay(true).unwrap();
                    server.set_nodelay(true).unwrap();
                    let (client_read, client_write) = client.into_split();
                    let (server_read, server_write) = server.into_split();
                    let mut cut = state.clone();
                    tokio::select! {
                        _ = cut.wait_for(|wire| *wire == Wire::Cut) => {}
                        () = carry(client_read, server_write, state.clone(), &[Wire::Silent]) => {}
                        () = carry(server_read, client_write, state, &[Wire::Silent, Wire::Deaf]) => {}
                    }
                });
            }
        });
        Self { endpoint, wire, task }
    }

    pub(crate) fn set(&self, wire: Wire) {
        self.wire.send_replace(wire);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut state: watch::Receiver<Wire>,
    held_by: &[Wire],
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else { return };
        // What is held back is delivered when the wire is good again, and lost when it is cut.
        match state.wait_for(|wire| !held_by.contains(wire)).await {
            Ok(wire) if *wire != Wire::Cut => {}
            _ => return,
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
