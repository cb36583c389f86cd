//! Selects the GPU of a rank, and checks whether the ranks can run together.

use super::{CallContext, CommError, Purpose, format_ranks};
use evenkeel_cuda::{CudaError, GpuContext};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// The activity of a rank before its first exchange.
pub(super) const BEFORE_EXCHANGES: CallContext =
    CallContext { step: None, layer: None, purpose: Purpose::Control };

/// The first message of a rank to all others: its host, its GPU and the GPU's kind, or the reason why it
/// cannot join.
pub(super) type RankHello = BTreeMap<String, String>;

/// An opened GPU of a rank.
pub(super) struct OpenGpu {
    pub(super) device: usize,
    pub(super) gpu: Arc<GpuContext>,
    /// UUID, which distinguishes the GPU from others.
    name: String,
    /// Properties that must be equal on all ranks.
    kind: String,
}

pub(super) fn joining_error(error: impl fmt::Display) -> CommError {
    CommError::Joining(error.to_string())
}

/// Opens a GPU. `with` describes further properties that must be equal on all ranks.
pub(super) fn open_gpu(device: usize, with: &str) -> Result<OpenGpu, CommError> {
    let gpu = GpuContext::open(device).map_err(joining_error)?;
    let uuid = gpu
        .stream()
        .context()
        .uuid()
        .map_err(CudaError::driver_error("asking which GPU this is"))
        .map_err(joining_error)?;
    let name = format!("{:032x}", u128::from_be_bytes(uuid.bytes.map(|byte| byte as u8)));
    let capability = gpu.device().capability;
    // The device splits only if it has enough shared memory, so the size must be equal on all ranks.
    let shared = gpu.device().shared_memory;
    let kind = format!("{with}compute capability {capability} with {shared} bytes of shared memory");
    Ok(OpenGpu { device, gpu, name, kind })
}

/// Returns the first message of a rank.
pub(super) fn hello_message(host: &str, opened: &Result<OpenGpu, CommError>) -> RankHello {
    let facts = match opened {
        Ok(OpenGpu { name, kind, .. }) => vec![("gpu", name.clone()), ("kind", kind.clone())],
        Err(error) => vec![("why", error.to_string())],
    };
    facts.into_iter().chain([("host", host.to_owned())]).map(|(name, fact)| (name.to_owned(), fact)).collect()
}

/// Groups ranks by the values of some keys of their messages.
fn group_ranks_by<'a>(all: &'a [RankHello], names: &[&str]) -> BTreeMap<Vec<&'a str>, Vec<usize>> {
    let mut ranks: BTreeMap<Vec<&str>, Vec<usize>> = BTreeMap::new();
    for (rank, hello) in all.iter().enumerate() {
        let facts = names.iter().map(|&name| hello.get(name).map_or("", String::as_str)).collect();
        ranks.entry(facts).or_default().push(rank);
    }
    ranks
}

/// Rejects a group in which a rank cannot join. The error is the same on all ranks.
pub(super) fn check_all_joined(all: &[RankHello]) -> Result<(), CommError> {
    let Some((why, ranks)) = group_ranks_by(all, &["why"]).into_iter().find(|(why, _)| !why[0].is_empty())
    else {
        return Ok(());
    };
    let whose = if ranks.len() == all.len() { String::new() } else { format!("{}: ", format_ranks(&ranks)) };
    Err(joining_error(format!("{whose}{}", why[0])))
}

/// Returns the ranks that share a GPU, with the name of its host.
pub(super) fn shared_gpus(all: &[RankHello]) -> Vec<(&str, Vec<usize>)> {
    let mut shared: Vec<_> = group_ranks_by(all, &["host", "gpu"])
        .into_iter()
        .filter(|(_, ranks)| ranks.len() > 1)
        .map(|(gpu, ranks)| (gpu[0], ranks))
        .collect();
    shared.sort_by_key(|(_, ranks)| ranks[0]);
    shared
}

/// Rejects ranks with GPUs of different kinds, because their splits might differ. The error is the same on
/// all ranks.
pub(super) fn check_same_kind(all: &[RankHello]) -> Result<(), CommError> {
    let kinds = group_ranks_by(all, &["kind"]);
    if kinds.len() <= 1 {
        return Ok(());
    }
    let one = |(kind, ranks): (&Vec<&str>, &Vec<usize>)| format!("{} on {}", kind[0], format_ranks(ranks));
    let all: Vec<String> = kinds.iter().map(one).collect();
    Err(joining_error(format!(
        "the GPUs of the ranks differ: {}; expected the same kind on all",
        all.join("; ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(facts: &[(&str, &str)]) -> RankHello {
        facts.iter().map(|&(name, fact)| (name.to_owned(), fact.to_owned())).collect()
    }

    fn with(host: &str, gpu: &str, kind: &str) -> RankHello {
        said(&[("host", host), ("gpu", gpu), ("kind", kind)])
    }

    #[test]
    fn a_rank_without_a_gpu_is_named() {
        let (one, none) = (with("a", "1", "x"), said(&[("host", "a"), ("why", "no driver")]));
        assert_eq!(check_all_joined(std::slice::from_ref(&one)), Ok(()));
        assert_eq!(check_all_joined(&[one, none.clone()]), Err(joining_error("rank 1: no driver")));
        assert_eq!(check_all_joined(&[none.clone(), none]), Err(joining_error("no driver")));
    }

    #[test]
    fn ranks_of_one_gpu_are_found_host_by_host() {
        let all = [("b", "2"), ("a", "1"), ("b", "1"), ("a", "1"), ("b", "2")];
        let all = all.map(|(host, gpu)| with(host, gpu, "x"));
        assert_eq!(shared_gpus(&all), [("b", vec![0, 4]), ("a", vec![1, 3])]);
        assert!(shared_gpus(&all[..3]).is_empty());
    }

    #[test]
    fn gpus_of_other_kinds_are_refused() {
        let all = ["x", "y", "x"].map(|kind| with("a", "1", kind));
        assert_eq!(check_same_kind(&all[..1]), Ok(()));
        let error = joining_error(
            "the GPUs of the ranks differ: x on ranks 0 and 2; y on rank 1; expected the same kind on all",
        );
        assert_eq!(check_same_kind(&all), Err(error));
    }
}
