//! Which GPU a rank has, and whether ranks can run together with theirs.

use super::{At, Purpose, TransportError, ranks_in_words};
use crate::cuda::{Context, CudaError};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Before the first exchange.
pub(super) const BEFORE: At = At { step: None, layer: None, purpose: Purpose::Control };

/// What a rank says of itself before all others: its host, GPU and what that is, or why it cannot join.
pub(super) type Hello = BTreeMap<String, String>;

/// A rank's GPU, ready.
pub(super) struct Opened {
    pub(super) device: usize,
    pub(super) gpu: Arc<Context>,
    /// What tells it from others.
    name: String,
    /// What has to be the same on all ranks.
    kind: String,
}

pub(super) fn joining(error: impl fmt::Display) -> TransportError {
    TransportError::Joining(error.to_string())
}

/// Opens a GPU. `with` is what else has to be the same on all ranks.
pub(super) fn open(device: usize, with: &str) -> Result<Opened, TransportError> {
    let gpu = Context::open(device).map_err(joining)?;
    let uuid = gpu
        .stream()
        .context()
        .uuid()
        .map_err(CudaError::driver("asking which GPU this is"))
        .map_err(joining)?;
    let name = format!("{:032x}", u128::from_be_bytes(uuid.bytes.map(|byte| byte as u8)));
    let (major, minor) = gpu.device().capability;
    // What decides whether the device splits has to be the same on all.
    let shared = gpu.device().shared_memory;
    let kind = format!("{with}compute capability {major}.{minor} with {shared} bytes of shared memory");
    Ok(Opened { device, gpu, name, kind })
}

/// What a rank says of itself.
pub(super) fn hello(host: &str, opened: &Result<Opened, TransportError>) -> Hello {
    let facts = match opened {
        Ok(Opened { name, kind, .. }) => vec![("gpu", name.clone()), ("kind", kind.clone())],
        Err(error) => vec![("why", error.to_string())],
    };
    facts.into_iter().chain([("host", host.to_owned())]).map(|(name, fact)| (name.to_owned(), fact)).collect()
}

/// Ranks by what they say of something.
fn by<'a>(all: &'a [Hello], names: &[&str]) -> BTreeMap<Vec<&'a str>, Vec<usize>> {
    let mut ranks: BTreeMap<Vec<&str>, Vec<usize>> = BTreeMap::new();
    for (rank, hello) in all.iter().enumerate() {
        let facts = names.iter().map(|&name| hello.get(name).map_or("", String::as_str)).collect();
        ranks.entry(facts).or_default().push(rank);
    }
    ranks
}

/// Refuses ranks of which one cannot join; the same error on all of them.
pub(super) fn all_have_one(all: &[Hello]) -> Result<(), TransportError> {
    let Some((why, ranks)) = by(all, &["why"]).into_iter().find(|(why, _)| !why[0].is_empty()) else {
        return Ok(());
    };
    let whose =
        if ranks.len() == all.len() { String::new() } else { format!("{}: ", ranks_in_words(&ranks)) };
    Err(joining(format!("{whose}{}", why[0])))
}

/// Ranks that have one GPU, by its host, where those are several.
pub(super) fn shared(all: &[Hello]) -> Vec<(&str, Vec<usize>)> {
    let mut shared: Vec<_> = by(all, &["host", "gpu"])
        .into_iter()
        .filter(|(_, ranks)| ranks.len() > 1)
        .map(|(gpu, ranks)| (gpu[0], ranks))
        .collect();
    shared.sort_by_key(|(_, ranks)| ranks[0]);
    shared
}

/// Refuses ranks with GPUs of different kinds, which might not split alike; the same error on all of them.
pub(super) fn alike(all: &[Hello]) -> Result<(), TransportError> {
    let kinds = by(all, &["kind"]);
    if kinds.len() <= 1 {
        return Ok(());
    }
    let one = |(kind, ranks): (&Vec<&str>, &Vec<usize>)| format!("{} on {}", kind[0], ranks_in_words(ranks));
    let all: Vec<String> = kinds.iter().map(one).collect();
    Err(joining(format!("ranks find {}: expected the same on all", all.join("; "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(facts: &[(&str, &str)]) -> Hello {
        facts.iter().map(|&(name, fact)| (name.to_owned(), fact.to_owned())).collect()
    }

    fn with(host: &str, gpu: &str, kind: &str) -> Hello {
        said(&[("host", host), ("gpu", gpu), ("kind", kind)])
    }

    #[test]
    fn a_rank_without_a_gpu_is_named() {
        let (one, none) = (with("a", "1", "x"), said(&[("host", "a"), ("why", "no driver")]));
        assert_eq!(all_have_one(std::slice::from_ref(&one)), Ok(()));
        assert_eq!(all_have_one(&[one, none.clone()]), Err(joining("rank 1: no driver")));
        assert_eq!(all_have_one(&[none.clone(), none]), Err(joining("no driver")));
    }

    #[test]
    fn ranks_of_one_gpu_are_found_host_by_host() {
        let all = [("b", "2"), ("a", "1"), ("b", "1"), ("a", "1"), ("b", "2")];
        let all = all.map(|(host, gpu)| with(host, gpu, "x"));
        assert_eq!(shared(&all), [("b", vec![0, 4]), ("a", vec![1, 3])]);
        assert!(shared(&all[..3]).is_empty());
    }

    #[test]
    fn gpus_of_other_kinds_are_refused() {
        let all = ["x", "y", "x"].map(|kind| with("a", "1", kind));
        assert_eq!(alike(&all[..1]), Ok(()));
        let error = joining("ranks find x on ranks 0 and 2; y on rank 1: expected the same on all");
        assert_eq!(alike(&all), Err(error));
    }
}
