//! Experts alone on a GPU, timed by events: what calibration and benchmarks ask for.

use super::blas::{Blas, Product};
use super::cells::{Cell, CellShape};
use super::experts::{Groups, tile};
use super::kernels::{Kernels, On, address, upload, zeros};
use super::{Path, enough};
use crate::cuda::{Context, CudaError};
use crate::exec::error::ExecError;
use crate::exec::weights::WeightSource;
use crate::model::Model;
use cudarc::driver::CudaSlice;
use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use half::bf16;
use std::sync::Arc;

/// Some experts of one model on a GPU, with room for so many rows; numbers that their rows hold do not matter.
#[derive(Debug)]
pub struct Experts {
    gpu: Arc<Context>,
    kernels: Arc<Kernels>,
    blas: Option<Blas>,
    model: Model,
    shape: CellShape,
    cells: Vec<Cell>,
    rows: usize,
    x: CudaSlice<u16>,
    inside: CudaSlice<u16>,
    gate: CudaSlice<u16>,
    up: CudaSlice<u16>,
    out: CudaSlice<u16>,
}

impl Experts {
    /// The first `experts` of a model's first layer, and room for `rows` rows in all of them together. `distinct` are made and
    /// the others copied from them: making weights takes longer than anything here.
    ///
    /// # Errors
    /// Without a usable GPU, for want of memory, or when weights cannot be had.
    pub fn new(
        device: usize,
        model: &Model,
        source: &dyn WeightSource,
        [experts, distinct, rows]: [usize; 3],
    ) -> Result<Self, ExecError> {
        let gpu = Context::open(device)?;
        let shape = CellShape::new(model.hidden as usize, model.intermediate as usize, model.activation);
        let buffers = rows * 2 * (2 * shape.hidden + 3 * shape.inner);
        enough(&gpu, "experts", shape.bytes() * experts as u64 + buffers as u64)?;
        let mut cells: Vec<Cell> = Vec::with_capacity(experts);
        for expert in 0..experts {
            let cell = if expert < distinct.max(1) {
                Cell::new(&gpu, &shape, &source.expert(0, expert)?)?
            } else {
                let mut cell = Cell::empty(&gpu, &shape)?;
                cell.copy_from(&gpu, &cells[expert % distinct.max(1)])?;
                cell
            };
            cells.push(cell);
        }
        // Numbers of every size, as activations are: power and with it clocks depend on them.
        let wave = |i: usize| bf16::from_f32(((i * 7919 % 2003) as f32 / 1001.0 - 1.0) * 1.7).to_bits();
        let x: Vec<u16> = (0..(rows * shape.hidden).max(1)).map(wave).collect();
        Ok(Self {
            kernels: Kernels::load(&gpu)?,
            blas: Blas::new(&gpu).ok(),
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

    /// The GPU's name.
    pub fn device(&self) -> &str {
        &self.gpu.device().name
    }

    /// Milliseconds of each of `times` runs of experts `from` on with so many rows each. `tile` is which of the three tiles to
    /// take (16, 64, 128 rows), the usual one by default; it is for [`Path::Own`] alone.
    ///
    /// # Errors
    /// [`ExecError::Shape`] for more experts or rows than there is room for; [`ExecError::Cuda`], also without cuBLAS where
    /// that is asked for.
    pub fn time(
        &self,
        path: Path,
        from: usize,
        sizes: &[usize],
        which: Option<usize>,
        times: usize,
    ) -> Result<Vec<f64>, ExecError> {
        let rows: usize = sizes.iter().sum();
        if from + sizes.len() > self.cells.len() || rows > self.rows {
            return Err(ExecError::Shape { what: "rows or experts", given: rows, expected: self.rows });
        }
        let cells: Vec<u64> = self.cells[from..from + sizes.len()].iter().map(Cell::address).collect();
        let mut offsets = vec![0u32];
        let mut sum = 0;
        offsets.extend(sizes.iter().map(|&rows| {
            sum += rows as u32;
            sum
        }));
        let (table, starts) = (upload(&self.gpu, &cells)?, upload(&self.gpu, &offsets)?);
        let groups = Groups {
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
        let on = On { kernels: &self.kernels, stream: self.gpu.stream() };
        let which = which.unwrap_or_else(|| tile(rows, sizes.len())).min(2);
        self.repeat(times, || match path {
            Path::Own => {
                on.grouped(&groups.first(), self.shape.gated, which)?;
                on.grouped(&groups.last(), false, which)
            }
            Path::Cublas => {
                let blas = self.blas.as_ref().ok_or(CudaError::NoBlas)?;
                let between = [address(&self.x), address(&self.gate), address(&self.up)];
                super::experts::dense(&self.gpu, on, blas, &groups, &offsets, &cells, between)
            }
        })
    }

    /// Milliseconds of each of `times` products `[rows][inner] x [inner][columns]` by cuBLAS: the rate of the machine.
    ///
    /// # Errors
    /// [`ExecError::Memory`], [`ExecError::Cuda`].
    pub fn dense(&self, [rows, columns, inner]: [usize; 3], times: usize) -> Result<Vec<f64>, ExecError> {
        let numbers = rows * inner + columns * inner + rows * columns;
        enough(&self.gpu, "matrices", 2 * numbers as u64)?;
        let memory = zeros::<u16>(&self.gpu, numbers)?;
        let x = address(&memory);
        let w = x + 2 * (rows * inner) as u64;
        let out = w + 2 * (columns * inner) as u64;
        // Not zeros: see `new`.
        let wave: Vec<u16> =
            (0..1 << 16).map(|i| bf16::from_f32((i * 7919 % 2003) as f32 / 1001.0 - 1.0).to_bits()).collect();
        let stream = self.gpu.stream();
        let mut memory = memory;
        let failed = CudaError::driver("filling matrices");
        for begin in (0..rows * inner + columns * inner).step_by(wave.len()) {
            let end = (begin + wave.len()).min(numbers);
            stream.memcpy_htod(&wave[..end - begin], &mut memory.slice_mut(begin..end)).map_err(&failed)?;
        }
        let blas = self.blas.as_ref().ok_or(CudaError::NoBlas)?;
        self.repeat(times, || blas.one(&Product { rows, columns, inner, x, w, out }))
    }

    fn repeat(&self, times: usize, work: impl Fn() -> Result<(), CudaError>) -> Result<Vec<f64>, ExecError> {
        let (stream, failed) = (self.gpu.stream(), CudaError::driver("timing experts"));
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
