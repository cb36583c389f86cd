//! A stack's rule on the ids of a batch: which slot serves which token.

use super::StackDispatch;
use super::nearest::{nearest, of_source, replicas};
use super::twister::Twister;
use crate::place::Placement;
use crate::trace::dice::Dice;
use thiserror::Error;

/// The seed of SGLang's `compute_logical_to_rank_dispatch_physical_map`.
const SGLANG_SEED: u32 = 42;
/// The factor of vLLM's hash.
const KNUTH: u64 = 2_654_435_769;
/// Ids that one thread block of TensorRT-LLM's kernel routes.
const TRTLLM_BLOCK: usize = 1024;
/// SGLang draws a number below this and takes it modulo the number of replicas.
const SGLANG_DRAW: u64 = 65_536;

/// Router of top-k ids by a serving stack's own rule, to the token if the rule is deterministic.
///
/// Made once from the placements of all layers in the stack's order: SGLang's tables depend on all rows of
/// its file, layers without experts included.
#[derive(Debug, Clone)]
pub struct StackRouter {
    stack: StackDispatch,
    layers: Vec<Layer>,
    ranks: usize,
    slots_per_rank: usize,
    options: RouterOptions,
}

/// Facts that a rule depends on, apart from the placements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouterOptions {
    /// Nodes that the ranks sit in; they divide the ranks. SGLang's `--nnodes`.
    pub nodes: usize,
    /// Tensor-parallel ranks that share one batch; vllm-ascend alone looks at them.
    pub tp_size: usize,
    /// SGLang: the placement is of its own re-balancing and not of a file. Then `sglang-random` chooses from
    /// all replicas, and `sglang-static` draws the choices of all ranks from one stream.
    pub rebalanced: bool,
    /// Seed of `sglang-random`.
    pub seed: u64,
}

impl Default for RouterOptions {
    /// One node, no tensor parallelism, placements from a file, seed 0.
    fn default() -> Self {
        Self { nodes: 1, tp_size: 1, rebalanced: false, seed: 0 }
    }
}

/// Why a router could not be made, or tokens could not be redirected.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RouterError {
    /// No layer.
    #[error("no layer: expected a placement per layer")]
    NoLayer,
    /// A layer of another shape than the first.
    #[error("layer {layer} has (experts, ranks, slots) = {found:?}: expected {expected:?}, as layer 0")]
    Layer {
        /// Its position.
        layer: usize,
        /// Its experts, ranks and slots.
        found: (usize, usize, usize),
        /// Those of layer 0.
        expected: (usize, usize, usize),
    },
    /// Nodes or tensor-parallel ranks that do not divide the ranks.
    #[error("{what} {found}: expected a divisor of {ranks}, the ranks")]
    Divisor {
        /// The option.
        what: &'static str,
        /// Its value.
        found: usize,
        /// Ranks of the placements.
        ranks: usize,
    },
    /// A layer, source or row width that there is not.
    #[error("{what} {found}: expected {expected}")]
    Value {
        /// The argument.
        what: &'static str,
        /// Its value.
        found: usize,
        /// Its possible values.
        expected: String,
    },
    /// Memory for another number of slots than there are ids.
    #[error("room for {room} slots, {ids} ids")]
    Room {
        /// Ids given.
        ids: usize,
        /// Slots that there is room for.
        room: usize,
    },
    /// An id that is neither an expert nor -1.
    #[error("position {position}: expert id {id}, expected -1 (no expert) to {}", experts - 1)]
    Id {
        /// Its position in the ids, from 0.
        position: usize,
        /// The id.
        id: i64,
        /// Logical experts.
        experts: usize,
    },
}

#[derive(Debug, Clone)]
struct Layer {
    placement: Placement,
    /// The slots of every expert that the stack chooses from.
    replicas: Vec<Vec<u32>>,
    /// `[source][expert]`, for rules of the source rank.
    table: Vec<u32>,
}

impl StackRouter {
    /// Makes the router of a stack for the placements of all its layers.
    ///
    /// # Errors
    /// When there is no layer, layers have different shapes, or nodes or tensor-parallel ranks do not divide
    /// the ranks.
    pub fn new(
        stack: StackDispatch,
        placements: impl IntoIterator<Item = Placement>,
        options: RouterOptions,
    ) -> Result<Self, RouterError> {
        let shape = |of: &Placement| (of.experts(), of.ranks(), of.slots().len());
        let mut layers = Vec::new();
        let mut expected = None;
        for (layer, placement) in placements.into_iter().enumerate() {
            let (found, expected) = (shape(&placement), *expected.get_or_insert(shape(&placement)));
            if found != expected {
                return Err(RouterError::Layer { layer, found, expected });
            }
            let replicas = (0..placement.experts()).map(|e| replicas(stack, &placement, e)).collect();
            layers.push(Layer { placement, replicas, table: Vec::new() });
        }
        let (_, ranks, slots) = expected.ok_or(RouterError::NoLayer)?;
        for (what, found) in [("nodes", options.nodes), ("tp_size", options.tp_size)] {
            if found == 0 || !ranks.is_multiple_of(found) {
                return Err(RouterError::Divisor { what, found, ranks });
            }
        }
        let mut router = Self { stack, layers, ranks, slots_per_rank: slots / ranks, options };
        match stack {
            StackDispatch::SglangStatic => router.fill_sglang_static(),
            StackDispatch::VllmAscend => router.fill_by(|replicas, source, expert| {
                replicas[of_source(replicas.len(), source, expert, options.tp_size)]
            }),
            _ => {}
        }
        Ok(router)
    }

    fn fill_by(&mut self, rule: impl Fn(&[u32], usize, usize) -> u32) {
        for layer in &mut self.layers {
            let of = |source| layer.replicas.iter().enumerate().map(move |(e, r)| (r, source, e));
            layer.table =
                (0..self.ranks).flat_map(of).map(|(replicas, source, e)| rule(replicas, source, e)).collect();
        }
    }

    /// Fills the tables of all sources. A source has its own generator and draws for the experts for which it
    /// has no nearest replica; after SGLang's own re-balancing it draws for all experts for which any source
    /// has none.
    fn fill_sglang_static(&mut self) {
        let (ranks, per_node) = (self.ranks, self.ranks / self.options.nodes);
        let streams = if self.options.rebalanced { 1 } else { ranks };
        let mut streams = vec![Twister::new(SGLANG_SEED); streams];
        for layer in &mut self.layers {
            let experts = layer.replicas.len();
            layer.table = vec![0; ranks * experts];
            for (expert, slots) in layer.replicas.iter().enumerate() {
                let mut remaining = Vec::new();
                let hosts: Vec<usize> = slots.iter().map(|&slot| layer.placement.rank_of(slot)).collect();
                for source in 0..ranks {
                    match nearest(&hosts, source, per_node) {
                        Some(at) => layer.table[source * experts + expert] = slots[at],
                        None => remaining.push(source),
                    }
                }
                let mut shared: Option<Vec<u32>> = None;
                for (at, &source) in remaining.iter().enumerate() {
                    layer.table[source * experts + expert] = if self.options.rebalanced {
                        shared.get_or_insert_with(|| streams[0].fair_choices(slots, remaining.len()))[at]
                    } else {
                        streams[source].fair_choices(slots, remaining.len())[at]
                    };
                }
            }
        }
    }

    /// Returns the rule that tokens are redirected by.
    pub fn stack(&self) -> StackDispatch {
        self.stack
    }

    /// Returns the number of layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Returns the ranks of the group.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// Returns the number of logical experts.
    pub fn experts(&self) -> usize {
        self.layers[0].replicas.len()
    }

    /// Returns the physical slot of every id that `source` has in a layer: `ids` is `[rows][top_k]`, and -1
    /// stays -1.
    ///
    /// With [`StackDispatch::SglangRandom`] the slots are a sample, drawn by the seed of the options, the
    /// layer and the source: the same call returns the same sample, another seed another one.
    ///
    /// # Errors
    /// When there is no such layer or source, the ids are no whole rows, or an id is no expert.
    pub fn redirect<Id>(
        &self,
        layer: usize,
        ids: &[Id],
        top_k: usize,
        source: usize,
    ) -> Result<Vec<Id>, RouterError>
    where
        Id: Copy + Into<i64> + TryFrom<u32>,
    {
        let mut slots = ids.to_vec();
        self.redirect_into(layer, ids, top_k, source, &mut slots)?;
        Ok(slots)
    }

    /// Redirects as [`StackRouter::redirect`] into existing memory: `slots` is as long as `ids`. After an
    /// error its contents are no answer.
    ///
    /// # Errors
    /// As [`StackRouter::redirect`], and when the lengths differ.
    pub fn redirect_into<Id>(
        &self,
        layer: usize,
        ids: &[Id],
        top_k: usize,
        source: usize,
        slots: &mut [Id],
    ) -> Result<(), RouterError>
    where
        Id: Copy + Into<i64> + TryFrom<u32>,
    {
        if slots.len() != ids.len() {
            return Err(RouterError::Room { ids: ids.len(), room: slots.len() });
        }
        let wide = ids.iter().map(|&id| id.into());
        self.each(layer, wide, top_k, source, |position, id, slot| {
            let wrong = RouterError::Id { position, id, experts: self.experts() };
            slots[position] = Id::try_from(slot).map_err(|_| wrong)?;
            Ok(())
        })
    }

    /// Returns the tokens that every rank serves in a layer, `[R]`: `ids` is `[rows][top_k]` of every source,
    /// in the order of the ranks. Tokens that all ranks have are those of one source.
    ///
    /// # Errors
    /// As [`StackRouter::redirect`].
    pub fn loads<Id>(&self, layer: usize, ids: &[&[Id]], top_k: usize) -> Result<Vec<u64>, RouterError>
    where
        Id: Copy + Into<i64>,
    {
        let mut loads = vec![0; self.ranks];
        for (source, ids) in ids.iter().enumerate() {
            self.each(layer, ids.iter().map(|&id| id.into()), top_k, source, |_, _, slot| {
                loads[slot as usize / self.slots_per_rank] += 1;
                Ok(())
            })?;
        }
        Ok(loads)
    }

    /// Calls `serve` with position, id and slot of every id that is an expert.
    fn each(
        &self,
        layer: usize,
        ids: impl ExactSizeIterator<Item = i64>,
        top_k: usize,
        source: usize,
        mut serve: impl FnMut(usize, i64, u32) -> Result<(), RouterError>,
    ) -> Result<(), RouterError> {
        let value = |what, found, expected: String| RouterError::Value { what, found, expected };
        let below = |most: usize| format!("0 to {}", most - 1);
        let Some(on) = self.layers.get(layer) else {
            return Err(value("layer", layer, below(self.layers.len())));
        };
        if source >= self.ranks {
            return Err(value("source", source, below(self.ranks)));
        }
        if top_k == 0 || !ids.len().is_multiple_of(top_k) {
            return Err(value("top_k", top_k, format!("a divisor of {}, the ids", ids.len())));
        }
        let experts = on.replicas.len();
        let mut dice = Dice::new(self.options.seed, (layer as u64) << 32 | source as u64);
        let mut seen = vec![0; experts];
        for (position, id) in ids.enumerate() {
            if position.is_multiple_of(TRTLLM_BLOCK) {
                seen.fill(0);
            }
            let Some(expert) = usize::try_from(id).ok().filter(|&expert| expert < experts) else {
                if id == -1 {
                    continue;
                }
                return Err(RouterError::Id { position, id, experts });
            };
            let replicas = &on.replicas[expert];
            let turn = |number: u64| replicas[(number % replicas.len() as u64) as usize];
            let row = (position / top_k) as u64;
            let slot = match self.stack {
                StackDispatch::SglangStatic | StackDispatch::VllmAscend => {
                    on.table[source * experts + expert]
                }
                StackDispatch::SglangDynamic => turn(row),
                StackDispatch::Vllm => turn(row.wrapping_mul(KNUTH) & u64::from(u32::MAX)),
                StackDispatch::Trtllm => {
                    seen[expert] += 1;
                    turn((position / TRTLLM_BLOCK + source) as u64 + seen[expert] - 1)
                }
                StackDispatch::SglangRandom => {
                    let number = dice.below(SGLANG_DRAW);
                    let per_node = self.ranks / self.options.nodes;
                    let near = || {
                        let rank = |&slot: &u32| on.placement.rank_of(slot);
                        let hosts: Vec<usize> = replicas.iter().map(rank).collect();
                        nearest(&hosts, source, per_node).map(|at| replicas[at])
                    };
                    (!self.options.rebalanced).then(near).flatten().unwrap_or_else(|| turn(number))
                }
            };
            serve(position, id, slot)?;
        }
        Ok(())
    }
}
