//! Metrics for Prometheus: `/metrics`.
//!
//! Metrics are gathered on request. Their number is bounded by models, phases and ranks, never by experts.

use super::AppState;
use super::error::{ApiError, ErrorResponses};
use crate::runtime::service::{Service, ServiceCounters};
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    model: String,
    phase: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RankLabels {
    model: String,
    phase: String,
    rank: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GainLabels {
    model: String,
    phase: String,
    times: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabels {
    model: String,
    phase: String,
    path: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabels {
    class: String,
}

type FloatGauge = Gauge<f64, AtomicU64>;

/// Get metrics for Prometheus
#[utoipa::path(get, path = "/metrics", tag = "watch",
    responses((status = 200, description = "OpenMetrics text", body = String, content_type = "application/openmetrics-text"), ErrorResponses))]
pub(super) async fn get_metrics(State(app): State<AppState>) -> Result<impl IntoResponse, ApiError> {
    let mut text = String::new();
    encode(&mut text, &gather_metrics(&app.service))
        .map_err(|error| ApiError::internal_error(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text))
}

fn gather_metrics(service: &Service) -> Registry {
    let mut registry = Registry::with_prefix("evenkeel");
    let ServiceCounters {
        posts,
        accepted,
        repeated,
        refused,
        plans,
        replies,
        connections,
        connections_refused,
        connections_cut,
    } = &*service.context.counters;
    let counters = [
        ("posts", "Posts of loads", posts),
        ("steps_accepted", "Steps that were new, posted or from sources", accepted),
        ("steps_repeated", "Repetitions of known steps", repeated),
        ("posts_refused", "Posts that were refused", refused),
        ("plan_requests", "Answered requests for plans", plans),
        ("connections_refused", "Connections beyond the limit", connections_refused),
        ("connections_cut", "Waiting connections that were closed to make room for others", connections_cut),
    ];
    for (name, help, counter) in counters {
        registry.register(name, help, ConstCounter::new(counter.load(Ordering::Relaxed)));
    }
    registry.register(
        "store_commits",
        "Transactions of the store",
        ConstCounter::new(service.context.store.commit_count()),
    );
    let (open, bytes) = (connections.load(Ordering::Relaxed), service.context.store.file_bytes());
    registry.register("connections", "Open connections", ConstGauge::new(open as i64));
    registry.register("store_bytes", "Size of the store", ConstGauge::new(bytes as i64));
    let classes = Family::<StatusLabels, Counter>::default();
    for (at, count) in replies.iter().enumerate() {
        let class = StatusLabels { class: format!("{}xx", at + 1) };
        classes.get_or_create(&class).inc_by(count.load(Ordering::Relaxed));
    }
    registry.register("replies", "Replies by class of status", classes);
    register_phases(service, &mut registry);
    register_sources(service, &mut registry);
    registry
}

fn register_sources(service: &Service, registry: &mut Registry) {
    let counter = Family::<SourceLabels, Counter>::default;
    let (errors, skipped, up) = (counter(), counter(), Family::<SourceLabels, FloatGauge>::default());
    for source in service.sources() {
        let state = source.state();
        let of =
            SourceLabels { model: source.model.clone(), phase: state.phase.to_string(), path: state.path };
        errors.get_or_create(&of).inc_by(state.errors);
        skipped.get_or_create(&of).inc_by(state.skipped_lines);
        up.get_or_create(&of).set(f64::from(u8::from(state.up)));
    }
    registry.register("source_errors", "Failed reads of a source, and failed requests to its server", errors);
    registry.register("source_skipped_lines", "Lines of a growing file that could not be read", skipped);
    registry.register("source_up", "1 while nothing fails at a source, else 0", up);
}

fn register_phases(service: &Service, registry: &mut Registry) {
    let real = Family::<PhaseLabels, FloatGauge>::default;
    let (mean, max, bound, lag, version, age, decisions) =
        (real(), real(), real(), real(), real(), real(), real());
    let (fed, copies) = (real(), real());
    let ranks = Family::<RankLabels, FloatGauge>::default();
    let gains = Family::<GainLabels, FloatGauge>::default();
    for model in service.models() {
        for worker in model.workers() {
            let of = PhaseLabels { model: model.name.clone(), phase: worker.phase.to_string() };
            let state = worker.state();
            if let Some(point) = state.latest_point() {
                mean.get_or_create(&of).set(point.mean);
                max.get_or_create(&of).set(point.max);
                bound.get_or_create(&of).set(point.bound);
            }
            if let Some(at) = worker.last_step_unix_s() {
                fed.get_or_create(&of).set(at as f64);
            }
            copies.get_or_create(&of).set(state.copy_status().spent_share);
            let status = state.gain_status();
            for (times, estimate) in [("calm", status.calm), ("after_break", status.after_break)] {
                let labels = GainLabels { model: of.model.clone(), phase: of.phase.clone(), times };
                gains.get_or_create(&labels).set(estimate.ratio);
            }
            lag.get_or_create(&of).set(worker.lag() as f64);
            version.get_or_create(&of).set(state.plan_version() as f64);
            age.get_or_create(&of).set((state.accepted_steps() - state.plan_accepted()) as f64);
            decisions.get_or_create(&of).set(state.decision_count() as f64);
            let Some(served) = state.latest_outcome() else { continue };
            let names = state.active_ranks();
            let width = names.len();
            let total = served.rank_loads.iter().sum::<u64>().max(1) as f64 / width as f64;
            for (at, &rank) in names.iter().enumerate() {
                let load: u64 = served.rank_loads.iter().skip(at).step_by(width).sum();
                let of = RankLabels { model: of.model.clone(), phase: of.phase.clone(), rank };
                ranks.get_or_create(&of).set(load as f64 / total);
            }
        }
    }
    registry.register("imbalance", "Mean over layers of peak over mean, latest step", mean);
    registry.register("imbalance_worst_layer", "Peak over mean of the worst layer, latest step", max);
    registry.register("imbalance_bound", "Lower bound of any placement, latest step", bound);
    registry.register("lag_steps", "Accepted steps that are not processed yet", lag);
    registry.register(
        "last_step_timestamp_seconds",
        "Seconds since 1970 at which steps were last accepted",
        fed,
    );
    registry.register("copy_time_share", "Share of transfers in the assumed time of all steps", copies);
    registry.register("gain_ratio", "Later gain per expected gain of earlier decisions", gains);
    registry.register("plan_version", "Version of the current plan", version);
    registry.register("plan_age_steps", "Steps since the current plan was decided", age);
    registry.register("decisions", "Decisions so far", decisions);
    registry.register("rank_load", "Load of a rank over the mean, all layers, latest step", ranks);
}
