//! `tenon-agent`: owns the pod network of one node. Every agent can be elected controller of the cluster.

mod attach;
mod attachment;
mod bandwidth;
mod bridge;
mod check;
mod cluster;
mod config;
mod controller;
mod host;
mod keeper;
mod macvlan;
mod metrics;
mod model;
mod node;
mod pipeline;
mod reaper;
mod reconciler;
mod server;
mod tenants;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tenon_store::{Keys, Options, Store};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{error, info};

use config::Config;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Owns the pod network of one node.
#[derive(Parser)]
#[command(version)]
struct Flags {
    /// Where agent.toml is.
    #[arg(long, default_value = "/etc/tenon/agent.toml")]
    config: PathBuf,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    #[cfg(target_env = "gnu")]
    share_heaps();
    // The work is short and mostly waits for the kernel and OVS. A thread that waits has the runtime go on with one of
    // the others.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(64)
        .thread_keep_alive(Duration::from_secs(60))
        .enable_all()
        .build();
    let outcome = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run(&flags)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Lets threads share two heaps: glibc would give each its own, up to eight for each CPU, and they keep what they once
/// had (mallopt(3)).
#[cfg(target_env = "gnu")]
fn share_heaps() {
    use nix::libc;
    // SAFETY: takes two numbers, and no other thread runs yet.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
}

async fn run(flags: &Flags) -> Result<()> {
    let config = Config::read(&flags.config)?;
    let underlay = match config.ip {
        Some(ip) => ip,
        None => host::default_underlay_address()?,
    };
    info!(node = config.node, %underlay, "starting");
    let store = Store::connect(Options {
        endpoints: config.etcd.endpoints.clone(),
        ca_file: config.etcd.ca_file.clone(),
        cert_file: config.etcd.cert_file.clone(),
        key_file: config.etcd.key_file.clone(),
        username: config.etcd.username.clone(),
        password_file: config.etcd.password_file.clone(),
        ..Options::default()
    })?;
    let keys = Keys::new(&config.etcd.prefix);
    let listener = server::bind(&config.socket).await?;
    let metrics = TcpListener::bind(config.metrics)
        .await
        .map_err(|error| format!("metrics.listen = {}: {error}", config.metrics))?;

    let bridge = bridge::Bridge::new(bridge::client(&config.ovs)?, config.ovs.clone());
    let reconciler =
        reconciler::Reconciler::start(config.ovs.rundir.join(format!("{}.mgmt", config.ovs.bridge)));
    let macvlan = macvlan::Macvlan::start(&config, underlay)?;
    let node = node::Node::new(config, bridge, reconciler, reaper::Reaper::start()?, store, macvlan);

    let (stop, stopped) = watch::channel(false);
    let follower = tokio::spawn(cluster::follow(node.clone(), keys, underlay, stopped));
    tokio::spawn(keeper::run(node.clone()));
    tokio::spawn(macvlan::upkeep::run(node.clone()));
    tokio::spawn(server::serve(node.clone(), listener));
    tokio::spawn(metrics::serve(node.clone(), metrics));

    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("stopping; the data path stays as it is");
    stop.send_replace(true);
    follower.await?;
    Ok(())
}
