//! Signs that a long table is misread.
//!
//! In: the rows in file order, without their tokens. Out: layers with fewer experts than others, which is an
//! error, and remarks. The remarks name rows that repeat others, and a last step that is cut short. A table
//! may leave out zeros. A missing row then looks like an idle expert.

/// Number of steps after which an expert without any row is taken not to exist.
const MIN_STEPS_OBSERVED: u64 = 3;

/// Statistics of the rows read so far.
#[derive(Debug, Default)]
pub(crate) struct RowAudit {
    /// Rows and highest expert + 1, per layer in order of appearance.
    layers: Vec<(u64, usize)>,
    /// True if some rows hold no tokens, so that the table states zeros.
    zeros: bool,
    /// Rows per step in order of appearance.
    steps: Vec<u32>,
    step: usize,
    /// Rows for a step, layer and expert that already had tokens.
    repeated: u64,
    /// True if rows state the source of their tokens, so that several rows per expert are normal.
    sources: bool,
    /// True if the file states counts for all experts of a layer at once.
    whole: bool,
}

/// Layer that has fewer experts than another.
pub(crate) struct NarrowLayer {
    /// Index of the layer, and its number of experts.
    pub(crate) layer: usize,
    pub(crate) experts: usize,
}

impl RowAudit {
    pub(crate) fn expect_sources(&mut self) {
        self.sources = true;
    }

    /// Notes that layers are complete, so that the audit has nothing to find.
    pub(crate) fn expect_all_counts(&mut self) {
        self.whole = true;
    }

    pub(crate) fn start_step(&mut self, ordinal: u32) {
        self.step = ordinal as usize;
        if self.steps.len() <= self.step {
            self.steps.resize(self.step + 1, 0);
        }
    }

    #[inline]
    pub(crate) fn count_row(&mut self, layer: usize, expert: usize, tokens: u64) {
        if self.layers.len() <= layer {
            self.layers.resize(layer + 1, (0, 0));
        }
        let (rows, experts) = &mut self.layers[layer];
        *rows += 1;
        *experts = (*experts).max(expert + 1);
        self.zeros |= tokens == 0;
        if let Some(rows) = self.steps.get_mut(self.step) {
            *rows = rows.saturating_add(1);
        }
    }

    #[inline]
    pub(crate) fn count_repetition(&mut self) {
        self.repeated += 1;
    }

    /// Returns the first layer with fewer experts than others, if every step has a row for each expert of
    /// each layer.
    pub(crate) fn find_narrow_layer(&self) -> Option<NarrowLayer> {
        let most = self.layers.iter().map(|(_, experts)| *experts).max()?;
        let steps = self.steps.len() as u64;
        if self.whole || steps == 0 {
            return None;
        }
        let times = |&(rows, experts): &(u64, usize)| {
            let once = steps * experts as u64;
            (once > 0 && rows % once == 0).then(|| rows / once)
        };
        let first = times(self.layers.first()?)?;
        if !self.layers.iter().all(|layer| times(layer) == Some(first)) {
            return None;
        }
        let sure = |experts: usize| self.zeros || steps >= MIN_STEPS_OBSERVED || experts * 4 <= most * 3;
        let (layer, &(_, experts)) =
            self.layers.iter().enumerate().find(|(_, (_, experts))| *experts < most && sure(*experts))?;
        Some(NarrowLayer { layer, experts })
    }

    /// Returns the layers whose highest experts have no rows, and the highest number of experts of any layer.
    pub(crate) fn layers_without_rows(&self) -> (Vec<usize>, usize) {
        let most = self.layers.iter().map(|(_, experts)| *experts).max().unwrap_or(0);
        let short = |layer: &usize| !self.whole && self.layers[*layer].1 < most;
        ((0..self.layers.len()).filter(short).collect(), most)
    }

    /// Returns remarks for the user.
    pub(crate) fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        if self.repeated > 0 && !self.sources {
            remarks.push(format!(
                "{} rows name a step, layer and expert that have tokens already; their tokens are added up",
                self.repeated
            ));
        }
        if self.sources {
            remarks.push("rows of one step, layer and expert are added up over their sources".into());
        }
        if let [before @ .., last] = self.steps.as_slice()
            && let Some(&usual) = before.first()
            && before.len() > 1
            && before.iter().all(|rows| *rows == usual)
            && *last < usual
            && !self.whole
        {
            remarks.push(format!(
                "the last step has {last} rows, each before it {usual}; the file may be cut off"
            ));
        }
        remarks
    }
}
