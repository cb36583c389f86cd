//! A small package for tests: Parquet tables in the folders of aiconfigurator-core.

use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A row of `moe_perf`.
#[derive(Debug, Clone)]
pub(crate) struct MoeRow {
    pub(crate) kernel: &'static str,
    pub(crate) dtype: &'static str,
    pub(crate) distribution: &'static str,
    pub(crate) tokens: i64,
    /// Hidden width, inner width, experts per token, experts.
    pub(crate) model: [i64; 4],
    pub(crate) tensor_ranks: i64,
    pub(crate) ranks: i64,
    pub(crate) milliseconds: f64,
}

/// A column: its type in the schema, and its values.
pub(crate) enum Values {
    Text(Vec<String>),
    Integers(Vec<i64>),
    Numbers(Vec<f64>),
}

/// Columns by name, in the order of the file.
pub(crate) type Columns = Vec<(&'static str, Values)>;

/// Returns the columns of rows.
pub(crate) fn columns(rows: &[MoeRow]) -> Columns {
    let text = |get: fn(&MoeRow) -> &str| Values::Text(rows.iter().map(|row| get(row).to_owned()).collect());
    let integers = |get: fn(&MoeRow) -> i64| Values::Integers(rows.iter().map(get).collect());
    vec![
        ("kernel_source", text(|row| row.kernel)),
        ("moe_dtype", text(|row| row.dtype)),
        ("distribution", text(|row| row.distribution)),
        ("num_tokens", integers(|row| row.tokens)),
        ("hidden_size", integers(|row| row.model[0])),
        ("inter_size", integers(|row| row.model[1])),
        ("topk", integers(|row| row.model[2])),
        ("num_experts", integers(|row| row.model[3])),
        ("moe_tp_size", integers(|row| row.tensor_ranks)),
        ("moe_ep_size", integers(|row| row.ranks)),
        ("latency", Values::Numbers(rows.iter().map(|row| row.milliseconds).collect())),
    ]
}

/// Writes `moe_perf.parquet` of a GPU folder, framework and version, and returns its path.
pub(crate) fn write_table(
    root: &Path,
    [gpu, framework, version]: [&str; 3],
    columns: &[(&str, Values)],
) -> PathBuf {
    write_file(&root.join(gpu).join("moe").join(framework).join(version).join("moe_perf.parquet"), columns)
}

/// Writes a table of a path, and returns the path.
pub(crate) fn write_file(path: &Path, columns: &[(&str, Values)]) -> PathBuf {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).unwrap();
    }
    let fields: Vec<String> = columns
        .iter()
        .map(|(name, values)| match values {
            Values::Text(_) => format!("required binary {name} (UTF8);"),
            Values::Integers(_) => format!("required int64 {name};"),
            Values::Numbers(_) => format!("required double {name};"),
        })
        .collect();
    let schema = parse_message_type(&format!("message schema {{ {} }}", fields.join(" "))).unwrap();
    let file = std::fs::File::create(path).unwrap();
    let properties = Arc::new(WriterProperties::builder().build());
    let mut writer = SerializedFileWriter::new(file, Arc::new(schema), properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for (_, values) in columns {
        let mut column = group.next_column().unwrap().unwrap();
        match values {
            Values::Text(values) => {
                let values: Vec<ByteArray> = values.iter().map(|text| text.as_str().into()).collect();
                column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
            }
            Values::Integers(values) => {
                column.typed::<Int64Type>().write_batch(values, None, None).unwrap();
            }
            Values::Numbers(values) => {
                column.typed::<DoubleType>().write_batch(values, None, None).unwrap();
            }
        }
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    path.to_owned()
}
