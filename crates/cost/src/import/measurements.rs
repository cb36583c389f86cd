//! Measured rows of a GPU, grouped by kernel.
//!
//! In: the tables of a package. Out: one [`MeasuredKernel`] per table kind, framework, version, kernel and
//! dtype. Rows without a time, of unknown dtypes, or with ranks that do not divide the layer are left out.

use super::collector::{CollectorRule, EXCLUDED_KERNEL, LoadRule, moe_rule};
use super::package::{Package, PackageTable};
use super::parquet_columns::{ContentError, ParquetTable};
use super::routed_loads::RoutingKey;
use super::{ImportError, Progress};
use crate::dtype::Dtype;
use crate::kernel_entry::KernelTable;
use crate::moe_shape::{ModelShape, MoeShape};
use crate::routing::{Distribution, RoutingShape};
use std::collections::{BTreeMap, BTreeSet};

/// Identity of a measured kernel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct KernelId {
    pub(crate) table: KernelTable,
    pub(crate) framework: String,
    pub(crate) version: String,
    pub(crate) kernel: String,
    pub(crate) dtype: Dtype,
}

/// One measured time.
#[derive(Debug, Clone)]
pub(crate) struct Measurement {
    pub(crate) model: ModelShape,
    pub(crate) matrices: u64,
    pub(crate) tensor_ranks: u64,
    /// Expert-parallel ranks.
    pub(crate) ranks: u64,
    /// Slots of all ranks; without replicas, the experts.
    pub(crate) slots: u64,
    pub(crate) tokens: u64,
    pub(crate) routing: RoutingKey,
    pub(crate) time_us: f64,
}

/// All rows of one kernel.
#[derive(Debug)]
pub(crate) struct MeasuredKernel {
    pub(crate) id: KernelId,
    pub(crate) rows: Vec<Measurement>,
}

impl Measurement {
    /// Returns the numbers that identify the shape on one rank. All rows of a shape are held out, or none.
    pub(crate) fn shape_key(&self) -> [u64; 7] {
        let ModelShape { hidden, intermediate, top_k, experts } = self.model;
        [hidden, intermediate, top_k, experts, self.tensor_ranks, self.ranks, self.slots]
    }

    pub(crate) fn is_balanced(&self) -> bool {
        self.routing.exponent == 0
    }

    /// Returns the shape on the timed rank.
    pub(crate) fn rank_shape(&self) -> MoeShape {
        let ranks = if self.routing.rule == LoadRule::AllRows { 1 } else { self.ranks };
        MoeShape {
            hidden: self.model.hidden,
            intermediate: self.model.intermediate.div_ceil(self.tensor_ranks.max(1)),
            top_k: self.model.top_k,
            experts: self.slots,
            slots: self.slots / ranks.max(1),
            matrices: self.matrices,
        }
    }
}

/// Reads the tables of one GPU.
pub(crate) fn read_kernels(
    package: &Package,
    tables: &[&PackageTable],
    progress: Progress<'_>,
) -> Result<Vec<MeasuredKernel>, ImportError> {
    let read = package.read_tables(tables, |table| &table.name, read_table, progress)?;
    let mut kernels: BTreeMap<KernelId, Vec<Measurement>> = BTreeMap::new();
    for (id, rows) in read.into_iter().flatten() {
        kernels.entry(id).or_default().extend(rows);
    }
    Ok(kernels.into_iter().map(|(id, rows)| MeasuredKernel { id, rows }).collect())
}

/// Returns the routings of all rows.
pub(crate) fn routing_keys(kernels: &[MeasuredKernel]) -> BTreeSet<RoutingKey> {
    kernels.iter().flat_map(|kernel| kernel.rows.iter().map(|row| row.routing)).collect()
}

fn read_table(
    table: &PackageTable,
    bytes: Vec<u8>,
) -> Result<BTreeMap<KernelId, Vec<Measurement>>, ContentError> {
    let file = ParquetTable::open(bytes)?;
    let kernel = file.labels("kernel_source")?;
    let dtype = file.labels("moe_dtype")?;
    let distribution = file.labels("distribution")?;
    let [tokens, hidden, inter, top_k, experts, tensor_ranks, ranks] =
        ["num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size"]
            .map(|name| file.integers(name));
    let (tokens, hidden, inter, top_k) = (tokens?, hidden?, inter?, top_k?);
    let (experts, tensor_ranks, ranks) = (experts?, tensor_ranks?, ranks?);
    let wide_ep = table.table == KernelTable::WideEp;
    let optional = |name| if wide_ep { file.integers(name).map(Some) } else { Ok(None) };
    let (slots, entering) = (optional("num_slots")?, optional("rank0_num_tokens")?);
    let latency = file.numbers("latency")?;

    let dtypes: Vec<Option<Dtype>> = dtype.labels.iter().map(|name| name.parse().ok()).collect();
    let exponents: Vec<(u32, bool)> = distribution
        .labels
        .iter()
        .map(|name| exponent_of(name).ok_or_else(|| unknown_distribution(name)))
        .collect::<Result<_, _>>()?;
    let mut kernels: BTreeMap<KernelId, Vec<Measurement>> = BTreeMap::new();
    for at in 0..file.row_count() {
        let name = &kernel.labels[kernel.rows[at] as usize];
        let Some(dtype) = dtypes[dtype.rows[at] as usize] else { continue };
        let divides = ranks[at] > 0 && tensor_ranks[at] > 0 && experts[at] >= ranks[at];
        if name == EXCLUDED_KERNEL || latency[at] <= 0.0 || !divides || tokens[at] == 0 {
            continue;
        }
        let model = ModelShape {
            hidden: hidden[at],
            intermediate: inter[at],
            top_k: top_k[at],
            experts: experts[at],
        };
        let (exponent, eplb) = exponents[distribution.rows[at] as usize];
        let slots = slots.as_ref().map_or(experts[at], |slots| slots[at].max(experts[at]));
        let rule = match table.table {
            KernelTable::Moe => moe_rule(&table.framework, &table.version, name, dtype, model),
            KernelTable::WideEp => CollectorRule { load: LoadRule::WideEp, grouped: false, matrices: 3 },
            _ => CollectorRule { load: LoadRule::DeepEp, grouped: false, matrices: 3 },
        };
        let routed_ranks = if rule.load == LoadRule::AllRows { 1 } else { ranks[at] };
        let routing = RoutingKey {
            rule: rule.load,
            grouped: rule.grouped,
            shape: RoutingShape {
                tokens: tokens[at],
                experts: experts[at],
                top_k: top_k[at],
                ranks: routed_ranks,
            },
            exponent,
            eplb_slots: eplb.then_some(slots),
            entering: entering.as_ref().map(|entering| entering[at]),
        };
        let id = KernelId {
            table: table.table,
            framework: table.framework.clone(),
            version: table.version.clone(),
            kernel: name.clone(),
            dtype,
        };
        kernels.entry(id).or_default().push(Measurement {
            model,
            matrices: rule.matrices,
            tensor_ranks: tensor_ranks[at],
            ranks: ranks[at],
            slots,
            tokens: tokens[at],
            routing,
            time_us: latency[at] * 1e3,
        });
    }
    Ok(kernels)
}

/// Returns the exponent of a distribution in thousandths, 0 if it is balanced, and true if EPLB follows.
fn exponent_of(name: &str) -> Option<(u32, bool)> {
    let (name, eplb) = name.strip_suffix("_eplb").map_or((name, false), |name| (name, true));
    match Distribution::from_name(name)? {
        Distribution::Balanced => Some((0, eplb)),
        Distribution::PowerLaw(exponent) => Some(((exponent * 1e3).round() as u32, eplb)),
    }
}

fn unknown_distribution(name: &str) -> ContentError {
    (format!("distribution \"{name}\""), "balanced, uniform or power_law_EXPONENT".to_owned())
}
