//! What every rank has of a layer besides its experts: norm, router, shared expert; once per GPU.

use super::cells::{Cell, CellShape};
use super::kernels::{Address, Rule, address, upload};
use crate::cuda::Context;
use crate::exec::error::ExecError;
use crate::exec::router::Router;
use crate::exec::weights::WeightSource;
use crate::model::Model;
use cudarc::driver::CudaSlice;

/// How the kernels call the rules of [`Router`].
const ALL: u32 = 0;
const RENORMALISED: u32 = 1;
const CHOSEN: u32 = 2;
const SIGMOID: u32 = 3;

/// One layer on one GPU.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) router: Router,
    /// `[H]`
    pub(super) norm: CudaSlice<f32>,
    /// `[width][H]`
    pub(super) gate: CudaSlice<f32>,
    bias: Option<CudaSlice<f32>>,
    selection: Option<CudaSlice<f64>>,
    pub(super) shared: Option<Shared>,
}

/// The shared expert and the one-entry table that names it.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) shape: CellShape,
    pub(super) cells: CudaSlice<u64>,
    cell: Cell,
}

impl Shared {
    /// Where it is.
    pub(super) fn address(&self) -> Address {
        self.cell.address()
    }
}

impl Layer {
    pub(super) fn new(
        gpu: &Context,
        source: &dyn WeightSource,
        layer: usize,
        model: &Model,
        router: &Router,
    ) -> Result<Self, ExecError> {
        let (hidden, width) = (model.hidden as usize, router.width(model.experts));
        let (gate, norm) = (source.gate(layer)?, source.norm(layer)?);
        ExecError::expect("numbers of a norm", norm.len(), hidden)?;
        ExecError::expect("numbers of a router", gate.weight.len(), width * hidden)?;
        if !gate.bias.is_empty() {
            ExecError::expect("biases of a router", gate.bias.len(), width)?;
        }
        let shared = match source.shared(layer)? {
            None => None,
            Some(weights) => {
                let shape = CellShape::new(hidden, weights.up.len() / hidden.max(1), model.activation);
                if !shape.inner.is_multiple_of(8) {
                    return Err(ExecError::Shape {
                        what: "width of the shared expert past a multiple of 8",
                        given: shape.inner % 8,
                        expected: 0,
                    });
                }
                let cell = Cell::new(gpu, &shape, &weights)?;
                Some(Shared { shape, cells: upload(gpu, &[cell.address()])?, cell })
            }
        };
        let router = router.with_bias(&gate.selection);
        let selection = match &router {
            Router::Sigmoid { bias, .. } if !bias.is_empty() => {
                ExecError::expect("selection biases of a router", bias.len(), model.experts)?;
                Some(upload(gpu, bias)?)
            }
            _ => None,
        };
        let bias = if gate.bias.is_empty() { None } else { Some(upload(gpu, &gate.bias)?) };
        Ok(Self {
            router,
            norm: upload(gpu, &norm)?,
            gate: upload(gpu, &gate.weight.wide())?,
            bias,
            selection,
            shared,
        })
    }

    /// Bytes of it, on every rank: norm, router, shared expert.
    pub(super) fn bytes(&self) -> u64 {
        let numbers = self.norm.num_bytes() + self.gate.num_bytes();
        let biases = self.bias.as_ref().map_or(0, CudaSlice::num_bytes)
            + self.selection.as_ref().map_or(0, CudaSlice::num_bytes);
        (numbers + biases) as u64 + self.shared.as_ref().map_or(0, |shared| shared.shape.counted())
    }

    /// What is added to the logits.
    pub(super) fn bias(&self) -> Address {
        self.bias.as_ref().map_or(0, address)
    }

    /// The router as the device knows it; `None` where the host chooses: those that draw random numbers, and those that mix.
    pub(super) fn rule(&self, experts: usize, top_k: usize) -> Option<Rule> {
        let (kind, scale) = match &self.router {
            Router::Switch | Router::Softmax { renormalise: false } => (ALL, 1.0),
            Router::Softmax { renormalise: true } => (RENORMALISED, 1.0),
            Router::TopkSoftmax => (CHOSEN, 1.0),
            Router::Sigmoid { scale, .. } => (SIGMOID, *scale),
            Router::Gshard | Router::Noisy | Router::Soft { .. } => return None,
        };
        let (groups, top_groups) = match self.router {
            Router::Sigmoid { groups, top_groups, .. } => (groups, top_groups),
            _ => (1, 1),
        };
        Some(Rule {
            bias: self.bias(),
            selection: self.selection.as_ref().map_or(0, address),
            scale,
            kind,
            experts: experts as u32,
            top_k: top_k as u32,
            groups: groups as u32,
            top_groups: top_groups as u32,
        })
    }
}
