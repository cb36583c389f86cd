//! Division of a model among GPUs.

use serde::Serialize;

/// Division of a model among the GPUs of one instance: pipeline stages of `ranks` GPUs each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Parallelism {
    /// GPUs of a stage. They share its experts.
    pub ranks: u64,
    /// GPUs that share the attention of a request. `ranks / attention_tp` groups work on different requests.
    pub attention_tp: u64,
    /// Pipeline stages.
    pub pp: u64,
    /// GPUs that share every expert: 1 for whole experts (expert parallelism), `ranks` if every GPU holds a
    /// part of every expert (tensor parallelism).
    pub expert_tp: u64,
}

impl Parallelism {
    /// Returns the GPUs of the instance.
    pub fn gpus(&self) -> u64 {
        self.ranks * self.pp
    }

    /// Returns the groups that run attention on different requests.
    pub fn attention_dp(&self) -> u64 {
        self.ranks / self.attention_tp.max(1)
    }

    /// Returns the groups of GPUs that hold different experts.
    pub fn expert_groups(&self) -> u64 {
        self.ranks / self.expert_tp.max(1)
    }

    /// Returns true if GPUs hold different experts.
    pub fn is_expert_parallel(&self) -> bool {
        self.expert_groups() > 1
    }

    /// Returns true if all GPUs of a stage have all tokens after attention, so that nothing is dispatched.
    pub fn has_all_tokens(&self) -> bool {
        self.attention_tp == self.ranks
    }

    /// Returns the kind of parallelism that divides the experts, in words.
    pub fn experts_by(&self) -> String {
        match (self.is_expert_parallel(), self.expert_tp) {
            (false, _) => "tensor".to_owned(),
            (true, 1) => "expert".to_owned(),
            (true, tp) => format!("expert, tp {tp}"),
        }
    }

    /// Returns the nodes of a stage with `linked` GPUs per node.
    pub fn nodes(&self, linked: u64) -> u64 {
        self.ranks.div_ceil(linked.max(1))
    }

    /// Returns every division of `gpus` GPUs of which `linked` share a node. Attention is divided within a
    /// node and by the heads. GPUs share single experts only if they share attention too.
    pub fn divisions(gpus: u64, linked: u64, heads: u64) -> Vec<Self> {
        let powers = |most: u64| (0..6).map(|power| 1u64 << power).filter(move |&size| size <= most);
        let mut found = Vec::new();
        for pp in powers(4).filter(|pp| gpus.is_multiple_of(*pp)) {
            let ranks = gpus / pp;
            // Nodes of a stage hold equal numbers of its ranks.
            if ranks > linked && !ranks.is_multiple_of(linked) {
                continue;
            }
            let divides = |tp: &u64| ranks.is_multiple_of(*tp) && heads.is_multiple_of(*tp);
            for attention_tp in powers(linked.min(ranks).min(8)).filter(divides) {
                let most = if attention_tp == ranks { ranks } else { 1 };
                let shared = powers(most).filter(|expert_tp| ranks.is_multiple_of(*expert_tp));
                found.extend(shared.map(|expert_tp| Self { ranks, attention_tp, pp, expert_tp }));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divisions_cover_the_gpus() {
        let found = Parallelism::divisions(16, 8, 128);
        assert!(found.iter().all(|parallel| parallel.gpus() == 16));
        assert!(found.contains(&Parallelism { ranks: 16, attention_tp: 1, pp: 1, expert_tp: 1 }));
        assert!(found.contains(&Parallelism { ranks: 8, attention_tp: 8, pp: 2, expert_tp: 8 }));
        assert!(found.iter().all(|parallel| parallel.ranks <= 8 || parallel.expert_tp == 1));
        // 24 GPUs are three nodes; two stages of 12 would not be whole nodes.
        assert!(Parallelism::divisions(24, 8, 128).iter().all(|parallel| parallel.ranks != 12));
    }
}
