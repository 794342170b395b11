//! Matrix products by cublasLt: f32 sums of products of the element type, results f32.
//!
//! ```text
//! row-major here                       column-major, as cublasLt counts
//! out [M, N] (+)= inputs [M, K] · Wᵀ   outᵀ (N × M) (+)= op(W) (N × K) · inputsᵀ (K × M), op: transposed
//! W stored [N, K], rows of W and of inputs in whole slices
//! ```
//! Full f32: no TF32. The algorithm is chosen once for a shape, hence by the number of rows: a row may get other bits in a batch of
//! another size. Does not know what is multiplied.

use std::{collections::HashMap, ptr};

use cudarc::cublaslt::{
    result,
    sys::{
        cublasComputeType_t, cublasLtHandle_t, cublasLtMatmulAlgo_t, cublasLtMatmulDesc_t,
        cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
        cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, cublasLtMatrixLayout_t,
        cudaDataType,
    },
};
use nanoinfer_kernels::{Element, cuda::row_stride};

use super::{
    error::{GpuError, While},
    gpu::{Gpu, Memory},
};

/// Scratch memory, as much as cuBLAS takes by itself on the newest GPUs.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Of shapes; prompts come in as many sizes as there are tokens in a step.
const MAX_PLANS: usize = 4096;

/// A product's sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    /// M.
    pub(crate) rows: usize,
    /// K.
    pub(crate) inputs: usize,
    /// N.
    pub(crate) outputs: usize,
    /// Floats from one row of the result to the next.
    pub(crate) stride: usize,
}

/// Products in one element type.
pub(crate) struct Products {
    handle: cublasLtHandle_t,
    element: Element,
    workspace: Memory,
    plans: HashMap<Shape, Plan>,
}

impl Products {
    pub(crate) fn new(gpu: &Gpu, element: Element) -> Result<Self, GpuError> {
        let workspace = gpu.allocate(WORKSPACE_BYTES, "products")?;
        let handle = result::create_handle().doing("start")?;
        Ok(Self { handle, element, workspace, plans: HashMap::new() })
    }

    /// Bytes beside weights and activations.
    pub(crate) fn bytes() -> u64 {
        WORKSPACE_BYTES as u64
    }

    /// Queues `out = inputs · Wᵀ`, or `out +=` it.
    pub(crate) fn multiply(
        &mut self,
        gpu: &Gpu,
        shape: Shape,
        weights: u64,
        inputs: u64,
        out: u64,
        add: bool,
    ) -> Result<(), GpuError> {
        if shape.rows == 0 || shape.outputs == 0 || (shape.inputs == 0 && add) {
            return Ok(());
        }
        if shape.inputs == 0 {
            return gpu.clear(out, shape.rows * shape.stride * size_of::<f32>());
        }
        if !self.plans.contains_key(&shape) {
            if self.plans.len() >= MAX_PLANS {
                self.plans.clear();
            }
            let plan = Plan::new(self.handle, self.element, shape)?;
            self.plans.insert(shape, plan);
        }
        let plan = &self.plans[&shape];
        let (one, before) = (1f32, if add { 1f32 } else { 0.0 });
        // SAFETY: descriptors are the plan's; addresses are of allocations of the shape's sizes, see `Memory::at`; the stream is
        // alive; the factors are read before the call returns.
        unsafe {
            result::matmul(
                self.handle,
                plan.product,
                ptr::from_ref(&one).cast(),
                ptr::from_ref(&before).cast(),
                weights as *const _,
                plan.weights,
                inputs as *const _,
                plan.inputs,
                out as *const _,
                plan.out,
                out as *mut _,
                plan.out,
                &plan.algorithm,
                self.workspace.address() as *mut _,
                WORKSPACE_BYTES,
                gpu.stream().cu_stream().cast(),
            )
        }
        .doing("multiply")
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: made in `new`, destroyed once. An error leaves a handle to the end of the process.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// Descriptors and the algorithm of one shape.
struct Plan {
    product: cublasLtMatmulDesc_t,
    weights: cublasLtMatrixLayout_t,
    inputs: cublasLtMatrixLayout_t,
    out: cublasLtMatrixLayout_t,
    algorithm: cublasLtMatmulAlgo_t,
}

impl Plan {
    fn new(handle: cublasLtHandle_t, element: Element, shape: Shape) -> Result<Self, GpuError> {
        let Shape { rows, inputs, outputs, stride } = shape;
        let kind = match element {
            Element::F32 => cudaDataType::CUDA_R_32F,
            Element::F16 => cudaDataType::CUDA_R_16F,
            Element::Bf16 => cudaDataType::CUDA_R_16BF,
            Element::Int8 => cudaDataType::CUDA_R_8I,
        };
        let layout = |kind, height: usize, width: usize, stride: usize| {
            result::create_matrix_layout(kind, height as u64, width as u64, stride as i64).doing("describe a matrix")
        };
        let f32 = cudaDataType::CUDA_R_32F;
        let mut plan = Self {
            product: result::create_matmul_desc(cublasComputeType_t::CUBLAS_COMPUTE_32F, f32)
                .doing("describe a product")?,
            weights: ptr::null_mut(),
            inputs: ptr::null_mut(),
            out: ptr::null_mut(),
            // SAFETY: opaque words, which the heuristic below overwrites.
            algorithm: unsafe { std::mem::zeroed() },
        };
        plan.weights = layout(kind, inputs, outputs, row_stride(inputs))?;
        plan.inputs = layout(kind, inputs, rows, row_stride(inputs))?;
        plan.out = layout(f32, outputs, rows, stride)?;
        // CUBLAS_OP_T.
        let transposed = 1i32;
        let preference = result::create_matmul_pref().doing("describe a choice")?;
        // SAFETY: the descriptors were just made; each attribute has the size that it is documented with.
        let choose = || unsafe {
            let (at, bytes) = (ptr::from_ref(&transposed).cast(), size_of::<i32>());
            result::set_matmul_desc_attribute(plan.product, CUBLASLT_MATMUL_DESC_TRANSA, at, bytes)?;
            let (at, bytes) = (ptr::from_ref(&WORKSPACE_BYTES).cast(), size_of::<usize>());
            result::set_matmul_pref_attribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, at, bytes)?;
            let Self { product, weights, inputs, out, .. } = plan;
            result::get_matmul_algo_heuristic(handle, product, weights, inputs, out, out, preference)
        };
        let chosen = choose();
        // SAFETY: made above, destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(preference) };
        plan.algorithm = chosen.doing("choose an algorithm")?.algo;
        Ok(plan)
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        for layout in [self.weights, self.inputs, self.out] {
            if !layout.is_null() {
                // SAFETY: made in `new`, destroyed once.
                let _ = unsafe { result::destroy_matrix_layout(layout) };
            }
        }
        // SAFETY: as above.
        let _ = unsafe { result::destroy_matmul_desc(self.product) };
    }
}
