//! Posts that repeat, restart or reorder steps, and the answers to them.

use super::*;
use crate::{Phase, StepLoads};

fn loads(steps: &[(u64, u32)]) -> Loads {
    let step = |&(id, count): &(u64, u32)| StepLoads { id, counts: [count, 1].into() };
    Loads { phase: Phase::All, layers: vec![0], experts: 2, steps: steps.iter().map(step).collect() }
}

/// A step log with its own store, which numbers steps without gaps.
struct Stored {
    step_log: StepLog,
    last: u64,
    ids: Vec<(u64, u64, [u8; 16])>,
    runs: Vec<(u64, EngineRun)>,
}

impl Stored {
    fn new() -> Self {
        Self { step_log: StepLog::new(vec![0], 2), last: 0, ids: vec![], runs: vec![] }
    }

    fn keep(&mut self, taken: AdmittedPost, most: usize) -> Receipt {
        let first = self.last + 1;
        for (run, rows) in taken.parts {
            if self.runs.last().is_none_or(|last| last.1 != run) {
                self.runs.push((self.last + 1, run));
            }
            for row in rows {
                self.last += 1;
                self.ids.push((self.last, row.id, row.digest));
            }
        }
        let seen = self.step_log.finish_write(taken.new, Some(first), most);
        assert!(seen.iter().zip(first..).all(|(seen, accepted)| seen.accepted == accepted));
        taken.receipt
    }

    fn post_as(&mut self, run: Option<&str>, steps: &[(u64, u32)]) -> Result<Receipt, Refusal> {
        let taken = self.step_log.admit_post(&loads(steps), run, false)?;
        Ok(self.keep(taken, 100))
    }

    fn post(&mut self, steps: &[(u64, u32)]) -> Result<(u64, u64, u32), Refusal> {
        self.post_as(None, steps).map(|receipt| (receipt.accepted, receipt.repeated, receipt.run))
    }

    /// Returns the state after a restart of the service.
    fn restarted(self) -> Self {
        let ids: Vec<_> = self.ids.into_iter().filter(|id| id.0 >= self.step_log.oldest_accepted()).collect();
        let step_log = StepLog::new(vec![0], 2);
        let step_log =
            step_log.with_known_steps(&ids, &self.runs, &self.step_log.forgotten_numbers(), self.last);
        Self { step_log, ids, last: self.last, runs: self.runs }
    }
}

#[test]
fn a_step_is_taken_once() {
    let mut step_log = StepLog::new(vec![0], 2);
    let first = step_log.admit_post(&loads(&[(5, 1), (6, 2)]), None, false).unwrap();
    assert_eq!(first.receipt.accepted, 2);
    assert!(matches!(step_log.admit_post(&loads(&[(5, 1)]), None, false), Err(Refusal::Storing(5))));
    assert!(matches!(step_log.admit_post(&loads(&[(5, 9)]), None, false), Err(Refusal::Storing(5))));
    step_log.finish_write(first.new, Some(1), 100);
    let again = step_log.admit_post(&loads(&[(6, 2), (7, 3)]), None, false).unwrap();
    assert_eq!((again.receipt.accepted, again.receipt.repeated), (1, 1));
    assert_eq!(step_log.finish_write(again.new, Some(3), 100)[0].accepted, 3);
    assert!(matches!(
        step_log.admit_post(&loads(&[(8, 1), (6, 9)]), None, false),
        Err(Refusal::DifferentCounts(6))
    ));
    let known = step_log.admit_post(&loads(&[(8, 1)]), None, false).unwrap();
    assert_eq!(known.receipt.accepted, 1, "nothing of a refused post is known");
}

#[test]
fn what_could_not_be_stored_is_new_again() {
    let mut step_log = StepLog::new(vec![0], 2);
    let failed = step_log.admit_post(&loads(&[(5, 1)]), None, false).unwrap();
    assert!(step_log.finish_write(failed.new, None, 100).is_empty());
    let again = step_log.admit_post(&loads(&[(5, 2)]), None, false).unwrap();
    assert_eq!(step_log.finish_write(again.new, Some(1), 100)[0].accepted, 1);
    assert_eq!(step_log.last_accepted(), 1);
}

#[test]
fn forgotten_numbers_are_refused_and_no_others() {
    let mut stored = Stored::new();
    for id in (0..10).chain([1 << 40, 10, 11, 12]) {
        let taken = stored.step_log.admit_post(&loads(&[(id, 1)]), None, false).unwrap();
        stored.keep(taken, 2);
    }
    let mut stored = stored.restarted();
    assert!(matches!(stored.post(&[(5, 1)]), Err(Refusal::Forgotten { step: 5, highest: 0x100_0000_0000 })));
    assert!(matches!(stored.post(&[(1 << 40, 1)]), Err(Refusal::Forgotten { .. })));
    assert_eq!(stored.post(&[(12, 1)]).unwrap(), (0, 1, 1));
    assert_eq!(stored.post(&[(13, 1)]).unwrap(), (1, 0, 1), "a number far ahead stops nobody");
}

#[test]
fn a_number_may_jump_so_far() {
    let mut stored = Stored::new();
    stored.post(&[(7, 1)]).unwrap();
    let far = 7 + MAX_STEP_JUMP + 1;
    assert!(matches!(stored.post(&[(far, 1)]), Err(Refusal::Jump { highest: 7, .. })));
    assert!(matches!(stored.post(&[(8, 1), (far + 1, 1)]), Err(Refusal::Jump { highest: 8, .. })));
    assert_eq!(stored.post(&[(far - 1, 1)]).unwrap().0, 1);
    let source = stored.step_log.admit_post(&loads(&[(u64::MAX >> 1, 1)]), None, true);
    assert!(source.is_ok(), "times of files may lie any distance apart");
}

#[test]
fn a_counter_that_begins_again_is_another_run() {
    let mut stored = Stored::new();
    let steps = |range: std::ops::Range<u64>, count: u32| range.map(|id| (id, count)).collect::<Vec<_>>();
    assert_eq!(stored.post(&steps(0..40, 1)).unwrap(), (40, 0, 1));
    assert!(
        matches!(stored.post(&[(39, 2)]), Err(Refusal::DifferentCounts(39))),
        "no restart: not the first number"
    );
    assert_eq!(stored.post(&[(0, 2)]).unwrap(), (1, 0, 2));
    assert_eq!(stored.post(&steps(0..80, 2)).unwrap(), (79, 1, 2), "tried again, and on");
    let mut stored = stored.restarted();
    assert_eq!(stored.post(&steps(70..90, 2)).unwrap(), (10, 10, 2));
    // The engine warms up with the same batches at every start.
    assert_eq!(stored.post(&steps(0..3, 2)).unwrap(), (0, 3, 2));
    assert_eq!(stored.post(&[(3, 7), (4, 7)]).unwrap(), (2, 0, 3));
    assert_eq!(stored.post(&[(5, 7)]).unwrap(), (1, 0, 3));
    // One post contains the end of a run and the beginning of the next.
    assert_eq!(stored.post(&[(6, 7), (3, 8), (4, 8)]).unwrap(), (3, 0, 4));
    assert_eq!(stored.restarted().post(&[(4, 8), (5, 8)]).unwrap(), (1, 1, 4));
}

#[test]
fn a_counter_that_begins_below_is_another_run() {
    let mut stored = Stored::new();
    stored.post(&[(5000, 1)]).unwrap();
    assert_eq!(stored.post(&[(4999, 1)]).unwrap(), (1, 0, 1), "out of order");
    stored.post(&[(7000, 1)]).unwrap();
    assert_eq!(stored.post(&[(0, 1)]).unwrap(), (1, 0, 2));
    assert_eq!(stored.post(&[(5000, 2)]).unwrap(), (1, 0, 2));
}

#[test]
fn runs_with_ids_are_apart() {
    let mut stored = Stored::new();
    let post = |stored: &mut Stored, run: &str, id: u64, count: u32| {
        stored.post_as(Some(run), &[(id, count)]).map(|receipt| (receipt.accepted, receipt.run))
    };
    assert_eq!(post(&mut stored, "a", 0, 1).unwrap(), (1, 1));
    assert_eq!(post(&mut stored, "a", 1, 1).unwrap(), (1, 1));
    assert!(
        matches!(post(&mut stored, "a", 0, 2), Err(Refusal::DifferentCounts(0))),
        "an id says that it is the same run"
    );
    assert_eq!(
        post(&mut stored, "b", 0, 1).unwrap(),
        (1, 2),
        "the same counts in another run are another step"
    );
    let mut stored = stored.restarted();
    assert_eq!(post(&mut stored, "a", 1, 1).unwrap(), (0, 2), "a late repetition");
    assert!(matches!(post(&mut stored, "a", 2, 1), Err(Refusal::Ended { .. })));
    assert_eq!(post(&mut stored, "b", 1, 1).unwrap(), (1, 2));
    assert_eq!(stored.post(&[(2, 1)]).unwrap(), (1, 0, 2), "a post without an id belongs to the current run");
}

#[test]
fn another_shape_is_refused() {
    let mut step_log = StepLog::new(vec![0, 1], 2);
    let refusal = step_log.admit_post(&loads(&[(1, 1)]), None, false).unwrap_err();
    assert!(
        matches!(refusal, Refusal::Shape { expected, .. } if expected == "2 experts in 2 layers, 0 to 1")
    );
}
