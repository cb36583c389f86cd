//! Target of a plan: the runtime, and the split that it will use.
//!
//! In: a name with the flags of the runtime's start, as in `sglang:moe-a2a-backend=deepep`. Out: the split
//! that will run, and the flags that belong to the plan's file. Rules and flags are those of SGLang 0.5.23,
//! vLLM 0.33.0, vllm-ascend 0.23.0 and TensorRT-LLM in November 2026 (docs/interop.md).

use super::{Dialect, ExportError};
use crate::plan::Plan;
use crate::split::{SplitMethod, StackDispatch};
use std::fmt;
use std::str::FromStr;

/// Runtime with its split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuntimeTarget {
    runtime: Runtime,
    split: SplitMethod,
}

/// Serving stack, or this project's own planner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Runtime {
    /// Planner or executor of this project, which splits every batch exactly.
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

    /// Returns the name that selects the runtime.
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

impl RuntimeTarget {
    /// Returns the runtime.
    pub fn runtime(self) -> Runtime {
        self.runtime
    }

    /// Returns the split of the runtime.
    pub fn split(self) -> SplitMethod {
        self.split
    }

    /// Returns the target that reads a dialect, without flags. Returns `None` for EPLB's output, which names
    /// no runtime.
    pub fn from_dialect(dialect: Dialect) -> Option<RuntimeTarget> {
        let runtime = match dialect {
            Dialect::Sglang => Runtime::Sglang,
            Dialect::Vllm => Runtime::Vllm,
            Dialect::VllmAscend => Runtime::VllmAscend,
            Dialect::TrtLlm => Runtime::Trtllm,
            Dialect::Eplb => return None,
        };
        Some(RuntimeTarget { runtime, split: default_split(runtime) })
    }

    /// Returns one line with the flags that start the runtime with the plan. Returns `None` if the runtime
    /// needs none.
    pub fn launch_flags(self, plan: &Plan, file: &str) -> Option<String> {
        let redundant = plan.cluster.slots().saturating_sub(plan.experts);
        let exact = if self.split == SplitMethod::Exact { "EVENKEEL_SPLIT=exact " } else { "" };
        Some(match self.runtime {
            Runtime::Evenkeel => return None,
            Runtime::Sglang => {
                let dispatch = match self.split {
                    SplitMethod::Exact => " --moe-a2a-backend deepep --ep-dispatch-algorithm lp",
                    SplitMethod::Stack(StackDispatch::SglangStatic) => {
                        " --moe-a2a-backend deepep --ep-dispatch-algorithm static"
                    }
                    SplitMethod::Stack(StackDispatch::SglangRandom) => {
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

/// Returns the split that a runtime uses without flags.
fn default_split(runtime: Runtime) -> SplitMethod {
    match runtime {
        Runtime::Evenkeel => SplitMethod::Exact,
        Runtime::Sglang => SplitMethod::Stack(StackDispatch::SglangDynamic),
        Runtime::Vllm => SplitMethod::Stack(StackDispatch::Vllm),
        Runtime::VllmAscend => SplitMethod::Stack(StackDispatch::VllmAscend),
        Runtime::Trtllm => SplitMethod::Stack(StackDispatch::Trtllm),
    }
}

/// Returns SGLang's split for its flags, as `_handle_eplb_and_dispatch` resolves them.
fn parse_sglang_flags(flags: &str) -> Option<SplitMethod> {
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
        Some("lp") => SplitMethod::Exact,
        Some("static") if backend != Some("none") => SplitMethod::Stack(StackDispatch::SglangStatic),
        None if !alone => SplitMethod::Stack(StackDispatch::SglangStatic),
        None | Some("dynamic" | "fake") if alone => SplitMethod::Stack(StackDispatch::SglangDynamic),
        Some("dynamic" | "fake") => SplitMethod::Stack(StackDispatch::SglangRandom),
        _ => return None,
    })
}

impl fmt::Display for RuntimeTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.runtime.name())?;
        if self.split != default_split(self.runtime) {
            let split = self.split.to_string();
            let short = split.strip_prefix(self.runtime.name()).map_or(split.as_str(), |rest| &rest[1..]);
            write!(f, ":{short}")?;
        }
        Ok(())
    }
}

impl FromStr for RuntimeTarget {
    type Err = ExportError;

    /// Reads `RUNTIME` or `RUNTIME:HOW`. HOW is `exact` for vLLM and SGLang (with `EVENKEEL_SPLIT=exact`).
    /// For SGLang it may also be `static`, `dynamic`, `random` or SGLang's flags.
    fn from_str(text: &str) -> Result<Self, ExportError> {
        let unknown = || ExportError::Target(text.to_owned());
        let (name, how) = text.split_once(':').map_or((text, None), |(name, how)| (name, Some(how)));
        let runtime = Runtime::ALL.into_iter().find(|runtime| runtime.name() == name).ok_or_else(unknown)?;
        let split = match (runtime, how) {
            (_, None) => default_split(runtime),
            (Runtime::Sglang | Runtime::Vllm, Some("exact")) => SplitMethod::Exact,
            (Runtime::Sglang, Some("static")) => SplitMethod::Stack(StackDispatch::SglangStatic),
            (Runtime::Sglang, Some("dynamic")) => SplitMethod::Stack(StackDispatch::SglangDynamic),
            (Runtime::Sglang, Some("random")) => SplitMethod::Stack(StackDispatch::SglangRandom),
            (Runtime::Sglang, Some(flags)) => parse_sglang_flags(flags).ok_or_else(unknown)?,
            _ => return Err(unknown()),
        };
        Ok(RuntimeTarget { runtime, split })
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
            let target: RuntimeTarget = text.parse().unwrap();
            assert_eq!((target.split().to_string().as_str(), target.to_string().as_str()), (split, shown));
            assert_eq!(shown.parse::<RuntimeTarget>().unwrap(), target);
        }
        for text in [
            "",
            "tgi",
            "vllm:static",
            "sglang:moe-a2a-backend=none,ep-dispatch-algorithm=static",
            "sglang:x=1",
            "trtllm:exact",
        ] {
            let error = text.parse::<RuntimeTarget>().unwrap_err().to_string();
            assert!(error.contains("expected evenkeel, sglang"), "{text}: {error}");
        }
    }
}
