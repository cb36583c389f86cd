//! The runtime that a plan is made for, and how it will split batches.
//!
//! In: a name with the flags that the runtime is started with, as in `sglang:moe-a2a-backend=deepep`. Out: the split that will
//! run and the flags that belong to the plan's file. Rules and flags are those of SGLang 0.5.23, vLLM 0.33.0, vllm-ascend 0.23.0
//! and TensorRT-LLM in November 2026 (docs/interop.md).

use super::{Dialect, ExportError};
use crate::plan::Plan;
use crate::split::{Method, StackDispatch};
use std::fmt;
use std::str::FromStr;

/// A runtime and the split that it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    runtime: Runtime,
    split: Method,
}

/// A serving stack, or this project's own planner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Runtime {
    /// The planner or the executor of this project: every batch is split exactly.
    Evenkeel,
    /// SGLang.
    Sglang,
    /// vLLM.
    Vllm,
    /// vllm-ascend.
    VllmAscend,
    /// TensorRT-LLM.
    Trtllm,
}

impl Runtime {
    const ALL: [Runtime; 5] =
        [Runtime::Evenkeel, Runtime::Sglang, Runtime::Vllm, Runtime::VllmAscend, Runtime::Trtllm];

    /// The name that selects it.
    pub fn name(self) -> &'static str {
        match self {
            Runtime::Evenkeel => "evenkeel",
            Runtime::Sglang => "sglang",
            Runtime::Vllm => "vllm",
            Runtime::VllmAscend => "vllm-ascend",
            Runtime::Trtllm => "trtllm",
        }
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Target {
    /// The runtime.
    pub fn runtime(self) -> Runtime {
        self.runtime
    }

    /// The split that it does.
    pub fn split(self) -> Method {
        self.split
    }

    /// The target that reads a dialect, without flags; `None` for EPLB's output, which says nothing of a runtime.
    pub fn of_dialect(dialect: Dialect) -> Option<Target> {
        let runtime = match dialect {
            Dialect::Sglang => Runtime::Sglang,
            Dialect::Vllm => Runtime::Vllm,
            Dialect::VllmAscend => Runtime::VllmAscend,
            Dialect::TrtLlm => Runtime::Trtllm,
            Dialect::Eplb => return None,
        };
        Some(Target { runtime, split: own_split(runtime) })
    }

    /// The flags with which the runtime is started to use the plan, a line; `None` where it is started with none.
    pub fn launch_flags(self, plan: &Plan, file: &str) -> Option<String> {
        let redundant = plan.cluster.slots().saturating_sub(plan.experts);
        let exact = if self.split == Method::Exact { "EVENKEEL_SPLIT=exact " } else { "" };
        Some(match self.runtime {
            Runtime::Evenkeel => return None,
            Runtime::Sglang => {
                let dispatch = match self.split {
                    Method::Exact => " --moe-a2a-backend deepep --ep-dispatch-algorithm lp",
                    Method::Stack(StackDispatch::SglangStatic) => {
                        " --moe-a2a-backend deepep --ep-dispatch-algorithm static"
                    }
                    Method::Stack(StackDispatch::SglangRandom) => {
                        " --moe-a2a-backend deepep --ep-dispatch-algorithm dynamic"
                    }
                    _ => " --moe-a2a-backend none --ep-dispatch-algorithm dynamic",
                };
                format!(
                    "{exact}python -m sglang.launch_server --model MODEL --ep-size {} --ep-num-redundant-experts \
                     {redundant} --init-expert-location {file}{dispatch}",
                    plan.cluster.ranks()
                )
            }
            Runtime::Vllm => format!(
                "{exact}EVENKEEL_POLICY=recourse vllm serve MODEL --enable-expert-parallel --enable-eplb --eplb-config \
                 '{{\"num_redundant_experts\": {redundant}}}' (vLLM 0.33 reads no file at its start: the plug-in places its experts)"
            ),
            Runtime::VllmAscend => format!(
                "vllm serve MODEL --enable-expert-parallel --additional-config '{{\"eplb_config\": \
                 {{\"expert_map_path\": \"{file}\"}}}}'"
            ),
            Runtime::Trtllm => format!(
                "trtllm-serve MODEL --config CONFIG, with enable_attention_dp: true and moe_config: {{load_balancer: {file}}} \
                 in CONFIG"
            ),
        })
    }
}

/// What a runtime does by itself.
fn own_split(runtime: Runtime) -> Method {
    match runtime {
        Runtime::Evenkeel => Method::Exact,
        Runtime::Sglang => Method::Stack(StackDispatch::SglangDynamic),
        Runtime::Vllm => Method::Stack(StackDispatch::Vllm),
        Runtime::VllmAscend => Method::Stack(StackDispatch::VllmAscend),
        Runtime::Trtllm => Method::Stack(StackDispatch::Trtllm),
    }
}

/// SGLang's split by its flags, as `_handle_eplb_and_dispatch` resolves them.
fn sglang(flags: &str) -> Option<Method> {
    let (mut backend, mut algorithm) = (None, None);
    for flag in flags.split(',') {
        match flag.trim_start_matches("--").split_once(['=', ' '])? {
            ("moe-a2a-backend", value) => backend = Some(value),
            ("ep-dispatch-algorithm", value) => algorithm = Some(value),
            _ => return None,
        }
    }
    let alone = backend.is_none_or(|backend| backend == "none");
    Some(match algorithm {
        Some("lp") => Method::Exact,
        Some("static") if backend != Some("none") => Method::Stack(StackDispatch::SglangStatic),
        None if !alone => Method::Stack(StackDispatch::SglangStatic),
        None | Some("dynamic" | "fake") if alone => Method::Stack(StackDispatch::SglangDynamic),
        Some("dynamic" | "fake") => Method::Stack(StackDispatch::SglangRandom),
        _ => return None,
    })
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.runtime.name())?;
        if self.split != own_split(self.runtime) {
            let split = self.split.to_string();
            let short = split.strip_prefix(self.runtime.name()).map_or(split.as_str(), |rest| &rest[1..]);
            write!(f, ":{short}")?;
        }
        Ok(())
    }
}

impl FromStr for Target {
    type Err = ExportError;

    /// Reads `RUNTIME` or `RUNTIME:HOW`, where HOW is `exact` (vLLM, SGLang: with `EVENKEEL_SPLIT=exact`), for SGLang also
    /// `static`, `dynamic`, `random` or its flags.
    fn from_str(text: &str) -> Result<Self, ExportError> {
        let unknown = || ExportError::Target(text.to_owned());
        let (name, how) = text.split_once(':').map_or((text, None), |(name, how)| (name, Some(how)));
        let runtime = Runtime::ALL.into_iter().find(|runtime| runtime.name() == name).ok_or_else(unknown)?;
        let split = match (runtime, how) {
            (_, None) => own_split(runtime),
            (Runtime::Sglang | Runtime::Vllm, Some("exact")) => Method::Exact,
            (Runtime::Sglang, Some("static")) => Method::Stack(StackDispatch::SglangStatic),
            (Runtime::Sglang, Some("dynamic")) => Method::Stack(StackDispatch::SglangDynamic),
            (Runtime::Sglang, Some("random")) => Method::Stack(StackDispatch::SglangRandom),
            (Runtime::Sglang, Some(flags)) => sglang(flags).ok_or_else(unknown)?,
            _ => return Err(unknown()),
        };
        Ok(Target { runtime, split })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_decide_the_split() {
        for (text, split, shown) in [
            ("evenkeel", "exact", "evenkeel"),
            ("sglang", "sglang-dynamic", "sglang"),
            ("sglang:moe-a2a-backend=deepep", "sglang-static", "sglang:static"),
            (
                "sglang:--moe-a2a-backend deepep,--ep-dispatch-algorithm dynamic",
                "sglang-random",
                "sglang:random",
            ),
            ("sglang:ep-dispatch-algorithm=lp", "exact", "sglang:exact"),
            ("sglang:ep-dispatch-algorithm=static", "sglang-static", "sglang:static"),
            ("vllm", "vllm", "vllm"),
            ("vllm:exact", "exact", "vllm:exact"),
            ("vllm-ascend", "vllm-ascend", "vllm-ascend"),
            ("trtllm", "trtllm", "trtllm"),
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!((target.split().to_string().as_str(), target.to_string().as_str()), (split, shown));
            assert_eq!(shown.parse::<Target>().unwrap(), target);
        }
        for text in [
            "",
            "tgi",
            "vllm:static",
            "sglang:moe-a2a-backend=none,ep-dispatch-algorithm=static",
            "sglang:x=1",
            "trtllm:exact",
        ] {
            let error = text.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains("expected evenkeel, sglang"), "{text}: {error}");
        }
    }
}
