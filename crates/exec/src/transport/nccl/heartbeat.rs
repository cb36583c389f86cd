//! Signs of life, beside NCCL, which does not say who is silent: every rank tells the store what it is doing, and when one waits
//! too long, or fails, it calls the roll.
//!
//! A thread of each rank sets `beat/RANK` four times a second, so that a process that is killed or stopped falls silent whatever its
//! ranks wait for; one that computes does not. Who calls the roll sets `down`, and every rank that finds that, or called
//! itself, says in `here/RANK` why it gives up, if it has a reason of its own.

use crate::exec::transport::rendezvous::{Launch, Store, StoreError};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a rank says that the launcher asked to end.
const ENDED: &str = "it was ended from outside";

const BEAT: Duration = Duration::from_millis(250);

/// What the thread that beats shares with the one that works.
#[derive(Debug, Default)]
struct Shared {
    doing: Mutex<String>,
    /// Exchanges begun: who is behind has not come as far.
    begun: AtomicU64,
    /// Whether somebody called the roll; whether the store is gone; whether to stop.
    called: AtomicBool,
    gone: AtomicBool,
    stop: AtomicBool,
}

/// This rank's signs of life.
#[derive(Debug)]
pub(super) struct Pulse {
    rank: usize,
    ranks: usize,
    job: String,
    store: RefCell<Store>,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// What the roll tells.
#[derive(Debug, Default)]
pub(super) struct Roll {
    /// Ranks that give no sign of life.
    pub(super) silent: Vec<usize>,
    /// Ranks that gave up by themselves, and why.
    pub(super) failed: Vec<(usize, String)>,
    /// Whether the launcher asked a rank to end.
    pub(super) ended: bool,
    /// Ranks that live and have begun fewer exchanges than others.
    pub(super) behind: Vec<usize>,
}

impl Pulse {
    /// Begins to beat on a connection of its own; `store` is for the rest.
    pub(super) fn begin(launch: &Launch, store: Store, mut beats: Store) -> std::io::Result<Self> {
        let Launch { rank, ranks, job, .. } = launch.clone();
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let (beat, down) = (format!("{job}beat/{rank}"), format!("{job}down"));
        let thread = std::thread::Builder::new().name("signs of life".into()).spawn(move || {
            let mut count = 0u64;
            while !of_thread.stop.load(Ordering::Relaxed) {
                count += 1;
                let doing = of_thread.doing.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let said = format!("{count} {} {doing}", of_thread.begun.load(Ordering::Relaxed));
                let beaten = beats.set(&beat, said.as_bytes());
                let Ok(called) = beaten.and_then(|()| beats.has(std::slice::from_ref(&down))) else {
                    of_thread.gone.store(true, Ordering::Relaxed);
                    return;
                };
                of_thread.called.store(called, Ordering::Relaxed);
                std::thread::park_timeout(BEAT);
            }
        })?;
        Ok(Self { rank, ranks, job, store: RefCell::new(store), shared, thread: Some(thread) })
    }

    /// Says what this rank is about to wait for.
    pub(super) fn doing(&self, what: String) {
        *self.shared.doing.lock().unwrap_or_else(PoisonError::into_inner) = what;
        self.shared.begun.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether to stop waiting: somebody called the roll, or the store is gone.
    pub(super) fn called(&self) -> bool {
        self.shared.called.load(Ordering::Relaxed) || self.shared.gone.load(Ordering::Relaxed)
    }

    fn key(&self, what: &str, rank: usize) -> String {
        format!("{}{what}/{rank}", self.job)
    }

    /// Tells all others that this rank stops, and why where it has a reason of its own.
    pub(super) fn tell(&self, why: &str) -> Result<(), StoreError> {
        let mut store = self.store.borrow_mut();
        store.set(&self.key("here", self.rank), why.as_bytes())?;
        store.set(&format!("{}down", self.job), b"1")
    }

    /// Who is there? Waits `grace` at most, longer than a beat. `ending` is whether the launcher asked this rank to end.
    pub(super) fn roll(&self, grace: Duration, ending: bool) -> Result<Roll, StoreError> {
        let begun = Instant::now();
        self.tell(if ending { ENDED } else { "" })?;
        let mut store = self.store.borrow_mut();
        let mut first: BTreeMap<usize, String> = BTreeMap::new();
        let mut last = first.clone();
        let mut said: BTreeMap<usize, String> = BTreeMap::new();
        loop {
            for rank in (0..self.ranks).filter(|&rank| rank != self.rank) {
                if let (false, Some(why)) = (said.contains_key(&rank), store.get(&self.key("here", rank))?) {
                    said.insert(rank, String::from_utf8_lossy(&why).into_owned());
                }
                if let Some(beat) = store.get(&self.key("beat", rank))? {
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
        Ok(Roll {
            silent: others().filter(|rank| !lives(rank)).collect(),
            behind: others().filter(|&rank| begun(rank) < most).collect(),
            ended: ending || said.values().any(|why| why == ENDED),
            failed: said.into_iter().filter(|(_, why)| !why.is_empty() && why != ENDED).collect(),
        })
    }

    /// See [`leave`].
    pub(super) fn leave(&self, launch: &Launch, keeps: bool, patience: Duration) {
        leave(launch, &mut self.store.borrow_mut(), keeps, patience);
    }
}

/// Says that this rank needs the store no more; who keeps it waits for all others to say so.
pub(super) fn leave(launch: &Launch, store: &mut Store, keeps: bool, patience: Duration) {
    let key = |rank: usize| format!("{}bye/{rank}", launch.job);
    // Whoever does not hear it any more is gone itself.
    let _ = store.set(&key(launch.rank), b"1");
    if keeps {
        let all: Vec<String> = (0..launch.ranks).map(key).collect();
        let _ = store.wait(&all, patience);
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
