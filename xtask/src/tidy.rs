//! What no compiler checks: layers, licences, duplicate versions, file heads
//! and sizes, error pages, words that must not be left.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::run::{Outcome, cargo, root};

/// Which crate may use which, from the bottom up. The table of
/// ARCHITECTURE.md; an edge that is not here fails.
const LAYERS: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("store", &["types"]),
    ("sandbox", &["types"]),
    ("agent", &["types"]),
    ("client", &["types"]),
    ("scripted", &[]),
    ("dial", &["types"]),
    ("vault", &["types", "dial"]),
    ("oidc", &["dial"]),
    ("egress", &["types", "dial", "vault"]),
    ("session", &["types", "store", "sandbox"]),
    ("api", &["types", "store", "session", "vault", "oidc"]),
    ("server", &["types", "store", "session", "api", "dial", "egress", "oidc", "vault", "scripted"]),
    ("cli", &["types", "client", "server"]),
    ("testkit", &["types", "client"]),
    ("bench", &["types", "store", "sandbox", "client"]),
    ("fuzz", &["types", "sandbox", "egress", "vault"]),
    ("xtask", &[]),
];

/// Only these may hold unsafe code.
const UNSAFE: &str = "crates/sandbox/src/sys/";
/// Production lines of one file.
const MOST_LINES: usize = 500;
/// Licences that may come in, as SPDX expressions are made of them.
const LICENCES: [&str; 12] = [
    "MIT",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Unicode-3.0",
    "Zlib",
    "Unlicense",
    "0BSD",
    "CDLA-Permissive-2.0",
    "CC0-1.0",
    "NCSA",
];
/// Crates that others of our dependencies still use in two versions, each
/// with the reason why that cannot be mended here.
const TWICE: &[(&str, &str)] = &[
    ("base64", "jsonwebtoken stays with 0.22"),
    ("getrandom", "some stay with 0.2"),
    ("syn", "procedural macros are half way from 2 to 3; nothing of it is in what we ship"),
    ("synstructure", "goes with syn"),
    ("untrusted", "aws-lc-rs, as jsonwebtoken asks for it, stays with 0.7"),
];

pub(crate) fn run() -> Outcome {
    let mut faults = Vec::new();
    let metadata =
        cargo(&["metadata", "--format-version=1", "--locked"]).output().map_err(|error| error.to_string())?;
    if !metadata.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&metadata.stderr)));
    }
    let metadata: Value = serde_json::from_slice(&metadata.stdout).map_err(|error| error.to_string())?;
    layers(&metadata, &mut faults);
    packages(&metadata, &mut faults);
    for file in sources(&root()) {
        source(&file, &mut faults);
    }
    if faults.is_empty() { Ok(()) } else { Err(format!("untidy:\n  {}", faults.join("\n  "))) }
}

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_default()
}

fn list<'v>(value: &'v Value, field: &str) -> impl Iterator<Item = &'v Value> {
    value[field].as_array().into_iter().flatten()
}

fn layers(metadata: &Value, faults: &mut Vec<String>) {
    let short = |name: &str| name.strip_prefix("cloister-").unwrap_or(name).to_owned();
    let members: BTreeSet<&str> = list(metadata, "workspace_members").filter_map(Value::as_str).collect();
    for package in list(metadata, "packages").filter(|package| members.contains(text(package, "id"))) {
        let name = short(text(package, "name"));
        let Some((_, allowed)) = LAYERS.iter().find(|(known, _)| *known == name) else {
            faults.push(format!("crate {name} is not in the table of layers (xtask/src/tidy.rs)"));
            continue;
        };
        for dependency in list(package, "dependencies").filter(|dependency| dependency["path"].is_string()) {
            let other = short(text(dependency, "name"));
            // Tests may stand on everything.
            if dependency["kind"] != "dev" && !allowed.contains(&other.as_str()) {
                faults.push(format!("crate {name} must not use {other}"));
            }
        }
    }
}

fn packages(metadata: &Value, faults: &mut Vec<String>) {
    // What is really built here, not what other platforms would need.
    let tree =
        cargo(&["tree", "--workspace", "--edges=normal,build", "--prefix=none", "--format={p}", "--locked"]).output();
    let tree = tree.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in tree.lines() {
        let mut words = line.split(' ');
        if let (Some(name), Some(version)) = (words.next(), words.next()) {
            versions.entry(name).or_default().insert(version);
        }
    }
    for (name, found) in &versions {
        if found.len() > 1 && !TWICE.iter().any(|(known, _)| known == name) {
            let found: Vec<&str> = found.iter().copied().collect();
            faults.push(format!("{name} is built in several versions: {}", found.join(", ")));
        }
    }
    for package in list(metadata, "packages").filter(|package| versions.contains_key(text(package, "name"))) {
        let licence = text(package, "license");
        if !licence_fits(licence) {
            faults.push(format!("{} has the licence {licence:?}", text(package, "name")));
        }
    }
}

/// One side of every "or" and all sides of every "and" must be allowed.
fn licence_fits(expression: &str) -> bool {
    let expression = expression.replace(['(', ')'], " ").replace('/', " OR ");
    let known = |word: &str| {
        let word = word.trim();
        LICENCES.contains(&word.split(" WITH ").next().unwrap_or(word).trim())
    };
    expression.split(" AND ").all(|part| part.split(" OR ").any(known))
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() {
            if !matches!(name.to_str(), Some("target" | ".git" | "node_modules")) {
                files.extend(sources(&path));
            }
        } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "md") {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn source(path: &Path, faults: &mut Vec<String>) {
    let shown = path.strip_prefix(root()).unwrap_or(path).display().to_string();
    let Ok(content) = std::fs::read_to_string(path) else { return };
    let this = shown == "xtask/src/tidy.rs";
    for (number, line) in content.lines().enumerate() {
        let marks = ["TODO", "FIXME", "XXX", "unimplemented!", "todo!("];
        if !this && marks.iter().any(|mark| line.contains(mark)) {
            faults.push(format!("{shown}:{}: a mark of unfinished work", number + 1));
        }
    }
    if !shown.ends_with(".rs") {
        return;
    }
    let module = shown.contains("/src/");
    if module && !shown.ends_with("/tests.rs") && !content.starts_with("//!") {
        faults.push(format!("{shown}: no head that says what it is for"));
    }
    let production = content.split("#[cfg(test)]").next().unwrap_or_default().lines().count();
    if module && production > MOST_LINES {
        faults.push(format!("{shown}: {production} lines; split it by subject"));
    }
    if !shown.starts_with(UNSAFE) && !this && content.contains("allow(unsafe_code)") {
        faults.push(format!("{shown}: unsafe code outside {UNSAFE}"));
    }
}
