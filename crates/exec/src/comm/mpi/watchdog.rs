//! A time limit on library calls that block: `MPI_Init` until all ranks have arrived, `MPI_Finalize` until
//! all leave.
//!
//! A thread watches such a call. If the limit passes, if another rank calls the roll, or if the launcher asks
//! this process to end, the thread calls the roll. It does so through files, because the ranks of one host
//! share the folder that the launcher keeps for the job. A stopped or killed process does not answer, and
//! every survivor names its rank. The library cannot be left while it blocks, so the owner of the watch ends
//! the process.

use super::roll_files::{CALL_BEGUN, CALL_FINISHED, REASON_REPORTED, ROLL_ANSWERED, RollFiles};
use super::{ENDING_GRACE, GRACE_LIMITS};
use crate::comm::CommError;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The time between two reads of the files.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A function that ends a process whose library does not return.
pub(super) type StuckHandler = Arc<dyn Fn(StuckCall) + Send + Sync>;

/// A call of the MPI library that did not return in time. The process can only be ended.
#[derive(Debug)]
pub struct StuckCall {
    /// The error, which names the ranks that do not answer.
    pub error: CommError,
    /// This rank, if the launcher states it.
    pub rank: Option<usize>,
    /// True if the launcher asked this rank to end.
    ended_from_outside: bool,
    board: Option<RollFiles>,
    answered: BTreeSet<usize>,
}

impl StuckCall {
    /// Returns whether nothing is wrong with this rank. Its work was complete, and the launcher ended it
    /// together with a job that another rank had ended. That rank has reported the cause.
    pub fn is_end_of_job(&self) -> bool {
        let CommError::Blocked { call, silent, .. } = &self.error else { return false };
        self.ended_from_outside && *call == "MPI_Finalize" && silent.is_empty()
    }

    /// Waits until the ranks that answered have printed their reports. The launcher ends all ranks as soon as
    /// one has ended.
    pub fn wait_for_reports(self) {
        if let Some(board) = self.board {
            board.set_mark(REASON_REPORTED);
            let until = Instant::now() + GRACE_LIMITS[0] + ENDING_GRACE;
            while Instant::now() < until && !self.answered.is_subset(&board.ranks_with_mark(REASON_REPORTED))
            {
                std::thread::sleep(POLL_INTERVAL);
            }
        }
        // The launcher stops reading when all processes have ended.
        std::thread::sleep(ENDING_GRACE);
    }
}

/// The state of a call under watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CallState {
    Blocked,
    /// The call has returned; its owner still waits for other ranks, with its own deadline.
    Returned,
    Over,
}

/// A call under watch.
pub(super) struct CallWatchdog {
    shared: Arc<WatchedCall>,
    board: Option<RollFiles>,
}

struct WatchedCall {
    state: Mutex<CallState>,
    changed: Condvar,
}

impl fmt::Debug for CallWatchdog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("board", &self.board).finish_non_exhaustive()
    }
}

impl WatchedCall {
    fn current_state(&self) -> CallState {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_state(&self, state: CallState) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
        self.changed.notify_all();
    }

    /// Waits for `moment`, or until the state changes. Returns the state.
    fn wait_for_change(&self, moment: Duration) -> CallState {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *state;
        let same = |state: &mut CallState| *state == before;
        let waited = self.changed.wait_timeout_while(state, moment, same);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl CallWatchdog {
    /// Begins to watch a call. A rank that does not answer for `timeout` counts as lost. `stuck` runs on the
    /// watching thread.
    pub(super) fn start(
        call: &'static str,
        timeout: Duration,
        ending: &Arc<AtomicBool>,
        stuck: &StuckHandler,
    ) -> Result<Self, CommError> {
        let board = RollFiles::from_environment(call, |name| std::env::var(name).ok());
        let board = board.filter(|board| board.set_mark(CALL_BEGUN));
        let shared = Arc::new(WatchedCall { state: Mutex::new(CallState::Blocked), changed: Condvar::new() });
        let watcher = WatchdogThread {
            call,
            timeout,
            begun: Instant::now(),
            shared: Arc::clone(&shared),
            board: board.clone(),
            ending: Arc::clone(ending),
        };
        let stuck = Arc::clone(stuck);
        std::thread::Builder::new()
            .name("mpi watch".into())
            .spawn(move || watcher.run(&*stuck))
            .map_err(|error| CommError::Library { call: "starting a thread", reason: error.to_string() })?;
        Ok(Self { shared, board })
    }

    /// Records that the call has returned. Until [`CallWatchdog::end`] the thread answers other ranks. It
    /// ends the process only if its owner fails to do so.
    pub(super) fn mark_returned(&self) {
        self.shared.set_state(CallState::Returned);
    }

    /// Ends the watch.
    pub(super) fn stop(self) {
        if let Some(board) = &self.board {
            board.set_mark(CALL_FINISHED);
        }
        self.shared.set_state(CallState::Over);
    }

    /// Asks the ranks that are still in the call to answer.
    pub(super) fn call_roll(&self) {
        if let Some(board) = &self.board {
            board.call_roll();
        }
    }

    /// Returns whether a rank has answered here.
    pub(super) fn has_answered(&self, rank: usize) -> bool {
        self.board.as_ref().is_some_and(|board| board.mark_path(ROLL_ANSWERED, rank).exists())
    }
}

/// The state of the watching thread.
struct WatchdogThread {
    call: &'static str,
    timeout: Duration,
    begun: Instant,
    shared: Arc<WatchedCall>,
    board: Option<RollFiles>,
    ending: Arc<AtomicBool>,
}

impl WatchdogThread {
    fn run(self, stuck: &dyn Fn(StuckCall)) {
        let grace = (self.timeout / 4).clamp(GRACE_LIMITS[0], GRACE_LIMITS[1]);
        let (mut limit, mut known, mut heard) = (self.timeout, CallState::Blocked, false);
        loop {
            let state = self.shared.wait_for_change(POLL_INTERVAL);
            if state == CallState::Over {
                return;
            }
            if known != state {
                known = state;
                // The owner has its own deadline. This one is for a library that blocks nevertheless.
                limit = self.begun.elapsed() + self.timeout + 2 * grace;
            }
            let called = self
                .board
                .as_ref()
                .is_some_and(|board| board.is_roll_called() && board.set_mark(ROLL_ANSWERED));
            let late = self.begun.elapsed() > limit;
            let ends = late || (state == CallState::Blocked && self.ending.load(Ordering::Relaxed));
            if !ends && (state != CallState::Blocked || !called || heard) {
                continue;
            }
            heard = called;
            let (found, names_ranks) = self.call_roll(grace);
            // The ranks that called the roll may have completed the call by now, and so may this one.
            if (ends || names_ranks) && self.shared.current_state() == state {
                return stuck(found);
            }
        }
    }

    /// Calls the roll. Returns the error, and whether it names lost ranks.
    fn call_roll(&self, grace: Duration) -> (StuckCall, bool) {
        let waited = self.begun.elapsed();
        let Some(board) = &self.board else {
            let why = if self.ending.load(Ordering::Relaxed) {
                "the launcher ended the job"
            } else {
                "the ranks that do not answer are unknown, because PMIX_SERVER_TMPDIR is not set"
            };
            return (self.stuck_call(waited, BTreeSet::new(), BTreeSet::new(), why.into()), false);
        };
        let others_gave_up = !board.ranks_with_mark(REASON_REPORTED).is_empty();
        board.call_roll();
        board.set_mark(ROLL_ANSWERED);
        let asked = Instant::now();
        let expected = board.expected_ranks();
        let mut answered = board.answered_ranks();
        // The launcher kills soon after its request.
        let patience = || if self.ending.load(Ordering::Relaxed) { ENDING_GRACE } else { grace };
        while !expected.is_subset(&answered) && asked.elapsed() < patience() {
            std::thread::sleep(POLL_INTERVAL);
            answered = board.answered_ranks();
        }
        let silent = &expected - &answered;
        let absent = board.on_host.map_or(0, |on_host| on_host.saturating_sub(expected.len()));
        let why = match () {
            () if others_gave_up => "the other ranks gave up while this process did not answer".into(),
            () if absent > 0 => format!("ranks of this host that have not arrived: {absent}"),
            () if self.ending.load(Ordering::Relaxed) => {
                "the launcher ended the job; all ranks of this host were alive".into()
            }
            () if board.has_all_ranks() => "all ranks are alive: a larger --rank-timeout may help".into(),
            () => "all ranks of this host are alive: a rank of another host is missing, or a larger \
                   --rank-timeout may help"
                .into(),
        };
        let names_ranks = !silent.is_empty();
        (self.stuck_call(waited, silent, board.ranks_with_mark(ROLL_ANSWERED), why), names_ranks)
    }

    fn stuck_call(
        &self,
        waited: Duration,
        silent: BTreeSet<usize>,
        answered: BTreeSet<usize>,
        why: String,
    ) -> StuckCall {
        let silent = silent.into_iter().collect();
        let error = CommError::Blocked { call: self.call, silent, waited, why };
        StuckCall {
            error,
            rank: self.board.as_ref().map(|board| board.rank),
            ended_from_outside: self.ending.load(Ordering::Relaxed),
            board: self.board.clone(),
            answered,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use std::sync::mpsc;

    const CALL: &str = "MPI_Init";
    const SOON: Duration = Duration::from_millis(100);

    /// A rank under watch, with the error that it reports.
    struct Rank(Arc<WatchedCall>, mpsc::Receiver<StuckCall>);

    fn rank(folder: &std::path::Path, rank: usize, (ranks, on_host): (usize, usize), ending: bool) -> Rank {
        let shared = Arc::new(WatchedCall { state: Mutex::new(CallState::Blocked), changed: Condvar::new() });
        let folder = folder.to_owned();
        let board = RollFiles { folder, name: "job".into(), rank, ranks, on_host: Some(on_host) };
        assert!(board.set_mark(CALL_BEGUN));
        let watcher = WatchdogThread {
            call: CALL,
            timeout: SOON,
            begun: Instant::now(),
            shared: Arc::clone(&shared),
            board: Some(board),
            ending: Arc::new(AtomicBool::new(ending)),
        };
        let (report, reports) = mpsc::channel();
        std::thread::spawn(move || watcher.run(&|stuck| report.send(stuck).unwrap()));
        Rank(shared, reports)
    }

    #[test]
    fn a_rank_that_does_not_answer_is_named_by_all_others() {
        let folder = tempfile::tempdir().unwrap();
        let ranks = [0, 1].map(|at| rank(folder.path(), at, (3, 3), false));
        for (at, Rank(_, reports)) in ranks.iter().enumerate() {
            let stuck = reports.recv().unwrap();
            let text = stuck.error.to_string();
            assert!(
                text.starts_with("rank 2 does not answer: killed, hung or cut off (MPI_Init, after "),
                "{text}"
            );
            assert_eq!(stuck.rank, Some(at));
        }
    }

    #[test]
    fn ranks_that_have_returned_answer_and_go_on() {
        let folder = tempfile::tempdir().unwrap();
        let [Rank(_, reports), Rank(other, others)] = [0, 1].map(|at| rank(folder.path(), at, (2, 2), false));
        *other.state.lock().unwrap() = CallState::Returned;
        let text = reports.recv().unwrap().error.to_string();
        assert!(text.contains("did not return within") && text.contains("all ranks are alive"), "{text}");
        assert!(others.try_recv().is_err());
        other.set_state(CallState::Over);
        assert!(others.recv().is_err());
    }

    #[test]
    fn ranks_of_other_hosts_are_not_guessed() {
        let folder = tempfile::tempdir().unwrap();
        let Rank(_, reports) = rank(folder.path(), 0, (4, 1), false);
        let text = reports.recv().unwrap().error.to_string();
        assert!(text.contains("a rank of another host is missing"), "{text}");
        let folder = tempfile::tempdir().unwrap();
        let Rank(_, reports) = rank(folder.path(), 0, (4, 2), true);
        let text = reports.recv().unwrap().error.to_string();
        assert!(text.contains("ranks of this host that have not arrived: 1"), "{text}");
    }

    #[test]
    fn a_called_rank_goes_on_where_all_answer() {
        let folder = tempfile::tempdir().unwrap();
        let [Rank(one, reports), Rank(other, others)] = [0, 1].map(|at| {
            let rank = rank(folder.path(), at, (2, 2), false);
            std::fs::write(folder.path().join("job.roll"), "").unwrap();
            rank
        });
        std::thread::sleep(SOON / 2);
        for shared in [one, other] {
            shared.set_state(CallState::Over);
        }
        assert!(reports.recv().is_err() && others.recv().is_err());
    }

    #[test]
    fn a_rank_that_slept_through_the_roll_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let Rank(_, reports) = rank(folder.path(), 0, (2, 2), false);
        reports.recv().unwrap().wait_for_reports();
        let Rank(_, reports) = rank(folder.path(), 1, (2, 2), false);
        let text = reports.recv().unwrap().error.to_string();
        assert!(text.contains("the other ranks gave up"), "{text}");
    }
}
