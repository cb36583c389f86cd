//! Measured rows of operations, grouped by kernel.

use crate::import::package::OperationTable;
use crate::operations::{Operation, OperationKind, OperationWork};
use std::collections::{BTreeMap, BTreeSet};

/// Identity of a measured operation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OperationId {
    /// Kind of operation, without the heads of attention kernels.
    pub(crate) family: OperationKind,
    pub(crate) framework: String,
    pub(crate) version: String,
    pub(crate) kernel: String,
    pub(crate) dtype: String,
}

/// One measured time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct OperationRow {
    pub(crate) work: OperationWork,
    pub(crate) time_us: f64,
}

/// All rows of one kernel, with the formula that describes it.
#[derive(Debug, Clone)]
pub(crate) struct MeasuredOperation {
    pub(crate) id: OperationId,
    /// Formula. Only the numbers that no fit changes are meaningful.
    pub(crate) template: Operation,
    pub(crate) rows: Vec<OperationRow>,
    /// Paths of the tables inside the package.
    pub(crate) files: BTreeSet<String>,
}

/// Rows to which errors refer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowScope {
    /// Rows of held-out shapes.
    HeldOut,
    /// All rows, of a version that was not fitted.
    All,
}

impl OperationRow {
    /// Returns the numbers that identify the shape. All rows of a shape are held out, or none. An exchange
    /// and a collective are shapes of their own.
    pub(crate) fn shape_key(&self) -> Vec<u64> {
        match self.work {
            OperationWork::Exchange(work) => vec![
                work.tokens,
                work.hidden,
                work.top_k,
                work.experts,
                work.ranks,
                work.nodes,
                work.multiprocessors,
            ],
            OperationWork::Collective(work) => vec![work.bytes, work.ranks],
            OperationWork::Attention(work) => {
                vec![work.heads, work.kv_heads, work.head_dim, work.window.unwrap_or(0)]
            }
            OperationWork::Mla(work) => vec![work.heads, work.batch],
            OperationWork::MlaBmm(work) => vec![work.heads, work.tokens],
            OperationWork::Gemm(work) => vec![work.n, work.k],
        }
    }
}

/// Kernel name, number format and formula of a row.
pub(super) struct RowKernel<'a> {
    pub(super) kernel: &'a str,
    pub(super) dtype: &'a str,
    pub(super) template: Operation,
}

/// Rows of one table while it is read.
#[derive(Debug)]
pub(super) struct RowCollector {
    framework: String,
    version: String,
    file: String,
    operations: BTreeMap<OperationId, MeasuredOperation>,
}

impl RowCollector {
    pub(super) fn new(table: &OperationTable) -> Self {
        let OperationTable { framework, version, name, .. } = table.clone();
        Self { framework, version, file: name, operations: BTreeMap::new() }
    }

    /// Adds a row. Rows without a time are left out.
    pub(super) fn add(&mut self, kernel: &RowKernel<'_>, work: OperationWork, time_us: f64) {
        if time_us <= 0.0 {
            return;
        }
        let id = OperationId {
            family: kernel.template.kind(),
            framework: self.framework.clone(),
            version: self.version.clone(),
            kernel: kernel.kernel.to_owned(),
            dtype: kernel.dtype.to_owned(),
        };
        let operation = self.operations.entry(id.clone());
        let operation = operation.or_insert_with(|| MeasuredOperation {
            id,
            template: kernel.template.clone(),
            rows: Vec::new(),
            files: BTreeSet::from([self.file.clone()]),
        });
        operation.rows.push(OperationRow { work, time_us });
    }

    /// Joins the rows of all tables.
    pub(super) fn join(collectors: Vec<Self>) -> Vec<MeasuredOperation> {
        let mut joined: BTreeMap<OperationId, MeasuredOperation> = BTreeMap::new();
        for operation in collectors.into_iter().flat_map(|collector| collector.operations.into_values()) {
            match joined.get_mut(&operation.id) {
                Some(known) => {
                    known.rows.extend(operation.rows);
                    known.files.extend(operation.files);
                }
                None => {
                    joined.insert(operation.id.clone(), operation);
                }
            }
        }
        joined.into_values().collect()
    }
}
