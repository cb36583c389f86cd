//! What experts really cost here: measured, and fitted by the roofline that splits can aim at.
//!
//! In: a model. Out: [`Point`]s (time of so many experts with so many tokens each) and a [`Fit`]: one expert takes
//! `max(read, token * tile * ceil(tokens / tile))` picoseconds (Williams et al., *Roofline*, 2009). Real costs bend where the
//! roofline has a corner, and experts of one rank are taken to add up; the residual says how wrong both are.

use super::clock::timed;
use super::cpu::Ffn;
use super::error::ExecError;
use super::random::Stream;
use super::run::Progress;
use super::weights::{ExpertWeights, WeightSource};
use crate::model::Model;
use crate::simulate::Summary;
use crate::split::Roofline;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What a file of a fit calls itself.
pub const FORMAT: &str = "evenkeel.roofline/1";

/// Tiles that a fit may have.
const TILES: [u64; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

/// One measurement.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Experts that had tokens.
    pub experts: u64,
    /// Tokens of each.
    pub tokens: u64,
    /// Microseconds of processor time of all of them, one after the other; the median of the rounds.
    pub us: f64,
}

impl Point {
    /// Picoseconds of one expert.
    fn ps(&self) -> f64 {
        self.us * 1e6 / self.experts as f64
    }
}

/// What to measure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sweep {
    /// Tokens per expert.
    pub tokens: Vec<u64>,
    /// Experts with tokens.
    pub experts: Vec<u64>,
    /// How often.
    pub rounds: usize,
    /// Experts there are: so many that their weights are not all in a near cache.
    pub pool: usize,
}

impl Default for Sweep {
    fn default() -> Self {
        let tokens = vec![1, 2, 4, 8, 16, 32, 64, 128, 256, 512];
        Self { tokens, experts: vec![1, 4], rounds: 5, pool: 16 }
    }
}

impl Sweep {
    /// The most tokens of an expert, and experts there are for a model.
    fn check(&self, model: &Model) -> Result<(u64, usize), ExecError> {
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

    /// Times every point in every round, by a function of (experts, tokens each) that says microseconds. Rounds go over all
    /// points, so that what else the machine does falls on all alike; the first touches all memory and does not count.
    fn points(
        &self,
        mut time: impl FnMut(u64, u64) -> Result<f64, ExecError>,
        progress: &dyn Progress,
    ) -> Result<Vec<Point>, ExecError> {
        let grid = || self.experts.iter().flat_map(|&e| self.tokens.iter().map(move |&t| (e, t)));
        let mut times = vec![Vec::with_capacity(self.rounds); grid().count()];
        for round in 0..=self.rounds {
            for ((active, tokens), times) in grid().zip(&mut times) {
                let us = time(active, tokens)?;
                if round > 0 {
                    times.push(us);
                }
            }
            progress.steps(round, self.rounds);
        }
        let point = |((experts, tokens), times)| Point { experts, tokens, us: Summary::of(times).p50 };
        Ok(grid().zip(times).map(point).collect())
    }
}

/// Measures experts on the CPU.
///
/// # Errors
/// When there is nothing to measure, or weights cannot be had.
pub fn measure(
    model: &Model,
    source: &dyn WeightSource,
    sweep: &Sweep,
    progress: &dyn Progress,
) -> Result<Vec<Point>, ExecError> {
    let (most, pool) = sweep.check(model)?;
    let experts = (0..pool).map(|e| source.expert(0, e)).collect::<Result<Vec<ExpertWeights>, _>>()?;
    let hidden = model.hidden as usize;
    let x = Stream::new(1, &[]).weights(most as usize * hidden, 1.0);
    let (mut out, mut ffn, mut next) = (vec![0f32; x.len()], Ffn::default(), 0);
    let time = |active: u64, tokens: u64| {
        let x = &x[..tokens as usize * hidden];
        let mut time = Duration::ZERO;
        timed(&mut time, || {
            for _ in 0..active {
                next = (next + 1) % pool;
                ffn.run(&experts[next], model.activation, x, hidden, &mut out);
            }
        });
        Ok(time.as_secs_f64() * 1e6)
    };
    sweep.points(time, progress)
}

/// Measures experts on a GPU, by CUDA events: so many at once in one grouped product, as a rank runs them. Experts follow each
/// other through the pool, which is made four times as large as asked for: caches of GPUs hold an expert or two.
///
/// # Errors
/// As [`measure`], and as [`Experts::new`](super::cuda::Experts::new).
#[cfg(feature = "cuda")]
pub fn measure_on_cuda(
    options: super::cuda::Options,
    model: &Model,
    source: &dyn WeightSource,
    sweep: &Sweep,
    progress: &dyn Progress,
) -> Result<Vec<Point>, ExecError> {
    let (most, pool) = sweep.check(model)?;
    options.available()?;
    let active = sweep.experts.iter().copied().max().unwrap_or(1) as usize;
    let pool = (4 * pool).max(active);
    let size = [pool, sweep.pool.min(model.experts), active * most as usize];
    let experts = super::cuda::Experts::new(options.device, model, source, size)?;
    let mut next = 0;
    let time = |active: u64, tokens: u64| {
        let active = active as usize;
        next = if next + 2 * active > pool { 0 } else { next + active };
        let ms = experts.time(options.path, next, &vec![tokens as usize; active], None, 1)?;
        // Clocks of GPUs have a resolution; nothing takes no time.
        Ok(ms.first().map_or(0.0, |ms| ms * 1e3).max(1e-3))
    };
    sweep.points(time, progress)
}

/// A roofline and how well it fits.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// The cost of one expert, picoseconds.
    pub roofline: Roofline,
    /// What it was fitted to.
    pub points: Vec<Point>,
}

impl Fit {
    /// The roofline with the least sum of squared logarithms of measured over fitted.
    ///
    /// Below some number of tokens the cost is all `read`, from there on all `token`; for each such number and each tile the
    /// best of both is a geometric mean.
    ///
    /// # Errors
    /// When there is no point, or one without tokens or time.
    pub fn of(points: Vec<Point>) -> Result<Self, ExecError> {
        let sound = |p: &Point| p.tokens > 0 && p.experts > 0 && p.us > 0.0 && p.us < 1e12;
        if points.is_empty() || !points.iter().all(sound) {
            return Err(ExecError::Nothing("nothing to fit: expected points with tokens and times".into()));
        }
        let mut corners: Vec<u64> = points.iter().map(|p| p.tokens).collect();
        corners.sort_unstable();
        corners.dedup();
        let mean =
            |logs: Vec<f64>| (!logs.is_empty()).then(|| (logs.iter().sum::<f64>() / logs.len() as f64).exp());
        let mut best: Option<(f64, Roofline)> = None;
        for tile in TILES {
            let tiled = |p: &Point| (p.tokens.div_ceil(tile) * tile) as f64;
            for corner in 0..=corners.len() {
                let reads = |p: &&Point| corners.get(corner).is_none_or(|&c| p.tokens < c);
                let read = mean(points.iter().filter(reads).map(|p| p.ps().ln()).collect());
                let work = points.iter().filter(|p| !reads(p)).map(|p| (p.ps() / tiled(p)).ln());
                let token = mean(work.collect()).unwrap_or(1.0).round().max(1.0);
                // Without a point that reads, reading takes no longer than a token.
                let read = read.unwrap_or(token).round().max(1.0);
                let roofline = Roofline { read: read as u64, token: token as u64, tile };
                let off = points.iter().map(|p| ratio(&roofline, p).ln().powi(2)).sum::<f64>();
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

    /// Microseconds that the roofline says of a point.
    pub fn fitted(&self, point: &Point) -> f64 {
        self.roofline.cost(point.tokens).unwrap_or(u64::MAX) as f64 / 1e6 * point.experts as f64
    }

    /// Measured over fitted, less one, of every point.
    pub fn residuals(&self) -> Vec<f64> {
        self.points.iter().map(|point| ratio(&self.roofline, point) - 1.0).collect()
    }

    /// Sizes of the residuals.
    pub fn residual(&self) -> Summary {
        Summary::of(self.residuals().into_iter().map(f64::abs).collect())
    }

    /// As a file.
    pub fn file(&self, model: &Model, dtype: &str, backend: &str) -> File {
        File {
            format: FORMAT.into(),
            read_ps: self.roofline.read,
            token_ps: self.roofline.token,
            tile: self.roofline.tile,
            model: model.name.into(),
            shape: [model.hidden, model.intermediate],
            dtype: dtype.into(),
            backend: backend.into(),
            residual: self.residual(),
            points: self.points.clone(),
        }
    }
}

fn ratio(roofline: &Roofline, point: &Point) -> f64 {
    point.ps() / roofline.cost(point.tokens).unwrap_or(u64::MAX) as f64
}

/// A fit as it is written, [`FORMAT`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct File {
    /// [`FORMAT`].
    pub format: String,
    /// Picoseconds to read one expert.
    pub read_ps: u64,
    /// Picoseconds per token.
    pub token_ps: u64,
    /// Tokens of a tile.
    pub tile: u64,
    /// The model measured.
    pub model: String,
    /// Its width outside and inside an expert.
    pub shape: [u64; 2],
    /// What weights are kept in.
    pub dtype: String,
    /// What it ran on.
    pub backend: String,
    /// Sizes of measured over fitted less one.
    pub residual: Summary,
    /// What was measured.
    pub points: Vec<Point>,
}

impl File {
    /// The roofline of a file's text.
    ///
    /// # Errors
    /// When it is not such a file, or its numbers are none that a split can take; the message says which.
    pub fn roofline(text: &str) -> Result<Roofline, String> {
        let file: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if file.format != FORMAT {
            return Err(format!("format \"{}\", expected {FORMAT}", file.format));
        }
        for (name, number) in [("read_ps", file.read_ps), ("token_ps", file.token_ps), ("tile", file.tile)] {
            if number == 0 {
                return Err(format!("{name} is 0, expected a number from 1"));
            }
        }
        Ok(Roofline { read: file.read_ps, token: file.token_ps, tile: file.tile })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(roofline: Roofline, wobble: f64) -> Vec<Point> {
        let mut sign = 1.0;
        let mut point = |experts: u64, tokens: u64| {
            sign = -sign;
            let ps = roofline.cost(tokens).unwrap() as f64 * experts as f64;
            Point { experts, tokens, us: ps / 1e6 * (1.0 + sign * wobble) }
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
            let fit = Fit::of(points(roofline, 0.0)).unwrap();
            assert_eq!(fit.roofline, roofline);
            assert!(fit.residual().max < 1e-6);
            let rough = Fit::of(points(roofline, 0.05)).unwrap();
            assert!(rough.roofline.read.abs_diff(roofline.read) * 20 < roofline.read, "{:?}", rough.roofline);
            assert!(rough.residual().max < 0.12);
        }
    }

    #[test]
    fn a_file_is_read_back_or_refused() {
        let fit = Fit::of(points(Roofline { read: 900, token: 40, tile: 8 }, 0.0)).unwrap();
        let file = fit.file(&"qwen3-30b-a3b".parse().unwrap(), "bf16", "cpu");
        let text = serde_json::to_string(&file).unwrap();
        assert_eq!(File::roofline(&text).unwrap(), fit.roofline);
        assert!(File::roofline(&text.replace("\"tile\":8", "\"tile\":0")).unwrap_err().contains("tile"));
        assert!(
            File::roofline(&text.replace("roofline/1", "roofline/9")).unwrap_err().contains("roofline/1")
        );
        assert!(File::roofline("[]").is_err());
        assert!(Fit::of(vec![]).is_err());
        assert!(Fit::of(vec![Point { experts: 1, tokens: 1, us: f64::NAN }]).is_err());
    }
}
