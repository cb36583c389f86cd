//! The thread of a feed: steps looked at one after the other, decisions made, stored, published and told.

use super::decide::Ask;
use super::events::{Event, LoadsEvent, PlanEvent, PlanningEvent};
use super::feed::{Feed, SavedFeed, Served, Work, etag, locked};
use super::lane::{LaneError, Seen};
use super::record::{Decision, Imbalances, Outcome, Trigger, now};
use super::store::Op;
use sha2::{Digest as _, Sha256};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Steps between two saved states where nothing is decided.
const SAVE_EVERY: u64 = 256;
/// Time between two `loads` events while steps are waiting.
const TELL_EVERY: Duration = Duration::from_millis(100);

impl Feed {
    /// The feed's thread.
    pub(super) fn run(&self) {
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
                copy_ms: 0.0,
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
    pub(super) fn publish(&self) {
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
}
