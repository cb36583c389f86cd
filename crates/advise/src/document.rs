//! The JSON document of an advice.

use crate::advice::Advice;
use crate::comparison::ComparedPolicy;
use crate::launch::LaunchCommand;
use crate::memory::MemoryUse;
use crate::search::{AdviceRequest, Deployment};
use serde_json::{Value, json};

fn memory_to_json(memory: &MemoryUse) -> Value {
    let gb = |bytes: f64| bytes / 1e9;
    json!({
        "weights": gb(memory.weights),
        "experts": gb(memory.experts),
        "redundant": gb(memory.redundant),
        "kv_cache": gb(memory.kv_cache),
        "activations": gb(memory.activations),
        "framework": gb(memory.framework),
    })
}

fn deployment_to_json(found: &Deployment) -> Value {
    json!({
        "ranks": found.parallel.ranks,
        "tp": found.parallel.attention_tp,
        "dp": found.parallel.attention_dp(),
        "pp": found.parallel.pp,
        "experts_by": found.parallel.experts_by(),
        "expert_tp": found.parallel.expert_tp,
        "redundant": found.choice.redundant,
        "dynamic_slots": 0,
        "policy": found.choice.policy.name(),
        "split": found.choice.split().to_string(),
        "batch": found.batch,
        "overlap": found.overlap,
        "attention_tiles": found.prefill.attention_tiles,
        "tokens_per_s_per_gpu": found.tokens_per_s_per_gpu,
        "tpot_ms": found.tpot_ms,
        "ttft_ms": found.prefill.ttft_ms,
        "memory_gb": found.memory.total() / 1e9,
        "memory": memory_to_json(&found.memory),
        "imbalance": found.imbalance,
        "is_within_limits": found.within_limits,
        "decode_step": found.decode,
        "prefill": {
            "ranks": found.prefill.parallel.ranks,
            "tp": found.prefill.parallel.attention_tp,
            "pp": found.prefill.parallel.pp,
            "redundant": found.prefill.choice.redundant,
            "tokens": found.prefill.tokens,
            "tokens_per_s_per_gpu": found.prefill.tokens_per_s_per_gpu,
            "pass": found.prefill.pass,
            "imbalance": found.prefill.imbalance,
            "memory_gb": found.prefill.memory.total() / 1e9,
        },
    })
}

impl Advice {
    /// Returns the deployments to list: the Pareto front with the advised one and the best that balances
    /// nothing, best rate first, or all.
    pub fn listed(&self, all: bool) -> Vec<usize> {
        if all {
            return (0..self.search.deployments.len()).collect();
        }
        let mut found: Vec<usize> = self.search.front.clone();
        found.extend([Some(self.best), self.nothing].into_iter().flatten());
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Returns the advice as a JSON document, with the listed deployments or all.
    pub fn to_json(&self, request: &AdviceRequest<'_>, launch: &[LaunchCommand], all: bool) -> Value {
        let rows = self.listed(all);
        let option = |&index: &usize| {
            let mut option = deployment_to_json(&self.search.deployments[index]);
            option["is_advised"] = json!(index == self.best);
            option["is_on_front"] = json!(self.search.front.contains(&index));
            option
        };
        let compared = |row: &ComparedPolicy| {
            json!({
                "name": row.name,
                "redundant": row.redundant,
                "decode_step": row.decode,
                "step_ms": row.decode.total_ms(),
                "tokens_per_s_per_gpu": row.tokens_per_s_per_gpu,
                "imbalance": row.imbalance,
            })
        };
        let worst = self.sources.iter().map(|source| source.median_error).fold(0.0, f64::max);
        let names: Vec<String> =
            self.sources.iter().map(|source| format!("{}: {}", source.part, source.kernel)).collect();
        json!({
            "verdict": {
                "text": self.text(),
                "is_worth_it": self.is_worth_it,
                "gain": self.gain.is_finite().then_some(self.gain),
                "error": self.error,
            },
            "model": request.model.name,
            "gpu": request.times.gpu().name,
            "options": rows.iter().map(option).collect::<Vec<_>>(),
            "nothing": self.nothing.map(|at| deployment_to_json(&self.search.deployments[at])),
            "compared": self.compared.iter().map(compared).collect::<Vec<_>>(),
            "costs": { "source": names.join("; "), "median_error": worst, "parts": self.sources },
            "launch": launch,
            "priced": self.search.priced,
            "too_large": self.search.too_large,
            "placements": self.search.planned,
        })
    }
}
