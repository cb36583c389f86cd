//! Measures the cost of experts on this machine, and fits the roofline that splits can minimise.
//!
//! Input: a model. Output: [`CostPoint`]s, each the time of a number of experts with a number of tokens each,
//! and a [`RooflineFit`]. In the fit one expert takes `max(read, token * tile * ceil(tokens / tile))`
//! picoseconds (Williams et al., *Roofline*, 2009). Two simplifications: measured costs bend smoothly at the
//! corner of the roofline, and the costs of experts on one rank are assumed to add up. The residual shows the
//! error of both.

pub mod network;

use crate::clock::time_work;
use crate::cpu::Ffn;
use crate::error::ExecError;
use crate::random::RandomStream;
use crate::run::StepProgress;
use crate::weights::{ExpertWeights, WeightSource};
use evenkeel::evaluate::SummaryStats;
use evenkeel::model::MoeModel;
use evenkeel::split::{MeasuredCost, Roofline};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The format that a file of a fit declares.
pub const ROOFLINE_FORMAT: &str = "evenkeel.roofline/1";

/// Tile sizes that a fit may have, in tokens.
const TILE_SIZES: [u64; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

/// One measurement.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CostPoint {
    /// Experts with tokens.
    pub experts: u64,
    /// Tokens per expert.
    pub tokens: u64,
    /// Microseconds of processor time of all these experts, one after the other; the median of the rounds.
    pub us: f64,
}

impl CostPoint {
    /// Returns the picoseconds of one expert.
    fn cost_ps(&self) -> f64 {
        self.us * 1e6 / self.experts as f64
    }
}

/// The points to measure.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CostSweep {
    /// Numbers of tokens per expert.
    pub tokens: Vec<u64>,
    /// Numbers of experts with tokens.
    pub experts: Vec<u64>,
    /// Number of rounds.
    pub rounds: usize,
    /// Number of experts in memory, chosen so that their weights do not all fit in a near cache.
    pub pool: usize,
}

impl Default for CostSweep {
    fn default() -> Self {
        let tokens = vec![1, 2, 4, 8, 16, 32, 64, 128, 256, 512];
        Self { tokens, experts: vec![1, 4], rounds: 5, pool: 16 }
    }
}

impl CostSweep {
    /// Sets [`Self::tokens`](#structfield.tokens).
    #[must_use]
    pub fn tokens(mut self, tokens: Vec<u64>) -> Self {
        self.tokens = tokens;
        self
    }

    /// Sets [`Self::experts`](#structfield.experts).
    #[must_use]
    pub fn experts(mut self, experts: Vec<u64>) -> Self {
        self.experts = experts;
        self
    }

    /// Sets [`Self::rounds`](#structfield.rounds).
    #[must_use]
    pub fn rounds(mut self, rounds: usize) -> Self {
        self.rounds = rounds;
        self
    }

    /// Sets [`Self::pool`](#structfield.pool).
    #[must_use]
    pub fn pool(mut self, pool: usize) -> Self {
        self.pool = pool;
        self
    }

    /// Returns the largest number of tokens per expert, and the number of experts in memory for a model.
    fn check_sweep(&self, model: &MoeModel) -> Result<(u64, usize), ExecError> {
        let most = self.tokens.iter().copied().max().unwrap_or(0);
        let pool = self.pool.min(model.experts);
        let some = self.tokens.iter().chain(&self.experts).all(|&n| n > 0) && self.rounds > 0;
        if most == 0 || self.experts.is_empty() || pool == 0 || !some {
            return Err(ExecError::Nothing(
                "nothing to measure: expected tokens, experts and rounds from 1".into(),
            ));
        }
        Ok((most, pool))
    }

    /// Times every point in every round with `time`, which takes (experts, tokens each) and returns
    /// microseconds. Each round visits all points, so that other load of the machine affects all alike.
    /// The first round touches all memory and is discarded.
    fn time_points(
        &self,
        mut time: impl FnMut(u64, u64) -> Result<f64, ExecError>,
        progress: &dyn StepProgress,
    ) -> Result<Vec<CostPoint>, ExecError> {
        let grid = || self.experts.iter().flat_map(|&e| self.tokens.iter().map(move |&t| (e, t)));
        let mut times = vec![Vec::with_capacity(self.rounds); grid().count()];
        for round in 0..=self.rounds {
            for ((active, tokens), times) in grid().zip(&mut times) {
                let us = time(active, tokens)?;
                if round > 0 {
                    times.push(us);
                }
            }
            progress.report_steps(round, self.rounds);
        }
        let point = |((experts, tokens), times)| CostPoint {
            experts,
            tokens,
            us: SummaryStats::from_values(times).p50,
        };
        Ok(grid().zip(times).map(point).collect())
    }
}

/// Measures experts on the CPU.
///
/// # Errors
/// Fails if there is nothing to measure, or if weights cannot be read.
pub fn measure_experts(
    model: &MoeModel,
    source: &dyn WeightSource,
    sweep: &CostSweep,
    progress: &dyn StepProgress,
) -> Result<Vec<CostPoint>, ExecError> {
    let (most, pool) = sweep.check_sweep(model)?;
    let experts =
        (0..pool).map(|e| source.expert_weights(0, e)).collect::<Result<Vec<ExpertWeights>, _>>()?;
    let hidden = model.hidden as usize;
    let x = RandomStream::new(1, &[]).uniform_weights(most as usize * hidden, 1.0);
    let (mut out, mut ffn, mut next) = (vec![0f32; x.len()], Ffn::default(), 0);
    let time = |active: u64, tokens: u64| {
        let x = &x[..tokens as usize * hidden];
        let mut time = Duration::ZERO;
        time_work(&mut time, || {
            for _ in 0..active {
                next = (next + 1) % pool;
                ffn.run(&experts[next], model.activation, x, hidden, &mut out);
            }
        });
        Ok(time.as_secs_f64() * 1e6)
    };
    sweep.time_points(time, progress)
}

/// Measures experts on a GPU, by CUDA events. All experts of a point run in one grouped product, as on a
/// rank. Successive runs cycle through the pool. The pool is four times as large as requested, because GPU
/// caches hold one or two experts.
///
/// # Errors
/// Fails as [`measure_experts`] and [`ExpertTimer::new`](crate::cuda::ExpertTimer::new) do.
#[cfg(feature = "cuda")]
pub fn measure_on_cuda(
    options: crate::cuda::CudaOptions,
    model: &MoeModel,
    source: &dyn WeightSource,
    sweep: &CostSweep,
    progress: &dyn StepProgress,
) -> Result<Vec<CostPoint>, ExecError> {
    let (most, pool) = sweep.check_sweep(model)?;
    options.check_available()?;
    let active = sweep.experts.iter().copied().max().unwrap_or(1) as usize;
    let pool = (4 * pool).max(active);
    let size = [pool, sweep.pool.min(model.experts), active * most as usize];
    let experts = crate::cuda::ExpertTimer::new(options.device, model, source, size)?;
    let mut next = 0;
    let time = |active: u64, tokens: u64| {
        let active = active as usize;
        next = if next + 2 * active > pool { 0 } else { next + active };
        let ms = experts.time_experts(options.path, next, &vec![tokens as usize; active], None, 1)?;
        // GPU clocks have a finite resolution, so a measured time may be zero.
        Ok(ms.first().map_or(0.0, |ms| ms * 1e3).max(1e-3))
    };
    sweep.time_points(time, progress)
}

/// A roofline with its deviation from the measurements.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RooflineFit {
    /// The cost of one expert, in picoseconds.
    pub roofline: Roofline,
    /// The measurements that were fitted.
    pub points: Vec<CostPoint>,
}

impl RooflineFit {
    /// Fits the roofline with the least sum of squared logarithms of measured over fitted times.
    ///
    /// Below some number of tokens the cost is `read` alone, from there on `token` alone. For each such
    /// number and each tile, the best values of both are geometric means.
    ///
    /// # Errors
    /// Fails if there is no point, or one without tokens or time.
    pub fn from_points(points: Vec<CostPoint>) -> Result<Self, ExecError> {
        let sound = |p: &CostPoint| p.tokens > 0 && p.experts > 0 && p.us > 0.0 && p.us < 1e12;
        if points.is_empty() || !points.iter().all(sound) {
            return Err(ExecError::Nothing("nothing to fit: expected points with tokens and times".into()));
        }
        let mut corners: Vec<u64> = points.iter().map(|p| p.tokens).collect();
        corners.sort_unstable();
        corners.dedup();
        let mean =
            |logs: Vec<f64>| (!logs.is_empty()).then(|| (logs.iter().sum::<f64>() / logs.len() as f64).exp());
        let mut best: Option<(f64, Roofline)> = None;
        for tile in TILE_SIZES {
            let tiled = |p: &CostPoint| (p.tokens.div_ceil(tile) * tile) as f64;
            for corner in 0..=corners.len() {
                let reads = |p: &&CostPoint| corners.get(corner).is_none_or(|&c| p.tokens < c);
                let read = mean(points.iter().filter(reads).map(|p| p.cost_ps().ln()).collect());
                let work = points.iter().filter(|p| !reads(p)).map(|p| (p.cost_ps() / tiled(p)).ln());
                let token = mean(work.collect()).unwrap_or(1.0).round().max(1.0);
                // Without a point in the reading part, reading takes no longer than a token.
                let read = read.unwrap_or(token).round().max(1.0);
                let roofline = Roofline { read: read as u64, token: token as u64, tile };
                let off = points.iter().map(|p| measured_over_fitted(&roofline, p).ln().powi(2)).sum::<f64>();
                if best.as_ref().is_none_or(|(least, _)| off < *least) {
                    best = Some((off, roofline));
                }
            }
        }
        let Some((_, roofline)) = best else {
            return Err(ExecError::Nothing("nothing to fit".into()));
        };
        Ok(Self { roofline, points })
    }

    /// Returns the microseconds that the roofline predicts for a point.
    pub fn predicted_us(&self, point: &CostPoint) -> f64 {
        self.roofline.piece_cost(point.tokens).unwrap_or(u64::MAX) as f64 / 1e6 * point.experts as f64
    }

    /// Returns measured over fitted time, minus one, of every point.
    pub fn residuals(&self) -> Vec<f64> {
        self.points.iter().map(|point| measured_over_fitted(&self.roofline, point) - 1.0).collect()
    }

    /// Returns the summary of the absolute residuals.
    pub fn residual_summary(&self) -> SummaryStats {
        SummaryStats::from_values(self.residuals().into_iter().map(f64::abs).collect())
    }

    /// Returns the fit as a file.
    pub fn to_file(&self, model: &MoeModel, dtype: &str, backend: &str) -> RooflineFile {
        RooflineFile {
            format: ROOFLINE_FORMAT.into(),
            read_ps: self.roofline.read,
            token_ps: self.roofline.token,
            tile: self.roofline.tile,
            model: model.name.into(),
            shape: ExpertShape { hidden: model.hidden, intermediate: model.intermediate },
            dtype: dtype.into(),
            backend: backend.into(),
            residual: self.residual_summary(),
            points: self.points.clone(),
        }
    }
}

fn measured_over_fitted(roofline: &Roofline, point: &CostPoint) -> f64 {
    point.cost_ps() / roofline.piece_cost(point.tokens).unwrap_or(u64::MAX) as f64
}

/// The widths of an expert, in a file `[hidden, intermediate]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[u64; 2]", into = "[u64; 2]")]
pub struct ExpertShape {
    /// The width of its tokens.
    pub hidden: u64,
    /// Its inner width.
    pub intermediate: u64,
}

impl From<[u64; 2]> for ExpertShape {
    fn from([hidden, intermediate]: [u64; 2]) -> Self {
        Self { hidden, intermediate }
    }
}

impl From<ExpertShape> for [u64; 2] {
    fn from(ExpertShape { hidden, intermediate }: ExpertShape) -> Self {
        [hidden, intermediate]
    }
}

/// A fit in its file format, [`ROOFLINE_FORMAT`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RooflineFile {
    /// [`ROOFLINE_FORMAT`].
    pub format: String,
    /// Picoseconds to read one expert.
    pub read_ps: u64,
    /// Picoseconds per token.
    pub token_ps: u64,
    /// Tokens per tile.
    pub tile: u64,
    /// The measured model.
    pub model: String,
    /// The widths of its experts.
    pub shape: ExpertShape,
    /// The number type of the weights.
    pub dtype: String,
    /// The backend of the measurement.
    pub backend: String,
    /// Summary of the absolute residuals.
    pub residual: SummaryStats,
    /// The measurements.
    pub points: Vec<CostPoint>,
}

impl RooflineFile {
    /// Parses the roofline of a file.
    ///
    /// # Errors
    /// Fails if the text is no such file, or if a split cannot use its numbers. The message states which.
    pub fn parse_roofline(text: &str) -> Result<Roofline, String> {
        let file = Self::parse(text)?;
        for (name, number) in [("read_ps", file.read_ps), ("token_ps", file.token_ps), ("tile", file.tile)] {
            if number == 0 {
                return Err(format!("{name} is 0, expected a number from 1"));
            }
        }
        Ok(Roofline { read: file.read_ps, token: file.token_ps, tile: file.tile })
    }

    /// Parses the measured times of a file, as a cost model that follows them.
    ///
    /// # Errors
    /// Fails if the text is no such file, or if it has no measurement.
    pub fn parse_measured(text: &str) -> Result<MeasuredCost, String> {
        let points = Self::parse(text)?.points;
        let times = points.iter().map(|point| (point.tokens, point.cost_ps().round() as u64)).collect();
        MeasuredCost::from_points(times).map_err(|error| format!("points: {error}"))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let file: RooflineFile = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if file.format != ROOFLINE_FORMAT {
            return Err(format!("format \"{}\", expected {ROOFLINE_FORMAT}", file.format));
        }
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel::split::CostModel as _;

    fn points(roofline: Roofline, wobble: f64) -> Vec<CostPoint> {
        let mut sign = 1.0;
        let mut point = |experts: u64, tokens: u64| {
            sign = -sign;
            let ps = roofline.piece_cost(tokens).unwrap() as f64 * experts as f64;
            CostPoint { experts, tokens, us: ps / 1e6 * (1.0 + sign * wobble) }
        };
        [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377]
            .iter()
            .flat_map(|&t| [point(1, t), point(3, t)])
            .collect()
    }

    #[test]
    fn a_roofline_is_found_again() {
        for roofline in [
            Roofline { read: 3_000_000_000, token: 100_000_000, tile: 16 },
            Roofline { read: 900_000, token: 40_000, tile: 1 },
        ] {
            let fit = RooflineFit::from_points(points(roofline, 0.0)).unwrap();
            assert_eq!(fit.roofline, roofline);
            assert!(fit.residual_summary().max < 1e-6);
            let rough = RooflineFit::from_points(points(roofline, 0.05)).unwrap();
            assert!(rough.roofline.read.abs_diff(roofline.read) * 20 < roofline.read, "{:?}", rough.roofline);
            assert!(rough.residual_summary().max < 0.12);
        }
    }

    #[test]
    fn a_file_is_read_back_or_refused() {
        let fit = RooflineFit::from_points(points(Roofline { read: 900, token: 40, tile: 8 }, 0.0)).unwrap();
        let file = fit.to_file(&"qwen3-30b-a3b".parse().unwrap(), "bf16", "cpu");
        let text = serde_json::to_string(&file).unwrap();
        assert_eq!(RooflineFile::parse_roofline(&text).unwrap(), fit.roofline);
        let measured = RooflineFile::parse_measured(&text).unwrap();
        assert_eq!((measured.expert_ps(1), measured.expert_ps(233)), (900, 40 * 240));
        let without: RooflineFile = RooflineFile { points: vec![], ..file };
        let error = RooflineFile::parse_measured(&serde_json::to_string(&without).unwrap()).unwrap_err();
        assert!(error.starts_with("points: no measured time"), "{error}");
        assert!(
            RooflineFile::parse_roofline(&text.replace("\"tile\":8", "\"tile\":0"))
                .unwrap_err()
                .contains("tile")
        );
        assert!(
            RooflineFile::parse_roofline(&text.replace("roofline/1", "roofline/9"))
                .unwrap_err()
                .contains("roofline/1")
        );
        assert!(RooflineFile::parse_roofline("[]").is_err());
        assert!(RooflineFit::from_points(vec![]).is_err());
        assert!(RooflineFit::from_points(vec![CostPoint { experts: 1, tokens: 1, us: f64::NAN }]).is_err());
    }
}
