//! The agent's socket: one request and one response for each connection, framed as [`tenon_cni::frame`] says.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tenon_cni::{Call, Error, Response, frame};
use thiserror::Error as ThisError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tracing::{debug, warn};

use crate::attach;
use crate::node::Node;

/// How long a plugin may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the socket cannot be served.
#[derive(Debug, ThisError)]
pub(crate) enum ServerError {
    #[error("cannot make the socket {path}: {source}")]
    Bind { path: PathBuf, source: std::io::Error },
    #[error("another agent serves {0}; stop it first")]
    InUse(PathBuf),
}

/// Makes the socket, in the place of one that a dead agent has left. Only root may use it.
pub(crate) async fn bind(path: &Path) -> Result<UnixListener, ServerError> {
    let failed = |source| ServerError::Bind { path: path.to_owned(), source };
    if UnixStream::connect(path).await.is_ok() {
        return Err(ServerError::InUse(path.to_owned()));
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    // Nobody else can connect between the bind and the change of mode.
    let old = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    nix::sys::stat::umask(old);
    let listener = bound.map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Answers the plugin's calls, for ever.
pub(crate) async fn serve(node: Arc<Node>, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let node = node.clone();
                tokio::spawn(async move {
                    if let Err(error) = answer(&node, stream).await {
                        debug!(%error, "a plugin went before it had its answer");
                    }
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(node: &Arc<Node>, mut stream: UnixStream) -> std::io::Result<()> {
    let body = match tokio::time::timeout(REQUEST_TIMEOUT, read(&mut stream)).await {
        Ok(body) => body?,
        Err(_) => return Err(std::io::ErrorKind::TimedOut.into()),
    };
    let response = match body.and_then(|body| Call::decode(&body).map_err(Error::from)) {
        // Nothing cancels this task, so a plugin that is killed does not leave its ADD half done.
        Ok(Call::Cni(request)) => attach::handle(node, *request).await,
        Ok(Call::Limit(change)) => attach::change_limits(node, change).await.into(),
        Err(error) => Response::Failed(error),
    };
    let frame = response
        .encode()
        .or_else(|error| Response::Failed(Error::agent_internal(error.to_string())).encode());
    stream.write_all(&frame.unwrap_or_default()).await
}

/// Reads one frame; the inner error is the answer to one that is too long.
async fn read(stream: &mut UnixStream) -> std::io::Result<Result<Vec<u8>, Error>> {
    let mut header = [0; frame::HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    let length = match frame::body_length(header) {
        Ok(length) => length,
        Err(error) => return Ok(Err(Error::protocol(error.to_string()))),
    };
    let mut body = Vec::new();
    stream.take(length as u64).read_to_end(&mut body).await?;
    if body.len() < length {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Ok(body))
}
