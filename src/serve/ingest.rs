//! Which posted steps are new: idempotent by step id.
//!
//! A step that is known with the same counts is acknowledged and changes nothing; with other counts the whole post is
//! refused. Ids are remembered for so many steps; an id that is below one already forgotten can no longer be told apart from
//! a repetition, and is refused.

use super::binary::pack;
use super::lane::Seen;
use super::loads::{Loads, digest};
use super::store::Row;
use super::store_error::StoreError;
use serde::Serialize;
use std::collections::{HashMap, VecDeque};
use thiserror::Error;
use utoipa::ToSchema;

/// What became of a post.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ToSchema)]
pub struct Receipt {
    /// Steps that are new, and durable now.
    pub accepted: u64,
    /// Steps that were known already, with the same counts.
    pub repeated: u64,
    /// Accepted steps that are still to be looked at.
    pub behind: u64,
}

/// Why a post was refused; nothing of it was taken.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Other layers or experts than before.
    #[error("{found}")]
    Shape {
        /// What was posted.
        found: String,
        /// What this phase has.
        expected: String,
    },
    /// A step id that is known with other counts.
    #[error("step {0} was posted before with other counts")]
    Other(u64),
    /// A step id that is too old to be told.
    #[error("step {step} is older than what is remembered")]
    Forgotten {
        /// The step.
        step: u64,
        /// The highest id that is forgotten.
        forgotten: u64,
    },
    /// The same step is being stored just now.
    #[error("step {0} is being stored just now")]
    Storing(u64),
    /// Too many steps wait to be looked at.
    #[error("{steps} accepted steps wait to be looked at")]
    Behind {
        /// How many.
        steps: u64,
    },
    /// It could not be stored.
    #[error(transparent)]
    Store(StoreError),
}

#[derive(Debug, Clone, Copy)]
struct Known {
    digest: [u8; 16],
    durable: bool,
}

/// The steps that a feed knows.
#[derive(Debug, Default)]
pub(crate) struct Ingest {
    layers: Vec<u32>,
    experts: usize,
    /// The number of the next accepted step.
    next: u64,
    known: HashMap<u64, Known>,
    /// (accepted, id), oldest first.
    order: VecDeque<(u64, u64)>,
    forgotten: Option<u64>,
    /// The number of the last durable step.
    durable: u64,
}

/// A post that may be stored.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) rows: Vec<Row>,
    pub(crate) new: Vec<Seen>,
    pub(crate) receipt: Receipt,
}

impl Ingest {
    pub(crate) fn new(layers: Vec<u32>, experts: usize) -> Self {
        Self { layers, experts, next: 1, ..Self::default() }
    }

    /// With what the store knows: (accepted, id, digest), oldest first.
    pub(crate) fn with(
        mut self,
        ids: &[(u64, u64, [u8; 16])],
        forgotten: Option<u64>,
        accepted: u64,
    ) -> Self {
        for &(accepted, id, digest) in ids {
            self.known.insert(id, Known { digest, durable: true });
            self.order.push_back((accepted, id));
            self.next = self.next.max(accepted + 1);
        }
        self.forgotten = forgotten;
        self.durable = accepted.max(self.next - 1);
        self.next = self.durable + 1;
        self
    }

    /// The number of the last durable step.
    pub(crate) fn accepted(&self) -> u64 {
        self.durable
    }

    pub(crate) fn forgotten(&self) -> Option<u64> {
        self.forgotten
    }

    /// Number of the oldest step whose id is remembered.
    pub(crate) fn oldest(&self) -> u64 {
        self.order.front().map_or(0, |&(accepted, _)| accepted)
    }

    /// Which steps of a post are new; those count as known from now on.
    pub(crate) fn take(&mut self, loads: &Loads) -> Result<Taken, Refusal> {
        if (loads.experts, &loads.layers) != (self.experts, &self.layers) {
            let told = |layers: &[u32], experts| match layers {
                [one] => format!("{experts} experts in layer {one}"),
                [first, .., last] => {
                    format!("{experts} experts in {} layers, {first} to {last}", layers.len())
                }
                [] => "nothing".into(),
            };
            return Err(Refusal::Shape {
                found: told(&loads.layers, loads.experts),
                expected: told(&self.layers, self.experts),
            });
        }
        let mut taken = Taken { rows: vec![], new: vec![], receipt: Receipt::default() };
        for step in &loads.steps {
            let digest = digest(&step.counts);
            match self.known.get(&step.id) {
                Some(known) if known.digest != digest => return Err(Refusal::Other(step.id)),
                Some(known) if !known.durable => return Err(Refusal::Storing(step.id)),
                Some(_) => taken.receipt.repeated += 1,
                None => {
                    if let Some(forgotten) = self.forgotten.filter(|&forgotten| step.id <= forgotten) {
                        return Err(Refusal::Forgotten { step: step.id, forgotten });
                    }
                    let accepted = self.next + taken.new.len() as u64;
                    let mut bytes = Vec::new();
                    pack(&step.counts, &mut bytes);
                    taken.rows.push(Row { accepted, id: step.id, digest, bytes });
                    taken.new.push(Seen { accepted, id: step.id, counts: step.counts.clone() });
                    taken.receipt.accepted += 1;
                }
            }
        }
        for row in &taken.rows {
            self.known.insert(row.id, Known { digest: row.digest, durable: false });
            self.order.push_back((row.accepted, row.id));
        }
        self.next += taken.rows.len() as u64;
        Ok(taken)
    }

    /// What came of storing steps that were taken; forgets ids beyond `most`.
    pub(crate) fn settle(&mut self, new: &[Seen], stored: bool, most: usize) {
        let ids: Vec<u64> = new.iter().map(|seen| seen.id).collect();
        let last = new.last().map_or(0, |seen| seen.accepted);
        if stored {
            for id in &ids {
                if let Some(known) = self.known.get_mut(id) {
                    known.durable = true;
                }
            }
            self.durable = self.durable.max(last);
            while self.order.len() > most
                && self.order.front().is_some_and(|(_, id)| self.known.get(id).is_some_and(|k| k.durable))
            {
                let Some((_, id)) = self.order.pop_front() else { break };
                self.known.remove(&id);
                self.forgotten = self.forgotten.max(Some(id));
            }
        } else {
            for id in &ids {
                self.known.remove(id);
            }
            self.order.retain(|(_, id)| self.known.contains_key(id));
            // Their numbers are used again unless later ones are out already.
            self.next = self.order.back().map_or(self.durable, |&(last, _)| last.max(self.durable)) + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::{Phase, Step};

    fn loads(steps: &[(u64, u32)]) -> Loads {
        let step = |&(id, count): &(u64, u32)| Step { id, counts: [count, 1].into() };
        Loads { phase: Phase::All, layers: vec![0], experts: 2, steps: steps.iter().map(step).collect() }
    }

    #[test]
    fn a_step_is_taken_once() {
        let mut ingest = Ingest::new(vec![0], 2);
        let first = ingest.take(&loads(&[(5, 1), (6, 2)])).unwrap();
        assert_eq!(first.receipt.accepted, 2);
        assert!(matches!(ingest.take(&loads(&[(5, 1)])), Err(Refusal::Storing(5))));
        ingest.settle(&first.new, true, 100);
        let again = ingest.take(&loads(&[(6, 2), (7, 3)])).unwrap();
        assert_eq!((again.receipt.accepted, again.receipt.repeated, again.new[0].accepted), (1, 1, 3));
        ingest.settle(&again.new, true, 100);
        assert!(matches!(ingest.take(&loads(&[(8, 1), (6, 9)])), Err(Refusal::Other(6))));
        assert_eq!(
            ingest.take(&loads(&[(8, 1)])).unwrap().receipt.accepted,
            1,
            "nothing of a refused post is known"
        );
    }

    #[test]
    fn what_could_not_be_stored_is_new_again() {
        let mut ingest = Ingest::new(vec![0], 2);
        let failed = ingest.take(&loads(&[(5, 1)])).unwrap();
        ingest.settle(&failed.new, false, 100);
        let again = ingest.take(&loads(&[(5, 2)])).unwrap();
        assert_eq!((again.receipt.accepted, again.new[0].accepted), (1, 1));
    }

    #[test]
    fn ids_are_forgotten_and_old_ones_refused() {
        let mut ingest = Ingest::new(vec![0], 2);
        for id in 0..10 {
            let taken = ingest.take(&loads(&[(id, 1)])).unwrap();
            ingest.settle(&taken.new, true, 4);
        }
        assert!(matches!(ingest.take(&loads(&[(5, 1)])), Err(Refusal::Forgotten { step: 5, forgotten: 5 })));
        assert_eq!(ingest.take(&loads(&[(6, 1)])).unwrap().receipt.repeated, 1);
        assert_eq!(ingest.accepted(), 10);
    }

    #[test]
    fn another_shape_is_refused() {
        let mut ingest = Ingest::new(vec![0, 1], 2);
        let refusal = ingest.take(&loads(&[(1, 1)])).unwrap_err();
        assert!(
            matches!(refusal, Refusal::Shape { expected, .. } if expected == "2 experts in 2 layers, 0 to 1")
        );
    }
}
