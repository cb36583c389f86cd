//! Heartbeats through the store, because NCCL does not report which rank failed.
//!
//! A thread of each rank writes `beat/RANK` four times a second, with the number of exchanges begun and the
//! rank's current activity. A killed or stopped process falls silent, whatever its rank waits for; a process
//! that computes does not. A rank that fails, or waits too long, calls the roll by setting `down`. Every rank
//! that sees `down`, or has set it, writes its own failure, if any, to `here/RANK`.

use crate::comm::rendezvous::{Launch, StoreClient, StoreClientError};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The report of a rank that the launcher asked to end.
const ENDED_BY_LAUNCHER: &str = "the launcher ended this rank";

const BEAT_INTERVAL: Duration = Duration::from_millis(250);

/// The state that the heartbeat thread shares with the working thread.
#[derive(Debug, Default)]
struct HeartbeatState {
    doing: Mutex<String>,
    /// Number of exchanges begun. A rank with fewer than others is behind.
    begun: AtomicU64,
    /// Flags: the roll was called; the store is gone; the thread must stop.
    called: AtomicBool,
    gone: AtomicBool,
    stop: AtomicBool,
}

/// The heartbeat of this rank.
#[derive(Debug)]
pub(super) struct Heartbeat {
    rank: usize,
    ranks: usize,
    job: String,
    store: RefCell<StoreClient>,
    shared: Arc<HeartbeatState>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// The result of a roll call.
#[derive(Debug, Default)]
pub(super) struct Liveness {
    /// Ranks without a heartbeat.
    pub(super) silent: Vec<usize>,
    /// Ranks that gave up by themselves, with the reason.
    pub(super) failed: Vec<(usize, String)>,
    /// True if the launcher asked a rank to end.
    pub(super) ended: bool,
    /// Ranks that are alive but have begun fewer exchanges than others.
    pub(super) behind: Vec<usize>,
}

impl Heartbeat {
    /// Starts the heartbeat on its own connection `beats`. `store` serves all other requests.
    pub(super) fn start(
        launch: &Launch,
        store: StoreClient,
        mut beats: StoreClient,
    ) -> std::io::Result<Self> {
        let Launch { rank, ranks, job, .. } = launch.clone();
        let shared = Arc::new(HeartbeatState::default());
        let of_thread = Arc::clone(&shared);
        let (beat, down) = (format!("{job}beat/{rank}"), format!("{job}down"));
        let thread = std::thread::Builder::new().name("heartbeat".into()).spawn(move || {
            let mut count = 0u64;
            while !of_thread.stop.load(Ordering::Relaxed) {
                count += 1;
                let doing = of_thread.doing.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let said = format!("{count} {} {doing}", of_thread.begun.load(Ordering::Relaxed));
                let beaten = beats.set(&beat, said.as_bytes());
                let Ok(called) = beaten.and_then(|()| beats.has_keys(std::slice::from_ref(&down))) else {
                    of_thread.gone.store(true, Ordering::Relaxed);
                    return;
                };
                of_thread.called.store(called, Ordering::Relaxed);
                std::thread::park_timeout(BEAT_INTERVAL);
            }
        })?;
        Ok(Self { rank, ranks, job, store: RefCell::new(store), shared, thread: Some(thread) })
    }

    /// Records the exchange for which this rank is about to wait.
    pub(super) fn record_activity(&self, what: String) {
        *self.shared.doing.lock().unwrap_or_else(PoisonError::into_inner) = what;
        self.shared.begun.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns whether to stop waiting, because a rank called the roll or the store is gone.
    pub(super) fn should_stop_waiting(&self) -> bool {
        self.shared.called.load(Ordering::Relaxed) || self.shared.gone.load(Ordering::Relaxed)
    }

    fn rank_key(&self, what: &str, rank: usize) -> String {
        format!("{}{what}/{rank}", self.job)
    }

    /// Notifies all others that this rank stops, with the reason if the cause is its own.
    pub(super) fn report_failure(&self, why: &str) -> Result<(), StoreClientError> {
        let mut store = self.store.borrow_mut();
        store.set(&self.rank_key("here", self.rank), why.as_bytes())?;
        store.set(&format!("{}down", self.job), b"1")
    }

    /// Calls the roll. Waits at most `grace`, which must be longer than a beat. `ending` is true if the
    /// launcher asked this rank to end.
    pub(super) fn call_roll(&self, grace: Duration, ending: bool) -> Result<Liveness, StoreClientError> {
        let begun = Instant::now();
        self.report_failure(if ending { ENDED_BY_LAUNCHER } else { "" })?;
        let mut store = self.store.borrow_mut();
        let mut first: BTreeMap<usize, String> = BTreeMap::new();
        let mut last = first.clone();
        let mut said: BTreeMap<usize, String> = BTreeMap::new();
        loop {
            for rank in (0..self.ranks).filter(|&rank| rank != self.rank) {
                if let (false, Some(why)) =
                    (said.contains_key(&rank), store.get(&self.rank_key("here", rank))?)
                {
                    said.insert(rank, String::from_utf8_lossy(&why).into_owned());
                }
                if let Some(beat) = store.get(&self.rank_key("beat", rank))? {
                    let beat = String::from_utf8_lossy(&beat).into_owned();
                    first.entry(rank).or_insert_with(|| beat.clone());
                    last.insert(rank, beat);
                }
            }
            if said.len() + 1 == self.ranks || begun.elapsed() >= grace {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let others = || (0..self.ranks).filter(|&rank| rank != self.rank);
        let lives = |rank: &usize| said.contains_key(rank) || first.get(rank) != last.get(rank);
        let begun = |rank: usize| {
            let beat = last.get(&rank).and_then(|beat| beat.split(' ').nth(1)?.parse().ok());
            if rank == self.rank { self.shared.begun.load(Ordering::Relaxed) } else { beat.unwrap_or(0u64) }
        };
        let most = (0..self.ranks).map(begun).max().unwrap_or(0);
        Ok(Liveness {
            silent: others().filter(|rank| !lives(rank)).collect(),
            behind: others().filter(|&rank| begun(rank) < most).collect(),
            ended: ending || said.values().any(|why| why == ENDED_BY_LAUNCHER),
            failed: said.into_iter().filter(|(_, why)| !why.is_empty() && why != ENDED_BY_LAUNCHER).collect(),
        })
    }

    /// Leaves the store; see [`leave_store`].
    pub(super) fn leave_store(&self, launch: &Launch, keeps: bool, patience: Duration) {
        leave_store(launch, &mut self.store.borrow_mut(), keeps, patience);
    }
}

/// Reports that this rank no longer needs the store. If this rank runs the store (`keeps`), waits until all
/// ranks have reported.
pub(super) fn leave_store(launch: &Launch, store: &mut StoreClient, keeps: bool, patience: Duration) {
    let key = |rank: usize| format!("{}bye/{rank}", launch.job);
    // A rank that cannot read this any more is itself lost.
    let _ = store.set(&key(launch.rank), b"1");
    if keeps {
        let all: Vec<String> = (0..launch.ranks).map(key).collect();
        let _ = store.wait_for_keys(&all, patience);
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
