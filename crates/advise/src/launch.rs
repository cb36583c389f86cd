//! Options with which serving stacks start a deployment.
//!
//! In: a model's name, a [`Deployment`] and the files of its placements. Out: a command line, or lines of a
//! configuration, for SGLang, vLLM, TensorRT-LLM and Dynamo. A note states parts for which a stack has no
//! option.

use crate::search::{Deployment, PrefillChoice};
use crate::workload::Serving;
use crate::{balance::BalancePolicy, figures::BalanceChoice, parallelism::Parallelism};
use serde::Serialize;
use std::collections::BTreeMap;

/// Start of one role of a deployment in one stack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LaunchCommand {
    /// Name of the stack.
    pub stack: &'static str,
    /// `decode`, `prefill`, or `serve` for both.
    pub role: &'static str,
    /// Command, or lines of the configuration file.
    pub text: String,
    /// Parts of the advice that the stack has no option for.
    pub notes: Vec<String>,
}

/// One role of a deployment.
#[derive(Debug, Clone, Copy)]
struct Role<'a> {
    name: &'static str,
    parallel: &'a Parallelism,
    choice: &'a BalanceChoice,
    overlap: bool,
    tokens: u64,
    files: &'a PlacementFiles,
}

/// Files of placements, by role and stack.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PlacementFiles(BTreeMap<(String, String), String>);

impl PlacementFiles {
    /// Adds the file that a stack reads for a role.
    pub fn add(&mut self, role: &str, stack: &str, file: String) {
        self.0.insert((role.to_owned(), stack.to_owned()), file);
    }

    fn get(&self, role: &str, stack: &str) -> Option<&str> {
        let role = if role == "serve" { "decode" } else { role };
        self.0.get(&(role.to_owned(), stack.to_owned())).map(String::as_str)
    }
}

/// Stacks for which commands are written.
pub(crate) const STACKS: [&str; 4] = ["sglang", "vllm", "trtllm", "dynamo"];

/// Returns the commands of a deployment for every stack, with the files of its placements.
pub fn launch_commands(
    model: &str,
    deployment: &Deployment,
    serving: Serving,
    files: &PlacementFiles,
) -> Vec<LaunchCommand> {
    let PrefillChoice { parallel, choice, overlap, tokens, .. } = &deployment.prefill;
    let decode = Role {
        name: if serving == Serving::Mixed { "serve" } else { "decode" },
        parallel: &deployment.parallel,
        choice: &deployment.choice,
        overlap: deployment.overlap,
        tokens: deployment.batch,
        files,
    };
    let prefill = Role { name: "prefill", parallel, choice, overlap: *overlap, tokens: *tokens, files };
    let roles = if serving == Serving::Mixed { vec![decode] } else { vec![prefill, decode] };
    let of_stack = |stack: &'static str| {
        roles.iter().map(move |role| match stack {
            "vllm" => vllm(model, role),
            "trtllm" => trtllm(role),
            "dynamo" => sglang(model, role, stack, "python3 -m dynamo.sglang"),
            _ => sglang(model, role, stack, "python3 -m sglang.launch_server"),
        })
    };
    STACKS.into_iter().flat_map(of_stack).collect()
}

impl Role<'_> {
    fn is_expert_parallel(&self) -> bool {
        self.parallel.is_expert_parallel()
    }

    fn is_balanced(&self) -> bool {
        self.choice.policy != BalancePolicy::Nothing
    }

    /// Returns the variable that makes evenkeel's plug-in split batches exactly.
    fn split_setting(&self) -> &'static str {
        if self.choice.exact { "EVENKEEL_SPLIT=exact " } else { "" }
    }

    /// Returns the note on a split that a stack does not do by itself.
    fn split_note(&self, stack: &str) -> Vec<String> {
        if !self.choice.exact {
            return Vec::new();
        }
        vec![format!("{stack} splits evenly by itself; the exact split needs evenkeel's plug-in")]
    }
}

/// Returns the command of SGLang's server, also below Dynamo.
fn sglang(model: &str, role: &Role<'_>, stack: &'static str, program: &str) -> LaunchCommand {
    let Parallelism { ranks, attention_tp, pp, .. } = *role.parallel;
    let mut text = format!("{}{program} --model-path {model} --tp-size {ranks}", role.split_setting());
    let mut add = |flag: String| {
        text.push(' ');
        text.push_str(&flag);
    };
    if attention_tp < ranks {
        add(format!("--dp-size {} --enable-dp-attention", ranks / attention_tp));
    }
    if pp > 1 {
        add(format!("--pp-size {pp}"));
    }
    if role.is_expert_parallel() {
        let mode = if role.name == "decode" { "low_latency" } else { "normal" };
        add(format!(
            "--ep-size {} --moe-a2a-backend deepep --deepep-mode {mode}",
            role.parallel.expert_groups()
        ));
        if role.choice.redundant > 0 {
            let dispatch = if role.choice.exact { "lp" } else { "dynamic" };
            add(format!(
                "--ep-num-redundant-experts {} --ep-dispatch-algorithm {dispatch}",
                role.choice.redundant
            ));
        }
        if let Some(file) = role.files.get(role.name, "sglang").filter(|_| role.is_balanced()) {
            add(format!("--init-expert-location {file}"));
        }
        if role.overlap {
            add("--enable-two-batch-overlap".into());
        }
    }
    if role.name != "serve" {
        add(format!("--disaggregation-mode {}", role.name));
    }
    match role.name {
        "prefill" => add(format!("--chunked-prefill-size {}", role.tokens * ranks)),
        _ => add(format!("--max-running-requests {}", role.tokens * ranks)),
    }
    LaunchCommand { stack, role: role.name, text, notes: role.split_note("SGLang") }
}

fn vllm(model: &str, role: &Role<'_>) -> LaunchCommand {
    let Parallelism { ranks, attention_tp, pp, .. } = *role.parallel;
    let policy = if role.is_balanced() { "EVENKEEL_POLICY=recourse " } else { "" };
    let mut text =
        format!("{}{policy}vllm serve {model} --tensor-parallel-size {attention_tp}", role.split_setting());
    let mut notes = role.split_note("vLLM");
    let mut add = |flag: String| {
        text.push(' ');
        text.push_str(&flag);
    };
    if attention_tp < ranks {
        add(format!("--data-parallel-size {}", ranks / attention_tp));
    }
    if pp > 1 {
        add(format!("--pipeline-parallel-size {pp}"));
    }
    if role.is_expert_parallel() {
        let backend = if role.name == "prefill" { "deepep_high_throughput" } else { "deepep_low_latency" };
        add(format!("--enable-expert-parallel --all2all-backend {backend}"));
        if role.is_balanced() {
            add(format!(
                "--enable-eplb --eplb-config '{{\"num_redundant_experts\":{}}}'",
                role.choice.redundant
            ));
            notes.push("vLLM reads no placement at its start: evenkeel's plug-in places its experts".into());
        }
        if role.overlap {
            add("--enable-dbo".into());
        }
    }
    match role.name {
        "prefill" => add(format!("--max-num-batched-tokens {}", role.tokens * attention_tp)),
        _ => add(format!("--max-num-seqs {}", role.tokens * attention_tp)),
    }
    if role.name != "serve" {
        notes.push("a KV connector (--kv-transfer-config) joins prefill and decode".into());
    }
    LaunchCommand { stack: "vllm", role: role.name, text, notes }
}

fn trtllm(role: &Role<'_>) -> LaunchCommand {
    let Parallelism { ranks, attention_tp, pp, .. } = *role.parallel;
    let mut notes = role.split_note("TensorRT-LLM");
    let mut lines = vec![
        format!("tensor_parallel_size: {ranks}"),
        format!("moe_expert_parallel_size: {}", role.parallel.expert_groups()),
        format!("pipeline_parallel_size: {pp}"),
        format!("enable_attention_dp: {}", attention_tp < ranks),
    ];
    if attention_tp > 1 && attention_tp < ranks {
        notes.push(format!(
            "TensorRT-LLM divides attention among all or one of the ranks, not among {attention_tp}"
        ));
    }
    match role.name {
        "prefill" => lines.push(format!("max_num_tokens: {}", role.tokens)),
        _ => lines.push(format!("max_batch_size: {}", role.tokens)),
    }
    if let Some(file) =
        role.files.get(role.name, "trtllm").filter(|_| role.is_balanced() && role.is_expert_parallel())
    {
        lines.push(format!("moe_config:\n  load_balancer: {file}"));
    }
    if role.overlap {
        notes.push("TensorRT-LLM has no overlap of two half batches".into());
    }
    LaunchCommand { stack: "trtllm", role: role.name, text: lines.join("\n"), notes }
}
