//! Plain tables for people.

use comfy_table::{CellAlignment, Table};

/// Returns a plain table with right-aligned numbers. The first `text_columns` columns are left-aligned.
pub(crate) fn render_table(header: &[&str], rows: Vec<Vec<String>>, text_columns: usize) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(text_columns) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
