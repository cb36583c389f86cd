//! A run whose ranks are elsewhere: every rank runs this for itself, and all find the same.

use super::{Outcome, Progress, Run};
use crate::exec::backend::{Backend, ExecConfig};
use crate::exec::cpu::{Peer, PeerOptions};
#[cfg(feature = "cuda")]
use crate::exec::cuda::{self, Options};
use crate::exec::error::ExecError;
#[cfg(feature = "cuda")]
use crate::exec::transport::DeviceTransport;
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

    /// The same with a GPU per rank: `wire` and `gpus` are ends of the same group.
    ///
    /// # Errors
    /// As [`Run::on_wire`] and [`cuda::Peer::new`].
    #[cfg(feature = "cuda")]
    pub fn on_gpus<E: From<ExecError>>(
        &self,
        (wire, gpus): (&Rc<Wire>, &Rc<dyn DeviceTransport>),
        options: Options,
        prove: bool,
        place: impl FnOnce(&mut dyn Backend) -> Result<Vec<Placement>, E>,
        progress: &dyn Progress,
    ) -> Result<Outcome, E> {
        let (weights, exec) = (self.weights.as_ref(), ExecConfig { method: None, ..self.exec.clone() });
        let contiguous = vec![self.contiguous()?; self.layers.len()];
        let group = (Rc::clone(wire), Rc::clone(gpus));
        let mut plain = cuda::Peer::new(exec, options, weights, contiguous, group, prove)?;
        let placements = place(&mut plain)?;
        let planned = plain.with(weights, placements, self.exec.method)?;
        Ok(self.beside(planned, plain, progress)?)
    }
}
