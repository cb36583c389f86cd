//! Import of the other operations of a step: rows of the tables in, fitted operations out.
//!
//! In: the tables of exchange, collectives, attention, latent attention and dense multiplication. Out: an
//! [`OperationEntry`](crate::OperationEntry) per kernel. Rows of a fifth of the shapes are held out. The
//! other rows are fitted by [`levenberg`], which starts from several points.

mod attention_tables;
mod exchange_tables;
mod fit;
mod gemm_tables;
mod levenberg;
mod mla_tables;
mod parameter_ranges;
mod rows;

pub(crate) use fit::{fit_operation, measure_errors};
pub(crate) use rows::{MeasuredOperation, RowScope};

use super::package::{OperationTable, Package, TableContent};
use super::parquet_columns::{ContentError, ParquetTable};
use super::{ImportError, Progress, main_version};
use crate::kernel_entry::version_key;
use rows::{OperationId, RowCollector};
use std::collections::BTreeMap;

/// Reads the operations of one GPU, ordered by table, framework, version, kernel and dtype.
pub(crate) fn read_operations(
    package: &Package,
    tables: &[&OperationTable],
    progress: Progress<'_>,
) -> Result<Vec<MeasuredOperation>, ImportError> {
    let read = package.read_tables(tables, |table| &table.name, read_table, progress)?;
    Ok(RowCollector::join(read))
}

fn read_table(table: &OperationTable, bytes: Vec<u8>) -> Result<RowCollector, ContentError> {
    let file = ParquetTable::open(bytes)?;
    let mut rows = RowCollector::new(table);
    match table.content {
        TableContent::LowLatency => exchange_tables::read_low_latency(&file, &mut rows)?,
        TableContent::Normal => exchange_tables::read_normal(&file, &mut rows)?,
        TableContent::MoeAllToAll => exchange_tables::read_moe_a2a(&file, &mut rows)?,
        TableContent::NvlinkAllToAll => exchange_tables::read_nvlink(&file, &mut rows)?,
        TableContent::Nccl => exchange_tables::read_nccl(&file, &mut rows)?,
        TableContent::AllReduce => exchange_tables::read_all_reduce(&file, &mut rows)?,
        TableContent::DecodeAttention => attention_tables::read_decode(&file, &mut rows)?,
        TableContent::PrefillAttention => attention_tables::read_prefill(&file, &mut rows)?,
        TableContent::MlaDecode => mla_tables::read_decode(&file, &mut rows)?,
        TableContent::MlaPrefill => mla_tables::read_prefill(&file, &mut rows)?,
        TableContent::MlaBlockDecode => mla_tables::read_block_decode(&file, &mut rows)?,
        TableContent::MlaBlockPrefill => mla_tables::read_block_prefill(&file, &mut rows)?,
        TableContent::MlaBmm => mla_tables::read_bmm(&file, &mut rows)?,
        TableContent::Gemm => gemm_tables::read_gemm(&file, &mut rows)?,
    }
    Ok(rows)
}

/// Least share of the rows of a kernel that another of the same framework and format may have. A lookup
/// would never choose one with less.
const MIN_SHARE: f64 = 0.1;

/// Leaves the operations to fit. They belong to the main version of their framework or to a later one. They
/// have enough rows in comparison with other kernels of their format.
pub(crate) fn retain_current(operations: &mut Vec<MeasuredOperation>) {
    let group = |id: &OperationId| (id.family, id.framework.clone());
    let mut groups: BTreeMap<_, BTreeMap<Vec<u64>, usize>> = BTreeMap::new();
    for operation in operations.iter() {
        let versions = groups.entry(group(&operation.id)).or_default();
        *versions.entry(version_key(&operation.id.version)).or_default() += operation.rows.len();
    }
    operations.retain(|operation| {
        let main = groups.get(&group(&operation.id)).and_then(main_version);
        main.is_none_or(|main| version_key(&operation.id.version) >= *main)
    });
    let format = |id: &OperationId| (id.family, id.framework.clone(), id.dtype.clone());
    let mut most: BTreeMap<_, usize> = BTreeMap::new();
    for operation in operations.iter() {
        let rows = most.entry(format(&operation.id)).or_default();
        *rows = operation.rows.len().max(*rows);
    }
    operations.retain(|operation| {
        let most = most.get(&format(&operation.id)).copied().unwrap_or(0) as f64;
        operation.rows.len() as f64 >= MIN_SHARE * most
    });
}
