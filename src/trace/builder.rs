//! Construction of a [`Trace`] from rows in any order, in bounded memory.
//!
//! In: a reader's rows through [`Sink`]. Out: [`TraceBuilder::finish`].
//!
//! The builder holds the totals and one dense array `[layer][expert]` per step. When the held steps would
//! exceed the allowed memory, it keeps only every 2nd, 4th, 8th .. step by first appearance. The totals still
//! count everything. Beyond that, memory grows by 8 bytes per distinct step. If steps do not come in
//! ascending order, each costs an entry of a hash table instead.

use super::audit::RowAudit;
use super::error::SinkError;
use super::options::{LayerSet, ReadOptions};
use super::sink::{Sink, StepLabel};
use super::step_index::StepIndex;
use super::{MAX_EXPERTS, MAX_LAYERS, MAX_STEPS, SourceFile, Trace, TraceError, TraceFormat};

/// Approximate bytes of a held step in addition to its counts.
const STEP_OVERHEAD: u64 = 96;
/// Mark in the table of layer ids: no row yet.
const LAYER_UNSEEN: u16 = u16::MAX;
/// Mark in the table of layer ids: excluded by the filter.
const LAYER_SKIPPED: u16 = u16::MAX - 1;

/// Counts of one step under construction.
#[derive(Debug)]
struct HeldStep {
    /// Index of the step's source. [`Sink::begin_source`] begins the next one.
    source: u32,
    /// Order of first appearance.
    ordinal: u32,
    name: StepName,
    layers: usize,
    stride: usize,
    /// `[layer][stride]`, layers in order of appearance.
    loads: Vec<u64>,
}

#[derive(Debug, PartialEq, Eq)]
enum StepName {
    Number(u64),
    Text(Box<str>),
}

impl HeldStep {
    /// Changes the layout of the counts to the given number of layers and experts.
    fn resize_counts(&mut self, layers: usize, stride: usize) {
        let mut loads = vec![0; layers * stride];
        let width = self.stride.min(stride);
        for layer in 0..self.layers.min(layers) {
            loads[layer * stride..layer * stride + width]
                .copy_from_slice(&self.loads[layer * self.stride..layer * self.stride + width]);
        }
        (self.loads, self.layers, self.stride) = (loads, layers, stride);
    }
}

/// Sink that holds a trace in memory.
#[derive(Debug)]
pub struct TraceBuilder {
    filter: Option<LayerSet>,
    memory: u64,
    /// Number of experts stated by the options or a file.
    declared: Option<usize>,
    /// Highest expert id so far + 1.
    experts: usize,
    /// Index of each layer id, or `LAYER_UNSEEN` or `LAYER_SKIPPED`.
    layer_table: Vec<u16>,
    /// Ids by order of appearance.
    layers: Vec<u32>,
    /// `[layer][expert]`, with rows of different lengths.
    totals: Vec<Vec<u64>>,
    /// Sum of all tokens. Every other sum fits 64 bits while this one does.
    token_sum: u64,
    held: Vec<HeldStep>,
    held_bytes: u64,
    /// Distance of held steps: one of `every` steps is held.
    step_stride: u32,
    /// Distinct steps so far.
    distinct_steps: u32,
    source: u32,
    /// Per source: true if a label that is no number occurred.
    has_text_labels: Vec<bool>,
    index: StepIndex,
    audit: RowAudit,
    notices: Vec<String>,
    // State of the current row: step in `held`, layer, and offset of the layer in the loads.
    current: Option<usize>,
    step_set: bool,
    layer_id: u32,
    layer: usize,
    base: usize,
    row_experts: usize,
}

impl TraceBuilder {
    /// Creates an empty trace.
    ///
    /// # Errors
    /// Fails if the options state a number of experts out of range.
    pub fn new(options: &ReadOptions) -> Result<Self, TraceError> {
        if let Some(experts) = options.experts
            && !(1..=MAX_EXPERTS).contains(&experts)
        {
            return Err(TraceError::Options(format!("--experts {experts}: expected 1 to {MAX_EXPERTS}")));
        }
        Ok(Self {
            filter: options.layers.clone(),
            memory: options.memory,
            declared: options.experts,
            experts: 0,
            layer_table: vec![LAYER_UNSEEN; MAX_LAYERS],
            layers: Vec::new(),
            totals: Vec::new(),
            token_sum: 0,
            held: Vec::new(),
            held_bytes: 0,
            step_stride: 1,
            distinct_steps: 0,
            source: 0,
            has_text_labels: vec![false],
            index: StepIndex::default(),
            audit: RowAudit::default(),
            notices: Vec::new(),
            current: None,
            step_set: false,
            layer_id: u32::MAX,
            layer: 0,
            base: 0,
            row_experts: 0,
        })
    }

    /// Makes a layer current and creates its index if it has none. Returns false if the filter excludes it.
    fn enter_layer(&mut self, layer: u32) -> Result<bool, SinkError> {
        let Some(&mark) = self.layer_table.get(layer as usize) else {
            return Err(SinkError::LayerLimit(u64::from(layer)));
        };
        let index = match mark {
            LAYER_SKIPPED => {
                self.layer_id = u32::MAX;
                return Ok(false);
            }
            LAYER_UNSEEN => {
                if self.filter.as_ref().is_some_and(|filter| !filter.contains(layer)) {
                    self.layer_table[layer as usize] = LAYER_SKIPPED;
                    self.layer_id = u32::MAX;
                    return Ok(false);
                }
                let index = self.layers.len();
                self.layer_table[layer as usize] = index as u16;
                self.layers.push(layer);
                self.totals.push(Vec::new());
                index
            }
            index => index as usize,
        };
        self.layer_id = layer;
        self.layer = index;
        self.reserve_counts()?;
        Ok(true)
    }

    /// Allocates room for the current layer and all known experts in the current step.
    fn reserve_counts(&mut self) -> Result<(), SinkError> {
        self.fit_memory()?;
        let experts = self.experts;
        if self.totals[self.layer].len() < experts {
            self.totals[self.layer].resize(experts, 0);
        }
        if let Some(at) = self.current {
            let layers = self.layers.len();
            let step = &mut self.held[at];
            if self.layer >= step.layers || experts > step.stride {
                let before = step.loads.len();
                // Doubling limits the number of copies: the first step meets its experts one by one.
                let stride = if experts > step.stride {
                    experts.max(step.stride * 2).min(MAX_EXPERTS)
                } else {
                    step.stride
                };
                let room = if layers > step.layers {
                    layers.max(step.layers * 2).min(MAX_LAYERS)
                } else {
                    step.layers
                };
                // Doubling alone must not exceed the allowed memory.
                let doubled = (room * stride * 8) as u64;
                let (room, stride) = if doubled > self.memory {
                    (layers.max(step.layers), experts.max(step.stride))
                } else {
                    (room, stride)
                };
                step.resize_counts(room, stride);
                self.held_bytes += ((step.loads.len() - before) * 8) as u64;
            }
            self.base = self.layer * step.stride;
        }
        self.row_experts = experts;
        Ok(())
    }

    /// Drops held steps until the rest fits the allowed memory.
    fn fit_memory(&mut self) -> Result<(), SinkError> {
        let shape = (self.layers.len() * self.experts * 8) as u64;
        if shape > self.memory {
            return Err(SinkError::StepTooLarge {
                layers: self.layers.len(),
                experts: self.experts,
                memory: self.memory,
            });
        }
        while self.held.len() > 1
            && self.held_bytes.max(self.held.len() as u64 * shape) + self.held.len() as u64 * STEP_OVERHEAD
                > self.memory
        {
            self.step_stride *= 2;
            let (every, current) = (self.step_stride, self.current.map(|at| self.held[at].ordinal));
            self.held.retain(|step| step.ordinal % every == 0);
            self.held_bytes = self.held.iter().map(|step| step.loads.len() as u64 * 8).sum();
            self.current =
                current.filter(|ordinal| ordinal % every == 0).map(|ordinal| (ordinal / every) as usize);
        }
        Ok(())
    }

    /// Extends the known experts to include `expert`.
    #[cold]
    fn extend_experts(&mut self, expert: usize) -> Result<(), SinkError> {
        if expert >= self.experts {
            match self.declared {
                Some(experts) if expert >= experts => {
                    return Err(SinkError::ExpertRange { expert: expert as u64, experts });
                }
                _ if expert >= MAX_EXPERTS => return Err(SinkError::ExpertLimit(expert as u64)),
                _ => self.experts = expert + 1,
            }
        }
        self.reserve_counts()
    }

    /// Orders steps and layers, adds the notices and returns the trace.
    ///
    /// # Errors
    /// Fails if there were no rows, if layers differ in their number of experts, or if one step exceeds the
    /// allowed memory.
    pub fn finish(mut self, formats: Vec<TraceFormat>, files: Vec<SourceFile>) -> Result<Trace, TraceError> {
        if self.layers.is_empty() {
            let path = files.first().map(|file| file.path.clone()).unwrap_or_default();
            return Err(match self.filter {
                Some(filter) if self.layer_table.contains(&LAYER_SKIPPED) => {
                    let ids: Vec<u32> = (0..)
                        .zip(&self.layer_table)
                        .filter(|(_, mark)| **mark == LAYER_SKIPPED)
                        .map(|(id, _)| id)
                        .collect();
                    TraceError::Options(format!(
                        "{}: no layer is in --layers {filter}, the trace has layers {}",
                        path.display(),
                        super::id_list(&ids)
                    ))
                }
                _ => super::error::invalid_content(
                    &path,
                    super::Location::File,
                    "no rows",
                    "at least one count of a layer and expert",
                ),
            });
        }
        let experts = self.declared.unwrap_or(self.experts);
        self.notices.extend(self.audit.remarks());
        if self.declared.is_none() {
            self.check_layer_widths(&files)?;
            self.notices
                .push(format!("{experts} experts, inferred from the highest id; --experts states it"));
        }
        self.experts = experts;
        self.fit_memory().map_err(|fault| {
            fault.into_trace_error(
                &files.first().map(|file| file.path.clone()).unwrap_or_default(),
                super::Location::File,
            )
        })?;
        if self.step_stride > 1 {
            self.notices.push(format!(
                "kept 1 of {} steps to stay within {} MiB; totals cover all {} steps",
                self.step_stride,
                self.memory >> 20,
                self.distinct_steps
            ));
        }

        let mut order: Vec<usize> = (0..self.layers.len()).collect();
        order.sort_by_key(|&layer| self.layers[layer]);
        let layers: Vec<u32> = order.iter().map(|&layer| self.layers[layer]).collect();
        let mut totals = Vec::with_capacity(layers.len() * experts);
        for &layer in &order {
            self.totals[layer].resize(experts, 0);
            totals.extend_from_slice(&self.totals[layer]);
        }

        let texts = &self.has_text_labels;
        self.held.sort_by_key(|step| {
            let number = match step.name {
                StepName::Number(number) if !texts[step.source as usize] => number,
                _ => 0,
            };
            (step.source, number, step.ordinal)
        });
        let sorted = order.iter().enumerate().all(|(at, &layer)| at == layer);
        let mut steps = Vec::with_capacity(self.held.len());
        let mut loads = Vec::with_capacity(self.held.len());
        for mut step in self.held {
            if step.layers != layers.len() || step.stride != experts {
                step.resize_counts(layers.len(), experts);
            }
            loads.push(if sorted {
                step.loads
            } else {
                order
                    .iter()
                    .flat_map(|&layer| &step.loads[layer * experts..(layer + 1) * experts])
                    .copied()
                    .collect()
            });
            steps.push(match step.name {
                StepName::Number(number) => number.to_string(),
                StepName::Text(text) => text.into(),
            });
        }
        let notices = self.notices;
        let mut trace =
            Trace { experts, layers, steps, loads, totals, notices, files, formats, resampling: None };
        trace.note_idle_layers();
        Ok(trace)
    }
}

impl TraceBuilder {
    /// Refuses layers with fewer experts than others, if the rows prove it.
    fn check_layer_widths(&mut self, files: &[SourceFile]) -> Result<(), TraceError> {
        if let Some(narrower) = self.audit.find_narrow_layer() {
            let path = files.first().map(|file| file.path.clone()).unwrap_or_default();
            return Err(super::error::invalid_content(
                &path,
                super::Location::Key(format!("layer {}", self.layers[narrower.layer])),
                format!("{} experts, a row for each in every step", narrower.experts),
                format!(
                    "{} experts, as in other layers; --layers LIST reads the layers of one width, --experts {} takes \
                     the others as idle",
                    self.experts, self.experts
                ),
            ));
        }
        let (mut layers, most) = self.audit.layers_without_rows();
        layers.iter_mut().for_each(|layer| *layer = self.layers[*layer] as usize);
        layers.sort_unstable();
        if !layers.is_empty() {
            let ids: Vec<u32> = layers.iter().map(|&layer| layer as u32).collect();
            self.notices.push(format!(
                "layers {} have no rows of the highest experts: these are idle, because other layers have {most} experts",
                super::id_list(&ids)
            ));
        }
        Ok(())
    }
}

impl Sink for TraceBuilder {
    fn announce_sources(&mut self) {
        self.audit.expect_sources();
    }

    fn begin_source(&mut self) {
        if self.step_set {
            self.source += 1;
            self.has_text_labels.push(false);
            self.index = StepIndex::default();
        }
        self.step_set = false;
        self.current = None;
        self.layer_id = u32::MAX;
    }

    fn select_step(&mut self, label: StepLabel<'_>) -> Result<(), SinkError> {
        let (ordinal, new) = self.index.find_or_insert(label, self.distinct_steps);
        if new {
            if u64::from(self.distinct_steps) >= MAX_STEPS {
                return Err(SinkError::StepLimit);
            }
            self.distinct_steps += 1;
            if matches!(label, StepLabel::Text(_)) {
                self.has_text_labels[self.source as usize] = true;
            }
        }
        self.step_set = true;
        self.layer_id = u32::MAX;
        self.audit.start_step(ordinal);
        self.current =
            ordinal.is_multiple_of(self.step_stride).then_some((ordinal / self.step_stride) as usize);
        if new && self.current.is_some() {
            let (layers, stride) = (self.layers.len(), self.experts);
            let name = match label {
                StepLabel::Number(number) => StepName::Number(number),
                StepLabel::Text(text) => StepName::Text(text.into()),
            };
            let loads = vec![0; layers * stride];
            self.held_bytes += loads.len() as u64 * 8;
            self.held.push(HeldStep { source: self.source, ordinal, name, layers, stride, loads });
            self.fit_memory()?;
        }
        Ok(())
    }

    fn add_row(&mut self, layer: u32, expert: u32, tokens: u64, _source: &[u8]) -> Result<(), SinkError> {
        if layer != self.layer_id && !self.enter_layer(layer)? {
            return Ok(());
        }
        let expert = expert as usize;
        if expert >= self.row_experts {
            self.extend_experts(expert)?;
        }
        self.token_sum = self.token_sum.checked_add(tokens).ok_or(SinkError::Overflow)?;
        self.totals[self.layer][expert] += tokens;
        self.audit.count_row(self.layer, expert, tokens);
        if let Some(at) = self.current {
            let load = &mut self.held[at].loads[self.base + expert];
            if *load > 0 && tokens > 0 {
                self.audit.count_repetition();
            }
            *load += tokens;
        }
        Ok(())
    }

    fn add_counts(&mut self, layer: u32, counts: &[u64]) -> Result<(), SinkError> {
        if counts.is_empty() || !self.enter_layer(layer)? {
            return Ok(());
        }
        self.audit.expect_all_counts();
        if counts.len() > self.row_experts {
            self.extend_experts(counts.len() - 1)?;
        }
        for &tokens in counts {
            self.token_sum = self.token_sum.checked_add(tokens).ok_or(SinkError::Overflow)?;
        }
        for (total, tokens) in self.totals[self.layer].iter_mut().zip(counts) {
            *total += tokens;
        }
        if let Some(at) = self.current {
            for (load, tokens) in self.held[at].loads[self.base..].iter_mut().zip(counts) {
                *load += tokens;
            }
        }
        Ok(())
    }

    fn declare_experts(&mut self, experts: usize) -> Result<(), SinkError> {
        match self.declared {
            Some(before) if before != experts => Err(SinkError::ExpertsDiffer { found: experts, before }),
            _ if experts > MAX_EXPERTS => Err(SinkError::ExpertLimit(experts as u64 - 1)),
            // The reader reports an empty layer. Declaring zero here would be reported as "0 experts".
            _ if experts == 0 => Ok(()),
            _ => {
                if experts < self.experts {
                    return Err(SinkError::ExpertsDiffer { found: experts, before: self.experts });
                }
                self.declared = Some(experts);
                Ok(())
            }
        }
    }

    fn add_notice(&mut self, text: String) {
        if !self.notices.contains(&text) {
            self.notices.push(text);
        }
    }
}
