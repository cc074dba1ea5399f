//! `list_files`.

use std::fmt::Write;
use std::path::Path;

use serde::Deserialize;

use super::{io_message, resolve};

#[derive(Deserialize)]
pub(super) struct Input {
    #[serde(default = "here")]
    path: String,
    #[serde(default)]
    recursive: bool,
}

fn here() -> String {
    ".".to_owned()
}

const MAX_ENTRIES: usize = 1_000;

pub(super) fn run(input: Input) -> Result<String, String> {
    let root = resolve(&input.path);
    let mut out = String::new();
    let mut count = 0;
    walk(&root, &root, input.recursive, &mut out, &mut count).map_err(|error| io_message(&input.path, &error))?;
    if count > MAX_ENTRIES {
        let _ = writeln!(out, "[cut after {MAX_ENTRIES} entries]");
    }
    if out.is_empty() {
        out.push_str("(empty)");
    }
    Ok(out)
}

fn walk(root: &Path, folder: &Path, recursive: bool, out: &mut String, count: &mut usize) -> std::io::Result<()> {
    let mut entries: Vec<_> = std::fs::read_dir(folder)?.flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        *count += 1;
        if *count > MAX_ENTRIES {
            break;
        }
        let Ok(metadata) = entry.metadata() else { continue };
        let path = entry.path();
        let name = path.strip_prefix(root).unwrap_or(&path).display();
        let _ = match metadata {
            ref m if m.is_dir() => writeln!(out, "dir\t-\t{name}/"),
            ref m if m.is_symlink() => writeln!(out, "link\t-\t{name}"),
            ref m if m.is_file() => writeln!(out, "file\t{}\t{name}", m.len()),
            _ => writeln!(out, "other\t-\t{name}"),
        };
        if recursive && metadata.is_dir() {
            // What cannot be read is listed and not entered.
            let _ = walk(root, &path, true, out, count);
        }
    }
    Ok(())
}
