//! Experts by cuBLAS: one grouped product per matrix, with sizes from the host.
//!
//! Matrices are stored row by row, which is the transpose in cuBLAS: `out^T = W^T (stored) x^T`. So weights
//! are transposed and rows are not. The addresses of the matrices are read from device memory, all sizes from
//! the host's.

use super::kernels::{DeviceAddress, address, upload};
use cudarc::cublas::CudaBlas;
use cudarc::cublas::sys;
use evenkeel_cuda::{CudaError, GpuContext};
use std::ffi::c_void;

/// cuBLAS on one stream.
#[derive(Debug)]
pub(super) struct CublasGemm {
    handle: CudaBlas,
    /// True if the library has grouped products (12.5 and later). Otherwise the products run one after the
    /// other.
    grouped: bool,
}

/// A product `out[rows][columns] = x[rows][inner] w[columns][inner]^T` in bf16, by address.
#[derive(Debug, Clone, Copy)]
pub(super) struct GemmProblem {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) inner: usize,
    pub(super) x: DeviceAddress,
    pub(super) w: DeviceAddress,
    pub(super) out: DeviceAddress,
}

const BF16: sys::cudaDataType_t = sys::cudaDataType_t::CUDA_R_16BF;
const F32: sys::cublasComputeType_t = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
const TRANSPOSED: sys::cublasOperation_t = sys::cublasOperation_t::CUBLAS_OP_T;
const AS_IS: sys::cublasOperation_t = sys::cublasOperation_t::CUBLAS_OP_N;

/// Checks that cuBLAS is installed.
pub(super) fn check_cublas() -> Result<(), CudaError> {
    #[allow(unsafe_code, reason = "loads libcublas, whose initialisers are trusted, and unloads it")]
    let present = unsafe { sys::is_culib_present() };
    if present { Ok(()) } else { Err(CudaError::NoBlas) }
}

impl CublasGemm {
    /// Opens cuBLAS for the stream of a GPU.
    pub(super) fn new(gpu: &GpuContext) -> Result<Self, CudaError> {
        check_cublas()?;
        #[allow(unsafe_code, reason = "asks whether the library has a symbol, which is not called here")]
        let grouped =
            unsafe { sys::culib().get::<unsafe extern "C" fn()>(b"cublasGemmGroupedBatchedEx\0").is_ok() };
        let handle = CudaBlas::new(gpu.stream().clone()).map_err(CudaError::blas_error("starting cuBLAS"))?;
        Ok(Self { handle, grouped })
    }

    /// Enqueues products, and skips those without rows.
    pub(super) fn run_products(&self, gpu: &GpuContext, products: &[GemmProblem]) -> Result<(), CudaError> {
        let products: Vec<&GemmProblem> = products.iter().filter(|product| product.rows > 0).collect();
        if products.is_empty() {
            return Ok(());
        }
        if self.grouped {
            self.run_grouped(gpu, &products)
        } else {
            products.into_iter().try_for_each(|p| self.run_product(p))
        }
    }

    fn run_grouped(&self, gpu: &GpuContext, products: &[&GemmProblem]) -> Result<(), CudaError> {
        let n = products.len();
        let of =
            |field: fn(&GemmProblem) -> DeviceAddress| products.iter().map(move |&product| field(product));
        let addresses: Vec<DeviceAddress> = of(|p| p.w).chain(of(|p| p.x)).chain(of(|p| p.out)).collect();
        let addresses = upload(gpu, &addresses)?;
        let begin = address(&addresses);
        let part = |which: usize| begin + (8 * n * which) as u64;
        let sizes = |field: fn(&GemmProblem) -> usize| {
            products.iter().map(|&p| field(p) as i32).collect::<Vec<i32>>()
        };
        let (rows, columns, inner) = (sizes(|p| p.rows), sizes(|p| p.columns), sizes(|p| p.inner));
        let (transposed, as_is) = (vec![TRANSPOSED; n], vec![AS_IS; n]);
        let (one, zero, each) = (vec![1f32; n], vec![0f32; n], vec![1i32; n]);
        #[allow(unsafe_code, reason = "a call into cuBLAS")]
        // SAFETY: every host array has `n` entries. The three device arrays have `n` addresses of matrices
        // with these sizes. They are freed on the stream of the products, after them.
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
        status.result().map_err(CudaError::blas_error("multiplying groups"))
    }

    /// Enqueues one product.
    pub(super) fn run_product(&self, p: &GemmProblem) -> Result<(), CudaError> {
        let (one, zero) = (1f32, 0f32);
        let [rows, columns, inner] = [p.rows, p.columns, p.inner].map(|n| n as i32);
        #[allow(unsafe_code, reason = "a call into cuBLAS")]
        // SAFETY: the addresses are of matrices with these sizes in device memory. Both factors are read by
        // the host during the call.
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
        status.result().map_err(CudaError::blas_error("multiplying"))
    }
}
