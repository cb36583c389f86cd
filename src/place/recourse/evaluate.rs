//! The exact peaks of a placement, scenario by scenario, each with its certificate.

use super::scenarios::Scenarios;
use super::score::Objective;
use super::seating::Seating;
use evenkeel_solver::{Error, Hosts, Problem, Split, Workspace, solve_counts_into};

/// Memory for exact splits, kept from placement to placement.
#[derive(Debug, Default)]
pub(crate) struct Exact {
    workspace: Workspace,
    split: Split,
}

impl Exact {
    /// The placement as the solver takes it.
    ///
    /// # Errors
    /// Where an expert has no host.
    pub(crate) fn problem(seating: &Seating) -> Result<Problem, Error> {
        let hosts = (0..seating.experts() as u32).map(|expert| {
            let hosts = seating.hosts(expert).iter().map(|&rank| u32::from(rank));
            hosts.collect::<Vec<u32>>()
        });
        Ok(Problem::new(Hosts::new(seating.ranks(), hosts)?))
    }

    /// The least peak of one scenario, in tokens, and the ranks that prove it.
    ///
    /// # Errors
    /// None for a problem of as many experts.
    pub(crate) fn peak(
        &mut self,
        problem: &Problem,
        scenarios: &Scenarios,
        scenario: usize,
    ) -> Result<(f32, &[u32]), Error> {
        solve_counts_into(problem, scenarios.loads(scenario), &mut self.workspace, &mut self.split)?;
        Ok((self.split.peak.load as f32, &self.split.certificate))
    }

    /// The peaks of a placement in all scenarios, `[padded B]`.
    ///
    /// # Errors
    /// Where an expert has no host.
    pub(crate) fn peaks(&mut self, seating: &Seating, scenarios: &Scenarios) -> Result<Vec<f32>, Error> {
        let problem = Self::problem(seating)?;
        let mut peaks = vec![0.0; scenarios.padded()];
        for (scenario, to) in peaks.iter_mut().enumerate().take(scenarios.len()) {
            *to = self.peak(&problem, scenarios, scenario)?.0;
        }
        Ok(peaks)
    }

    /// The score of a placement over all scenarios.
    ///
    /// # Errors
    /// Where an expert has no host.
    pub(crate) fn score(
        &mut self,
        seating: &Seating,
        scenarios: &Scenarios,
        objective: Objective,
    ) -> Result<u64, Error> {
        Ok(objective.score(scenarios, &self.peaks(seating, scenarios)?))
    }
}
