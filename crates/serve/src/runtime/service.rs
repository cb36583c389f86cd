//! All models of a service, and the state that they share: the store, the configuration, the event listeners.

use super::dry_run::MAX_DRY_RUNS;
use super::error::{ModelError, ServeError};
use super::sources::SourceMonitor;
use super::worker::{PhaseWorker, ServiceContext, WorkerSnapshot};
use crate::config::{ConfigError, ServiceConfig, check_name};
use crate::controller::config::{ControllerConfig, ModelSpec};
use crate::controller::propose::PhaseCommand;
use crate::controller::state::{AcceptedStep, PhaseError, PhaseState};
use crate::http::memory::MemoryBudget;
use crate::store::dedup::StepLog;
use crate::store::schema::{StoredModel, StoredPhase};
use crate::store::{StateStore, StoreChange};
use crate::wire::binary::unpack_counts;
use crate::wire::decision::Decision;
use crate::wire::event::ModelEvent;
use crate::wire::loads::{Loads, StepLoads, counts_digest};
use crate::{LogCallback, Phase};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;
use tokio::sync::{Semaphore, broadcast};

/// The number of events by which a slow listener may lag before it misses some.
const EVENT_CAPACITY: usize = 256;

/// One model.
#[derive(Debug)]
pub(crate) struct ServedModel {
    pub(crate) name: String,
    number: u32,
    pub(crate) shape: ModelSpec,
    pub(crate) options: RwLock<ControllerConfig>,
    workers: RwLock<BTreeMap<Phase, Arc<PhaseWorker>>>,
    pub(crate) events: broadcast::Sender<Arc<ModelEvent>>,
    context: ServiceContext,
}

/// A model that a configuration names for the first time.
struct NewModel {
    name: String,
    number: u32,
    shape: ModelSpec,
    options: ControllerConfig,
}

impl NewModel {
    fn to_change(&self) -> StoreChange {
        let shape = serde_json::to_string(&self.shape).unwrap_or_default();
        StoreChange::Model { name: self.name.clone(), number: self.number, shape }
    }
}

/// Counters of requests and connections.
#[derive(Debug, Default)]
pub(crate) struct ServiceCounters {
    pub(crate) posts: AtomicU64,
    pub(crate) accepted: AtomicU64,
    pub(crate) repeated: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) plans: AtomicU64,
    /// Replies by the first digit of their status, from 1.
    pub(crate) replies: [AtomicU64; 5],
    pub(crate) connections: AtomicU64,
    pub(crate) connections_refused: AtomicU64,
    /// Connections closed to make room for others.
    pub(crate) connections_cut: AtomicU64,
}

/// All models and their shared state.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) context: ServiceContext,
    models: RwLock<BTreeMap<String, Arc<ServedModel>>>,
    /// Held while a model or a worker is created.
    creation_lock: Mutex<()>,
    /// The running sources.
    sources: RwLock<Vec<Arc<SourceMonitor>>>,
    pub(crate) tokens: RwLock<Vec<String>>,
    /// The memory that requests occupy.
    pub(crate) memory: Arc<MemoryBudget>,
    pub(crate) started: Instant,
}

fn read_lock<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

impl Service {
    /// Opens the store of `folder` and restores its models. Creates the models that only the configuration
    /// names.
    pub(crate) fn open(
        config: ServiceConfig,
        folder: &Path,
        log: LogCallback,
    ) -> Result<Arc<Self>, ServeError> {
        let tokens = config.read_tokens()?;
        ServiceConfig::check_exposure(config.listen, &tokens)?;
        let (store, stored) = StateStore::open(folder)?;
        let context = ServiceContext {
            store: Arc::new(store),
            log,
            config: Arc::new(RwLock::new(Arc::new(config))),
            counters: Arc::default(),
            dry_runs: Arc::new(Semaphore::new(MAX_DRY_RUNS)),
        };
        let service = Arc::new(Self {
            context,
            models: RwLock::new(BTreeMap::new()),
            creation_lock: Mutex::new(()),
            sources: RwLock::default(),
            tokens: RwLock::new(tokens),
            memory: Arc::default(),
            started: Instant::now(),
        });
        for model in stored {
            service.restore_model(model)?;
        }
        service.create_configured()?;
        Ok(service)
    }

    fn create_configured(&self) -> Result<(), ServeError> {
        let config = self.context.config();
        for (name, table) in &config.models {
            self.create_model(name, &table.to_spec()).map_err(|error| match error {
                ModelError::Reshaped(stored) => ServeError::Reshaped { model: name.clone(), stored },
                ModelError::Store(error) => error.into(),
                error => {
                    ConfigError::Value { key: format!("models.{name}"), reason: error.to_string() }.into()
                }
            })?;
        }
        Ok(())
    }

    /// Replaces the configuration as a whole or not at all: tokens, limits, history, decisions, further
    /// models. Returns the changed keys that need a restart.
    ///
    /// Tokens cannot be removed. A token file that became empty by accident would open the service to
    /// everybody.
    pub(crate) fn apply_config(
        &self,
        config: ServiceConfig,
        tokens: Vec<String>,
        bound: SocketAddr,
    ) -> Result<Vec<&'static str>, ServeError> {
        ServiceConfig::check_exposure(bound, &tokens)?;
        if tokens.is_empty() && !read_lock(&self.tokens).is_empty() {
            let reason = "none, expected at least one token: restart the service to serve without tokens";
            return Err(ConfigError::Value { key: "token_file".into(), reason: reason.into() }.into());
        }
        let _making = self.creation_lock.lock().unwrap_or_else(PoisonError::into_inner);
        let new = self.new_models(&config)?;
        let mut options = BTreeMap::new();
        for model in self.models() {
            options.insert(model.name.clone(), config.controller_config(Some(&model.name))?);
        }
        // This is the last step that can fail, so it is one transaction for all further models.
        if !new.is_empty() {
            self.context.store.write_durably(new.iter().map(NewModel::to_change).collect())?;
        }
        let old = self.context.config();
        let fixed = [
            ("listen", old.listen != config.listen),
            ("data", old.data != config.data),
            ("tls", old.tls.is_some() != config.tls.is_some()),
            ("source", old.source != config.source),
        ];
        *self.context.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        *self.tokens.write().unwrap_or_else(PoisonError::into_inner) = tokens;
        for model in self.models() {
            let Some(options) = options.remove(&model.name) else { continue };
            *model.options.write().unwrap_or_else(PoisonError::into_inner) = options.clone();
            model.workers().iter().for_each(|worker| worker.set_options(options.clone()));
        }
        for NewModel { name, number, shape, options } in new {
            self.insert_model(&name, number, shape, options);
        }
        Ok(fixed.iter().filter(|(_, changed)| *changed).map(|(key, _)| *key).collect())
    }

    /// Returns the models of a configuration that do not exist yet. An existing model with another shape is
    /// an error.
    fn new_models(&self, config: &ServiceConfig) -> Result<Vec<NewModel>, ServeError> {
        let mut number = read_lock(&self.models).values().map(|model| model.number + 1).max().unwrap_or(0);
        let mut new = Vec::new();
        for (name, table) in &config.models {
            let shape = table.to_spec();
            match self.model(name) {
                Some(model) if model.shape == shape => {}
                Some(model) => {
                    let stored = serde_json::to_string(&model.shape).unwrap_or_default();
                    return Err(ServeError::Reshaped { model: name.clone(), stored });
                }
                None => {
                    let options = config.controller_config(Some(name))?;
                    new.push(NewModel { name: name.clone(), number, shape, options });
                    number += 1;
                }
            }
        }
        let all = read_lock(&self.models).len() + new.len();
        if !new.is_empty() && all > config.limits.models {
            let reason = format!("{}, expected at least {all}, the number of models", config.limits.models);
            return Err(ConfigError::Value { key: "limits.models".into(), reason }.into());
        }
        Ok(new)
    }

    /// Returns all models, sorted by name.
    pub(crate) fn models(&self) -> Vec<Arc<ServedModel>> {
        read_lock(&self.models).values().cloned().collect()
    }

    /// Returns all sources.
    pub(crate) fn sources(&self) -> Vec<Arc<SourceMonitor>> {
        read_lock(&self.sources).clone()
    }

    /// Adds a source before its thread starts.
    pub(crate) fn add_source(&self, source: Arc<SourceMonitor>) {
        self.sources.write().unwrap_or_else(PoisonError::into_inner).push(source);
    }

    /// Returns the model of this name.
    pub(crate) fn model(&self, name: &str) -> Option<Arc<ServedModel>> {
        read_lock(&self.models).get(name).cloned()
    }

    /// Creates a model, or finds it with the same shape. Returns the model and whether it is new. A model
    /// with another shape is replaced as long as none of its steps was accepted.
    pub(crate) fn create_model(
        &self,
        name: &str,
        shape: &ModelSpec,
    ) -> Result<(Arc<ServedModel>, bool), ModelError> {
        check_name(name)?;
        shape.check()?;
        let _making = self.creation_lock.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.model(name);
        if let Some(model) = &known {
            if model.shape == *shape {
                return Ok((model.clone(), false));
            }
            let workers = model.workers();
            let in_use = || workers.iter().any(|worker| worker.has_steps());
            let refused = in_use() || {
                // Closed workers accept nothing more. A post may have arrived before the close, so ask again.
                workers.iter().for_each(|worker| worker.close_intake());
                in_use()
            };
            if refused {
                workers.iter().for_each(|worker| worker.reopen_intake());
                return Err(ModelError::Reshaped(serde_json::to_string(&model.shape).unwrap_or_default()));
            }
        }
        let config = self.context.config();
        if known.is_none() && read_lock(&self.models).len() >= config.limits.models {
            return Err(ModelError::TooMany(config.limits.models));
        }
        let options = self.controller_config(name)?;
        let number = read_lock(&self.models).values().map(|model| model.number + 1).max().unwrap_or(0);
        let json = serde_json::to_string(shape).unwrap_or_default();
        let mut ops = vec![StoreChange::Model { name: name.to_owned(), number, shape: json }];
        if let Some(model) = &known {
            model.workers().iter().for_each(|worker| worker.stop());
            ops.insert(0, StoreChange::Delete { name: name.to_owned(), number: model.number });
        }
        self.context.store.write_durably(ops)?;
        Ok((self.insert_model(name, number, shape.clone(), options), true))
    }

    fn controller_config(&self, name: &str) -> Result<ControllerConfig, ModelError> {
        self.context
            .config()
            .controller_config(Some(name))
            .map_err(|error| ModelError::Config(Box::new(error)))
    }

    fn insert_model(
        &self,
        name: &str,
        number: u32,
        shape: ModelSpec,
        options: ControllerConfig,
    ) -> Arc<ServedModel> {
        let model = Arc::new(ServedModel {
            name: name.to_owned(),
            number,
            shape,
            options: RwLock::new(options),
            workers: RwLock::new(BTreeMap::new()),
            events: broadcast::Sender::new(EVENT_CAPACITY),
            context: self.context.clone(),
        });
        self.models.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), model.clone());
        model
    }

    fn restore_model(&self, stored: StoredModel) -> Result<(), ServeError> {
        let broken = |reason: String| ServeError::Restore {
            model: stored.name.clone(),
            source: Box::new(PhaseError::Invalid(reason)),
        };
        let shape: ModelSpec =
            serde_json::from_str(&stored.shape).map_err(|error| broken(format!("shape: {error}")))?;
        let options = self.controller_config(&stored.name).map_err(|error| broken(error.to_string()))?;
        let model = self.insert_model(&stored.name, stored.number, shape, options);
        for phase in stored.phases {
            model.restore_phase(&phase).map_err(|source| match source {
                ModelError::Phase(source) => {
                    ServeError::Restore { model: stored.name.clone(), source: Box::new(source) }
                }
                error => broken(error.to_string()),
            })?;
        }
        Ok(())
    }

    /// Deletes a model and all its stored data. A model that the configuration names is created again, empty.
    pub(crate) fn delete_model(&self, name: &str) -> Result<Option<()>, ModelError> {
        let making = self.creation_lock.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(model) = self.models.write().unwrap_or_else(PoisonError::into_inner).remove(name) else {
            return Ok(None);
        };
        for worker in model.workers() {
            worker.close_intake();
            worker.stop();
        }
        (self.context.log)(&format!("{name}: deleted"));
        self.context
            .store
            .write_durably(vec![StoreChange::Delete { name: name.to_owned(), number: model.number }])?;
        drop(making);
        if let Some(table) = self.context.config().models.get(name) {
            self.create_model(name, &table.to_spec())?;
        }
        Ok(Some(()))
    }

    /// Stops all workers after their states are saved.
    pub(crate) fn stop(&self) {
        for model in self.models() {
            model.workers().iter().for_each(|worker| worker.stop());
        }
    }

    /// Returns the worker for loads. Creates it if these are the first loads of their phase.
    pub(crate) fn worker_for(
        &self,
        model: &ServedModel,
        loads: &Loads,
    ) -> Result<Arc<PhaseWorker>, ModelError> {
        if let Some(worker) = model.worker(loads.phase) {
            return Ok(worker);
        }
        let _making = self.creation_lock.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(worker) = model.worker(loads.phase) {
            return Ok(worker);
        }
        self.check_window(model, loads)?;
        model.create_worker(loads)
    }
}

impl Service {
    /// Refuses loads whose planning window would exceed `limits.window_mib`, together with all other phases.
    fn check_window(&self, model: &ServedModel, loads: &Loads) -> Result<(), ModelError> {
        let bytes =
            |width: u64, options: &ControllerConfig| width.saturating_mul(options.retained_steps() as u64);
        let width = (4 * loads.layers.len() * loads.experts) as u64;
        let workers = self.models().into_iter().flat_map(|model| model.workers());
        let others: u64 = workers.map(|worker| bytes(worker.width, worker.state().options())).sum();
        let needed = others.saturating_add(bytes(width, &read_lock(&model.options))).div_ceil(1 << 20);
        let most = self.context.config().limits.window_mib;
        if needed <= most {
            return Ok(());
        }
        Err(ModelError::Window { layers: loads.layers.len(), experts: loads.experts, needed, most })
    }
}

impl ServedModel {
    /// Returns the workers, sorted by phase.
    pub(crate) fn workers(&self) -> Vec<Arc<PhaseWorker>> {
        read_lock(&self.workers).values().cloned().collect()
    }

    /// Returns the worker of a phase.
    pub(crate) fn worker(&self, phase: Phase) -> Option<Arc<PhaseWorker>> {
        read_lock(&self.workers).get(&phase).cloned()
    }

    fn add_worker(&self, worker: &Arc<PhaseWorker>) {
        self.workers.write().unwrap_or_else(PoisonError::into_inner).insert(worker.phase, worker.clone());
    }

    fn create_worker(&self, loads: &Loads) -> Result<Arc<PhaseWorker>, ModelError> {
        let options = read_lock(&self.options).clone();
        let (layers, experts) = (loads.layers.clone(), loads.experts);
        let mut state = PhaseState::new(self.shape.clone(), options, loads.phase, layers.clone(), experts)?;
        // Ranks that are down in the other phases are down in this one too.
        let down = self.workers().first().map(|worker| worker.state().down_ranks()).unwrap_or_default();
        for rank in down {
            let never = std::sync::atomic::AtomicBool::new(false);
            if let Some(mut proposal) = state.propose(&PhaseCommand::Down(rank), &never)? {
                proposal.preview = true;
                state.apply_proposal(&proposal)?;
            }
        }
        let key = (self.number, loads.phase.code());
        self.context.store.write_durably(vec![PhaseWorker::first_state(key, &state)])?;
        let step_log = StepLog::new(layers, experts);
        let name = self.name.clone();
        let parts = ((state, step_log), (vec![], VecDeque::new()));
        let worker =
            PhaseWorker::start(name, key, self.context.clone(), self.events.clone(), parts.0, parts.1)?;
        self.add_worker(&worker);
        Ok(worker)
    }

    fn restore_phase(&self, stored: &StoredPhase) -> Result<(), ModelError> {
        let broken = |what: &str| ModelError::Phase(PhaseError::Invalid(format!("{}: {what}", stored.phase)));
        let saved =
            WorkerSnapshot::from_bytes(&stored.state).ok_or_else(|| broken("its state cannot be read"))?;
        let core = &saved.phase.core;
        let width = core.layers.len() * core.experts;
        let mut steps = Vec::with_capacity(stored.steps.len());
        // Steps and digests are sorted by their place in the order of acceptance.
        let mut digests = stored.ids.iter().peekable();
        for (accepted, id, bytes) in &stored.steps {
            let counts = if bytes.is_empty() {
                vec![0; width]
            } else {
                unpack_counts(bytes, width).map_err(|(_, what)| broken(&format!("step {id}: {what}")))?
            };
            while digests.next_if(|known| known.0 < *accepted).is_some() {}
            // Earlier versions could forget a digest before its step.
            if let Some(known) = digests.next_if(|known| known.0 == *accepted)
                && (known.1, known.2) != (*id, counts_digest(&counts))
            {
                return Err(broken(&format!("the counts of step {id} do not match their digest")));
            }
            steps.push(AcceptedStep {
                accepted: *accepted,
                step: StepLoads { id: *id, counts: counts.into() },
            });
        }
        let (layers, experts, processed) = (core.layers.clone(), core.experts, core.accepted);
        let step_log = StepLog::new(layers, experts);
        let step_log =
            step_log.with_known_steps(&stored.ids, &stored.runs, &saved.forgotten_numbers, processed);
        let waiting: Vec<AcceptedStep> =
            steps.iter().filter(|seen| seen.accepted > processed).cloned().collect();
        let options = read_lock(&self.options).clone();
        let state = PhaseState::from_snapshot(
            self.shape.clone(),
            options,
            stored.phase,
            saved.phase,
            steps.into_iter(),
        )?;
        let decisions: VecDeque<Decision> =
            stored.decisions.iter().filter_map(|json| serde_json::from_str(json).ok()).collect();
        let key = (self.number, stored.phase.code());
        let name = self.name.clone();
        let parts = ((state, step_log), (waiting, decisions));
        let worker =
            PhaseWorker::start(name, key, self.context.clone(), self.events.clone(), parts.0, parts.1)?;
        self.add_worker(&worker);
        Ok(())
    }
}
