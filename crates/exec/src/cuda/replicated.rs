//! The weights of a layer that every rank has: norm, router, shared expert. They are stored once per GPU.

use super::expert_buffer::{ExpertBuffer, ExpertLayout};
use super::kernels::{DeviceAddress, RouterRule, address, upload};
use crate::error::ExecError;
use crate::router::Router;
use crate::weights::WeightSource;
use cudarc::driver::CudaSlice;
use evenkeel::model::MoeModel;
use evenkeel_cuda::GpuContext;

/// Numbers of the rules of [`Router`] in the kernels.
const SOFTMAX_ALL: u32 = 0;
const SOFTMAX_RENORMALISED: u32 = 1;
const SOFTMAX_CHOSEN: u32 = 2;
const SIGMOID_SCORES: u32 = 3;

/// One layer on one GPU.
#[derive(Debug)]
pub(super) struct DeviceLayer {
    pub(super) router: Router,
    /// `[H]`
    pub(super) norm: CudaSlice<f32>,
    /// `[width][H]`
    pub(super) gate: CudaSlice<f32>,
    bias: Option<CudaSlice<f32>>,
    selection: Option<CudaSlice<f64>>,
    pub(super) shared: Option<SharedExpert>,
}

/// The shared expert, and the table with its single entry.
#[derive(Debug)]
pub(super) struct SharedExpert {
    pub(super) shape: ExpertLayout,
    pub(super) cells: CudaSlice<u64>,
    cell: ExpertBuffer,
}

impl SharedExpert {
    /// Returns the address of its cell.
    pub(super) fn address(&self) -> DeviceAddress {
        self.cell.address()
    }
}

impl DeviceLayer {
    pub(super) fn new(
        gpu: &GpuContext,
        source: &dyn WeightSource,
        layer: usize,
        model: &MoeModel,
        router: &Router,
    ) -> Result<Self, ExecError> {
        let (hidden, width) = (model.hidden as usize, router.logit_width(model.experts));
        let (gate, norm) = (source.router_weights(layer)?, source.norm_weights(layer)?);
        ExecError::expect_size("numbers of a norm", norm.len(), hidden)?;
        ExecError::expect_size("numbers of a router", gate.weight.len(), width * hidden)?;
        if !gate.bias.is_empty() {
            ExecError::expect_size("biases of a router", gate.bias.len(), width)?;
        }
        let shared = match source.shared_weights(layer)? {
            None => None,
            Some(weights) => {
                let shape = ExpertLayout::new(hidden, weights.up.len() / hidden.max(1), model.activation);
                if !shape.inner.is_multiple_of(8) {
                    return Err(ExecError::Shape {
                        what: "width of the shared expert past a multiple of 8",
                        given: shape.inner % 8,
                        expected: 0,
                    });
                }
                let cell = ExpertBuffer::new(gpu, &shape, &weights)?;
                Some(SharedExpert { shape, cells: upload(gpu, &[cell.address()])?, cell })
            }
        };
        let router = router.with_bias(&gate.selection);
        let selection = match &router {
            Router::Sigmoid { bias, .. } if !bias.is_empty() => {
                ExecError::expect_size("selection biases of a router", bias.len(), model.experts)?;
                Some(upload(gpu, bias)?)
            }
            _ => None,
        };
        let bias = if gate.bias.is_empty() { None } else { Some(upload(gpu, &gate.bias)?) };
        Ok(Self {
            router,
            norm: upload(gpu, &norm)?,
            gate: upload(gpu, &gate.weight.to_f32())?,
            bias,
            selection,
            shared,
        })
    }

    /// Returns the bytes of these weights on every rank: norm, router, shared expert.
    pub(super) fn bytes(&self) -> u64 {
        let numbers = self.norm.num_bytes() + self.gate.num_bytes();
        let biases = self.bias.as_ref().map_or(0, CudaSlice::num_bytes)
            + self.selection.as_ref().map_or(0, CudaSlice::num_bytes);
        (numbers + biases) as u64 + self.shared.as_ref().map_or(0, |shared| shared.shape.weight_bytes())
    }

    /// Returns the address of the bias of the logits.
    pub(super) fn bias_address(&self) -> DeviceAddress {
        self.bias.as_ref().map_or(0, address)
    }

    /// Returns the router's rule on the device. Returns `None` if the host chooses: for routers that draw
    /// random numbers or mix tokens.
    pub(super) fn device_rule(&self, experts: usize, top_k: usize) -> Option<RouterRule> {
        let (kind, scale) = match &self.router {
            Router::Switch | Router::Softmax { renormalise: false } => (SOFTMAX_ALL, 1.0),
            Router::Softmax { renormalise: true } => (SOFTMAX_RENORMALISED, 1.0),
            Router::TopkSoftmax => (SOFTMAX_CHOSEN, 1.0),
            Router::Sigmoid { scale, .. } => (SIGMOID_SCORES, *scale),
            Router::Gshard | Router::Noisy | Router::Soft { .. } => return None,
        };
        let (groups, top_groups) = match self.router {
            Router::Sigmoid { groups, top_groups, .. } => (groups, top_groups),
            _ => (1, 1),
        };
        Some(RouterRule {
            bias: self.bias_address(),
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
