//! The fast loop: splits of batches, and which slot serves which token.

use crate::arrays::{Ids, tokens};
use crate::convert;
use crate::errors::{error, refuse};
use evenkeel::cluster::Cluster;
use evenkeel::place::Placement;
use evenkeel::planner as core;
use evenkeel::split::{self, Keep};
use numpy::{
    Element, IntoPyArray, PyArray1, PyArrayDyn, PyArrayMethods, PyReadonlyArray1, PyReadonlyArrayDyn,
    PyUntypedArrayMethods, ToPyArray,
};
use pyo3::prelude::*;
use std::borrow::Cow;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Splits batches of one layer and says which slot serves which token.
///
/// Every rank holds one; fed the same counts, all compute the same, bit for bit. Calls from several threads take turns. A
/// planner may be used after a fork, by each process on its own.
#[pyclass(frozen, module = "evenkeel")]
pub(crate) struct Planner {
    inner: Mutex<core::Planner>,
    ranks: usize,
    experts: usize,
}

/// The quotas of one batch: whole tokens, of least possible peak.
#[pyclass(frozen, module = "evenkeel")]
pub(crate) struct Split {
    inner: split::Split,
}

impl Planner {
    pub(crate) fn build(placement: Placement, cluster: Cluster, keep: Option<Keep>) -> PyResult<Self> {
        let (ranks, experts) = (placement.ranks(), placement.experts());
        let inner = match keep {
            None => core::Planner::new(placement, cluster),
            Some(keep) => core::Planner::local(placement, cluster, keep),
        };
        Ok(Self { inner: Mutex::new(inner.map_err(error)?), ranks, experts })
    }

    /// A planner is a function of its last split, so one that a panic left behind is as good as new.
    fn lock(&self) -> MutexGuard<'_, core::Planner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counts<'py>(&self, counts: &Bound<'py, PyAny>) -> PyResult<crate::arrays::Tokens<'py>> {
        let (shape, counts) = tokens(counts, "counts")?;
        if shape != [self.ranks, self.experts] {
            let expected = [self.ranks, self.experts];
            return Err(refuse(format!("counts: shape {shape:?}: expected [ranks, experts] = {expected:?}")));
        }
        Ok(counts)
    }

    fn time_redirect<Id>(
        &self,
        ids: &Bound<'_, PyArrayDyn<Id>>,
        source: usize,
        out: &Bound<'_, PyArrayDyn<Id>>,
        calls: usize,
    ) -> PyResult<f64>
    where
        Id: Element + Copy + Into<i64> + TryFrom<u32>,
    {
        let (ids, mut out, mut planner) = (ids.readonly(), out.readwrite(), self.lock());
        let (ids, out) = (ids.as_slice()?, out.as_slice_mut()?);
        let begun = Instant::now();
        for _ in 0..calls {
            planner.redirect_into(std::hint::black_box(ids), source, out).map_err(error)?;
        }
        Ok(begun.elapsed().as_secs_f64())
    }

    fn redirect_typed<'py, Id>(
        &self,
        py: Python<'py>,
        ids: &Bound<'py, PyArrayDyn<Id>>,
        source: usize,
        out: Option<&Bound<'py, PyArrayDyn<Id>>>,
    ) -> PyResult<Bound<'py, PyArrayDyn<Id>>>
    where
        Id: Element + Copy + Into<i64> + TryFrom<u32> + Send + Sync,
    {
        let given = ids.readonly();
        let into = match out {
            Some(out) if out.shape() == ids.shape() && out.is_c_contiguous() => out.clone(),
            Some(out) => {
                let (out, ids) = (out.shape(), ids.shape());
                return Err(refuse(format!("out: shape {out:?}: expected {ids:?}, contiguous")));
            }
            None => given.as_array().to_pyarray(py),
        };
        let ids = in_order(&given);
        {
            let mut slots =
                into.try_readwrite().map_err(|_| refuse("out: overlaps topk_ids, or is read-only"))?;
            let slots = slots.as_slice_mut()?;
            py.detach(|| self.lock().redirect_into(&ids, source, slots)).map_err(error)?;
        }
        Ok(into)
    }
}

/// The values of an array in C order: borrowed where they lie so, copied otherwise.
fn in_order<'a, Id: Element + Copy>(array: &'a PyReadonlyArrayDyn<'_, Id>) -> Cow<'a, [Id]> {
    match array.as_slice() {
        Ok(values) => Cow::Borrowed(values),
        Err(_) => Cow::Owned(array.as_array().iter().copied().collect()),
    }
}

#[pymethods]
impl Planner {
    /// A planner for the placement `physical_to_logical`, [slots] of experts (-1: empty), on `ranks` ranks.
    ///
    /// `keep` asks for the split of least traffic: "peak" among those of least peak, "vector" among those with the most even
    /// load vector. Takes longer than without.
    #[new]
    #[pyo3(signature = (physical_to_logical, ranks, *, nodes=1, experts=None, keep=None))]
    fn new(
        physical_to_logical: PyReadonlyArray1<'_, i64>,
        ranks: usize,
        nodes: usize,
        experts: Option<usize>,
        keep: Option<&str>,
    ) -> PyResult<Self> {
        let placement = convert::placement(&convert::row(&physical_to_logical), ranks, experts)?;
        let cluster = convert::cluster_of(&placement, nodes)?;
        let keep = match keep {
            None => None,
            Some("peak") => Some(Keep::Peak),
            Some("vector") => Some(Keep::Vector),
            Some(other) => return Err(refuse(format!("keep {other:?}: expected \"peak\" or \"vector\""))),
        };
        Self::build(placement, cluster, keep)
    }

    /// Ranks of the group.
    #[getter]
    fn ranks(&self) -> usize {
        self.ranks
    }

    /// Logical experts.
    #[getter]
    fn experts(&self) -> usize {
        self.experts
    }

    /// Splits one batch; `counts` are the tokens that each rank routed to each expert, [ranks, experts], of integers.
    fn split(&self, py: Python<'_>, counts: &Bound<'_, PyAny>) -> PyResult<Split> {
        let counts = self.counts(counts)?;
        let counts = counts.as_slice()?;
        let inner = py.detach(|| self.lock().split(counts).cloned()).map_err(error)?;
        Ok(Split { inner })
    }

    /// The physical slot of every id of one source rank, by the last split: same shape and type as `topk_ids`, int32 or
    /// int64; -1 stays -1. With `out`, written there, and `out` returned.
    #[pyo3(signature = (topk_ids, source, out=None))]
    fn redirect<'py>(
        &self,
        py: Python<'py>,
        topk_ids: &Bound<'py, PyAny>,
        source: usize,
        out: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let out = out.map(|out| Ids::of(out, "out")).transpose()?;
        match (Ids::of(topk_ids, "topk_ids")?, out) {
            (Ids::Narrow(ids), None) => Ok(self.redirect_typed(py, &ids, source, None)?.into_any()),
            (Ids::Wide(ids), None) => Ok(self.redirect_typed(py, &ids, source, None)?.into_any()),
            (Ids::Narrow(ids), Some(Ids::Narrow(out))) => {
                Ok(self.redirect_typed(py, &ids, source, Some(&out))?.into_any())
            }
            (Ids::Wide(ids), Some(Ids::Wide(out))) => {
                Ok(self.redirect_typed(py, &ids, source, Some(&out))?.into_any())
            }
            _ => Err(refuse("out: expected the type of topk_ids")),
        }
    }

    /// Tokens of one source per expert, [experts], uint64: what the other ranks have to be told.
    fn count<'py>(
        &self,
        py: Python<'py>,
        topk_ids: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArray1<u64>>> {
        let mut own = vec![0u64; self.experts];
        match Ids::of(topk_ids, "topk_ids")? {
            Ids::Narrow(ids) => self.lock().count(&in_order(&ids.readonly()), &mut own),
            Ids::Wide(ids) => self.lock().count(&in_order(&ids.readonly()), &mut own),
        }
        .map_err(error)?;
        Ok(own.into_pyarray(py))
    }

    /// Checks the last split, which was made of `counts`: every token served where its expert lives, the peak certified
    /// and, with `keep`, the traffic proved least. Raises `Error` otherwise.
    fn check(&self, counts: &Bound<'_, PyAny>) -> PyResult<()> {
        let counts = self.counts(counts)?;
        self.lock().check(counts.as_slice()?).map_err(error)
    }

    /// Seconds that `calls` splits take inside the library (benches/overhead.py).
    fn _time_split(&self, counts: &Bound<'_, PyAny>, calls: usize) -> PyResult<f64> {
        let counts = self.counts(counts)?;
        let (counts, mut planner) = (counts.as_slice()?, self.lock());
        let begun = Instant::now();
        for _ in 0..calls {
            planner.split(std::hint::black_box(counts)).map_err(error)?;
        }
        Ok(begun.elapsed().as_secs_f64())
    }

    /// Seconds that `calls` redirects take inside the library (benches/overhead.py).
    fn _time_redirect(
        &self,
        topk_ids: &Bound<'_, PyAny>,
        source: usize,
        out: &Bound<'_, PyAny>,
        calls: usize,
    ) -> PyResult<f64> {
        match (Ids::of(topk_ids, "topk_ids")?, Ids::of(out, "out")?) {
            (Ids::Narrow(ids), Ids::Narrow(out)) => self.time_redirect(&ids, source, &out, calls),
            (Ids::Wide(ids), Ids::Wide(out)) => self.time_redirect(&ids, source, &out, calls),
            _ => Err(refuse("out: expected the type of topk_ids")),
        }
    }

    fn __repr__(&self) -> String {
        format!("<evenkeel.Planner: {} experts on {} ranks>", self.experts, self.ranks)
    }
}

#[pymethods]
impl Split {
    /// Tokens that each slot serves: [slots], uint64.
    #[getter]
    fn quotas<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u64>> {
        self.inner.quotas.to_pyarray(py)
    }

    /// Tokens that each rank serves: [ranks], uint64.
    #[getter]
    fn rank_loads<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u64>> {
        self.inner.rank_loads.to_pyarray(py)
    }

    /// The busiest rank's tokens.
    #[getter]
    fn peak(&self) -> u64 {
        self.inner.peak()
    }

    /// The ranks whose own experts prove that the peak cannot be lower: uint32.
    #[getter]
    fn certificate<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u32>> {
        self.inner.certificate.to_pyarray(py)
    }

    /// Peak over mean; 1 is perfect.
    #[getter]
    fn imbalance(&self) -> f64 {
        let total: u64 = self.inner.rank_loads.iter().sum();
        if total == 0 {
            return 1.0;
        }
        self.inner.peak() as f64 * self.inner.rank_loads.len() as f64 / total as f64
    }

    fn __repr__(&self) -> String {
        format!("<evenkeel.Split: peak {}, imbalance {:.4}>", self.inner.peak(), self.imbalance())
    }
}
