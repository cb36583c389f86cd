//! The rules by which serving stacks choose the replica of a token.

use crate::arrays::{BoundedList, ExpertIdArray, borrow_array, copy_values};
use crate::convert::{placement_from_slots, read_rows};
use crate::errors::{input_error, library_error};
use evenkeel::split::{self as core, StackDispatch, StackRouterOptions};
use numpy::ndarray::ArrayD;
use numpy::{
    Element, IntoPyArray, PyArray1, PyArrayDyn, PyArrayMethods, PyReadonlyArray2, PyUntypedArrayMethods,
};
use pyo3::prelude::*;

/// Router of top-k ids by a serving stack's own rule. A deterministic rule is reproduced to the token.
///
/// `stack` is "sglang-static", "sglang-dynamic", "sglang-random", "vllm", "vllm-ascend" or "trtllm"
/// (docs/interop.md states when each applies). `maps` are the physical-to-logical maps of all layers in the
/// stack's order, [layers, slots], as in its file. `tp_size` is vllm-ascend's tensor parallelism.
/// `rebalanced` states that SGLang placed the experts itself at run time. The slots of "sglang-random" are a
/// sample, drawn by `seed`, layer and source.
#[pyclass(frozen, module = "evenkeel")]
pub(crate) struct StackRouter {
    inner: core::StackRouter,
}

#[pymethods]
impl StackRouter {
    #[new]
    #[pyo3(signature = (stack, maps, ranks, nodes=1, experts=None, *, tp_size=1, rebalanced=false, seed=0))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of Python")]
    fn new(
        py: Python<'_>,
        stack: &str,
        maps: PyReadonlyArray2<'_, i64>,
        ranks: usize,
        nodes: usize,
        experts: Option<usize>,
        tp_size: usize,
        rebalanced: bool,
        seed: u64,
    ) -> PyResult<Self> {
        let stack: StackDispatch = stack.parse().map_err(library_error)?;
        let maps = read_rows(&maps)?;
        let highest =
            maps.iter().flatten().max().map_or(0, |&id| usize::try_from(id.saturating_add(1)).unwrap_or(0));
        let experts = Some(experts.unwrap_or(highest));
        let placements = maps.iter().enumerate().map(|(layer, map)| {
            placement_from_slots(map, ranks, experts)
                .map_err(|err| input_error(format!("maps[{layer}]: {}", err.value(py))))
        });
        let placements = placements.collect::<PyResult<Vec<_>>>()?;
        let options =
            StackRouterOptions::default().nodes(nodes).tp_size(tp_size).rebalanced(rebalanced).seed(seed);
        let inner =
            py.detach(|| core::StackRouter::new(stack, placements, options)).map_err(library_error)?;
        Ok(Self { inner })
    }

    /// Returns the name of the rule.
    #[getter]
    fn stack(&self) -> &'static str {
        self.inner.stack().name()
    }

    /// Returns the ranks of the group.
    #[getter]
    fn ranks(&self) -> usize {
        self.inner.ranks()
    }

    /// Returns the number of logical experts.
    #[getter]
    fn experts(&self) -> usize {
        self.inner.experts()
    }

    /// Returns the physical slot of every id that `source` has in layer `layer`, a row of `maps`. `topk_ids`
    /// is [rows, k], int32 or int64; the answer has its shape and type; -1 stays -1.
    #[pyo3(signature = (layer, topk_ids, source=0))]
    fn redirect<'py>(
        &self,
        py: Python<'py>,
        layer: usize,
        topk_ids: &Bound<'py, PyAny>,
        source: usize,
    ) -> PyResult<Bound<'py, PyAny>> {
        match ExpertIdArray::from_array(topk_ids, "topk_ids")? {
            ExpertIdArray::Narrow(ids) => Ok(self.redirect_typed(py, layer, &ids, source)?.into_any()),
            ExpertIdArray::Wide(ids) => Ok(self.redirect_typed(py, layer, &ids, source)?.into_any()),
        }
    }

    /// Returns the tokens that each rank serves in layer `layer`: [ranks], uint64. `ids_per_source` has the
    /// ids of every source, [rows, k] each, in the order of the ranks. Tokens that all ranks share count
    /// once: pass them as one source.
    fn loads<'py>(
        &self,
        py: Python<'py>,
        layer: usize,
        ids_per_source: BoundedList<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyArray1<u64>>> {
        let (mut all, mut width) = (Vec::with_capacity(ids_per_source.0.len()), None);
        for (source, ids) in ids_per_source.0.iter().enumerate() {
            let name = format!("ids_per_source[{source}]");
            let (ids, top_k) = match ExpertIdArray::from_array(ids, &name)? {
                ExpertIdArray::Narrow(ids) => (id_values(&ids, &name)?, top_k(ids.shape(), &name)?),
                ExpertIdArray::Wide(ids) => (id_values(&ids, &name)?, top_k(ids.shape(), &name)?),
            };
            let expected = *width.get_or_insert(top_k);
            if top_k != expected {
                return Err(input_error(format!(
                    "{name}: {top_k} ids per row: expected {expected}, as in the first"
                )));
            }
            all.push(ids);
        }
        let all: Vec<&[i64]> = all.iter().map(Vec::as_slice).collect();
        let loads = py.detach(|| self.inner.loads(layer, &all, width.unwrap_or(1))).map_err(library_error)?;
        Ok(loads.into_pyarray(py))
    }

    fn __repr__(&self) -> String {
        let of = &self.inner;
        format!(
            "<evenkeel.StackRouter: {}, {} layers, {} experts on {} ranks>",
            of.stack(),
            of.layers(),
            of.experts(),
            of.ranks()
        )
    }
}

impl StackRouter {
    fn redirect_typed<'py, Id>(
        &self,
        py: Python<'py>,
        layer: usize,
        ids: &Bound<'py, PyArrayDyn<Id>>,
        source: usize,
    ) -> PyResult<Bound<'py, PyArrayDyn<Id>>>
    where
        Id: Element + Copy + Into<i64> + TryFrom<u32> + Send + Sync,
    {
        let top_k = top_k(ids.shape(), "topk_ids")?;
        let given = copy_values(borrow_array(ids, "topk_ids")?.as_array().iter(), "topk_ids", |&id| Ok(id))?;
        let into =
            ArrayD::from_shape_vec(ids.shape(), given.clone()).map_err(library_error)?.into_pyarray(py);
        {
            let mut slots = into.readwrite();
            let slots = slots.as_slice_mut()?;
            py.detach(|| self.inner.redirect_into(layer, &given, top_k, source, slots))
                .map_err(library_error)?;
        }
        Ok(into)
    }
}

/// Returns the ids of an array in C order.
fn id_values<Id: Element + Copy + Into<i64>>(
    ids: &Bound<'_, PyArrayDyn<Id>>,
    what: &str,
) -> PyResult<Vec<i64>> {
    copy_values(borrow_array(ids, what)?.as_array().iter(), what, |&id| Ok(id.into()))
}

/// Returns the ids per row; a vector has one.
fn top_k(shape: &[usize], what: &str) -> PyResult<usize> {
    match *shape {
        [_] => Ok(1),
        [_, width] => Ok(width.max(1)),
        _ => Err(input_error(format!("{what}: shape {shape:?}: expected [rows, k]"))),
    }
}
