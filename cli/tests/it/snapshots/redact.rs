//! The fields that snapshots leave out, and the digits that they keep.

use serde_json::{Map, Number, Value};

/// A field that is left out: the command, its key, and what stands in its place.
type LeftOut = (&'static str, &'static str, &'static str);

const LEFT_OUT: &[LeftOut] = &[
    // Time that planning took on this machine.
    ("plan", "plan_ms", "[time]"),
    ("simulate", "plan_ms", "[time]"),
    // Time that splits took on this machine.
    ("simulate", "split_us", "[time]"),
    // The engine of the linear programme depends on the features of the build.
    ("simulate", "lp_engine", "[build]"),
    // The version changes with every release.
    ("plan check", "version", "[version]"),
    // Times of steps on this machine.
    ("run", "modelled_ms", "[time]"),
    ("run", "wall_ms", "[time]"),
    // Times of copies on this machine.
    ("run", "waited_ms", "[time]"),
    ("run", "moves_ms", "[time]"),
    // Times of the phases of a layer on each rank.
    ("run", "route_ms", "[time]"),
    ("run", "count_ms", "[time]"),
    ("run", "split_ms", "[time]"),
    ("run", "dispatch_ms", "[time]"),
    ("run", "ffn_ms", "[time]"),
    ("run", "combine_ms", "[time]"),
    // Rates and ratios of measured times.
    ("run", "tokens_per_s", "[time]"),
    ("run", "share_of_balanced", "[time]"),
    ("run", "share_of_balanced_without_plan", "[time]"),
    ("run", "speedup_over_no_plan", "[time]"),
    // A matrix product adds in an order that depends on the CPU's vectors, and so does the error.
    ("run", "max_rel_err", "[cpu]"),
    ("run", "max_rel_err_of_logits", "[cpu]"),
    // Time of the whole replay, and of each decision, on this machine.
    ("simulate backtest", "seconds", "[time]"),
    ("simulate backtest", "duration_ms", "[time]"),
    // The clock at a decision.
    ("simulate backtest", "timestamp_unix_s", "[time]"),
    // A sentence about the figures next to it. Its words may change, and a digest would not show them.
    ("simulate backtest", "reason", "[sentence]"),
];

/// Means over values that a matrix product gave: fewer digits than the CPUs agree on.
const ROUNDED: &[&str] = &["balance_loss", "z_loss"];

/// Digits that are kept of every other number with a fraction. Sums are in one order everywhere, but
/// functions such as `ln` are the C library's and may differ in the last digit.
const DIGITS: usize = 9;

/// Returns the document with its keys sorted, left-out fields replaced, and numbers rounded.
pub(super) fn normalised(document: &Value, command: &str) -> Value {
    let left_out: Vec<&LeftOut> = LEFT_OUT.iter().filter(|field| command.starts_with(field.0)).collect();
    value(document, &left_out, DIGITS)
}

fn value(document: &Value, left_out: &[&LeftOut], digits: usize) -> Value {
    match document {
        Value::Object(fields) => {
            let mut sorted: Vec<(&String, &Value)> = fields.iter().collect();
            sorted.sort_by_key(|&(key, _)| key);
            let fields = sorted.into_iter().map(|(key, field)| (key.clone(), named(key, field, left_out)));
            Value::Object(fields.collect::<Map<_, _>>())
        }
        Value::Array(items) => items.iter().map(|item| value(item, left_out, digits)).collect(),
        Value::Number(number) => Value::Number(rounded(number, digits)),
        _ => document.clone(),
    }
}

fn named(key: &str, field: &Value, left_out: &[&LeftOut]) -> Value {
    match left_out.iter().find(|field| field.1 == key) {
        Some(&&(_, _, shown)) if !field.is_null() => shown.into(),
        _ => value(field, left_out, if ROUNDED.contains(&key) { 3 } else { DIGITS }),
    }
}

fn rounded(number: &Number, digits: usize) -> Number {
    if number.is_u64() || number.is_i64() {
        return number.clone();
    }
    let text = format!("{:.*e}", digits - 1, number.as_f64().unwrap());
    Number::from_f64(text.parse().unwrap()).unwrap()
}

/// Returns printed tables without the columns and lines that hold measured times.
pub(super) fn without_times(text: &str) -> String {
    let (mut cut, mut out) = (None, String::new());
    for line in text.lines() {
        // Times are the last columns, behind `moves`, whose cells end where its header ends.
        if line.contains(" plan ms") {
            cut = line.find("moves").map(|at| at + "moves".len());
        } else if line.is_empty() {
            cut = None;
        }
        match (cut, line.strip_prefix("planned in ")) {
            (Some(cut), _) => out += &format!("{}  [times]\n", &line[..cut.min(line.len())]),
            (None, Some(_)) => out += "planned in [time] ms\n",
            (None, None) => out += &format!("{line}\n"),
        }
    }
    out
}
