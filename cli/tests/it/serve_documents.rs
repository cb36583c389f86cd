//! The documents of the service in the Python client: types that its OpenAPI document describes.
//!
//! `EVENKEEL_DOCUMENTS=write cargo test -p evenkeel-cli --test it -- serve_documents::` rewrites the stub.

#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use crate::serve_support::{CONFIG, Server, folder};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

/// The documents that the Python client sends or returns. The stub also holds those that they contain.
const DOCUMENTS: [&str; 4] = ["ModelSpec", "ModelStatus", "RankChangeResponse", "Receipt"];

/// Returns the name of a reference to another schema.
fn referred(schema: &Value) -> Option<&str> {
    schema["$ref"].as_str()?.strip_prefix("#/components/schemas/")
}

/// Collects the schemas that a schema contains.
fn collect(schemas: &Value, name: &str, names: &mut BTreeSet<String>) {
    if !names.insert(name.to_owned()) {
        return;
    }
    let mut open = vec![&schemas[name]];
    while let Some(value) = open.pop() {
        if let Some(name) = referred(value) {
            collect(schemas, name, names);
        }
        match value {
            Value::Object(fields) => open.extend(fields.values()),
            Value::Array(items) => open.extend(items),
            _ => {}
        }
    }
}

/// Returns the Python type of a schema.
fn python_type(schema: &Value) -> String {
    if let Some(name) = referred(schema) {
        return name.to_owned();
    }
    if let Some(values) = schema["enum"].as_array() {
        let values: Vec<String> = values.iter().map(ToString::to_string).collect();
        return format!("Literal[{}]", values.join(", "));
    }
    for key in ["oneOf", "anyOf", "allOf"] {
        if let Some(choices) = schema[key].as_array() {
            // `None` comes last, as Python writes it.
            let choices: BTreeSet<(bool, String)> =
                choices.iter().map(python_type).map(|name| (name == "None", name)).collect();
            let choices: Vec<String> = choices.into_iter().map(|(_, name)| name).collect();
            return choices.join(" | ");
        }
    }
    if let Some(kinds) = schema["type"].as_array() {
        let of_kind = |kind: &Value| {
            let mut one = schema.clone();
            one["type"] = kind.clone();
            python_type(&one)
        };
        return kinds.iter().map(of_kind).collect::<Vec<_>>().join(" | ");
    }
    match schema["type"].as_str() {
        Some("string") => "str".into(),
        Some("integer") => "int".into(),
        Some("number") => "float".into(),
        Some("boolean") => "bool".into(),
        Some("null") => "None".into(),
        Some("array") => {
            let item = if schema["items"].is_object() { python_type(&schema["items"]) } else { "Any".into() };
            format!("list[{item}]")
        }
        Some("object") if schema["additionalProperties"].is_object() => {
            format!("dict[str, {}]", python_type(&schema["additionalProperties"]))
        }
        _ => "Any".into(),
    }
}

/// Returns the stub of the documents in an OpenAPI document.
fn python_stub(openapi: &Value) -> String {
    let schemas = &openapi["components"]["schemas"];
    let mut names = BTreeSet::new();
    DOCUMENTS.iter().for_each(|name| collect(schemas, name, &mut names));
    let mut text = "\"\"\"Documents of ``evenkeel serve``, from its OpenAPI document. cli/tests/it/serve_documents.rs writes them.\n\
                    \"\"\"\n\nfrom typing import Any, Literal, TypedDict\n\nfrom typing_extensions import NotRequired\n"
        .to_owned();
    for name in &names {
        let schema = &schemas[name];
        let Some(fields) = schema["properties"].as_object() else {
            writeln!(text, "\n{name} = {}", python_type(schema)).unwrap();
            continue;
        };
        let required: BTreeSet<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        writeln!(text, "\nclass {name}(TypedDict):").unwrap();
        for (field, schema) in fields {
            let kind = python_type(schema);
            let kind = if required.contains(field.as_str()) { kind } else { format!("NotRequired[{kind}]") };
            writeln!(text, "    {field}: {kind}").unwrap();
        }
    }
    text
}

#[test]
fn the_python_client_has_the_documents_of_the_service() {
    let data = folder();
    let server = Server::start(data.path(), CONFIG);
    let text = python_stub(&server.get("/openapi.json").json());
    server.terminate();
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../bindings/python/python/evenkeel/_service_documents.pyi");
    if std::env::var_os("EVENKEEL_DOCUMENTS").is_some_and(|value| value == "write") {
        std::fs::write(&file, &text).unwrap();
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(committed == text, "{} differs: EVENKEEL_DOCUMENTS=write rewrites it\n{text}", file.display());
}
