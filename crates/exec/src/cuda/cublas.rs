//! The experts by cuBLAS: one grouped product per matrix, with sizes that the host has to know.
//!
//! Matrices lie row by row, which cuBLAS calls the transpose: `out^T = W^T (stored) x^T`, so weights are transposed and rows are
//! not. The addresses of the matrices are read from device memory, all sizes from the host's.

use super::kernels::{Address, address, upload};
use crate::cuda::{Context, CudaError};
use cudarc::cublas::CudaBlas;
use cudarc::cublas::sys;
use std::ffi::c_void;

/// cuBLAS on one stream.
#[derive(Debug)]
pub(super) struct Blas {
    handle: CudaBlas,
    /// Whether the library has grouped products (12.5 and later); one product after the other where not.
    grouped: bool,
}

/// `out[rows][columns] = x[rows][inner] w[columns][inner]^T`, bf16, by address.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) inner: usize,
    pub(super) x: Address,
    pub(super) w: Address,
    pub(super) out: Address,
}

const BF16: sys::cudaDataType_t = sys::cudaDataType_t::CUDA_R_16BF;
const F32: sys::cublasComputeType_t = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
const TRANSPOSED: sys::cublasOperation_t = sys::cublasOperation_t::CUBLAS_OP_T;
const AS_IS: sys::cublasOperation_t = sys::cublasOperation_t::CUBLAS_OP_N;

/// Whether there is a cuBLAS.
pub(super) fn present() -> Result<(), CudaError> {
    #[allow(unsafe_code, reason = "loads libcublas, whose initialisers are trusted, and lets go of it")]
    let present = unsafe { sys::is_culib_present() };
    if present { Ok(()) } else { Err(CudaError::NoBlas) }
}

impl Blas {
    /// cuBLAS for the stream of a GPU.
    pub(super) fn new(gpu: &Context) -> Result<Self, CudaError> {
        present()?;
        #[allow(unsafe_code, reason = "asks whether the library has a symbol, which is not called here")]
        let grouped =
            unsafe { sys::culib().get::<unsafe extern "C" fn()>(b"cublasGemmGroupedBatchedEx\0").is_ok() };
        let handle = CudaBlas::new(gpu.stream().clone()).map_err(CudaError::blas("starting cuBLAS"))?;
        Ok(Self { handle, grouped })
    }

    /// Enqueues products; those without rows are left out.
    pub(super) fn run(&self, gpu: &Context, products: &[Product]) -> Result<(), CudaError> {
        let products: Vec<&Product> = products.iter().filter(|product| product.rows > 0).collect();
        if products.is_empty() {
            return Ok(());
        }
        if self.grouped {
            self.group(gpu, &products)
        } else {
            products.into_iter().try_for_each(|p| self.one(p))
        }
    }

    fn group(&self, gpu: &Context, products: &[&Product]) -> Result<(), CudaError> {
        let n = products.len();
        let of = |field: fn(&Product) -> Address| products.iter().map(move |&product| field(product));
        let addresses: Vec<Address> = of(|p| p.w).chain(of(|p| p.x)).chain(of(|p| p.out)).collect();
        let addresses = upload(gpu, &addresses)?;
        let begin = address(&addresses);
        let part = |which: usize| begin + (8 * n * which) as u64;
        let sizes =
            |field: fn(&Product) -> usize| products.iter().map(|&p| field(p) as i32).collect::<Vec<i32>>();
        let (rows, columns, inner) = (sizes(|p| p.rows), sizes(|p| p.columns), sizes(|p| p.inner));
        let (transposed, as_is) = (vec![TRANSPOSED; n], vec![AS_IS; n]);
        let (one, zero, each) = (vec![1f32; n], vec![0f32; n], vec![1i32; n]);
        #[allow(unsafe_code, reason = "a call into cuBLAS")]
        // SAFETY: every host array has `n` entries; the three device arrays have `n` addresses of matrices with these
        // sizes, and are freed on the stream that the products run on, behind them.
        let status = unsafe {
            sys::cublasGemmGroupedBatchedEx(
                *self.handle.handle(),
                transposed.as_ptr(),
                as_is.as_ptr(),
                columns.as_ptr(),
                rows.as_ptr(),
                inner.as_ptr(),
                one.as_ptr().cast(),
                part(0) as *const *const c_void,
                BF16,
                inner.as_ptr(),
                part(1) as *const *const c_void,
                BF16,
                inner.as_ptr(),
                zero.as_ptr().cast(),
                part(2) as *const *mut c_void,
                BF16,
                columns.as_ptr(),
                n as i32,
                each.as_ptr(),
                F32,
            )
        };
        status.result().map_err(CudaError::blas("multiplying groups"))
    }

    /// One product.
    pub(super) fn one(&self, p: &Product) -> Result<(), CudaError> {
        let (one, zero) = (1f32, 0f32);
        let [rows, columns, inner] = [p.rows, p.columns, p.inner].map(|n| n as i32);
        #[allow(unsafe_code, reason = "a call into cuBLAS")]
        // SAFETY: the addresses are of matrices with these sizes in device memory; both factors are read at once.
        let status = unsafe {
            sys::cublasGemmEx(
                *self.handle.handle(),
                TRANSPOSED,
                AS_IS,
                columns,
                rows,
                inner,
                (&raw const one).cast(),
                p.w as *const c_void,
                BF16,
                inner,
                p.x as *const c_void,
                BF16,
                inner,
                (&raw const zero).cast(),
                p.out as *mut c_void,
                BF16,
                columns,
                F32,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        status.result().map_err(CudaError::blas("multiplying"))
    }
}
