//! Experts in device memory: one allocation each, so that a slot is an address and a move is one copy.
//!
//! Input: [`ExpertWeights`]. Output: a [`ExpertBuffer`]: gate, up, down, then the biases in `f32`, each
//! aligned to 16 bytes.

use super::kernels::{DeviceAddress, address};
use crate::error::ExecError;
use crate::weights::{ExpertWeights, Numbers};
use cudarc::driver::CudaSlice;
use evenkeel::model::Activation;
use evenkeel_cuda::{CudaError, GpuContext};
use half::bf16;
use half::slice::HalfFloatSliceExt;

/// The layout of a cell: the start of each part, in numbers of 16 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ExpertLayout {
    pub(super) hidden: usize,
    pub(super) inner: usize,
    pub(super) gated: bool,
    biased: bool,
}

impl ExpertLayout {
    pub(super) fn new(hidden: usize, inner: usize, activation: Activation) -> Self {
        Self { hidden, inner, gated: activation.has_gate(), biased: activation.has_biases() }
    }

    fn matrix_len(&self) -> usize {
        self.hidden * self.inner
    }

    /// Returns the bytes before the up matrix.
    pub(super) fn up_offset(&self) -> u64 {
        2 * if self.gated { self.matrix_len() as u64 } else { 0 }
    }

    /// Returns the bytes before the down matrix.
    pub(super) fn down_offset(&self) -> u64 {
        self.up_offset() + 2 * self.matrix_len() as u64
    }

    fn biases_offset(&self) -> u64 {
        self.down_offset() + 2 * self.matrix_len() as u64
    }

    /// Returns the bytes before the biases of gate, up and down; 0 without biases.
    pub(super) fn bias_offsets(&self) -> [u64; 3] {
        let (begin, inner) = (self.biases_offset(), 4 * self.inner as u64);
        if self.biased { [begin, begin + inner, begin + 2 * inner] } else { [0; 3] }
    }

    /// Returns the total bytes.
    pub(super) fn bytes(&self) -> u64 {
        let biases = if self.biased { 4 * (2 * self.inner + self.hidden) as u64 } else { 0 };
        (self.biases_offset() + biases).next_multiple_of(16)
    }

    /// Returns the bytes of its matrices alone, which count as the bytes of a move.
    pub(super) fn weight_bytes(&self) -> u64 {
        self.biases_offset()
    }
}

/// One expert on a GPU.
#[derive(Debug)]
pub(super) struct ExpertBuffer {
    memory: CudaSlice<u16>,
}

impl ExpertBuffer {
    /// Allocates an empty cell.
    pub(super) fn empty(gpu: &GpuContext, shape: &ExpertLayout) -> Result<Self, CudaError> {
        let failed = CudaError::driver_error("reserving memory for an expert");
        #[allow(unsafe_code, reason = "`new` or `copy_from` writes all of it before any read")]
        let memory = unsafe { gpu.stream().alloc::<u16>((shape.bytes() / 2) as usize) }.map_err(failed)?;
        Ok(Self { memory })
    }

    /// Uploads an expert's weights. They are complete after synchronisation with the GPU's stream.
    pub(super) fn new(
        gpu: &GpuContext,
        shape: &ExpertLayout,
        weights: &ExpertWeights,
    ) -> Result<Self, ExecError> {
        let mut cell = Self::empty(gpu, shape)?;
        let mut at = 0;
        let mut put = |numbers: &[u16]| -> Result<(), CudaError> {
            let end = at + numbers.len();
            let mut place = cell.memory.slice_mut(at..end);
            at = end;
            gpu.stream()
                .memcpy_htod(numbers, &mut place)
                .map_err(CudaError::driver_error("copying an expert"))
        };
        for matrix in weights.gate.iter().chain([&weights.up, &weights.down]) {
            ExecError::expect_size("numbers of an expert's matrix", matrix.len(), shape.matrix_len())?;
            match &matrix.0 {
                Numbers::Bf16(numbers) => put(numbers.as_slice().reinterpret_cast())?,
                Numbers::F32(numbers) => {
                    let rounded: Vec<u16> = numbers.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
                    put(&rounded)?;
                }
            }
        }
        if let Some(biases) = &weights.biases {
            for bias in [&biases.gate, &biases.up, &biases.down] {
                let halves = |x: &f32| [x.to_bits() as u16, (x.to_bits() >> 16) as u16];
                put(&bias.iter().flat_map(halves).collect::<Vec<u16>>())?;
            }
        }
        Ok(cell)
    }

    /// Enqueues a copy from another cell of the same shape, on the stream of `gpu`.
    pub(super) fn copy_from(&mut self, gpu: &GpuContext, other: &ExpertBuffer) -> Result<(), CudaError> {
        let failed = CudaError::driver_error("copying an expert");
        gpu.stream().memcpy_dtod(&other.memory, &mut self.memory).map_err(failed)
    }

    pub(super) fn address(&self) -> DeviceAddress {
        address(&self.memory)
    }
}
