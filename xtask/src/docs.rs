//! The OpenAPI document and the reference that is made from it.

use std::fmt::Write;

use serde_json::Value;

use crate::run::{Outcome, cargo, done, root};

pub(crate) fn write() -> Outcome {
    // The document comes out of the code that serves it.
    done(
        cargo(&["test", "--quiet", "-p", "cloister-api", "--test", "it", "openapi"]).env("CLOISTER_WRITE_OPENAPI", "1"),
    )?;
    std::fs::write(root().join(REFERENCE), from_document()?).map_err(|error| error.to_string())
}

const REFERENCE: &str = "docs/api.md";

/// Fails if the reference is not what the document makes.
pub(crate) fn check() -> Outcome {
    let committed = std::fs::read_to_string(root().join(REFERENCE)).unwrap_or_default();
    if committed == from_document()? {
        Ok(())
    } else {
        Err(format!("{REFERENCE} has drifted from openapi/v1.json; write it again with: cargo xtask openapi"))
    }
}

fn from_document() -> Result<String, String> {
    let path = root().join("openapi/v1.json");
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let document: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    Ok(reference(&document))
}

fn reference(document: &Value) -> String {
    let mut out = String::from(
        "# API reference\n\nMade from `openapi/v1.json` by `cargo xtask openapi`; do not edit. Every path but `/health` needs \
         `Authorization: Bearer pk_<tenant>_<token>`. Errors have the body `{\"error\", \"message\", \"hint\"?}`; each code has a page in \
         [errors](errors/).\n",
    );
    let paths = document["paths"].as_object().into_iter().flatten();
    for (path, item) in paths {
        for (method, operation) in item.as_object().into_iter().flatten() {
            let _ = writeln!(out, "\n## {} {path}\n", method.to_uppercase());
            let word = |field: &str| operation[field].as_str().unwrap_or_default();
            let _ = writeln!(out, "{} {}\n", word("summary"), word("description").replace('\n', " "));
            let parameters: Vec<&Value> = operation["parameters"].as_array().into_iter().flatten().collect();
            if !parameters.is_empty() {
                let _ = writeln!(out, "| parameter | in | meaning |\n|---|---|---|");
                for parameter in parameters {
                    let word = |field: &str| parameter[field].as_str().unwrap_or_default();
                    let _ = writeln!(out, "| `{}` | {} | {} |", word("name"), word("in"), word("description"));
                }
                out.push('\n');
            }
            let body = &operation["requestBody"]["content"];
            for (kind, content) in body.as_object().into_iter().flatten() {
                let _ = writeln!(out, "Body: `{kind}`{}\n", schema_name(&content["schema"]));
            }
            let _ = writeln!(out, "| status | answer |\n|---|---|");
            for (status, response) in operation["responses"].as_object().into_iter().flatten() {
                let mut shapes = String::new();
                for (kind, content) in response["content"].as_object().into_iter().flatten() {
                    let _ = write!(shapes, " `{kind}`{}", schema_name(&content["schema"]));
                }
                let _ =
                    writeln!(out, "| {status} | {}{shapes} |", response["description"].as_str().unwrap_or_default());
            }
        }
    }
    out.push_str("\n## Shapes\n");
    for (name, schema) in document["components"]["schemas"].as_object().into_iter().flatten() {
        let _ = writeln!(out, "\n### {name}\n\n{}\n", schema["description"].as_str().unwrap_or_default());
        let properties: Vec<_> = schema["properties"].as_object().into_iter().flatten().collect();
        if let Some(values) = schema["enum"].as_array() {
            let values: Vec<String> =
                values.iter().map(|value| format!("`{}`", value.as_str().unwrap_or_default())).collect();
            let _ = writeln!(out, "One of {}.", values.join(", "));
        }
        if !properties.is_empty() {
            let _ = writeln!(out, "| field | type | meaning |\n|---|---|---|");
        }
        for (field, property) in properties {
            let meaning = property["description"].as_str().unwrap_or_default().replace('\n', " ");
            let _ = writeln!(out, "| `{field}` | {} | {meaning} |", type_of(property));
        }
    }
    out
}

fn schema_name(schema: &Value) -> String {
    let name = type_of(schema);
    if name.is_empty() { name } else { format!(" {name}") }
}

fn type_of(schema: &Value) -> String {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap_or_default();
        return format!("[{name}](#{})", name.to_lowercase());
    }
    for list in ["oneOf", "anyOf"] {
        if let Some(choices) = schema[list].as_array() {
            return choices.iter().map(type_of).filter(|name| !name.is_empty()).collect::<Vec<_>>().join(" or ");
        }
    }
    match &schema["type"] {
        Value::String(kind) if kind == "array" => format!("list of {}", type_of(&schema["items"])),
        Value::String(kind) => kind.clone(),
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or "),
        _ => String::new(),
    }
}
