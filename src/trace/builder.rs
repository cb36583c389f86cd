//! Builds a [`Trace`] from rows in any order, in bounded memory.
//!
//! In: a reader's rows through [`Sink`]. Out: [`Builder::finish`]. Held are one dense array
//! `[layer][expert]` per step and the totals; when the held steps would outgrow the memory
//! allowed, only every 2nd, 4th, 8th ... step (by first appearance) stays, the totals go on
//! counting everything. What grows with the file beyond that are 8 bytes per distinct step,
//! or a hash-table entry each where the steps do not come in ascending order.

use super::error::Fault;
use super::options::{LayerSet, ReadOptions};
use super::sink::{Label, Sink};
use super::step_index::StepIndex;
use super::{Format, MAX_EXPERTS, MAX_LAYERS, MAX_STEPS, SourceFile, Trace, TraceError};

/// Bytes a held step costs beside its counts, roughly.
const STEP_OVERHEAD: u64 = 96;
/// Mark in the table of layer ids: not seen yet.
const UNSEEN: u16 = u16::MAX;
/// Mark in the table of layer ids: not asked for.
const SKIPPED: u16 = u16::MAX - 1;

/// One step as it grows.
#[derive(Debug)]
struct Held {
    /// Which call of [`Sink::begin`] it came after.
    source: u32,
    /// Order of first appearance.
    ordinal: u32,
    name: Name,
    layers: usize,
    stride: usize,
    /// `[layer][stride]`, layers in order of appearance.
    loads: Vec<u64>,
}

#[derive(Debug, PartialEq, Eq)]
enum Name {
    Number(u64),
    Text(Box<str>),
}

impl Held {
    /// Re-lays the counts for more layers or experts, or exactly as many.
    fn reshape(&mut self, layers: usize, stride: usize) {
        let mut loads = vec![0; layers * stride];
        let width = self.stride.min(stride);
        for layer in 0..self.layers.min(layers) {
            loads[layer * stride..layer * stride + width]
                .copy_from_slice(&self.loads[layer * self.stride..layer * self.stride + width]);
        }
        (self.loads, self.layers, self.stride) = (loads, layers, stride);
    }
}

/// A trace in the making.
#[derive(Debug)]
pub(crate) struct Builder {
    filter: Option<LayerSet>,
    memory: u64,
    /// Experts as stated by options or a file.
    declared: Option<usize>,
    /// Highest expert seen + 1.
    experts: usize,
    /// Layer id to index, `UNSEEN` or `SKIPPED`.
    layer_table: Vec<u16>,
    /// Ids by order of appearance.
    layers: Vec<u32>,
    /// `[layer][expert]`, rows as long as they had to be.
    totals: Vec<Vec<u64>>,
    /// All tokens: as long as this fits, every other sum does.
    grand: u64,
    held: Vec<Held>,
    held_bytes: u64,
    /// Every how many steps one is held.
    every: u32,
    /// Distinct steps so far.
    seen: u32,
    source: u32,
    /// Per source: did a label that is not a number occur?
    texts: Vec<bool>,
    index: StepIndex,
    notices: Vec<String>,
    // The row being filled: current step (ordinal and place in `held`), layer, where in the loads.
    current: Option<usize>,
    step_set: bool,
    layer_id: u32,
    layer: usize,
    base: usize,
    reach: usize,
}

impl Builder {
    pub(crate) fn new(options: &ReadOptions) -> Result<Self, TraceError> {
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
            layer_table: vec![UNSEEN; MAX_LAYERS],
            layers: Vec::new(),
            totals: Vec::new(),
            grand: 0,
            held: Vec::new(),
            held_bytes: 0,
            every: 1,
            seen: 0,
            source: 0,
            texts: vec![false],
            index: StepIndex::default(),
            notices: Vec::new(),
            current: None,
            step_set: false,
            layer_id: u32::MAX,
            layer: 0,
            base: 0,
            reach: 0,
        })
    }

    /// Enters a layer: finds its index or makes one.
    fn enter(&mut self, layer: u32) -> Result<bool, Fault> {
        let Some(&mark) = self.layer_table.get(layer as usize) else {
            return Err(Fault::LayerLimit(u64::from(layer)));
        };
        let index = match mark {
            SKIPPED => {
                self.layer_id = u32::MAX;
                return Ok(false);
            }
            UNSEEN => {
                if self.filter.as_ref().is_some_and(|filter| !filter.contains(layer)) {
                    self.layer_table[layer as usize] = SKIPPED;
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
        self.seat()?;
        Ok(true)
    }

    /// Makes room for the current layer and all known experts in the current step.
    fn seat(&mut self) -> Result<(), Fault> {
        self.fit()?;
        let experts = self.experts;
        if self.totals[self.layer].len() < experts {
            self.totals[self.layer].resize(experts, 0);
        }
        if let Some(at) = self.current {
            let layers = self.layers.len();
            let step = &mut self.held[at];
            if self.layer >= step.layers || experts > step.stride {
                let before = step.loads.len();
                // Grow in doublings: the first step meets its experts one by one.
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
                // ... but not where doubling alone would break the budget.
                let doubled = (room * stride * 8) as u64;
                let (room, stride) = if doubled > self.memory {
                    (layers.max(step.layers), experts.max(step.stride))
                } else {
                    (room, stride)
                };
                step.reshape(room, stride);
                self.held_bytes += ((step.loads.len() - before) * 8) as u64;
            }
            self.base = self.layer * step.stride;
        }
        self.reach = experts;
        Ok(())
    }

    /// Thins until the held steps fit the memory allowed.
    fn fit(&mut self) -> Result<(), Fault> {
        let shape = (self.layers.len() * self.experts * 8) as u64;
        if shape > self.memory {
            return Err(Fault::StepTooLarge {
                layers: self.layers.len(),
                experts: self.experts,
                memory: self.memory,
            });
        }
        while self.held.len() > 1
            && self.held_bytes.max(self.held.len() as u64 * shape) + self.held.len() as u64 * STEP_OVERHEAD
                > self.memory
        {
            self.every *= 2;
            let (every, current) = (self.every, self.current.map(|at| self.held[at].ordinal));
            self.held.retain(|step| step.ordinal % every == 0);
            self.held_bytes = self.held.iter().map(|step| step.loads.len() as u64 * 8).sum();
            self.current =
                current.filter(|ordinal| ordinal % every == 0).map(|ordinal| (ordinal / every) as usize);
        }
        Ok(())
    }

    /// Meets an expert id beyond those known.
    #[cold]
    fn reach(&mut self, expert: usize) -> Result<(), Fault> {
        if expert >= self.experts {
            match self.declared {
                Some(experts) if expert >= experts => {
                    return Err(Fault::ExpertRange { expert: expert as u64, experts });
                }
                _ if expert >= MAX_EXPERTS => return Err(Fault::ExpertLimit(expert as u64)),
                _ => self.experts = expert + 1,
            }
        }
        self.seat()
    }

    /// Orders steps and layers, and says what has to be said.
    pub(crate) fn finish(
        mut self,
        formats: Vec<Format>,
        files: Vec<SourceFile>,
    ) -> Result<Trace, TraceError> {
        if self.layers.is_empty() {
            let path = files.first().map(|file| file.path.clone()).unwrap_or_default();
            return Err(match self.filter {
                Some(filter) if self.layer_table.contains(&SKIPPED) => {
                    let ids: Vec<u32> = (0..)
                        .zip(&self.layer_table)
                        .filter(|(_, mark)| **mark == SKIPPED)
                        .map(|(id, _)| id)
                        .collect();
                    TraceError::Options(format!(
                        "{}: no layer is in --layers {filter}, the trace has layers {}",
                        path.display(),
                        super::id_list(&ids)
                    ))
                }
                _ => super::error::invalid(
                    &path,
                    super::Place::File,
                    "no rows",
                    "at least one count of a layer and expert",
                ),
            });
        }
        let experts = self.declared.unwrap_or(self.experts);
        if self.declared.is_none() {
            self.notices
                .push(format!("{experts} experts, inferred from the highest id; --experts states it"));
        }
        self.experts = experts;
        self.fit().map_err(|fault| {
            fault.at(&files.first().map(|file| file.path.clone()).unwrap_or_default(), super::Place::File)
        })?;
        if self.every > 1 {
            self.notices.push(format!(
                "kept 1 of {} steps to stay within {} MiB; totals cover all {} steps",
                self.every,
                self.memory >> 20,
                self.seen
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

        let texts = &self.texts;
        self.held.sort_by_key(|step| {
            let number = match step.name {
                Name::Number(number) if !texts[step.source as usize] => number,
                _ => 0,
            };
            (step.source, number, step.ordinal)
        });
        let sorted = order.iter().enumerate().all(|(at, &layer)| at == layer);
        let mut steps = Vec::with_capacity(self.held.len());
        let mut loads = Vec::with_capacity(self.held.len());
        for mut step in self.held {
            if step.layers != layers.len() || step.stride != experts {
                step.reshape(layers.len(), experts);
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
                Name::Number(number) => number.to_string(),
                Name::Text(text) => text.into(),
            });
        }
        let notices = self.notices;
        let mut trace =
            Trace { experts, layers, steps, loads, totals, notices, files, formats, resampling: None };
        trace.note_idle();
        Ok(trace)
    }
}

impl Sink for Builder {
    fn begin(&mut self) {
        if self.step_set {
            self.source += 1;
            self.texts.push(false);
            self.index = StepIndex::default();
        }
        self.step_set = false;
        self.current = None;
        self.layer_id = u32::MAX;
    }

    fn step(&mut self, label: Label<'_>) -> Result<(), Fault> {
        let (ordinal, new) = self.index.find(label, self.seen);
        if new {
            if u64::from(self.seen) >= MAX_STEPS {
                return Err(Fault::StepLimit);
            }
            self.seen += 1;
            if matches!(label, Label::Text(_)) {
                self.texts[self.source as usize] = true;
            }
        }
        self.step_set = true;
        self.layer_id = u32::MAX;
        self.current = ordinal.is_multiple_of(self.every).then_some((ordinal / self.every) as usize);
        if new && self.current.is_some() {
            let (layers, stride) = (self.layers.len(), self.experts);
            let name = match label {
                Label::Number(number) => Name::Number(number),
                Label::Text(text) => Name::Text(text.into()),
            };
            let loads = vec![0; layers * stride];
            self.held_bytes += loads.len() as u64 * 8;
            self.held.push(Held { source: self.source, ordinal, name, layers, stride, loads });
            self.fit()?;
        }
        Ok(())
    }

    fn row(&mut self, layer: u32, expert: u32, tokens: u64, _source: &[u8]) -> Result<(), Fault> {
        if layer != self.layer_id && !self.enter(layer)? {
            return Ok(());
        }
        let expert = expert as usize;
        if expert >= self.reach {
            self.reach(expert)?;
        }
        self.grand = self.grand.checked_add(tokens).ok_or(Fault::Overflow)?;
        self.totals[self.layer][expert] += tokens;
        if let Some(at) = self.current {
            self.held[at].loads[self.base + expert] += tokens;
        }
        Ok(())
    }

    fn counts(&mut self, layer: u32, counts: &[u64]) -> Result<(), Fault> {
        if counts.is_empty() || !self.enter(layer)? {
            return Ok(());
        }
        if counts.len() > self.reach {
            self.reach(counts.len() - 1)?;
        }
        for &tokens in counts {
            self.grand = self.grand.checked_add(tokens).ok_or(Fault::Overflow)?;
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

    fn experts(&mut self, experts: usize) -> Result<(), Fault> {
        match self.declared {
            Some(before) if before != experts => Err(Fault::ExpertsDiffer { found: experts, before }),
            _ if experts > MAX_EXPERTS => Err(Fault::ExpertLimit(experts as u64 - 1)),
            // An empty layer is for the reader to report; stating zero would read as "0 experts".
            _ if experts == 0 => Ok(()),
            _ => {
                if experts < self.experts {
                    return Err(Fault::ExpertsDiffer { found: experts, before: self.experts });
                }
                self.declared = Some(experts);
                Ok(())
            }
        }
    }

    fn notice(&mut self, text: String) {
        if !self.notices.contains(&text) {
            self.notices.push(text);
        }
    }
}
