//! One phase of one model while it runs: steps come in at one end, plans go out at the other.
//!
//! Posts are checked against what is known and handed to the store; once durable they wait in line. A thread of the feed's
//! own takes them one after the other, works out how each was served, and plans when that is due: so posts never wait for
//! planning, and what is decided depends on the order of steps alone. When the service is started again, the thread goes on
//! from the last saved state with the steps that were stored since.

use super::config::{Config, HistoryLimits};
use super::decide::Ask;
use super::events::Event;
use super::ingest::{Ingest, Receipt, Refusal};
use super::lane::{Lane, LaneError, Seen};
use super::loads::Loads;
use super::options::DecideOptions;
use super::record::{Decision, now};
use super::saved::SavedLane;
use super::service::Counters;
use super::store::{LaneKey, Op, Store};
use super::store_error::StoreError;
use super::{Log, Phase};
use crate::plan::Plan;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::{broadcast, oneshot, watch};

/// What feeds share with the service.
#[derive(Clone)]
pub(crate) struct Hub {
    pub(crate) store: Arc<Store>,
    pub(crate) log: Log,
    pub(crate) config: Arc<RwLock<Arc<Config>>>,
    pub(crate) counters: Arc<Counters>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Hub {
    pub(crate) fn config(&self) -> Arc<Config> {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn history(&self) -> HistoryLimits {
        self.config().history.clone()
    }
}

/// The plan that is handed out.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) version: u64,
    pub(crate) step: Option<u64>,
    pub(crate) accepted: u64,
    /// Digest of the plan's text and its ranks.
    pub(crate) digest: String,
    pub(crate) plan: Plan,
    /// Real ranks by their numbers in the plan.
    pub(crate) ranks: Vec<u32>,
}

/// What a request to the feed's thread comes to.
pub(crate) type Answer = Result<Decision, LaneError>;

#[derive(Debug, Default)]
pub(super) struct Inbox {
    asks: VecDeque<(Ask, oneshot::Sender<Answer>)>,
    steps: VecDeque<Seen>,
    options: Option<DecideOptions>,
    pub(super) stop: bool,
}

/// What a feed's thread does next.
pub(super) enum Work {
    Ask(Ask, oneshot::Sender<Answer>),
    Step(Seen),
    Options(DecideOptions),
    Stop,
}

/// One phase of one model.
#[derive(Debug)]
pub(crate) struct Feed {
    pub(crate) model: String,
    pub(crate) phase: Phase,
    pub(super) key: LaneKey,
    pub(super) hub: Hub,
    pub(super) events: broadcast::Sender<Arc<Event>>,
    pub(crate) lane: RwLock<Lane>,
    pub(super) ingest: Mutex<Ingest>,
    pub(super) inbox: Mutex<Inbox>,
    pub(super) wake: Condvar,
    /// Steps accepted, and looked at.
    pub(super) accepted: AtomicU64,
    pub(super) looked_at: AtomicU64,
    /// Seconds since 1970 at which steps were last accepted; 0: never.
    pub(super) fed_at: AtomicU64,
    /// Bytes of a step's counts.
    pub(super) width: u64,
    /// Gives up a decision that was due.
    pub(super) abort: AtomicBool,
    /// Gives up whatever is being worked out.
    pub(super) stopping: AtomicBool,
    pub(crate) planning: AtomicBool,
    pub(super) served: RwLock<Option<Arc<Served>>>,
    pub(crate) version: watch::Sender<u64>,
    pub(crate) decisions: RwLock<VecDeque<Decision>>,
    /// Written with the next save: decisions that could not be stored.
    pub(super) unsaved: Mutex<Vec<Op>>,
    pub(super) thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// The state of a feed in the store.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SavedFeed {
    pub(crate) lane: SavedLane,
    /// The highest step id that is no longer remembered.
    pub(crate) forgotten: Option<u64>,
}

impl SavedFeed {
    pub(crate) fn pack(&self) -> Vec<u8> {
        let json = serde_json::to_vec(self).unwrap_or_default();
        zstd::bulk::compress(&json, 1).unwrap_or_default()
    }

    pub(crate) fn unpack(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(&zstd::stream::decode_all(bytes).ok()?).ok()
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Feed {
    /// Starts a feed: `ingest` knows the steps that are stored, `waiting` are those not looked at yet.
    pub(crate) fn start(
        model: String,
        key: LaneKey,
        hub: Hub,
        events: broadcast::Sender<Arc<Event>>,
        (lane, ingest): (Lane, Ingest),
        (waiting, decisions): (Vec<Seen>, VecDeque<Decision>),
    ) -> std::io::Result<Arc<Self>> {
        let accepted = ingest.accepted();
        // Steps that were stored and never looked at came at some time before this.
        let unknown = if accepted > 0 { now() } else { 0 };
        let fed_at = lane.latest().map_or(unknown, |point| point.at);
        let feed = Arc::new(Self {
            phase: lane.phase,
            width: 4 * (lane.layers.len() * lane.experts) as u64,
            looked_at: AtomicU64::new(accepted - waiting.len() as u64),
            accepted: AtomicU64::new(accepted),
            fed_at: AtomicU64::new(fed_at),
            lane: RwLock::new(lane),
            ingest: Mutex::new(ingest),
            inbox: Mutex::new(Inbox { steps: waiting.into(), ..Inbox::default() }),
            wake: Condvar::new(),
            abort: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            planning: AtomicBool::new(false),
            served: RwLock::new(None),
            version: watch::Sender::new(0),
            decisions: RwLock::new(decisions),
            unsaved: Mutex::new(vec![]),
            thread: Mutex::new(None),
            model,
            key,
            hub,
            events,
        });
        (feed.hub.log)(&format!("{}/{}: {}", feed.model, feed.phase, feed.lane().copies()));
        feed.publish();
        let own = feed.clone();
        let name = format!("{}/{}", feed.model, feed.phase);
        let thread = std::thread::Builder::new().name(name).spawn(move || own.run())?;
        *locked(&feed.thread) = Some(thread);
        Ok(feed)
    }

    pub(crate) fn lane(&self) -> RwLockReadGuard<'_, Lane> {
        self.lane.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lane_mut(&self) -> RwLockWriteGuard<'_, Lane> {
        self.lane.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The plan in force.
    pub(crate) fn served(&self) -> Option<Arc<Served>> {
        self.served.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Accepted steps that are still to be looked at.
    pub(crate) fn behind(&self) -> u64 {
        self.accepted.load(Ordering::Acquire).saturating_sub(self.looked_at.load(Ordering::Acquire))
    }

    /// Seconds since 1970 at which steps were last accepted.
    pub(crate) fn fed_at(&self) -> Option<u64> {
        Some(self.fed_at.load(Ordering::Acquire)).filter(|&at| at > 0)
    }

    /// Takes posted loads; the answer comes once they are durable.
    pub(crate) fn accept(self: &Arc<Self>, loads: &Loads, answer: oneshot::Sender<Result<Receipt, Refusal>>) {
        let limits = self.hub.config().limits.clone();
        let behind = self.behind();
        if behind > limits.behind_steps || behind.saturating_mul(self.width) > limits.behind_mib << 20 {
            let _ = answer.send(Err(Refusal::Behind { steps: behind }));
            return;
        }
        let mut ingest = locked(&self.ingest);
        let taken = match ingest.take(loads) {
            Ok(taken) => taken,
            Err(refusal) => {
                let _ = answer.send(Err(refusal));
                return;
            }
        };
        let mut receipt = taken.receipt;
        if taken.rows.is_empty() {
            self.hub.counters.repeated.fetch_add(receipt.repeated, Ordering::Relaxed);
            receipt.behind = behind;
            let _ = answer.send(Ok(receipt));
            return;
        }
        let ops = vec![Op::Steps { lane: self.key, rows: taken.rows }];
        let (feed, new) = (self.clone(), taken.new);
        // Still under the lock: what is accepted first is written first.
        self.hub.store.write(
            ops,
            Box::new(move |result| {
                locked(&feed.ingest).settle(&new, result.is_ok(), feed.hub.history().ids);
                let _ = match result {
                    Ok(()) => {
                        feed.accepted.fetch_add(new.len() as u64, Ordering::AcqRel);
                        feed.fed_at.store(now(), Ordering::Release);
                        feed.hub.counters.accepted.fetch_add(receipt.accepted, Ordering::Relaxed);
                        feed.hub.counters.repeated.fetch_add(receipt.repeated, Ordering::Relaxed);
                        locked(&feed.inbox).steps.extend(new);
                        feed.wake.notify_all();
                        receipt.behind = feed.behind();
                        answer.send(Ok(receipt))
                    }
                    Err(error) => answer.send(Err(Refusal::Store(error))),
                };
            }),
        );
        drop(ingest);
    }

    /// Asks the feed's thread for something; it does so before it looks at further steps.
    pub(crate) fn ask(&self, ask: Ask) -> oneshot::Receiver<Answer> {
        let (send, receive) = oneshot::channel();
        if matches!(ask, Ask::Down(_) | Ask::Up(_)) {
            self.abort.store(true, Ordering::Relaxed);
        }
        locked(&self.inbox).asks.push_back((ask, send));
        self.wake.notify_all();
        receive
    }

    /// Takes other options from the next step on.
    pub(crate) fn set_options(&self, options: DecideOptions) {
        locked(&self.inbox).options = Some(options);
        self.wake.notify_all();
    }

    /// Ends the thread after saving; a decision being worked out is given up and made again after the next start.
    pub(crate) fn stop(&self) {
        self.abort.store(true, Ordering::Relaxed);
        self.stopping.store(true, Ordering::Relaxed);
        locked(&self.inbox).stop = true;
        self.wake.notify_all();
        let thread = locked(&self.thread).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    /// What to do next; waits for something.
    pub(super) fn next(&self) -> Work {
        let mut inbox = locked(&self.inbox);
        loop {
            if inbox.stop {
                return Work::Stop;
            }
            if let Some(options) = inbox.options.take() {
                return Work::Options(options);
            }
            if let Some((ask, answer)) = inbox.asks.pop_front() {
                return Work::Ask(ask, answer);
            }
            if let Some(seen) = inbox.steps.pop_front() {
                return Work::Step(seen);
            }
            inbox = self.wake.wait(inbox).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The state with which a feed begins.
    pub(crate) fn first_state(key: LaneKey, lane: &Lane) -> Op {
        let saved = SavedFeed { lane: lane.saved(), forgotten: None };
        Op::State { lane: key, bytes: saved.pack() }
    }
}

/// The ETag of a plan in a format.
pub(crate) fn etag(version: u64, format: &str, digest: &str) -> String {
    format!("\"{version}-{format}-{digest}\"")
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Refusal::Store(error)
    }
}
