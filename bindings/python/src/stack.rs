//! The serving stacks' own rules for which replica serves a token.

use crate::arrays::Ids;
use crate::convert::{placement, rows};
use crate::errors::{error, refuse};
use evenkeel::split::{self as core, RouterOptions, StackDispatch};
use numpy::{
    Element, IntoPyArray, PyArray1, PyArrayDyn, PyArrayMethods, PyReadonlyArray2, PyUntypedArrayMethods,
    ToPyArray,
};
use pyo3::prelude::*;

/// Router of top-k ids by a serving stack's own rule, to the token if the rule is deterministic.
///
/// `stack` is "sglang-static", "sglang-dynamic", "sglang-random", "vllm", "vllm-ascend" or "trtllm"
/// (docs/interop.md says which is used when). `maps` are the physical-to-logical maps of all layers in the
/// stack's order, [layers, slots], as in its file. `tp_size` is vllm-ascend's tensor parallelism.
/// `rebalanced` says that SGLang placed the experts itself while running. The slots of "sglang-random" are a
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
        let stack: StackDispatch = stack.parse().map_err(error)?;
        let maps = rows(&maps);
        let highest = maps.iter().flatten().max().map_or(0, |&id| usize::try_from(id + 1).unwrap_or(0));
        let experts = Some(experts.unwrap_or(highest));
        let placements = maps.iter().enumerate().map(|(layer, map)| {
            placement(map, ranks, experts).map_err(|err| refuse(format!("maps[{layer}]: {}", err.value(py))))
        });
        let placements = placements.collect::<PyResult<Vec<_>>>()?;
        let options = RouterOptions { nodes, tp_size, rebalanced, seed };
        let inner = py.detach(|| core::StackRouter::new(stack, placements, options)).map_err(error)?;
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
        match Ids::of(topk_ids, "topk_ids")? {
            Ids::Narrow(ids) => Ok(self.redirect_typed(py, layer, &ids, source)?.into_any()),
            Ids::Wide(ids) => Ok(self.redirect_typed(py, layer, &ids, source)?.into_any()),
        }
    }

    /// Returns the tokens that each rank serves in layer `layer`: [ranks], uint64. `ids_per_source` has the
    /// ids of every source, [rows, k] each, in the order of the ranks. Tokens that all ranks have are those
    /// of one source.
    fn loads<'py>(
        &self,
        py: Python<'py>,
        layer: usize,
        ids_per_source: Vec<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyArray1<u64>>> {
        let (mut all, mut width) = (Vec::with_capacity(ids_per_source.len()), None);
        for (source, ids) in ids_per_source.iter().enumerate() {
            let name = format!("ids_per_source[{source}]");
            let (ids, top_k) = match Ids::of(ids, &name)? {
                Ids::Narrow(ids) => (values(&ids), top_k(ids.shape(), &name)?),
                Ids::Wide(ids) => (values(&ids), top_k(ids.shape(), &name)?),
            };
            let expected = *width.get_or_insert(top_k);
            if top_k != expected {
                return Err(refuse(format!(
                    "{name}: {top_k} ids per row: expected {expected}, as in the first"
                )));
            }
            all.push(ids);
        }
        let all: Vec<&[i64]> = all.iter().map(Vec::as_slice).collect();
        let loads = py.detach(|| self.inner.loads(layer, &all, width.unwrap_or(1))).map_err(error)?;
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
        let given: Vec<Id> = ids.readonly().as_array().iter().copied().collect();
        let into = ids.readonly().as_array().to_pyarray(py);
        {
            let mut slots = into.readwrite();
            let slots = slots.as_slice_mut()?;
            py.detach(|| self.inner.redirect_into(layer, &given, top_k, source, slots)).map_err(error)?;
        }
        Ok(into)
    }
}

/// Returns the ids of an array in C order.
fn values<Id: Element + Copy + Into<i64>>(ids: &Bound<'_, PyArrayDyn<Id>>) -> Vec<i64> {
    ids.readonly().as_array().iter().map(|&id| id.into()).collect()
}

/// Returns the ids per row; a vector has one.
fn top_k(shape: &[usize], what: &str) -> PyResult<usize> {
    match *shape {
        [_] => Ok(1),
        [_, width] => Ok(width.max(1)),
        _ => Err(refuse(format!("{what}: shape {shape:?}: expected [rows, k]"))),
    }
}
