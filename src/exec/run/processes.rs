//! A run whose ranks are elsewhere: every rank runs this for itself, and all find the same.

use super::{Outcome, Progress, Run};
use crate::exec::backend::{Backend, ExecConfig};
use crate::exec::cpu::{Peer, PeerOptions};
use crate::exec::error::ExecError;
use crate::exec::transport::Wire;
use crate::place::Placement;
use std::rc::Rc;

impl Run<'_> {
    /// Runs all steps as one rank of a group; every rank calls it with the same run and its own end of the wire, and gets the same
    /// outcome. `place` makes the placements, on each rank for itself, from what runs without a plan where it needs that.
    ///
    /// # Errors
    /// As [`Run::run`], [`Peer::new`] and `place`; and when another rank is gone, or holds another plan.
    pub fn on_wire<E: From<ExecError>>(
        &self,
        wire: &Rc<Wire>,
        options: PeerOptions,
        place: impl FnOnce(&mut dyn Backend) -> Result<Vec<Placement>, E>,
        progress: &dyn Progress,
    ) -> Result<Outcome, E> {
        let (weights, exec) = (self.weights.as_ref(), ExecConfig { method: None, ..self.exec.clone() });
        let contiguous = vec![self.contiguous()?; self.layers.len()];
        let mut plain = Peer::new(exec, weights, contiguous, Rc::clone(wire), options)?;
        let placements = place(&mut plain)?;
        let planned = plain.with(weights, placements, self.exec.method)?;
        Ok(self.beside(planned, plain, progress)?)
    }
}
