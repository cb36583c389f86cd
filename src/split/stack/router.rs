//! A stack's rule on the ids of a batch: the slot of every token.

use super::StackDispatch;
use super::mersenne_twister::MersenneTwister;
use super::nearest::{nearest_replica, replica_of_source, stack_replicas};
use crate::place::Placement;
use crate::rng::SeededRng;
use std::fmt;
use thiserror::Error;

/// Seed of SGLang's `compute_logical_to_rank_dispatch_physical_map`.
const SGLANG_SEED: u32 = 42;
/// Factor of vLLM's hash, 2^32 over the golden ratio (Knuth).
const KNUTH_FACTOR: u64 = 2_654_435_769;
/// Number of ids that one thread block of TensorRT-LLM's kernel routes.
const TRTLLM_BLOCK: usize = 1024;
/// Exclusive limit of SGLang's random number, which is then reduced modulo the number of replicas.
const SGLANG_DRAW: u64 = 65_536;

/// Router of top-k ids by a serving stack's own rule. It matches the stack token by token if the rule is
/// deterministic.
///
/// A router is created once from the placements of all layers in the stack's order. SGLang's tables depend on
/// all rows of its file, including layers without experts.
#[derive(Debug, Clone)]
pub struct StackRouter {
    stack: StackDispatch,
    layers: Vec<RoutedLayer>,
    ranks: usize,
    slots_per_rank: usize,
    options: StackRouterOptions,
}

/// Parameters of a rule, apart from the placements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StackRouterOptions {
    /// Number of nodes, which divides the number of ranks. SGLang's `--nnodes`.
    pub nodes: usize,
    /// Number of tensor-parallel ranks that share one batch. Only vllm-ascend uses it.
    pub tp_size: usize,
    /// True if SGLang's own re-balancing produced the placement, and not a file. Then `sglang-random` chooses
    /// from all replicas, and `sglang-static` draws the choices of all ranks from one stream.
    pub rebalanced: bool,
    /// Seed of `sglang-random`.
    pub seed: u64,
}

impl StackRouterOptions {
    /// Sets [`Self::nodes`](#structfield.nodes).
    #[must_use]
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// Sets [`Self::tp_size`](#structfield.tp_size).
    #[must_use]
    pub fn tp_size(mut self, tp_size: usize) -> Self {
        self.tp_size = tp_size;
        self
    }

    /// Sets [`Self::rebalanced`](#structfield.rebalanced).
    #[must_use]
    pub fn rebalanced(mut self, rebalanced: bool) -> Self {
        self.rebalanced = rebalanced;
        self
    }

    /// Sets [`Self::seed`](#structfield.seed).
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }
}

impl Default for StackRouterOptions {
    /// Returns options for one node, no tensor parallelism, placements from a file, and seed 0.
    fn default() -> Self {
        Self { nodes: 1, tp_size: 1, rebalanced: false, seed: 0 }
    }
}

/// Reasons for which a router cannot be created, or tokens cannot be redirected.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StackRouterError {
    /// There is no layer.
    #[error("no layer: expected a placement per layer")]
    NoLayer,
    /// The shape of a layer differs from the first.
    #[error("layer {layer} has (experts, ranks, slots) = {found}: expected {expected}, as layer 0")]
    Layer {
        /// Position of the layer.
        layer: usize,
        /// Shape of the layer.
        found: LayerShape,
        /// Shape of layer 0.
        expected: LayerShape,
    },
    /// The number of nodes or tensor-parallel ranks does not divide the ranks.
    #[error("{what} {found}: expected a divisor of {ranks}, the ranks")]
    Divisor {
        /// Option in question.
        what: &'static str,
        /// Value of the option.
        found: usize,
        /// Ranks of the placements.
        ranks: usize,
    },
    /// A layer, source or row width is out of range.
    #[error("{what} {found}: expected {expected}")]
    Value {
        /// Argument in question.
        what: &'static str,
        /// Value of the argument.
        found: usize,
        /// Possible values.
        expected: String,
    },
    /// The number of slots in the output differs from the number of ids.
    #[error("room for {room} slots, {ids} ids")]
    Room {
        /// Number of ids.
        ids: usize,
        /// Number of slots in the output.
        room: usize,
    },
    /// An id is neither an expert nor -1.
    #[error("position {position}: expert id {id}, expected -1 (no expert) to {}", experts - 1)]
    Id {
        /// Position in the ids, from 0.
        position: usize,
        /// Id found.
        id: i64,
        /// Number of logical experts.
        experts: usize,
    },
}

/// Sizes of a placement that all layers of a router have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerShape {
    /// Number of logical experts, `E`.
    pub experts: usize,
    /// Number of ranks, `R`.
    pub ranks: usize,
    /// Number of slots of all ranks.
    pub slots: usize,
}

impl LayerShape {
    fn from_placement(placement: &Placement) -> Self {
        Self { experts: placement.experts(), ranks: placement.ranks(), slots: placement.slots().len() }
    }
}

impl fmt::Display for LayerShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}, {}, {})", self.experts, self.ranks, self.slots)
    }
}

#[derive(Debug, Clone)]
struct RoutedLayer {
    placement: Placement,
    /// Slots of every expert from which the stack chooses.
    replicas: Vec<Vec<u32>>,
    /// Slots `[source][expert]`, for rules of the source rank.
    table: Vec<u32>,
}

impl StackRouter {
    /// Creates the router of a stack for the placements of all its layers.
    ///
    /// # Errors
    /// Fails if there is no layer, if layers have different shapes, or if nodes or tensor-parallel ranks do
    /// not divide the ranks.
    pub fn new(
        stack: StackDispatch,
        placements: impl IntoIterator<Item = Placement>,
        options: StackRouterOptions,
    ) -> Result<Self, StackRouterError> {
        let mut layers = Vec::new();
        let mut expected = None;
        for (layer, placement) in placements.into_iter().enumerate() {
            let found = LayerShape::from_placement(&placement);
            let expected = *expected.get_or_insert(found);
            if found != expected {
                return Err(StackRouterError::Layer { layer, found, expected });
            }
            let replicas = (0..placement.experts()).map(|e| stack_replicas(stack, &placement, e)).collect();
            layers.push(RoutedLayer { placement, replicas, table: Vec::new() });
        }
        let LayerShape { ranks, slots, .. } = expected.ok_or(StackRouterError::NoLayer)?;
        for (what, found) in [("nodes", options.nodes), ("tp_size", options.tp_size)] {
            if found == 0 || !ranks.is_multiple_of(found) {
                return Err(StackRouterError::Divisor { what, found, ranks });
            }
        }
        let mut router = Self { stack, layers, ranks, slots_per_rank: slots / ranks, options };
        match stack {
            StackDispatch::SglangStatic => router.fill_sglang_static(),
            StackDispatch::VllmAscend => router.fill_tables(|replicas, source, expert| {
                replicas[replica_of_source(replicas.len(), source, expert, options.tp_size)]
            }),
            _ => {}
        }
        Ok(router)
    }

    fn fill_tables(&mut self, rule: impl Fn(&[u32], usize, usize) -> u32) {
        for layer in &mut self.layers {
            let of = |source| layer.replicas.iter().enumerate().map(move |(e, r)| (r, source, e));
            layer.table =
                (0..self.ranks).flat_map(of).map(|(replicas, source, e)| rule(replicas, source, e)).collect();
        }
    }

    /// Fills the tables of all sources. A source has its own generator and draws for the experts without a
    /// nearest replica. After SGLang's own re-balancing one generator draws for all sources without a nearest
    /// replica.
    fn fill_sglang_static(&mut self) {
        let (ranks, per_node) = (self.ranks, self.ranks / self.options.nodes);
        let streams = if self.options.rebalanced { 1 } else { ranks };
        let mut streams = vec![MersenneTwister::new(SGLANG_SEED); streams];
        for layer in &mut self.layers {
            let experts = layer.replicas.len();
            layer.table = vec![0; ranks * experts];
            for (expert, slots) in layer.replicas.iter().enumerate() {
                let mut remaining = Vec::new();
                let hosts: Vec<usize> = slots.iter().map(|&slot| layer.placement.rank_of(slot)).collect();
                for source in 0..ranks {
                    match nearest_replica(&hosts, source, per_node) {
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

    /// Returns the rule by which tokens are redirected.
    pub fn stack(&self) -> StackDispatch {
        self.stack
    }

    /// Returns the number of layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Returns the number of ranks of the group.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// Returns the number of logical experts.
    pub fn experts(&self) -> usize {
        self.layers[0].replicas.len()
    }

    /// Returns the slot of every id of `source` in a layer. `ids` is `[rows][top_k]`, and -1 stays -1.
    ///
    /// With [`StackDispatch::SglangRandom`] the slots are a sample. The seed of the options, the layer and
    /// the source determine it. The same call returns the same sample, another seed another one.
    ///
    /// # Errors
    /// Fails if the layer or source is out of range, if the ids are no whole rows, or if an id is no expert.
    pub fn redirect<Id>(
        &self,
        layer: usize,
        ids: &[Id],
        top_k: usize,
        source: usize,
    ) -> Result<Vec<Id>, StackRouterError>
    where
        Id: Copy + Into<i64> + TryFrom<u32>,
    {
        let mut slots = ids.to_vec();
        self.redirect_into(layer, ids, top_k, source, &mut slots)?;
        Ok(slots)
    }

    /// Redirects as [`StackRouter::redirect`] does, into existing memory. `slots` is as long as `ids`. After
    /// an error its contents are undefined.
    ///
    /// # Errors
    /// Fails as [`StackRouter::redirect`] does, and if the lengths differ.
    pub fn redirect_into<Id>(
        &self,
        layer: usize,
        ids: &[Id],
        top_k: usize,
        source: usize,
        slots: &mut [Id],
    ) -> Result<(), StackRouterError>
    where
        Id: Copy + Into<i64> + TryFrom<u32>,
    {
        if slots.len() != ids.len() {
            return Err(StackRouterError::Room { ids: ids.len(), room: slots.len() });
        }
        let wide = ids.iter().map(|&id| id.into());
        self.for_each_slot(layer, wide, top_k, source, |position, id, slot| {
            let wrong = StackRouterError::Id { position, id, experts: self.experts() };
            slots[position] = Id::try_from(slot).map_err(|_| wrong)?;
            Ok(())
        })
    }

    /// Returns the tokens that every rank serves in a layer, `[R]`. `ids` holds `[rows][top_k]` of every
    /// source, in the order of the ranks. Tokens that all ranks share are passed for one source only.
    ///
    /// # Errors
    /// Fails as [`StackRouter::redirect`] does.
    pub fn loads<Id>(&self, layer: usize, ids: &[&[Id]], top_k: usize) -> Result<Vec<u64>, StackRouterError>
    where
        Id: Copy + Into<i64>,
    {
        let mut loads = vec![0; self.ranks];
        for (source, ids) in ids.iter().enumerate() {
            self.for_each_slot(layer, ids.iter().map(|&id| id.into()), top_k, source, |_, _, slot| {
                loads[slot as usize / self.slots_per_rank] += 1;
                Ok(())
            })?;
        }
        Ok(loads)
    }

    /// Calls `serve` with the position, id and slot of every id that is an expert.
    fn for_each_slot(
        &self,
        layer: usize,
        ids: impl ExactSizeIterator<Item = i64>,
        top_k: usize,
        source: usize,
        mut serve: impl FnMut(usize, i64, u32) -> Result<(), StackRouterError>,
    ) -> Result<(), StackRouterError> {
        let value = |what, found, expected: String| StackRouterError::Value { what, found, expected };
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
        let mut dice = SeededRng::new(self.options.seed, (layer as u64) << 32 | source as u64);
        let mut seen = vec![0; experts];
        for (position, id) in ids.enumerate() {
            if position.is_multiple_of(TRTLLM_BLOCK) {
                seen.fill(0);
            }
            let Some(expert) = usize::try_from(id).ok().filter(|&expert| expert < experts) else {
                if id == -1 {
                    continue;
                }
                return Err(StackRouterError::Id { position, id, experts });
            };
            let replicas = &on.replicas[expert];
            let turn = |number: u64| replicas[(number % replicas.len() as u64) as usize];
            let row = (position / top_k) as u64;
            let slot = match self.stack {
                StackDispatch::SglangStatic | StackDispatch::VllmAscend => {
                    on.table[source * experts + expert]
                }
                StackDispatch::SglangDynamic => turn(row),
                StackDispatch::Vllm => turn(row.wrapping_mul(KNUTH_FACTOR) & u64::from(u32::MAX)),
                StackDispatch::Trtllm => {
                    seen[expert] += 1;
                    turn((position / TRTLLM_BLOCK + source) as u64 + seen[expert] - 1)
                }
                StackDispatch::SglangRandom => {
                    let number = dice.draw_below(SGLANG_DRAW);
                    let per_node = self.ranks / self.options.nodes;
                    let near = || {
                        let rank = |&slot: &u32| on.placement.rank_of(slot);
                        let hosts: Vec<usize> = replicas.iter().map(rank).collect();
                        nearest_replica(&hosts, source, per_node).map(|at| replicas[at])
                    };
                    (!self.options.rebalanced).then(near).flatten().unwrap_or_else(|| turn(number))
                }
            };
            serve(position, id, slot)?;
        }
        Ok(())
    }
}
