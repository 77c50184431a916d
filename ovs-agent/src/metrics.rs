//! `/metrics` for Prometheus, `/healthz` (the agent runs) and `/readyz` (pods can be attached).

use std::fmt::Write;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::node::Node;
use crate::pipeline::Drop;

/// Answers on `listener`, for ever.
pub(crate) async fn serve(node: Arc<Node>, listener: TcpListener) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(node);
    axum::serve(listener, router).await
}

async fn ready(State(node): State<Arc<Node>>) -> (StatusCode, String) {
    match node.obstacle() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(obstacle) => (StatusCode::SERVICE_UNAVAILABLE, format!("{obstacle}\n")),
    }
}

async fn metrics(State(node): State<Arc<Node>>) -> impl IntoResponse {
    let mut registry = Registry::with_prefix("tenon");
    registry.register_collector(Box::new(Reading::take(&node).await));
    let mut text = String::new();
    let status = match prometheus_client::encoding::text::encode(&mut text, &registry) {
        Ok(()) => StatusCode::OK,
        Err(error) => {
            // Only a bug in how a metric is named gets here; say so rather than serve half a page.
            let _ = write!(text, "{error}");
            StatusCode::INTERNAL_SERVER_ERROR
        }
    };
    (status, [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
}

/// What is read for one scrape: the switch counts, the agent only asks it.
#[derive(Debug)]
struct Reading {
    ready: bool,
    attachments: usize,
    /// Packets dropped, by reason; empty while the switch cannot be asked.
    dropped: Vec<(Drop, u64)>,
}

impl Reading {
    async fn take(node: &Node) -> Self {
        let connection = node.reconciler.synced().borrow().clone();
        let flows = match connection {
            Some(connection) => connection.flow_stats(None, 0, 0).await.unwrap_or_default(),
            None => Vec::new(),
        };
        let mut dropped = Vec::new();
        if !flows.is_empty() {
            dropped.extend(Drop::ALL.map(|reason| (reason, 0)));
        }
        for stats in flows {
            if let Some(reason) = Drop::of_cookie(stats.flow.cookie)
                && let Some((_, packets)) = dropped.iter_mut().find(|(of, _)| *of == reason)
            {
                *packets += stats.packets;
            }
        }
        Self {
            ready: node.obstacle().is_none(),
            attachments: node.state().model.attachments().count(),
            dropped,
        }
    }
}

impl Collector for Reading {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut gauge = |name, help, value: i64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        gauge("ready", "Whether pods can be attached", i64::from(self.ready))?;
        gauge(
            "attachments",
            "Pod interfaces on this node",
            i64::try_from(self.attachments).unwrap_or(i64::MAX),
        )?;
        if self.dropped.is_empty() {
            return Ok(());
        }
        let help = "Packets dropped by the flows that are installed now";
        let counter = ConstCounter::new(0_u64);
        let mut family = encoder.encode_descriptor("dropped_packets", help, None, counter.metric_type())?;
        for (reason, packets) in &self.dropped {
            let labels = [("reason", reason.name())];
            ConstCounter::new(*packets).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
