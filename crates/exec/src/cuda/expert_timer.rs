//! Times experts alone on a GPU by events, for calibration and benchmarks.

use super::cublas::{CublasGemm, GemmProblem};
use super::expert_buffer::{ExpertBuffer, ExpertLayout};
use super::experts::{RowGroups, tile_index};
use super::kernels::{ExecKernels, KernelLauncher, address, upload, zeros};
use super::{GemmPath, check_memory};
use crate::error::ExecError;
use crate::weights::WeightSource;
use cudarc::driver::CudaSlice;
use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use evenkeel::model::MoeModel;
use evenkeel_cuda::{CudaError, GpuContext};
use half::bf16;
use std::sync::Arc;

/// Some experts of one model on a GPU, with space for their rows. The contents of the rows are arbitrary.
#[derive(Debug)]
pub struct ExpertTimer {
    gpu: Arc<GpuContext>,
    kernels: Arc<ExecKernels>,
    blas: Option<CublasGemm>,
    model: MoeModel,
    shape: ExpertLayout,
    cells: Vec<ExpertBuffer>,
    rows: usize,
    x: CudaSlice<u16>,
    inside: CudaSlice<u16>,
    gate: CudaSlice<u16>,
    up: CudaSlice<u16>,
    out: CudaSlice<u16>,
}

impl ExpertTimer {
    /// Uploads the first `experts` experts of a model's first layer, with space for `rows` rows over all of
    /// them. Only `distinct` experts are created and the others copied from them, because creating weights
    /// takes longer than anything else here.
    ///
    /// # Errors
    /// Fails without a usable GPU, if memory is short, or if weights cannot be read.
    pub fn new(
        device: usize,
        model: &MoeModel,
        source: &dyn WeightSource,
        [experts, distinct, rows]: [usize; 3],
    ) -> Result<Self, ExecError> {
        let gpu = GpuContext::open(device)?;
        let shape = ExpertLayout::new(model.hidden as usize, model.intermediate as usize, model.activation);
        let buffers = rows * 2 * (2 * shape.hidden + 3 * shape.inner);
        check_memory(&gpu, "experts", shape.bytes() * experts as u64 + buffers as u64)?;
        let mut cells: Vec<ExpertBuffer> = Vec::with_capacity(experts);
        for expert in 0..experts {
            let cell = if expert < distinct.max(1) {
                ExpertBuffer::new(&gpu, &shape, &source.expert_weights(0, expert)?)?
            } else {
                let mut cell = ExpertBuffer::empty(&gpu, &shape)?;
                cell.copy_from(&gpu, &cells[expert % distinct.max(1)])?;
                cell
            };
            cells.push(cell);
        }
        // Numbers of various sizes, as in real activations, because power and therefore clock rates depend on
        // them.
        let wave = |i: usize| bf16::from_f32(((i * 7919 % 2003) as f32 / 1001.0 - 1.0) * 1.7).to_bits();
        let x: Vec<u16> = (0..(rows * shape.hidden).max(1)).map(wave).collect();
        Ok(Self {
            kernels: ExecKernels::load(&gpu)?,
            blas: CublasGemm::new(&gpu).ok(),
            model: *model,
            shape,
            cells,
            rows,
            x: upload(&gpu, &x)?,
            inside: zeros(&gpu, rows * shape.inner)?,
            gate: zeros(&gpu, rows * shape.inner)?,
            up: zeros(&gpu, rows * shape.inner)?,
            out: zeros(&gpu, rows * shape.hidden)?,
            gpu,
        })
    }

    /// Returns the name of the GPU.
    pub fn device_name(&self) -> &str {
        &self.gpu.device().name
    }

    /// Returns the milliseconds of each of `times` runs of the experts from `from` on, with the given rows
    /// each. `tile` selects one of the three tiles (16, 64, 128 rows) for [`GemmPath::Own`] only; `None`
    /// selects the usual one.
    ///
    /// # Errors
    /// Returns [`ExecError::Shape`] for more experts or rows than there is space for. Returns
    /// [`ExecError::Cuda`] if a CUDA call fails, or if cuBLAS is requested but missing.
    pub fn time_experts(
        &self,
        path: GemmPath,
        from: usize,
        sizes: &[usize],
        which: Option<usize>,
        times: usize,
    ) -> Result<Vec<f64>, ExecError> {
        let rows: usize = sizes.iter().sum();
        if from + sizes.len() > self.cells.len() || rows > self.rows {
            return Err(ExecError::Shape { what: "rows or experts", given: rows, expected: self.rows });
        }
        let cells: Vec<u64> =
            self.cells[from..from + sizes.len()].iter().map(ExpertBuffer::address).collect();
        let mut offsets = vec![0u32];
        let mut sum = 0;
        offsets.extend(sizes.iter().map(|&rows| {
            sum += rows as u32;
            sum
        }));
        let (table, starts) = (upload(&self.gpu, &cells)?, upload(&self.gpu, &offsets)?);
        let groups = RowGroups {
            shape: self.shape,
            activation: self.model.activation,
            count: sizes.len(),
            offsets: address(&starts),
            cells: address(&table),
            rows: 0,
            base: address(&self.x),
            scale: 0,
            inside: address(&self.inside),
            out: address(&self.out),
        };
        let on = KernelLauncher { kernels: &self.kernels, stream: self.gpu.stream() };
        let which = which.unwrap_or_else(|| tile_index(rows, sizes.len())).min(2);
        self.time_repeats(times, || match path {
            GemmPath::Own => {
                on.grouped_gemm(&groups.gate_up_gemm(), self.shape.gated, which)?;
                on.grouped_gemm(&groups.down_gemm(), false, which)
            }
            GemmPath::Cublas => {
                let blas = self.blas.as_ref().ok_or(CudaError::NoBlas)?;
                let between = [address(&self.x), address(&self.gate), address(&self.up)];
                super::experts::run_cublas(&self.gpu, on, blas, &groups, &offsets, &cells, between)
            }
        })
    }

    /// Returns the milliseconds of each of `times` products `[rows][inner] x [inner][columns]` by cuBLAS, as
    /// the peak rate of the machine.
    ///
    /// # Errors
    /// Returns [`ExecError::Memory`] if memory is short, and [`ExecError::Cuda`] if a CUDA call fails.
    pub fn time_gemm(&self, [rows, columns, inner]: [usize; 3], times: usize) -> Result<Vec<f64>, ExecError> {
        let numbers = rows * inner + columns * inner + rows * columns;
        check_memory(&self.gpu, "matrices", 2 * numbers as u64)?;
        let memory = zeros::<u16>(&self.gpu, numbers)?;
        let x = address(&memory);
        let w = x + 2 * (rows * inner) as u64;
        let out = w + 2 * (columns * inner) as u64;
        // The numbers are not zero, for the reason in `new`.
        let wave: Vec<u16> =
            (0..1 << 16).map(|i| bf16::from_f32((i * 7919 % 2003) as f32 / 1001.0 - 1.0).to_bits()).collect();
        let stream = self.gpu.stream();
        let mut memory = memory;
        let failed = CudaError::driver_error("filling matrices");
        for begin in (0..rows * inner + columns * inner).step_by(wave.len()) {
            let end = (begin + wave.len()).min(numbers);
            stream.memcpy_htod(&wave[..end - begin], &mut memory.slice_mut(begin..end)).map_err(&failed)?;
        }
        let blas = self.blas.as_ref().ok_or(CudaError::NoBlas)?;
        self.time_repeats(times, || blas.run_product(&GemmProblem { rows, columns, inner, x, w, out }))
    }

    fn time_repeats(
        &self,
        times: usize,
        work: impl Fn() -> Result<(), CudaError>,
    ) -> Result<Vec<f64>, ExecError> {
        let (stream, failed) = (self.gpu.stream(), CudaError::driver_error("timing experts"));
        let mut all = Vec::with_capacity(times);
        for _ in 0..times {
            let begin = stream.record_event(Some(CU_EVENT_DEFAULT)).map_err(&failed)?;
            work()?;
            let end = stream.record_event(Some(CU_EVENT_DEFAULT)).map_err(&failed)?;
            all.push(f64::from(begin.elapsed_ms(&end).map_err(&failed)?));
        }
        Ok(all)
    }
}
