//! All models of a service, and what they share: the store, the configuration, who listens.

use super::binary::unpack;
use super::config::{Config, ConfigError, check_name};
use super::decide::Ask;
use super::events::Event;
use super::feed::{Feed, Hub, SavedFeed};
use super::ingest::Ingest;
use super::lane::{Lane, LaneError, Seen};
use super::loads::Loads;
use super::options::{DecideOptions, Shape, SpecError};
use super::record::Decision;
use super::sources::SourceStatus;
use super::store::{Op, Store};
use super::store_error::StoreError;
use super::stored::{StoredLane, StoredModel};
use super::{Log, Phase};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;
use thiserror::Error;
use tokio::sync::broadcast;

/// Events that a slow listener may be behind by before it misses some.
const EVENTS: usize = 256;

/// Why a service, or a model of it, could not be set up.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stored model that no longer holds together.
    #[error("the store's model {model}: {source}")]
    Restore {
        /// The model.
        model: String,
        /// What does not hold.
        source: Box<LaneError>,
    },
    /// A stored model with another shape than the configuration says.
    #[error(
        "[models.{model}] differs from what the store holds ({stored}): a model's shape is for good; expected another name, \
         or another --data folder"
    )]
    Reshaped {
        /// The model.
        model: String,
        /// The stored shape, as JSON.
        stored: String,
    },
    /// The address is taken, or not one of this machine.
    #[error("cannot listen on {address}: {source}{}", free_port(.address, .source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// A thread or socket could not be had.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// The way out where a port is taken.
fn free_port(address: &SocketAddr, source: &std::io::Error) -> String {
    if source.kind() != std::io::ErrorKind::AddrInUse {
        return String::new();
    }
    format!("; --listen {} takes a free port", SocketAddr::new(address.ip(), 0))
}

/// Why a model could not be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// Its name.
    #[error("{0}")]
    Name(String),
    /// Its shape.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// It is there, with another shape.
    #[error("the model has another shape already: {0}")]
    Reshaped(String),
    /// There are too many.
    #[error("{0} models are served already, the limit")]
    TooMany(usize),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A lane.
    #[error(transparent)]
    Lane(#[from] LaneError),
    /// Something else.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// One model.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) name: String,
    number: u32,
    pub(crate) shape: Shape,
    pub(crate) options: RwLock<DecideOptions>,
    feeds: RwLock<BTreeMap<Phase, Arc<Feed>>>,
    pub(crate) events: broadcast::Sender<Arc<Event>>,
    hub: Hub,
}

/// What was asked of the service, counted.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) posts: AtomicU64,
    pub(crate) accepted: AtomicU64,
    pub(crate) repeated: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) plans: AtomicU64,
    /// Replies by the first digit of their status, from 1.
    pub(crate) replies: [AtomicU64; 5],
    pub(crate) connections: AtomicU64,
    pub(crate) connections_refused: AtomicU64,
}

/// All models and what they share.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) hub: Hub,
    models: RwLock<BTreeMap<String, Arc<Model>>>,
    /// Held while a model or feed is made.
    making: Mutex<()>,
    /// Sources at work.
    sources: RwLock<Vec<Arc<SourceStatus>>>,
    pub(crate) tokens: RwLock<Vec<String>>,
    pub(crate) started: Instant,
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

impl Service {
    /// Opens the store of `folder` and goes on with what it holds and what the configuration names.
    pub(crate) fn open(config: Config, folder: &Path, log: Log) -> Result<Arc<Self>, ServeError> {
        let tokens = config.tokens()?;
        config.check_exposure(&tokens)?;
        let (store, stored) = Store::open(folder)?;
        let hub = Hub {
            store: Arc::new(store),
            log,
            config: Arc::new(RwLock::new(Arc::new(config))),
            counters: Arc::default(),
        };
        let service = Arc::new(Self {
            hub,
            models: RwLock::new(BTreeMap::new()),
            making: Mutex::new(()),
            sources: RwLock::default(),
            tokens: RwLock::new(tokens),
            started: Instant::now(),
        });
        for model in stored {
            service.restore(model)?;
        }
        service.make_configured()?;
        Ok(service)
    }

    fn make_configured(&self) -> Result<(), ServeError> {
        let config = self.hub.config();
        for (name, table) in &config.models {
            self.make(name, &table.shape()).map_err(|error| match error {
                ModelError::Reshaped(stored) => ServeError::Reshaped { model: name.clone(), stored },
                ModelError::Store(error) => error.into(),
                error => {
                    ConfigError::Value { key: format!("models.{name}"), reason: error.to_string() }.into()
                }
            })?;
        }
        Ok(())
    }

    /// Takes another configuration: tokens, limits, history, decisions, further models. Returns what of it needs a new start.
    pub(crate) fn reload(&self, config: Config) -> Result<Vec<&'static str>, ServeError> {
        let tokens = config.tokens()?;
        config.check_exposure(&tokens)?;
        let old = self.hub.config();
        let fixed = [
            ("listen", old.listen != config.listen),
            ("data", old.data != config.data),
            ("tls", old.tls != config.tls),
            ("source", old.source != config.source),
            ("limits.connections", old.limits.connections != config.limits.connections),
        ];
        *self.tokens.write().unwrap_or_else(PoisonError::into_inner) = tokens;
        *self.hub.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        self.make_configured()?;
        let config = self.hub.config();
        for model in self.models() {
            let options = config.options(Some(&model.name))?;
            *model.options.write().unwrap_or_else(PoisonError::into_inner) = options.clone();
            model.feeds().iter().for_each(|feed| feed.set_options(options.clone()));
        }
        Ok(fixed.iter().filter(|(_, changed)| *changed).map(|(key, _)| *key).collect())
    }

    /// All models, by name.
    pub(crate) fn models(&self) -> Vec<Arc<Model>> {
        read(&self.models).values().cloned().collect()
    }

    /// All sources.
    pub(crate) fn sources(&self) -> Vec<Arc<SourceStatus>> {
        read(&self.sources).clone()
    }

    /// Adds a source that is about to be read.
    pub(crate) fn add_source(&self, source: Arc<SourceStatus>) {
        self.sources.write().unwrap_or_else(PoisonError::into_inner).push(source);
    }

    /// A model by name.
    pub(crate) fn model(&self, name: &str) -> Option<Arc<Model>> {
        read(&self.models).get(name).cloned()
    }

    /// Makes a model, or finds it with the same shape; whether it is new.
    pub(crate) fn make(&self, name: &str, shape: &Shape) -> Result<(Arc<Model>, bool), ModelError> {
        check_name(name).map_err(ModelError::Name)?;
        shape.check()?;
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = self.model(name) {
            if model.shape == *shape {
                return Ok((model, false));
            }
            return Err(ModelError::Reshaped(serde_json::to_string(&model.shape).unwrap_or_default()));
        }
        let config = self.hub.config();
        if read(&self.models).len() >= config.limits.models {
            return Err(ModelError::TooMany(config.limits.models));
        }
        let options = self.options_of(name)?;
        let number = read(&self.models).values().map(|model| model.number + 1).max().unwrap_or(0);
        let json = serde_json::to_string(shape).unwrap_or_default();
        self.hub.store.write_now(vec![Op::Model { name: name.to_owned(), number, shape: json }])?;
        Ok((self.insert(name, number, shape.clone(), options), true))
    }

    fn options_of(&self, name: &str) -> Result<DecideOptions, ModelError> {
        self.hub.config().options(Some(name)).map_err(|error| ModelError::Name(error.to_string()))
    }

    fn insert(&self, name: &str, number: u32, shape: Shape, options: DecideOptions) -> Arc<Model> {
        let model = Arc::new(Model {
            name: name.to_owned(),
            number,
            shape,
            options: RwLock::new(options),
            feeds: RwLock::new(BTreeMap::new()),
            events: broadcast::Sender::new(EVENTS),
            hub: self.hub.clone(),
        });
        self.models.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), model.clone());
        model
    }

    fn restore(&self, stored: StoredModel) -> Result<(), ServeError> {
        let broken = |reason: String| ServeError::Restore {
            model: stored.name.clone(),
            source: Box::new(LaneError::Asked(reason)),
        };
        let shape: Shape =
            serde_json::from_str(&stored.shape).map_err(|error| broken(format!("shape: {error}")))?;
        let options = self.options_of(&stored.name).map_err(|error| broken(error.to_string()))?;
        let model = self.insert(&stored.name, stored.number, shape, options);
        for lane in stored.lanes {
            model.restore(&lane).map_err(|source| match source {
                ModelError::Lane(source) => {
                    ServeError::Restore { model: stored.name.clone(), source: Box::new(source) }
                }
                error => broken(error.to_string()),
            })?;
        }
        Ok(())
    }

    /// Ends all feeds, their states saved.
    pub(crate) fn stop(&self) {
        for model in self.models() {
            model.feeds().iter().for_each(|feed| feed.stop());
        }
    }

    /// The feed for loads, made where they are the first of their phase.
    pub(crate) fn feed_for(&self, model: &Model, loads: &Loads) -> Result<Arc<Feed>, ModelError> {
        if let Some(feed) = model.feed(loads.phase) {
            return Ok(feed);
        }
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        match model.feed(loads.phase) {
            Some(feed) => Ok(feed),
            None => model.make_feed(loads),
        }
    }
}

impl Model {
    /// Its feeds, by phase.
    pub(crate) fn feeds(&self) -> Vec<Arc<Feed>> {
        read(&self.feeds).values().cloned().collect()
    }

    /// The feed of a phase.
    pub(crate) fn feed(&self, phase: Phase) -> Option<Arc<Feed>> {
        read(&self.feeds).get(&phase).cloned()
    }

    fn add(&self, feed: &Arc<Feed>) {
        self.feeds.write().unwrap_or_else(PoisonError::into_inner).insert(feed.phase, feed.clone());
    }

    fn make_feed(&self, loads: &Loads) -> Result<Arc<Feed>, ModelError> {
        let options = read(&self.options).clone();
        let (layers, experts) = (loads.layers.clone(), loads.experts);
        let mut lane = Lane::new(self.shape.clone(), options, loads.phase, layers.clone(), experts)?;
        // Ranks that other phases miss are missed here too.
        let down = self.feeds().first().map(|feed| feed.lane().down()).unwrap_or_default();
        for rank in down {
            let never = std::sync::atomic::AtomicBool::new(false);
            if let Some(mut proposal) = lane.propose(&Ask::Down(rank), &never)? {
                proposal.asked_only = true;
                lane.apply(&proposal)?;
            }
        }
        let key = (self.number, loads.phase.code());
        self.hub.store.write_now(vec![Feed::first_state(key, &lane)])?;
        let ingest = Ingest::new(layers, experts);
        let name = self.name.clone();
        let parts = ((lane, ingest), (vec![], VecDeque::new()));
        let feed = Feed::start(name, key, self.hub.clone(), self.events.clone(), parts.0, parts.1)?;
        self.add(&feed);
        Ok(feed)
    }

    fn restore(&self, stored: &StoredLane) -> Result<(), ModelError> {
        let broken = |what: &str| ModelError::Lane(LaneError::Asked(format!("{}: {what}", stored.phase)));
        let saved = SavedFeed::unpack(&stored.state).ok_or_else(|| broken("its state cannot be read"))?;
        let width = saved.lane.layers.len() * saved.lane.experts;
        let mut steps = Vec::with_capacity(stored.steps.len());
        for (accepted, id, bytes) in &stored.steps {
            let counts = unpack(bytes, width).map_err(|(_, what)| broken(&format!("step {id}: {what}")))?;
            steps.push(Seen { accepted: *accepted, id: *id, counts: counts.into() });
        }
        let (layers, experts, looked_at) =
            (saved.lane.layers.clone(), saved.lane.experts, saved.lane.accepted);
        let ingest = Ingest::new(layers, experts).with(&stored.ids, saved.forgotten, looked_at);
        let waiting: Vec<Seen> = steps.iter().filter(|seen| seen.accepted > looked_at).cloned().collect();
        let options = read(&self.options).clone();
        let lane = Lane::restored(self.shape.clone(), options, stored.phase, saved.lane, steps.into_iter())?;
        let decisions: VecDeque<Decision> =
            stored.decisions.iter().filter_map(|json| serde_json::from_str(json).ok()).collect();
        let key = (self.number, stored.phase.code());
        let name = self.name.clone();
        let parts = ((lane, ingest), (waiting, decisions));
        let feed = Feed::start(name, key, self.hub.clone(), self.events.clone(), parts.0, parts.1)?;
        self.add(&feed);
        Ok(())
    }
}
