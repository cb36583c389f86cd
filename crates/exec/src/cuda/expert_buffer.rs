//! Experts in device memory: one piece each, so that a slot is an address and a move is one copy.
//!
//! In: [`ExpertWeights`]. Out: a [`Cell`]: gate, up, down, then the biases in `f32`, each begun at a multiple of 16 bytes.

use super::kernels::{Address, address};
use crate::cuda::{Context, CudaError};
use crate::exec::error::ExecError;
use crate::exec::weights::{ExpertWeights, Matrix};
use crate::model::Activation;
use cudarc::driver::CudaSlice;
use half::bf16;
use half::slice::HalfFloatSliceExt;

/// Where in a cell everything begins, in numbers of 16 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CellShape {
    pub(super) hidden: usize,
    pub(super) inner: usize,
    pub(super) gated: bool,
    biased: bool,
}

impl CellShape {
    pub(super) fn new(hidden: usize, inner: usize, activation: Activation) -> Self {
        Self { hidden, inner, gated: activation.gated(), biased: activation.biased() }
    }

    fn matrix(&self) -> usize {
        self.hidden * self.inner
    }

    /// Bytes before the up matrix.
    pub(super) fn up(&self) -> u64 {
        2 * if self.gated { self.matrix() as u64 } else { 0 }
    }

    /// Bytes before the down matrix.
    pub(super) fn down(&self) -> u64 {
        self.up() + 2 * self.matrix() as u64
    }

    fn biases(&self) -> u64 {
        self.down() + 2 * self.matrix() as u64
    }

    /// Bytes before the biases of gate, up and down; 0 where there are none.
    pub(super) fn bias(&self) -> [u64; 3] {
        let (begin, inner) = (self.biases(), 4 * self.inner as u64);
        if self.biased { [begin, begin + inner, begin + 2 * inner] } else { [0; 3] }
    }

    /// Bytes of all of it.
    pub(super) fn bytes(&self) -> u64 {
        let biases = if self.biased { 4 * (2 * self.inner + self.hidden) as u64 } else { 0 };
        (self.biases() + biases).next_multiple_of(16)
    }

    /// Bytes of its matrices alone: what a move is said to carry.
    pub(super) fn counted(&self) -> u64 {
        self.biases()
    }
}

/// One expert on a GPU.
#[derive(Debug)]
pub(super) struct Cell {
    memory: CudaSlice<u16>,
}

impl Cell {
    /// Room for an expert.
    pub(super) fn empty(gpu: &Context, shape: &CellShape) -> Result<Self, CudaError> {
        let failed = CudaError::driver("reserving memory for an expert");
        #[allow(unsafe_code, reason = "all of it is written before it is read: by `new` or `copy_from`")]
        let memory = unsafe { gpu.stream().alloc::<u16>((shape.bytes() / 2) as usize) }.map_err(failed)?;
        Ok(Self { memory })
    }

    /// An expert's weights; they are there once the GPU's stream has been waited for.
    pub(super) fn new(gpu: &Context, shape: &CellShape, weights: &ExpertWeights) -> Result<Self, ExecError> {
        let mut cell = Self::empty(gpu, shape)?;
        let mut at = 0;
        let mut put = |numbers: &[u16]| -> Result<(), CudaError> {
            let end = at + numbers.len();
            let mut place = cell.memory.slice_mut(at..end);
            at = end;
            gpu.stream().memcpy_htod(numbers, &mut place).map_err(CudaError::driver("copying an expert"))
        };
        for matrix in weights.gate.iter().chain([&weights.up, &weights.down]) {
            ExecError::expect("numbers of an expert's matrix", matrix.len(), shape.matrix())?;
            match matrix {
                Matrix::Bf16(numbers) => put(numbers.as_slice().reinterpret_cast())?,
                Matrix::F32(numbers) => {
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

    /// Enqueues, on the stream of `gpu`, copying another cell of the same shape here.
    pub(super) fn copy_from(&mut self, gpu: &Context, other: &Cell) -> Result<(), CudaError> {
        let failed = CudaError::driver("copying an expert");
        gpu.stream().memcpy_dtod(&other.memory, &mut self.memory).map_err(failed)
    }

    pub(super) fn address(&self) -> Address {
        address(&self.memory)
    }
}
