//! The fast loop: splits of batches, and the slot that serves each token.

use crate::arrays::{ExpertIdArray, borrow_array, copy_values, read_tokens};
use crate::convert;
use crate::errors::{input_error, library_error};
use crate::fork_safe::ForkSafe;
use evenkeel::cluster::Cluster;
use evenkeel::place::{ExpertMove, Placement};
use evenkeel::planner::{self as core, PlannerError};
use evenkeel::split::{self, CopyAim, DynamicSlots, PrimaryObjective, SlotMemory};
use numpy::ndarray::{Array2, ArrayD};
use numpy::{
    Element, IntoPyArray, PyArray1, PyArray2, PyArrayDyn, PyArrayMethods, PyReadonlyArray1,
    PyReadonlyArrayDyn, PyUntypedArrayMethods, ToPyArray,
};
use pyo3::prelude::*;
use std::borrow::Cow;
use std::sync::MutexGuard;
use std::time::Instant;

/// Planner that splits the batches of one layer and redirects their tokens to slots.
///
/// Every rank holds one. From equal counts all ranks compute the same result, bit for bit. Calls from several
/// threads take turns.
///
/// After a fork each process uses the planner independently. If another thread was inside a call at the fork,
/// the child's planner starts without a split.
#[pyclass(frozen, module = "evenkeel")]
pub(crate) struct Planner {
    inner: ForkSafe<core::Planner>,
    /// Placement of the planner, from which a forked child can make a new one.
    placement: Placement,
    cluster: Cluster,
    parts: PlannerParts,
    ranks: usize,
    experts: usize,
}

/// Parts of a planner beyond its placement.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PlannerParts {
    /// Objective before the least traffic, if traffic is minimised.
    pub(crate) keep: Option<PrimaryObjective>,
    /// Dynamic slots, if ranks have any.
    pub(crate) dynamic: Option<DynamicSlots>,
}

/// Quotas of one batch: whole tokens with the lowest possible peak.
#[pyclass(frozen, module = "evenkeel")]
pub(crate) struct Split {
    inner: split::Split,
}

impl Planner {
    pub(crate) fn build(placement: Placement, cluster: Cluster, parts: PlannerParts) -> PyResult<Self> {
        let (ranks, experts) = (placement.ranks(), placement.experts());
        let inner = ForkSafe::new(make_planner(&placement, cluster, parts).map_err(library_error)?);
        Ok(Self { inner, placement, cluster, parts, ranks, experts })
    }

    /// Locks the planner. A planner depends only on its last split, so a poisoned lock is safe to take.
    fn lock(&self) -> Result<MutexGuard<'_, core::Planner>, PlannerError> {
        self.inner.lock(|| make_planner(&self.placement, self.cluster, self.parts))
    }

    fn check_counts<'py>(&self, counts: &Bound<'py, PyAny>) -> PyResult<crate::arrays::TokenCounts<'py>> {
        let (shape, counts) = read_tokens(counts, "counts")?;
        if shape != [self.ranks, self.experts] {
            let expected = [self.ranks, self.experts];
            return Err(input_error(format!(
                "counts: shape {shape:?}: expected [ranks, experts] = {expected:?}"
            )));
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
        let (ids, mut out, mut planner) =
            (ids.readonly(), out.readwrite(), self.lock().map_err(library_error)?);
        let (ids, out) = (ids.as_slice()?, out.as_slice_mut()?);
        let begun = Instant::now();
        for _ in 0..calls {
            planner.redirect_into(std::hint::black_box(ids), source, out).map_err(library_error)?;
        }
        Ok(begun.elapsed().as_secs_f64())
    }

    fn count_into<Id>(&self, ids: &Bound<'_, PyArrayDyn<Id>>, own: &mut [u64]) -> PyResult<()>
    where
        Id: Element + Copy + Into<i64>,
    {
        let given = borrow_array(ids, "topk_ids")?;
        let ids = in_order(&given)?;
        self.lock().and_then(|planner| planner.count_ids(&ids, own)).map_err(library_error)
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
        let given = borrow_array(ids, "topk_ids")?;
        let into = match out {
            Some(out) if out.shape() == ids.shape() && out.is_c_contiguous() => out.clone(),
            Some(out) => {
                let (out, ids) = (out.shape(), ids.shape());
                return Err(input_error(format!("out: shape {out:?}: expected {ids:?}, contiguous")));
            }
            None => copy_array(py, &given)?,
        };
        let ids = in_order(&given)?;
        {
            let mut slots =
                into.try_readwrite().map_err(|_| input_error("out: overlaps topk_ids, or is read-only"))?;
            let slots = slots.as_slice_mut()?;
            py.detach(|| self.lock()?.redirect_into(&ids, source, slots)).map_err(library_error)?;
        }
        Ok(into)
    }
}

fn make_planner(
    placement: &Placement,
    cluster: Cluster,
    parts: PlannerParts,
) -> Result<core::Planner, PlannerError> {
    let placement = placement.clone();
    match (parts.keep, parts.dynamic) {
        (_, Some(slots)) => core::Planner::with_dynamic_slots(placement, cluster, slots),
        (Some(keep), None) => core::Planner::with_min_traffic(placement, cluster, keep),
        (None, None) => core::Planner::new(placement, cluster),
    }
}

/// Returns copies as rows of expert, sender, receiver and slot.
fn copies_to_array<'py>(py: Python<'py>, copies: &[ExpertMove]) -> PyResult<Bound<'py, PyArray2<u32>>> {
    let row = |copy: &ExpertMove| [copy.expert, copy.from.unwrap_or(copy.to), copy.to, copy.slot];
    let values = copies.iter().flat_map(row).collect();
    Ok(Array2::from_shape_vec((copies.len(), 4), values).map_err(library_error)?.into_pyarray(py))
}

/// Returns a new array of the same shape and values.
fn copy_array<'py, Id: Element + Copy>(
    py: Python<'py>,
    array: &PyReadonlyArrayDyn<'_, Id>,
) -> PyResult<Bound<'py, PyArrayDyn<Id>>> {
    let values = copy_values(array.as_array().iter(), "topk_ids", |&id| Ok(id))?;
    Ok(ArrayD::from_shape_vec(array.shape(), values).map_err(library_error)?.into_pyarray(py))
}

/// Returns the values of an array in C order: borrowed if the array is contiguous, copied otherwise.
fn in_order<'a, Id: Element + Copy>(array: &'a PyReadonlyArrayDyn<'_, Id>) -> PyResult<Cow<'a, [Id]>> {
    match array.as_slice() {
        Ok(values) => Ok(Cow::Borrowed(values)),
        Err(_) => Ok(Cow::Owned(copy_values(array.as_array().iter(), "topk_ids", |&id| Ok(id))?)),
    }
}

#[pymethods]
impl Planner {
    /// Makes a planner for the placement `physical_to_logical`, [slots] of experts (-1: empty), on `ranks`
    /// ranks.
    ///
    /// `keep` selects the split with the least traffic: "peak" among those of the lowest peak, "vector" among
    /// those with the most even load vector. The selection makes each split slower.
    ///
    /// `dynamic_slots` per rank receive copies of experts before each batch. They follow the static slots of
    /// the rank. With `memory` "shared", every batch finds them empty. With "kept", copies stay until others
    /// replace them. Copies are the fewest that hold the busiest rank within `imbalance_limit` of the mean
    /// load above it, or at most `max_copies` with the lowest peak.
    #[new]
    #[pyo3(signature = (physical_to_logical, ranks, *, nodes=1, experts=None, keep=None, dynamic_slots=0, memory="shared", imbalance_limit=0.01, max_copies=None))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of Python")]
    fn new(
        physical_to_logical: PyReadonlyArray1<'_, i64>,
        ranks: usize,
        nodes: usize,
        experts: Option<usize>,
        keep: Option<&str>,
        dynamic_slots: usize,
        memory: &str,
        imbalance_limit: f64,
        max_copies: Option<u32>,
    ) -> PyResult<Self> {
        let placement =
            convert::placement_from_slots(&convert::read_row(&physical_to_logical)?, ranks, experts)?;
        let cluster = convert::cluster_of(&placement, nodes)?;
        let keep = match keep {
            None => None,
            Some("peak") => Some(PrimaryObjective::Peak),
            Some("vector") => Some(PrimaryObjective::Vector),
            Some(other) => {
                return Err(input_error(format!("keep {other:?}: expected \"peak\" or \"vector\"")));
            }
        };
        let memory = match memory {
            "shared" => SlotMemory::Shared,
            "kept" => SlotMemory::Kept,
            other => return Err(input_error(format!("memory {other:?}: expected \"shared\" or \"kept\""))),
        };
        if !(0.0..=100.0).contains(&imbalance_limit) {
            return Err(input_error(format!("imbalance_limit {imbalance_limit}: expected 0 to 100")));
        }
        if dynamic_slots > 0 && keep.is_some() {
            return Err(input_error("keep: expected no dynamic_slots, which choose the split by themselves"));
        }
        let limit = CopyAim::Imbalance((imbalance_limit * 1e6).round() as u32);
        let aim = max_copies.map_or(limit, CopyAim::Copies);
        let dynamic = (dynamic_slots > 0).then(|| DynamicSlots::new(dynamic_slots, memory).aim(aim));
        Self::build(placement, cluster, PlannerParts { keep, dynamic })
    }

    /// Expert of each slot by the last split, [slots], int64, -1 for an empty slot. Dynamic slots change with
    /// every batch.
    #[getter]
    fn physical_to_logical<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let slots: Vec<i64> = self.lock().map_err(library_error)?.placement().slot_ids().collect();
        Ok(slots.into_pyarray(py))
    }

    /// Chooses copies for the loads that are expected of the next batch, [experts], of integers, so that
    /// other work can hide them. The next split makes no other copies. Returns the copies, as
    /// `Split.copies` does.
    fn prepare_copies<'py>(
        &self,
        py: Python<'py>,
        expected: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArray2<u32>>> {
        let (shape, expected) = read_tokens(expected, "expected")?;
        if shape != [self.experts] {
            return Err(input_error(format!("expected: shape {shape:?}: expected [{}]", self.experts)));
        }
        let expected = expected.as_slice()?;
        let copies = py.detach(|| self.lock()?.prepare_copies(expected).map(<[ExpertMove]>::to_vec));
        copies_to_array(py, &copies.map_err(library_error)?)
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

    /// Splits one batch. `counts` are the tokens that each rank routed to each expert, [ranks, experts], of
    /// integers.
    fn split(&self, py: Python<'_>, counts: &Bound<'_, PyAny>) -> PyResult<Split> {
        let counts = self.check_counts(counts)?;
        let counts = counts.as_slice()?;
        let inner = py.detach(|| self.lock()?.split(counts).cloned()).map_err(library_error)?;
        Ok(Split { inner })
    }

    /// Returns the physical slot of every id of one source rank, by the last split. The result has the shape
    /// and type of `topk_ids`, int32 or int64. -1 stays -1. With `out`, the slots are written to `out`, which
    /// is returned.
    #[pyo3(signature = (topk_ids, source, out=None))]
    fn redirect<'py>(
        &self,
        py: Python<'py>,
        topk_ids: &Bound<'py, PyAny>,
        source: usize,
        out: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let out = out.map(|out| ExpertIdArray::from_array(out, "out")).transpose()?;
        match (ExpertIdArray::from_array(topk_ids, "topk_ids")?, out) {
            (ExpertIdArray::Narrow(ids), None) => Ok(self.redirect_typed(py, &ids, source, None)?.into_any()),
            (ExpertIdArray::Wide(ids), None) => Ok(self.redirect_typed(py, &ids, source, None)?.into_any()),
            (ExpertIdArray::Narrow(ids), Some(ExpertIdArray::Narrow(out))) => {
                Ok(self.redirect_typed(py, &ids, source, Some(&out))?.into_any())
            }
            (ExpertIdArray::Wide(ids), Some(ExpertIdArray::Wide(out))) => {
                Ok(self.redirect_typed(py, &ids, source, Some(&out))?.into_any())
            }
            _ => Err(input_error("out: expected the type of topk_ids")),
        }
    }

    /// Returns the tokens of one source per expert, [experts], uint64. The other ranks need these counts
    /// before they can split.
    fn count<'py>(
        &self,
        py: Python<'py>,
        topk_ids: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArray1<u64>>> {
        let mut own = vec![0u64; self.experts];
        match ExpertIdArray::from_array(topk_ids, "topk_ids")? {
            ExpertIdArray::Narrow(ids) => self.count_into(&ids, &mut own)?,
            ExpertIdArray::Wide(ids) => self.count_into(&ids, &mut own)?,
        }
        Ok(own.into_pyarray(py))
    }

    /// Checks the last split, which was computed from `counts`. Every token must be served where its expert
    /// has a replica. The peak must be certified and, with `keep`, the traffic proved minimal. Raises `Error`
    /// otherwise.
    fn check(&self, counts: &Bound<'_, PyAny>) -> PyResult<()> {
        let counts = self.check_counts(counts)?;
        let counts = counts.as_slice()?;
        self.lock().and_then(|planner| planner.check(counts)).map_err(library_error)
    }

    /// Returns the seconds that `calls` splits take inside the library (benches/overhead.py).
    fn _time_split(&self, counts: &Bound<'_, PyAny>, calls: usize) -> PyResult<f64> {
        let counts = self.check_counts(counts)?;
        let (counts, mut planner) = (counts.as_slice()?, self.lock().map_err(library_error)?);
        let begun = Instant::now();
        for _ in 0..calls {
            planner.split(std::hint::black_box(counts)).map_err(library_error)?;
        }
        Ok(begun.elapsed().as_secs_f64())
    }

    /// Returns the seconds that `calls` redirects take inside the library (benches/overhead.py).
    fn _time_redirect(
        &self,
        topk_ids: &Bound<'_, PyAny>,
        source: usize,
        out: &Bound<'_, PyAny>,
        calls: usize,
    ) -> PyResult<f64> {
        match (ExpertIdArray::from_array(topk_ids, "topk_ids")?, ExpertIdArray::from_array(out, "out")?) {
            (ExpertIdArray::Narrow(ids), ExpertIdArray::Narrow(out)) => {
                self.time_redirect(&ids, source, &out, calls)
            }
            (ExpertIdArray::Wide(ids), ExpertIdArray::Wide(out)) => {
                self.time_redirect(&ids, source, &out, calls)
            }
            _ => Err(input_error("out: expected the type of topk_ids")),
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

    /// Tokens of the busiest rank.
    #[getter]
    fn peak(&self) -> u64 {
        self.inner.peak()
    }

    /// Ranks whose confined experts prove that the peak cannot be lower: uint32.
    #[getter]
    fn certificate<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u32>> {
        self.inner.certificate.to_pyarray(py)
    }

    /// Copies of experts to make before the batch: [copies, 4], uint32, with expert, sending rank, receiving
    /// rank and slot. Empty without dynamic slots.
    #[getter]
    fn copies<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<u32>>> {
        copies_to_array(py, self.inner.copies.as_ref().map_or(&[], |batch| &batch.copies))
    }

    /// Lower bound on the copies of every choice with this peak. 0 without dynamic slots.
    #[getter]
    fn least_copies(&self) -> u32 {
        self.inner.copies.as_ref().map_or(0, |batch| batch.least_copies)
    }

    /// Imbalance: peak over mean. 1 is perfect.
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
