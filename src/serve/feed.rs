//! One phase of one model while it runs: steps come in at one end, plans go out at the other.
//!
//! Posts are checked against what is known and handed to the store; once durable they wait in line. A thread of the feed's
//! own takes them one after the other, works out how each was served, and plans when that is due: so posts never wait for
//! planning, and what is decided depends on the order of steps alone. When the service is started again, the thread goes on
//! from the last saved state with the steps that were stored since.

use super::config::{Config, HistoryLimits};
use super::decide::Ask;
use super::events::{Event, LoadsEvent, PlanEvent, PlanningEvent};
use super::ingest::{Ingest, Receipt, Refusal};
use super::lane::{Lane, LaneError, Seen};
use super::loads::Loads;
use super::options::DecideOptions;
use super::record::{Decision, Imbalances, Outcome, Trigger, now};
use super::saved::SavedLane;
use super::store::{LaneKey, Op, Store, StoreError};
use super::{Log, Phase};
use crate::plan::Plan;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};
use tokio::sync::{broadcast, oneshot, watch};

/// Steps between two saved states where nothing is decided.
const SAVE_EVERY: u64 = 256;
/// Time between two `loads` events while steps are waiting.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// What feeds share with the service.
#[derive(Clone)]
pub(crate) struct Hub {
    pub(crate) store: Arc<Store>,
    pub(crate) log: Log,
    pub(crate) config: Arc<RwLock<Arc<Config>>>,
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

    fn history(&self) -> HistoryLimits {
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
struct Inbox {
    asks: VecDeque<(Ask, oneshot::Sender<Answer>)>,
    steps: VecDeque<Seen>,
    options: Option<DecideOptions>,
    stop: bool,
}

enum Work {
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
    key: LaneKey,
    hub: Hub,
    events: broadcast::Sender<Arc<Event>>,
    pub(crate) lane: RwLock<Lane>,
    ingest: Mutex<Ingest>,
    inbox: Mutex<Inbox>,
    wake: Condvar,
    /// Steps accepted, and looked at.
    accepted: AtomicU64,
    looked_at: AtomicU64,
    /// Bytes of a step's counts.
    width: u64,
    /// Gives up a decision that was due.
    abort: AtomicBool,
    /// Gives up whatever is being worked out.
    stopping: AtomicBool,
    pub(crate) planning: AtomicBool,
    served: RwLock<Option<Arc<Served>>>,
    pub(crate) version: watch::Sender<u64>,
    pub(crate) decisions: RwLock<VecDeque<Decision>>,
    /// Written with the next save: decisions that could not be stored.
    unsaved: Mutex<Vec<Op>>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
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

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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
        let feed = Arc::new(Self {
            phase: lane.phase,
            width: 4 * (lane.layers.len() * lane.experts) as u64,
            looked_at: AtomicU64::new(accepted - waiting.len() as u64),
            accepted: AtomicU64::new(accepted),
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

    fn lane_mut(&self) -> RwLockWriteGuard<'_, Lane> {
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

    fn next(&self) -> Work {
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

    /// The feed's thread.
    fn run(&self) {
        let (mut since_saved, mut told) = (0, Instant::now());
        loop {
            // What was due when the service ended, or when somebody interrupted, is due still.
            if !locked(&self.inbox).stop {
                let due = self.lane().due();
                if let Some(trigger) = due
                    && self.decide_due(trigger)
                {
                    since_saved = 0;
                }
            }
            match self.next() {
                Work::Stop => break,
                Work::Options(options) => self.lane_mut().set_options(options),
                Work::Ask(ask, answer) => {
                    self.abort.store(false, Ordering::Relaxed);
                    let decided = self.decide(&ask, &self.stopping);
                    let _ = answer.send(decided.and_then(|decision| {
                        decision.ok_or_else(|| LaneError::Asked("the service is ending".into()))
                    }));
                }
                Work::Step(seen) => {
                    let due = self.look_at(seen);
                    since_saved += 1;
                    if due.is_some_and(|trigger| self.decide_due(trigger)) {
                        since_saved = 0;
                    }
                    self.looked_at.fetch_add(1, Ordering::AcqRel);
                    self.tell_loads(&mut told);
                    if since_saved >= SAVE_EVERY {
                        self.save(vec![], false);
                        since_saved = 0;
                    }
                }
            }
        }
        self.save(vec![], true);
    }

    fn look_at(&self, seen: Seen) -> Option<Trigger> {
        let id = seen.id;
        let stepped = self.lane_mut().step(seen, now());
        stepped.unwrap_or_else(|error| {
            (self.hub.log)(&format!("{}/{}: step {id}: {}", self.model, self.phase, crate::in_words(&error)));
            None
        })
    }

    /// Tells listeners of steps, not of each where many are waiting.
    fn tell_loads(&self, told: &mut Instant) {
        let behind = self.behind();
        if behind == 0 || told.elapsed() >= TELL_EVERY {
            *told = Instant::now();
            let point = self.lane().latest().copied();
            if let Some(point) = point {
                self.tell(Event::Loads(LoadsEvent { phase: self.phase, point, behind }));
            }
        }
    }

    fn tell(&self, event: Event) {
        // Nobody may be listening.
        let _ = self.events.send(Arc::new(event));
    }

    /// Decides what is due; false where that was interrupted.
    fn decide_due(&self, trigger: Trigger) -> bool {
        let (max_behind, behind) = (self.lane().options.max_behind, self.behind());
        if behind > max_behind {
            let reason = format!("{behind} steps behind, more than {max_behind}");
            self.note(trigger, Outcome::PassedOver, reason);
            return true;
        }
        match self.decide(&Ask::Replan { trigger, dry_run: false }, &self.abort) {
            Ok(decision) => decision.is_some(),
            Err(error) => {
                self.note(trigger, Outcome::Failed, crate::in_words(&error));
                true
            }
        }
    }

    /// Works a decision out, stores it and puts it in force.
    fn decide(&self, ask: &Ask, abort: &AtomicBool) -> Result<Option<Decision>, LaneError> {
        if let Ask::Replan { trigger, .. } = ask {
            self.tell(Event::Planning(PlanningEvent { phase: self.phase, trigger: *trigger }));
        }
        self.planning.store(true, Ordering::Relaxed);
        let proposed = self.lane().propose(ask, abort);
        self.planning.store(false, Ordering::Relaxed);
        let Some(mut proposal) = proposed? else { return Ok(None) };
        proposal.decision.at = now();
        self.lane_mut().apply(&proposal)?;
        let decision = proposal.decision;
        if !proposal.asked_only {
            self.record(&decision);
        }
        if proposal.acts {
            self.publish();
        }
        Ok(Some(decision))
    }

    /// Records a decision that changes nothing.
    fn note(&self, trigger: Trigger, outcome: Outcome, reason: String) {
        let decision = {
            let mut lane = self.lane_mut();
            let expected = lane.drifted();
            let decision = Decision {
                number: lane.decisions + 1,
                phase: self.phase,
                step: lane.last_step,
                accepted: lane.accepted,
                trigger,
                outcome,
                reason,
                plan: lane.version,
                judged_steps: 0,
                imbalance: Imbalances::default(),
                moves: 0,
                layers: 0,
                moves_left_out: 0,
                bytes: None,
                busiest_bytes: None,
                gain: 0.0,
                cost: 0.0,
                took_ms: 0.0,
                at: now(),
            };
            lane.note(&decision);
            lane.expected = expected;
            decision
        };
        self.record(&decision);
    }

    /// Logs, keeps, stores and tells a decision.
    fn record(&self, decision: &Decision) {
        (self.hub.log)(&format!(
            "{}/{}: decision {} after step {}: {:?}, plan {}: {} ({:.0} ms)",
            self.model,
            self.phase,
            decision.number,
            decision.step.map_or("none".into(), |step| step.to_string()),
            decision.outcome,
            decision.plan,
            decision.reason,
            decision.took_ms
        ));
        let limits = self.hub.history();
        {
            let mut decisions = self.decisions.write().unwrap_or_else(PoisonError::into_inner);
            decisions.push_back(decision.clone());
            let oldest = now().saturating_sub(limits.days * 86_400);
            while decisions.len() > limits.decisions || decisions.front().is_some_and(|d| d.at < oldest) {
                decisions.pop_front();
            }
        }
        let json = serde_json::to_string(decision).unwrap_or_default();
        let mut ops = vec![Op::Decision { lane: self.key, number: decision.number, json }];
        let plan = (decision.outcome == Outcome::Acted).then(|| self.lane().plan()).flatten();
        if let Some(text) = plan.and_then(|plan| plan.to_json().ok()) {
            let bytes = zstd::bulk::compress(text.as_bytes(), 1).unwrap_or_default();
            ops.push(Op::Plan { lane: self.key, version: decision.plan, bytes });
        }
        self.save(ops, true);
        self.tell(Event::Decision(Box::new(decision.clone())));
    }

    /// Stores the state, and forgets what is older than it needs.
    ///
    /// Where that fails the service goes on: the steps are stored, and the same follows from them again.
    fn save(&self, ops: Vec<Op>, wait: bool) {
        let limits = self.hub.history();
        let (mut saved, steps, decisions, plans) = {
            let mut lane = self.lane_mut();
            lane.points.forget_before(now().saturating_sub(limits.days * 86_400));
            let steps = lane.window.front().map_or(0, |seen| seen.accepted);
            let decisions = (lane.decisions + 1).saturating_sub(limits.decisions as u64);
            let plans = (lane.version + 1).saturating_sub(limits.plans as u64);
            (SavedFeed { lane: lane.saved(), forgotten: None }, steps, decisions, plans)
        };
        let ids = {
            let ingest = locked(&self.ingest);
            saved.forgotten = ingest.forgotten();
            ingest.oldest()
        };
        let mut all = std::mem::take(&mut *locked(&self.unsaved));
        all.extend(ops);
        let kept = all.clone();
        all.push(Op::State { lane: self.key, bytes: saved.pack() });
        all.push(Op::Forget { lane: self.key, steps, ids, decisions, plans });
        if !wait {
            self.hub.store.write(all, Box::new(|_| ()));
            return;
        }
        if let Err(error) = self.hub.store.write_now(all) {
            (self.hub.log)(&format!("{}/{}: not stored yet: {error}", self.model, self.phase));
            let mut unsaved = locked(&self.unsaved);
            *unsaved = kept;
            let over = unsaved.len().saturating_sub(limits.decisions);
            unsaved.drain(..over);
        }
    }

    /// Hands out the plan that is in force.
    fn publish(&self) {
        let (plan, version, step, accepted, ranks) = {
            let lane = self.lane();
            let Some(plan) = lane.plan() else { return };
            (plan, lane.version, lane.plan_step, lane.plan_accepted, lane.ranks())
        };
        let text = plan.to_json().unwrap_or_default();
        let hash = Sha256::digest(format!("{ranks:?}{text}"));
        let digest = hash.iter().take(8).fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        let etag = etag(version, "evenkeel", &digest);
        let served = Served { version, step, accepted, digest, plan, ranks };
        *self.served.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(served));
        self.version.send_replace(version);
        self.tell(Event::Plan(PlanEvent { phase: self.phase, version, step, etag }));
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
