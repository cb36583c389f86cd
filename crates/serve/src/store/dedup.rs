//! Recognition of new steps: posts are idempotent by run and step number.
//!
//! A repetition, a known step with the same counts, is acknowledged and changes nothing. A known step with
//! other counts makes the whole post fail. Step numbers belong to a **run**, the time from one start of the
//! engine to the next:
//!
//! - A post with a new run id begins a run. A post with the id of a run that has ended is refused, except for
//!   repetitions.
//! - A post without an id belongs to the current run, unless its numbers show that a counter restarted. There
//!   are three signs of a restart:
//!   - A number at or below the first of the run recurs with other counts, or after it was forgotten.
//!   - The successor of steps that repeat the run from its beginning does the same.
//!   - A new number is below the first of the run and far below its highest.
//!
//! The latest numbers are remembered (`history.ids`). Forgotten numbers are kept as ranges, so that a single
//! number far ahead does not make all numbers below it unknown.

use super::number_ranges::NumberRanges;
use super::{EngineRun, StoredStep};
use crate::controller::state::AcceptedStep;
use crate::wire::loads::{Loads, StepLoads, counts_digest};
use crate::wire::receipt::{Receipt, Refusal};
use crate::{MAX_STEP_JUMP, binary::pack_counts};
use std::collections::{HashMap, VecDeque};

/// The number of runs whose ids are remembered.
const MAX_RUNS: usize = 64;
/// The distance, in steps, by which numbers may come out of order at the beginning of a run.
const MAX_REORDERED: u64 = 1024;

#[derive(Debug, Clone, Copy)]
struct KnownStep {
    digest: [u8; 16],
    durable: bool,
}

/// A run and its known numbers.
#[derive(Debug, Clone)]
struct KnownRun {
    run: EngineRun,
    /// The highest accepted number.
    highest: Option<u64>,
    forgotten: NumberRanges,
}

impl KnownRun {
    fn new(run: EngineRun) -> Self {
        Self { run, highest: None, forgotten: NumberRanges::default() }
    }
}

/// The steps that a phase knows.
#[derive(Debug, Default)]
pub(crate) struct StepLog {
    layers: Vec<u32>,
    experts: usize,
    /// The known steps, by run and step number.
    known: HashMap<(u32, u64), KnownStep>,
    /// Durable steps, oldest first: accepted, run, step number.
    order: VecDeque<(u64, u32, u64)>,
    /// The latest runs, the current one last.
    runs: VecDeque<KnownRun>,
    /// The number of the last durable step.
    durable: u64,
    /// The last step of a repetition of the current run from its beginning.
    rewound: Option<u64>,
    /// Flag that is set when the model is deleted.
    pub(crate) closed: bool,
}

/// A post that may be stored: the new steps of each run that it contains, in order.
#[derive(Debug, Default)]
pub(crate) struct AdmittedPost {
    pub(crate) parts: Vec<(EngineRun, Vec<StoredStep>)>,
    pub(crate) new: Vec<NewStep>,
    pub(crate) receipt: Receipt,
    /// The runs that began with this post, each with its evidence.
    pub(crate) began: Vec<(EngineRun, String)>,
}

/// A step that was accepted and has no number yet.
#[derive(Debug, Clone)]
pub(crate) struct NewStep {
    run: u32,
    step: StepLoads,
}

/// The relation of a step to the known runs.
enum StepStanding {
    /// A known step with the same counts.
    Repeated { durable: bool },
    /// A new step in the run of this index.
    New(usize),
    /// The first step of another run, with its evidence.
    Restart(String),
}

impl StepLog {
    pub(crate) fn new(layers: Vec<u32>, experts: usize) -> Self {
        Self { layers, experts, ..Self::default() }
    }

    /// Adds the stored knowledge: (accepted, number, digest) of steps and the first accepted step of each
    /// run, oldest first.
    pub(crate) fn with_known_steps(
        mut self,
        ids: &[(u64, u64, [u8; 16])],
        runs: &[(u64, EngineRun)],
        forgotten: &[(u32, NumberRanges)],
        accepted: u64,
    ) -> Self {
        self.runs = runs.iter().map(|(_, run)| KnownRun::new(run.clone())).collect();
        for &(accepted, id, digest) in ids {
            let run =
                runs.iter().rev().find(|(began, _)| *began <= accepted).map_or(0, |(_, run)| run.number);
            self.known.insert((run, id), KnownStep { digest, durable: true });
            self.order.push_back((accepted, run, id));
            if let Some(state) = self.runs.iter_mut().find(|state| state.run.number == run) {
                state.highest = state.highest.max(Some(id));
            }
        }
        for (run, ranges) in forgotten {
            if let Some(state) = self.runs.iter_mut().find(|state| state.run.number == *run) {
                state.highest = state.highest.max(ranges.last());
                state.forgotten = ranges.clone();
            }
        }
        self.durable = accepted.max(ids.last().map_or(0, |id| id.0));
        self
    }

    /// Returns the number of the last durable step.
    pub(crate) fn last_accepted(&self) -> u64 {
        self.durable
    }

    /// Returns the forgotten numbers of each run.
    pub(crate) fn forgotten_numbers(&self) -> Vec<(u32, NumberRanges)> {
        let with_some = self.runs.iter().filter(|state| !state.forgotten.is_empty());
        with_some.map(|state| (state.run.number, state.forgotten.clone())).collect()
    }

    /// Returns the place, in the order of acceptance, of the oldest step whose number is remembered.
    pub(crate) fn oldest_accepted(&self) -> u64 {
        self.order.front().map_or(0, |&(accepted, ..)| accepted)
    }

    /// Returns whether a step was accepted or is being stored.
    pub(crate) fn has_steps(&self) -> bool {
        self.durable > 0 || !self.known.is_empty()
    }

    /// Returns the current run.
    pub(crate) fn current_run(&self) -> Option<&EngineRun> {
        self.runs.back().map(|state| &state.run)
    }

    /// Selects the new steps of a post, which count as known from now on. `far` allows any distance between
    /// numbers.
    pub(crate) fn admit_post(
        &mut self,
        loads: &Loads,
        run: Option<&str>,
        far: bool,
    ) -> Result<AdmittedPost, Refusal> {
        if (loads.experts, &loads.layers) != (self.experts, &self.layers) {
            let found = describe_shape(&loads.layers, loads.experts);
            return Err(Refusal::Shape { found, expected: describe_shape(&self.layers, self.experts) });
        }
        if self.closed {
            return Err(Refusal::Deleted);
        }
        let before = (self.runs.len(), self.rewound);
        let mut taken = AdmittedPost::default();
        let result = self.admit_steps(loads, run, far, &mut taken);
        if let Err(refusal) = result {
            // A refused post leaves no trace.
            for NewStep { run, step } in &taken.new {
                self.known.remove(&(*run, step.id));
            }
            self.runs.truncate(before.0);
            self.rewound = before.1;
            return Err(refusal);
        }
        for NewStep { run, step } in &taken.new {
            if let Some(state) = self.runs.iter_mut().find(|state| state.run.number == *run) {
                state.highest = state.highest.max(Some(step.id));
            }
        }
        taken.receipt.run = self.runs.back().map_or(1, |state| state.run.number);
        Ok(taken)
    }

    fn admit_steps(
        &mut self,
        loads: &Loads,
        id: Option<&str>,
        far: bool,
        taken: &mut AdmittedPost,
    ) -> Result<(), Refusal> {
        let mut highest = None;
        for step in &loads.steps {
            let digest = counts_digest(&step.counts);
            let standing = match id {
                Some(id) => self.standing_in(id, step.id, digest)?,
                None => self.standing_unnamed(step.id, digest)?,
            };
            let at = match standing {
                StepStanding::Repeated { durable: false } => return Err(Refusal::Storing(step.id)),
                StepStanding::Repeated { durable: true } => {
                    taken.receipt.repeated += 1;
                    continue;
                }
                StepStanding::New(at) => at,
                StepStanding::Restart(reason) => {
                    let number = self.runs.back().map_or(0, |state| state.run.number) + 1;
                    let run = EngineRun { number, id: id.map(str::to_owned), first: step.id };
                    taken.began.push((run.clone(), reason));
                    self.runs.push_back(KnownRun::new(run));
                    (self.rewound, highest) = (None, None);
                    self.runs.len() - 1
                }
            };
            let state = &self.runs[at];
            highest = highest.max(state.highest);
            if let Some(highest) = highest.filter(|&h| !far && step.id > h && step.id - h > MAX_STEP_JUMP) {
                return Err(Refusal::Jump { step: step.id, highest });
            }
            highest = highest.max(Some(step.id));
            let run = state.run.clone();
            self.known.insert((run.number, step.id), KnownStep { digest, durable: false });
            taken.new.push(NewStep { run: run.number, step: step.clone() });
            taken.receipt.accepted += 1;
            let mut bytes = Vec::new();
            if !step.is_idle() {
                pack_counts(&step.counts, &mut bytes);
            }
            let row = StoredStep { id: step.id, digest, bytes };
            match taken.parts.last_mut() {
                Some((last, rows)) if last.number == run.number => rows.push(row),
                _ => taken.parts.push((run, vec![row])),
            }
        }
        Ok(())
    }

    /// Returns the relation of a step to the run that its post names.
    fn standing_in(&self, id: &str, step: u64, digest: [u8; 16]) -> Result<StepStanding, Refusal> {
        let Some(at) = self.runs.iter().rposition(|state| state.run.id.as_deref() == Some(id)) else {
            return Ok(StepStanding::Restart(format!("posts name run {id}")));
        };
        let state = &self.runs[at];
        match self.known.get(&(state.run.number, step)) {
            Some(known) if known.digest == digest => Ok(StepStanding::Repeated { durable: known.durable }),
            Some(_) => Err(Refusal::DifferentCounts(step)),
            None if state.forgotten.contains(step) => Err(forgotten_refusal(state, step)),
            None if at + 1 < self.runs.len() => {
                let current = self.runs.back().and_then(|state| state.run.id.clone());
                let current = current.unwrap_or_else(|| "without an id".into());
                Err(Refusal::Ended { run: id.to_owned(), current })
            }
            None => Ok(StepStanding::New(at)),
        }
    }

    /// Returns the relation of a step to the current run, for a post that names no run.
    fn standing_unnamed(&mut self, step: u64, digest: [u8; 16]) -> Result<StepStanding, Refusal> {
        let Some((at, state)) = self.runs.len().checked_sub(1).and_then(|at| Some((at, self.runs.get(at)?)))
        else {
            return Ok(StepStanding::Restart("the first steps".into()));
        };
        let begins_again = step <= state.run.first;
        let follows = self.rewound.is_some_and(|last| step == last + 1);
        let refusal = match self.known.get(&(state.run.number, step)) {
            Some(known) if known.digest == digest => {
                self.rewound = if begins_again || follows { Some(step) } else { None };
                return Ok(StepStanding::Repeated { durable: known.durable });
            }
            Some(known) if !known.durable => return Err(Refusal::Storing(step)),
            Some(_) => Refusal::DifferentCounts(step),
            None if state.forgotten.contains(step) => forgotten_refusal(state, step),
            None => {
                let below = state.highest.is_some_and(|highest| highest.saturating_sub(step) > MAX_REORDERED);
                if step < state.run.first && below {
                    return Ok(StepStanding::Restart(format!("step {step} is below the first of the run")));
                }
                self.rewound = None;
                return Ok(StepStanding::New(at));
            }
        };
        if begins_again || follows {
            return Ok(StepStanding::Restart(format!("the counter is at step {step} again")));
        }
        Err(refusal)
    }

    /// Completes the storing of new steps: `first` is the number of the first one, or `None` if the write
    /// failed. Forgets step numbers beyond `most`. Returns the steps with their numbers.
    pub(crate) fn finish_write(
        &mut self,
        new: Vec<NewStep>,
        first: Option<u64>,
        most: usize,
    ) -> Vec<AcceptedStep> {
        let Some(first) = first else {
            for NewStep { run, step } in &new {
                self.known.remove(&(*run, step.id));
            }
            return vec![];
        };
        let mut seen = Vec::with_capacity(new.len());
        for (accepted, NewStep { run, step }) in (first..).zip(new) {
            if let Some(known) = self.known.get_mut(&(run, step.id)) {
                known.durable = true;
            }
            self.order.push_back((accepted, run, step.id));
            self.durable = self.durable.max(accepted);
            seen.push(AcceptedStep { accepted, step });
        }
        while self.order.len() > most {
            let Some((_, run, id)) = self.order.pop_front() else { break };
            self.known.remove(&(run, id));
            if let Some(state) = self.runs.iter_mut().find(|state| state.run.number == run) {
                state.forgotten.insert(id);
            }
        }
        while self.runs.len() > MAX_RUNS {
            self.runs.pop_front();
        }
        seen
    }
}

fn forgotten_refusal(state: &KnownRun, step: u64) -> Refusal {
    Refusal::Forgotten { step, highest: state.highest.unwrap_or(step) }
}

fn describe_shape(layers: &[u32], experts: usize) -> String {
    match layers {
        [one] => format!("{experts} experts in layer {one}"),
        [first, .., last] => format!("{experts} experts in {} layers, {first} to {last}", layers.len()),
        [] => "nothing".into(),
    }
}

#[cfg(test)]
mod tests;
