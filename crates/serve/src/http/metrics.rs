//! For those who watch over the service: `/healthz`, `/readyz`, `/metrics`.
//!
//! Metrics are gathered when they are asked for. Their number is bounded by models, phases and ranks, never by experts.

use super::App;
use super::error::{ApiError, Refusals};
use crate::serve::service::{Counters, Service};
use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;
use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering};
use utoipa::ToSchema;

/// How the service is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Health {
    /// `ok`.
    pub(crate) status: &'static str,
    /// Version of evenkeel.
    pub(crate) version: &'static str,
    /// Models served.
    pub(crate) models: usize,
    /// Seconds since it started.
    pub(crate) up_seconds: u64,
}

/// Is it alive?
#[utoipa::path(get, path = "/healthz", tag = "watch", security(()), responses((status = 200, body = Health), Refusals))]
pub(super) async fn healthz(State(app): State<App>) -> Json<Health> {
    Json(Health {
        status: "ok",
        version: env!("CARGO_PKG_VERSION"),
        models: app.service.models().len(),
        up_seconds: app.service.started.elapsed().as_secs(),
    })
}

/// Does it take requests? 503 while it is ending.
#[utoipa::path(get, path = "/readyz", tag = "watch", security(()), responses((status = 200, body = Health), Refusals))]
pub(super) async fn readyz(State(app): State<App>) -> Result<Json<Health>, ApiError> {
    if *app.ending.borrow() {
        return Err(ApiError::later(axum::http::StatusCode::SERVICE_UNAVAILABLE, "the service is ending", 5));
    }
    Ok(healthz(State(app)).await)
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    model: String,
    phase: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRank {
    model: String,
    phase: String,
    rank: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfSource {
    model: String,
    phase: String,
    path: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfClass {
    class: String,
}

type Real = Gauge<f64, AtomicU64>;

/// Metrics for Prometheus
#[utoipa::path(get, path = "/metrics", tag = "watch",
    responses((status = 200, description = "OpenMetrics text", body = String, content_type = "application/openmetrics-text"), Refusals))]
pub(super) async fn metrics(State(app): State<App>) -> Result<impl IntoResponse, ApiError> {
    let mut text = String::new();
    encode(&mut text, &gathered(&app.service)).map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text))
}

fn gathered(service: &Service) -> Registry {
    let mut registry = Registry::with_prefix("evenkeel");
    let Counters { posts, accepted, repeated, refused, plans, replies, connections, connections_refused } =
        &*service.hub.counters;
    let counters = [
        ("posts", "Posts of loads", posts),
        ("steps_accepted", "Steps that were new, posted or from sources", accepted),
        ("steps_repeated", "Steps that were known already", repeated),
        ("posts_refused", "Posts that were refused", refused),
        ("plan_requests", "Plans that were asked for", plans),
        ("connections_refused", "Connections beyond the limit", connections_refused),
    ];
    for (name, help, counter) in counters {
        registry.register(name, help, ConstCounter::new(counter.load(Ordering::Relaxed)));
    }
    registry.register(
        "store_commits",
        "Transactions of the store",
        ConstCounter::new(service.hub.store.commits()),
    );
    let (open, bytes) = (connections.load(Ordering::Relaxed), service.hub.store.bytes());
    registry.register("connections", "Open connections", ConstGauge::new(open as i64));
    registry.register("store_bytes", "Size of the store", ConstGauge::new(bytes as i64));
    let classes = Family::<OfClass, Counter>::default();
    for (at, count) in replies.iter().enumerate() {
        let class = OfClass { class: format!("{}xx", at + 1) };
        classes.get_or_create(&class).inc_by(count.load(Ordering::Relaxed));
    }
    registry.register("replies", "Replies by class of status", classes);
    phases(service, &mut registry);
    sources(service, &mut registry);
    registry
}

fn sources(service: &Service, registry: &mut Registry) {
    let (errors, up) = (Family::<OfSource, Counter>::default(), Family::<OfSource, Real>::default());
    for source in service.sources() {
        let state = source.state();
        let of = OfSource { model: source.model.clone(), phase: state.phase.to_string(), path: state.path };
        errors.get_or_create(&of).inc_by(state.errors);
        up.get_or_create(&of).set(f64::from(u8::from(state.up)));
    }
    registry.register("source_errors", "Looks at a source, or requests to its server, that failed", errors);
    registry.register("source_up", "1 while all is well with a source, 0 while something fails", up);
}

fn phases(service: &Service, registry: &mut Registry) {
    let real = Family::<Of, Real>::default;
    let (mean, max, bound, behind, version, age, decisions) =
        (real(), real(), real(), real(), real(), real(), real());
    let (fed, copies) = (real(), real());
    let ranks = Family::<OfRank, Real>::default();
    for model in service.models() {
        for feed in model.feeds() {
            let of = Of { model: model.name.clone(), phase: feed.phase.to_string() };
            let lane = feed.lane();
            if let Some(point) = lane.latest() {
                mean.get_or_create(&of).set(point.mean);
                max.get_or_create(&of).set(point.max);
                bound.get_or_create(&of).set(point.bound);
            }
            if let Some(at) = feed.fed_at() {
                fed.get_or_create(&of).set(at as f64);
            }
            copies.get_or_create(&of).set(lane.copies().spent_share);
            behind.get_or_create(&of).set(feed.behind() as f64);
            version.get_or_create(&of).set(lane.version() as f64);
            age.get_or_create(&of).set((lane.accepted() - lane.plan_accepted) as f64);
            decisions.get_or_create(&of).set(lane.decisions as f64);
            let Some(served) = lane.recent.back() else { continue };
            let (names, width) = (lane.ranks(), lane.cluster.ranks());
            let total = served.rank_loads.iter().sum::<u64>().max(1) as f64 / width as f64;
            for (at, &rank) in names.iter().enumerate() {
                let load: u64 = served.rank_loads.iter().skip(at).step_by(width).sum();
                let of = OfRank { model: of.model.clone(), phase: of.phase.clone(), rank };
                ranks.get_or_create(&of).set(load as f64 / total);
            }
        }
    }
    registry.register("imbalance", "Mean over layers of peak over mean, latest step", mean);
    registry.register("imbalance_worst_layer", "Peak over mean of the worst layer, latest step", max);
    registry.register("imbalance_bound", "Least that any placement could have had, latest step", bound);
    registry.register("behind_steps", "Accepted steps that are still to be looked at", behind);
    registry.register(
        "last_step_timestamp_seconds",
        "Seconds since 1970 at which steps were last accepted",
        fed,
    );
    registry.register("copy_time_share", "Share of the assumed time of all steps that copies took", copies);
    registry.register("plan_version", "Version of the plan in force", version);
    registry.register("plan_age_steps", "Steps since the plan in force was decided", age);
    registry.register("decisions", "Decisions so far", decisions);
    registry.register("rank_load", "Load of a rank over the mean, all layers, latest step", ranks);
}
