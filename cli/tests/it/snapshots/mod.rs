//! The behaviour of the program and of the exact split, frozen as snapshots.
//!
//! In: the sample traces of the repository. Out: documents, tables, exported files and digests of quotas,
//! each compared with its file in `cli/tests/snapshots/`. A snapshot changes only in a commit that means to
//! change it: CONTRIBUTING.md has the command.
//!
//! Snapshots hold nothing that depends on the machine. `redact` lists every field that is left out, with the
//! reason. Help texts are not frozen.
#![allow(clippy::unwrap_used, reason = "tests")]

mod export;
mod missing;
mod online;
mod plan;
mod plan_check;
mod plan_next;
mod print;
mod program;
mod quotas;
mod redact;
mod run;
mod simulate;
mod studies;
mod tables;
mod token_ids;
mod topology;
mod trace;

use program::Sandbox;

/// Compares a text with the snapshot of this name. A missing snapshot is an error.
///
/// Names do not depend on modules, so that snapshots stay as they are where test code moves.
fn compare(name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.set_snapshot_path("../../snapshots");
    settings.bind(|| insta::assert_snapshot!(name, text));
}

/// Runs a command with `--json` and compares its document, without the fields that `redact` leaves out.
fn compare_document(name: &str, sandbox: &Sandbox, args: &str) {
    let document = sandbox.document(args);
    compare(name, &print::readable(&redact::normalised(&document, args)));
}

/// Runs `evenkeel plan` and compares its document. A digest of the slots of every layer follows, which the
/// document does not show.
fn compare_plan(name: &str, sandbox: &Sandbox, args: &str) {
    let document = sandbox.document(&format!("{args} -o [folder]/{name}.json"));
    let mut text = print::readable(&redact::normalised(&document, args));
    let plan: serde_json::Value = serde_json::from_str(&sandbox.text(&format!("{name}.json"))).unwrap();
    for layer in plan["layers"].as_array().unwrap() {
        let slots = print::sha256(layer["slots"].to_string().as_bytes());
        text += &format!("layer {}: slots {slots}\n", layer["layer"]);
    }
    compare(name, &text);
}

/// Compares a text of any length: whole where a person can read it, else by its digest and its first line.
fn compare_file(name: &str, text: &str) {
    const MOST_BYTES: usize = 6_000;
    if text.len() <= MOST_BYTES {
        return compare(name, text);
    }
    let first: String = text.lines().next().unwrap_or_default().chars().take(100).collect();
    let (bytes, lines, sha256) = (text.len(), text.lines().count(), print::sha256(text.as_bytes()));
    compare(name, &format!("bytes   {bytes}\nlines   {lines}\nsha256  {sha256}\nbegins  {first}\n"));
}
