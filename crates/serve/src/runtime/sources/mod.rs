//! Loads that are fetched: a trace file that grows, a folder of dumps, a SGLang server's recorder.
//!
//! One thread per source looks at its path again and again, and hands new steps to the model as if they had been posted. Steps
//! get numbers that stay the same when the service is started again, so that nothing is counted twice.

mod folder;
mod growing;
mod sglang;
mod status;

use super::config::{Config, Source};
use super::ingest::Refusal;
use super::service::Service;
use super::{Loads, Log, MAX_POSTED, Step};
use crate::trace::{Trace, TraceError};
use folder::Folder;
use growing::Growing;
use sglang::Recorder;
use status::Part;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

pub(crate) use status::{SourceState, SourceStatus};

/// Bytes of counts in one post.
const POST_BYTES: usize = 32 << 20;

/// The threads of all sources; they end when this is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    stops: Vec<mpsc::Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stops.clear();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Starts the configured sources.
pub(crate) fn start(service: &Arc<Service>, config: &Config, log: &Log) -> Running {
    let mut running = Running { stops: vec![], threads: vec![] };
    for source in &config.source {
        let (stop, stopped) = mpsc::channel();
        let status = Arc::new(SourceStatus::of(source));
        service.add_source(status.clone());
        let watch =
            Watch { service: service.clone(), source: source.clone(), log: log.clone(), stopped, status };
        let name = format!("source {}", source.model);
        match std::thread::Builder::new().name(name).spawn(move || watch.run()) {
            Ok(thread) => {
                running.stops.push(stop);
                running.threads.push(thread);
            }
            Err(error) => log(&format!("source {}: no thread: {error}", source.path.display())),
        }
    }
    running
}

/// What a look at a path brought: steps by number, with what says how their counts are laid out.
struct Found {
    trace: Trace,
    /// Numbers of the trace's steps.
    ids: Vec<u64>,
}

/// One source at work.
struct Watch {
    service: Arc<Service>,
    source: Source,
    log: Log,
    stopped: mpsc::Receiver<()>,
    status: Arc<SourceStatus>,
}

impl Watch {
    fn run(self) {
        let mut recorder =
            self.source.sglang.clone().map(|url| Recorder::new(&url, self.source.dump_seconds));
        let (mut folder, mut growing) = (Folder::default(), Growing::default());
        let pause = Duration::from_secs_f64(self.source.poll_seconds);
        while matches!(self.stopped.recv_timeout(pause), Err(mpsc::RecvTimeoutError::Timeout)) {
            match recorder.as_mut().map(Recorder::poll) {
                Some(Ok(true)) => self.status.works(Part::Recorder),
                Some(Err(error)) => self.complain(Part::Recorder, &error),
                Some(Ok(false)) | None => {}
            }
            let path = &self.source.path;
            let looked = std::fs::metadata(path).and_then(|meta| {
                if meta.is_dir() {
                    return folder.look(path);
                }
                let found = growing.look(path);
                if matches!(found, Ok(None)) {
                    self.status.works(Part::Content);
                }
                Ok(found.transpose().into_iter().collect())
            });
            let all = match looked {
                Ok(all) => all,
                Err(error) => {
                    self.complain(Part::Path, &error.to_string());
                    continue;
                }
            };
            self.status.works(Part::Path);
            for found in all {
                match found
                    .map_err(|error: TraceError| crate::in_words(&error))
                    .and_then(|found| self.hand_on(&found))
                {
                    Ok(()) => self.status.works(Part::Content),
                    Err(error) => self.complain(Part::Content, &error),
                }
            }
        }
    }

    /// Counts an error, and logs it where it is another than the last.
    fn complain(&self, part: Part, what: &str) {
        if self.status.failed(part, what) {
            (self.log)(&format!("source {} of {}: {what}", self.source.path.display(), self.source.model));
        }
    }

    /// Posts what was found, and waits until it is stored.
    fn hand_on(&self, found: &Found) -> Result<(), String> {
        let model = self.service.model(&self.source.model).ok_or("the model is gone")?;
        // A stretch of a file may lack layers and experts that drew nothing: they are laid out as in the stretches before.
        let known = model.feed(self.source.phase).map(|feed| {
            let lane = feed.lane();
            (lane.layers.clone(), lane.experts)
        });
        let expected = model.shape.parsed_model().ok().flatten().map(|model| model.experts);
        let (layers, experts) = known.unwrap_or_else(|| {
            let seen = found.trace.experts();
            (found.trace.layers().to_vec(), expected.unwrap_or(seen).max(seen))
        });
        let trace = &found.trace;
        let mut rows = Vec::with_capacity(trace.layers().len());
        for layer in trace.layers() {
            let at =
                layers.binary_search(layer).map_err(|_| format!("layer {layer} was not there before"))?;
            rows.push(at);
        }
        if trace.experts() > experts {
            return Err(format!("expert {}, there were {experts} before", trace.experts() - 1));
        }
        let most = (POST_BYTES / (4 * layers.len() * experts)).clamp(1, MAX_POSTED);
        let mut steps = Vec::new();
        for (at, &id) in found.ids.iter().enumerate() {
            let mut counts = vec![0u32; layers.len() * experts];
            for (index, &row) in rows.iter().enumerate() {
                for (count, &load) in counts[row * experts..].iter_mut().zip(trace.loads(at, index)) {
                    *count = u32::try_from(load).map_err(|_| format!("step {id}: {load} tokens"))?;
                }
            }
            // Ring buffers are dumped with their unused rows.
            if counts.iter().any(|&count| count > 0) {
                steps.push(Step { id, counts: counts.into() });
            }
        }
        for steps in steps.chunks(most) {
            let loads =
                Loads { phase: self.source.phase, layers: layers.clone(), experts, steps: steps.to_vec() };
            self.post(&model, &loads.checked().map_err(|error| error.to_string())?)?;
        }
        Ok(())
    }

    fn post(&self, model: &Arc<super::service::Model>, loads: &Loads) -> Result<(), String> {
        loop {
            let feed = self.service.feed_for(model, loads).map_err(|error| error.to_string())?;
            let (send, receive) = oneshot::channel();
            feed.accept(loads, send);
            match receive.blocking_recv().map_err(|_| "the service is ending".to_owned())? {
                // What is forgotten was taken long ago.
                Ok(_) | Err(Refusal::Forgotten { .. }) => return Ok(()),
                Err(refusal @ (Refusal::Behind { .. } | Refusal::Storing(_) | Refusal::Store(_))) => {
                    self.complain(Part::Content, &refusal.to_string());
                }
                Err(refusal) => return Err(refusal.to_string()),
            }
            if !matches!(
                self.stopped.recv_timeout(Duration::from_secs(1)),
                Err(mpsc::RecvTimeoutError::Timeout)
            ) {
                return Err("the service is ending".into());
            }
        }
    }
}
