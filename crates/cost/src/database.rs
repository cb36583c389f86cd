//! Cost database `evenkeel.costs/1`: fitted kernel times of one GPU, with provenance and errors.
//!
//! In: JSON. Out: a [`CostDatabase`], checked: every figure of the hardware is positive, every coefficient
//! and error is a number from 0. No kernel or operation occurs twice. Unknown keys are errors.

use crate::dtype::Dtype;
use crate::hardware::Hardware;
use crate::kernel_entry::{KernelEntry, KernelTable, version_key};
use crate::moe_shape::ModelShape;
use crate::operations::OperationEntry;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use thiserror::Error;

/// Format of the JSON document.
pub const FORMAT: &str = "evenkeel.costs/1";

/// Fitted kernel times of one GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct CostDatabase {
    /// Format and version of the document, [`FORMAT`].
    pub format: String,
    /// Name of the GPU, such as `h100`.
    pub gpu: String,
    /// Hardware figures to which the coefficients belong.
    pub hardware: Hardware,
    /// Source of the measurements.
    pub provenance: Provenance,
    /// Fitted kernels, ordered by table, framework, dtype, version and kernel.
    pub kernels: Vec<KernelEntry>,
    /// Fitted operations of the rest of a step, ordered by kind, framework, dtype, version and kernel.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub operations: Vec<OperationEntry>,
}

/// Source of measurements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Provenance {
    /// Name of the package that contains the measurements.
    pub package: String,
    /// Version of the package, or `unknown`.
    pub version: String,
    /// Licence of the measurements, with the holder of the copyright.
    pub licence: String,
    /// Paths of the files inside the package.
    pub files: Vec<String>,
}

impl Provenance {
    /// Creates a source without files.
    pub fn new(package: impl Into<String>, version: impl Into<String>, licence: impl Into<String>) -> Self {
        Self { package: package.into(), version: version.into(), licence: licence.into(), files: Vec::new() }
    }
}

/// Error of a database.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CostError {
    /// The text is no JSON document of the format.
    #[error("no cost database: {0}")]
    Json(String),
    /// A key has a wrong value.
    #[error("cost database: {key}: found {found}, expected {expected}")]
    Value {
        /// Path of the key.
        key: String,
        /// The value.
        found: String,
        /// The allowed values.
        expected: String,
    },
    /// No table is shipped for a GPU.
    #[error("no measured kernels for GPU \"{gpu}\": expected one of {known}")]
    UnknownGpu {
        /// The requested GPU.
        gpu: String,
        /// Names of the GPUs with tables.
        known: String,
    },
    /// The database has no such kernel.
    #[error("no kernel of {framework} with {dtype} for GPU \"{gpu}\": expected one of {known}")]
    UnknownKernel {
        /// GPU of the database.
        gpu: String,
        /// The requested framework.
        framework: String,
        /// The requested number format.
        dtype: Dtype,
        /// Frameworks and number formats in the database.
        known: String,
    },
}

impl CostDatabase {
    /// Creates a database. Kernels are put in order.
    pub fn new(
        gpu: impl Into<String>,
        hardware: Hardware,
        provenance: Provenance,
        mut kernels: Vec<KernelEntry>,
    ) -> Self {
        kernels.sort_by(|a, b| a.key().cmp(&b.key()));
        let format = FORMAT.to_owned();
        Self { format, gpu: gpu.into(), hardware, provenance, kernels, operations: Vec::new() }
    }

    /// Adds fitted operations, and puts all in order.
    #[must_use]
    pub fn with_operations(mut self, operations: impl IntoIterator<Item = OperationEntry>) -> Self {
        self.operations.extend(operations);
        self.operations.sort_by(|a, b| a.key().cmp(&b.key()));
        self
    }

    /// Reads a database.
    ///
    /// # Errors
    /// Fails if the text is no such document, or if a value is outside its range.
    pub fn from_json(text: &str) -> Result<Self, CostError> {
        let database: Self =
            serde_json::from_str(text).map_err(|error| CostError::Json(error.to_string()))?;
        database.check_values()?;
        Ok(database)
    }

    /// Returns the document: lines for the head, one per kernel, and one per operation.
    ///
    /// # Errors
    /// Fails if a number is infinite or undefined.
    pub fn to_json(&self) -> Result<String, CostError> {
        self.check_values()?;
        let json = |error: serde_json::Error| CostError::Json(error.to_string());
        let text = |value: Result<String, serde_json::Error>| value.map_err(json);
        let kernels = self.kernels.iter().map(|kernel| text(serde_json::to_string(kernel)));
        let kernels: Vec<String> = kernels.collect::<Result<_, _>>()?;
        let operations = self.operations.iter().map(|entry| text(serde_json::to_string(entry)));
        let operations: Vec<String> = operations.collect::<Result<_, _>>()?;
        let operations = match operations.as_slice() {
            [] => String::new(),
            lines => format!(",\n\"operations\":[\n{}\n]", lines.join(",\n")),
        };
        Ok(format!(
            "{{\"format\":{},\n\"gpu\":{},\n\"hardware\":{},\n\"provenance\":{},\n\"kernels\":[\n{}\n]{operations}}}\n",
            text(serde_json::to_string(&self.format))?,
            text(serde_json::to_string(&self.gpu))?,
            text(serde_json::to_string(&self.hardware))?,
            text(serde_json::to_string(&self.provenance))?,
            kernels.join(",\n")
        ))
    }

    /// Returns the kernel of a framework and number format with the most rows in the table `moe`. Among
    /// equals it is that of the newest version.
    ///
    /// An importer keeps only the newest main version of a framework and the releases after it. A release
    /// with a few further shapes therefore does not displace the kernel of the main version.
    ///
    /// # Errors
    /// Fails if there is none, and lists the ones that there are.
    pub fn kernel(&self, framework: &str, dtype: Dtype) -> Result<&KernelEntry, CostError> {
        self.kernel_in(KernelTable::Moe, framework, dtype)
    }

    /// Returns the kernel of a framework and number format that was measured most in a kind of table.
    ///
    /// # Errors
    /// Fails if there is none, and lists the ones that there are.
    pub fn kernel_in(
        &self,
        table: KernelTable,
        framework: &str,
        dtype: Dtype,
    ) -> Result<&KernelEntry, CostError> {
        let of_table = || self.kernels.iter().filter(move |kernel| kernel.table == table);
        let found = of_table()
            .filter(|kernel| kernel.framework == framework && kernel.dtype == dtype)
            .max_by_key(|kernel| (kernel.rows, version_key(&kernel.version)));
        found.ok_or_else(|| {
            let known: BTreeSet<String> =
                of_table().map(|kernel| format!("{} {}", kernel.framework, kernel.dtype)).collect();
            CostError::UnknownKernel {
                gpu: self.gpu.clone(),
                framework: framework.to_owned(),
                dtype,
                known: known.into_iter().collect::<Vec<_>>().join(", "),
            }
        })
    }

    /// Returns the kernel that was measured with a model, or that of [`CostDatabase::kernel_in`] if none
    /// was.
    ///
    /// # Errors
    /// Fails if there is no kernel of the framework and number format, and lists the ones that there are.
    pub fn kernel_of_model(
        &self,
        table: KernelTable,
        framework: &str,
        dtype: Dtype,
        model: ModelShape,
    ) -> Result<&KernelEntry, CostError> {
        let fits = |kernel: &&KernelEntry| {
            (kernel.table, kernel.framework.as_str(), kernel.dtype) == (table, framework, dtype)
                && kernel.models.contains(&model)
        };
        let measured = self.kernels.iter().filter(fits);
        match measured.max_by_key(|kernel| (kernel.rows, version_key(&kernel.version))) {
            Some(kernel) => Ok(kernel),
            None => self.kernel_in(table, framework, dtype),
        }
    }

    fn check_values(&self) -> Result<(), CostError> {
        if self.format != FORMAT {
            return wrong("format".into(), format!("\"{}\"", self.format), &format!("\"{FORMAT}\""));
        }
        let hardware = &self.hardware;
        for (key, value) in [
            ("bandwidth", hardware.bandwidth),
            ("flops_16bit", hardware.flops_16bit),
            ("flops_8bit", hardware.flops_8bit),
            ("flops_4bit", hardware.flops_4bit),
            ("multiprocessors", hardware.multiprocessors),
        ] {
            if value == 0 {
                return wrong(format!("hardware.{key}"), "0".into(), "a number from 1");
            }
        }
        self.check_kernels()?;
        self.check_operations()
    }

    fn check_kernels(&self) -> Result<(), CostError> {
        let mut seen = BTreeSet::new();
        for (at, kernel) in self.kernels.iter().enumerate() {
            if !seen.insert(kernel.key()) {
                return wrong(format!("kernels[{at}]"), kernel.describe(), "each kernel once");
            }
            if kernel.tuned_widths.is_empty() != kernel.tuned_coefficients.is_empty() {
                let found = format!("{} of them", kernel.tuned_coefficients.len());
                let expected = "some if and only if there are tuned_widths";
                return wrong(format!("kernels[{at}].tuned_coefficients"), found, expected);
            }
            let mut numbers = vec![("l2_scale".to_owned(), kernel.l2_scale)];
            for (name, coefficients) in
                [("coefficients", &kernel.coefficients), ("tuned_coefficients", &kernel.tuned_coefficients)]
            {
                numbers.extend(coefficients.iter().map(|(f, &value)| (format!("{name}.{f:?}"), value)));
            }
            for (name, errors) in [("balanced", kernel.errors.balanced), ("skewed", kernel.errors.skewed)] {
                let Some(errors) = errors else { continue };
                let methods = [Some(errors.model), Some(errors.roofline), errors.interpolation];
                let quantiles = methods.into_iter().flatten().flat_map(|method| [method.median, method.p90]);
                numbers.extend(quantiles.map(|value| (format!("errors.{name}"), value)));
            }
            if let Some((key, value)) =
                numbers.into_iter().find(|(_, value)| !(*value >= 0.0 && value.is_finite()))
            {
                return wrong(format!("kernels[{at}].{key}"), value.to_string(), "a number from 0");
            }
        }
        Ok(())
    }

    fn check_operations(&self) -> Result<(), CostError> {
        let mut seen = BTreeSet::new();
        for (at, entry) in self.operations.iter().enumerate() {
            if !seen.insert(entry.key()) {
                return wrong(format!("operations[{at}]"), entry.describe(), "each operation once");
            }
            if let Some(parameter) = entry.operation.find_wrong_parameter() {
                let key = format!("operations[{at}].{}", parameter.name);
                return wrong(key, parameter.value.to_string(), parameter.expected);
            }
            let errors = [entry.errors.median, entry.errors.p90];
            if let Some(value) = errors.into_iter().find(|value| !(*value >= 0.0 && value.is_finite())) {
                return wrong(format!("operations[{at}].errors"), value.to_string(), "a number from 0");
            }
        }
        Ok(())
    }
}

fn wrong(key: String, found: String, expected: &str) -> Result<(), CostError> {
    Err(CostError::Value { key, found, expected: expected.to_owned() })
}
