//! Fetched loads: a growing trace file, a folder of dumps, an SGLang server's recorder.
//!
//! One thread per source looks at its path periodically, and passes new steps to the model as if they had
//! been posted. Step numbers stay the same after a restart of the service, so that no step counts twice.

mod folder;
mod lines;
mod sglang;
mod status;
mod tail;

use crate::config::{ServiceConfig, SourceConfig};
use crate::runtime::service::Service;
use crate::runtime::worker::LoadsOrigin;
use crate::wire::receipt::Refusal;
use crate::{Loads, LogCallback, MAX_POSTED_STEPS, StepLoads};
use evenkeel::trace::{Trace, TraceError};
use folder::DumpFolder;
use sglang::SglangRecorder;
use status::SourcePart;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tail::TailedFile;
use tokio::sync::oneshot;

pub(crate) use status::SourceMonitor;

/// The bytes of counts in one post.
const POST_BYTES: usize = 32 << 20;

/// The number of skipped lines of one look that are logged.
const MAX_LOGGED: usize = 20;
/// The time that a source's thread may take to end. A thread that waits for a hanging file is abandoned.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// The threads of all sources. Their drop ends them.
#[derive(Debug)]
pub(crate) struct SourceThreads {
    stops: Vec<mpsc::Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for SourceThreads {
    fn drop(&mut self) {
        self.stops.clear();
        let begun = Instant::now();
        for thread in self.threads.drain(..) {
            while !thread.is_finished() && begun.elapsed() < STOP_TIMEOUT {
                std::thread::sleep(Duration::from_millis(5));
            }
            if thread.is_finished() {
                let _ = thread.join();
            }
        }
    }
}

/// Starts the configured sources.
pub(crate) fn start_sources(
    service: &Arc<Service>,
    config: &ServiceConfig,
    log: &LogCallback,
) -> SourceThreads {
    let mut running = SourceThreads { stops: vec![], threads: vec![] };
    for source in &config.source {
        let (stop, stopped) = mpsc::channel();
        let status = Arc::new(SourceMonitor::new(source));
        service.add_source(status.clone());
        let watch = SourceWatcher {
            service: service.clone(),
            source: source.clone(),
            log: log.clone(),
            stopped,
            status,
        };
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

/// New steps at a path: their trace, their numbers, and their run.
#[derive(Debug)]
struct SourceSteps {
    trace: Trace,
    /// The numbers of the trace's steps.
    ids: Vec<u64>,
    /// The id of the run to which they belong.
    run: String,
}

/// One running source.
struct SourceWatcher {
    service: Arc<Service>,
    source: SourceConfig,
    log: LogCallback,
    stopped: mpsc::Receiver<()>,
    status: Arc<SourceMonitor>,
}

impl SourceWatcher {
    fn run(self) {
        let mut recorder =
            self.source.sglang.clone().map(|url| SglangRecorder::new(&url, self.source.dump_seconds));
        let (mut folder, mut growing) = (DumpFolder::default(), TailedFile::default());
        let pause = Duration::from_secs_f64(self.source.poll_seconds);
        while matches!(self.stopped.recv_timeout(pause), Err(mpsc::RecvTimeoutError::Timeout)) {
            match recorder.as_mut().map(SglangRecorder::send_due_request) {
                Some(Ok(true)) => self.status.clear_failure(SourcePart::Recorder),
                Some(Err(error)) => self.report_error(SourcePart::Recorder, &error),
                Some(Ok(false)) | None => {}
            }
            let path = &self.source.path;
            let looked = std::fs::metadata(path).and_then(|meta| {
                if meta.is_dir() {
                    return folder.read_new(path);
                }
                Ok(match growing.read_new(path, self.current_run().as_deref()) {
                    Ok(look) => {
                        self.report_skipped(&look.skipped);
                        if look.found.is_empty() {
                            self.status.clear_failure(SourcePart::Content);
                        }
                        look.found.into_iter().map(Ok).collect()
                    }
                    Err(error) => vec![Err(error)],
                })
            });
            let all = match looked {
                Ok(all) => all,
                Err(error) => {
                    self.report_error(SourcePart::Path, &error.to_string());
                    continue;
                }
            };
            self.status.clear_failure(SourcePart::Path);
            for found in all {
                match found
                    .map_err(|error: TraceError| evenkeel::error_chain(&error))
                    .and_then(|found| self.post_steps(&found))
                {
                    Ok(()) => self.status.clear_failure(SourcePart::Content),
                    Err(error) => self.report_error(SourcePart::Content, &error),
                }
            }
        }
    }

    /// Returns the id of the run that the service knows for this source.
    fn current_run(&self) -> Option<String> {
        self.service.model(&self.source.model)?.worker(self.source.phase)?.current_run()?.id
    }

    /// Counts and logs skipped lines.
    fn report_skipped(&self, skipped: &[(u64, String)]) {
        let name = format!("source {} of {}", self.source.path.display(), self.source.model);
        for (line, what) in skipped.iter().take(MAX_LOGGED) {
            (self.log)(&format!("{name}: line {line} is skipped: {what}"));
        }
        if let Some(more) = skipped.len().checked_sub(MAX_LOGGED).filter(|&more| more > 0) {
            (self.log)(&format!("{name}: {more} more lines are skipped"));
        }
        self.status.record_skipped(skipped);
    }

    /// Counts an error, and logs it if it differs from the last one.
    fn report_error(&self, part: SourcePart, what: &str) {
        if self.status.record_failure(part, what) {
            (self.log)(&format!("source {} of {}: {what}", self.source.path.display(), self.source.model));
        }
    }

    /// Posts new steps, and waits until they are stored.
    fn post_steps(&self, found: &SourceSteps) -> Result<(), String> {
        let model = self.service.model(&self.source.model).ok_or("the model was deleted")?;
        // A part of a file may lack layers and experts without tokens, so use the layers and experts of
        // earlier parts.
        let known = model.worker(self.source.phase).map(|worker| {
            let state = worker.state();
            (state.layers().to_vec(), state.experts())
        });
        let expected = model.shape.parsed_model().ok().flatten().map(|model| model.experts);
        let (layers, experts) = known.unwrap_or_else(|| {
            let seen = found.trace.experts();
            (found.trace.layers().to_vec(), expected.unwrap_or(seen).max(seen))
        });
        let trace = &found.trace;
        let mut rows = Vec::with_capacity(trace.layers().len());
        for layer in trace.layers() {
            let at = layers
                .binary_search(layer)
                .map_err(|_| format!("layer {layer} is new, expected the layers of earlier steps"))?;
            rows.push(at);
        }
        if trace.experts() > experts {
            return Err(format!("expert {}, expected numbers below {experts}", trace.experts() - 1));
        }
        let most = (POST_BYTES / (4 * layers.len() * experts)).clamp(1, MAX_POSTED_STEPS);
        let mut steps = Vec::new();
        for (at, &id) in found.ids.iter().enumerate() {
            let mut counts = vec![0u32; layers.len() * experts];
            for (index, &row) in rows.iter().enumerate() {
                for (count, &load) in counts[row * experts..].iter_mut().zip(trace.loads(at, index)) {
                    *count = u32::try_from(load)
                        .map_err(|_| format!("step {id}: {load} tokens, expected fewer than 2^32"))?;
                }
            }
            // Dumps of ring buffers include their unused rows.
            if counts.iter().any(|&count| count > 0) {
                steps.push(StepLoads { id, counts: counts.into() });
            }
        }
        for steps in steps.chunks(most) {
            let loads =
                Loads { phase: self.source.phase, layers: layers.clone(), experts, steps: steps.to_vec() };
            self.post_until_stored(
                &model,
                &loads.validate().map_err(|error| error.to_string())?,
                &found.run,
            )?;
        }
        Ok(())
    }

    fn post_until_stored(
        &self,
        model: &Arc<crate::runtime::service::ServedModel>,
        loads: &Loads,
        run: &str,
    ) -> Result<(), String> {
        loop {
            let worker = self.service.worker_for(model, loads).map_err(|error| error.to_string())?;
            let (send, receive) = oneshot::channel();
            worker.accept_loads(loads, LoadsOrigin::Source(run), send);
            match receive.blocking_recv().map_err(|_| "the service is ending".to_owned())? {
                // Forgotten steps were accepted long ago.
                Ok(_) | Err(Refusal::Forgotten { .. }) => return Ok(()),
                Err(refusal @ (Refusal::TooFarBehind { .. } | Refusal::Storing(_) | Refusal::Store(_))) => {
                    self.report_error(SourcePart::Content, &refusal.to_string());
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
