//! `search_files`.

use std::fmt::Write;
use std::io::{BufRead, BufReader};

use globset::{Glob, GlobMatcher};
use ignore::WalkBuilder;
use regex::bytes::Regex;
use serde::Deserialize;

use super::{io_message, resolve};

#[derive(Deserialize)]
pub(super) struct Input {
    pattern: String,
    #[serde(default)]
    path: String,
    glob: Option<String>,
}

const MAX_HITS: usize = 200;
const MAX_LINE: usize = 500;
/// A line longer than this is not text worth searching.
const MAX_SCAN: u64 = 1 << 20;

pub(super) fn run(input: Input) -> Result<String, String> {
    let pattern = Regex::new(&input.pattern).map_err(|error| format!("bad pattern: {error}"))?;
    let glob = match &input.glob {
        Some(glob) => Some(Glob::new(glob).map_err(|error| format!("bad glob: {error}"))?.compile_matcher()),
        None => None,
    };
    let root = resolve(&input.path);
    std::fs::metadata(&root).map_err(|error| io_message(&input.path, &error))?;
    let mut out = String::new();
    let mut hits = 0;
    let files =
        WalkBuilder::new(&root).hidden(false).require_git(false).sort_by_file_name(|a, b| a.cmp(b)).build().flatten();
    for file in files.filter(|file| file.file_type().is_some_and(|kind| kind.is_file())) {
        let relative = file.path().strip_prefix(&root).unwrap_or(file.path());
        let shown = if relative.as_os_str().is_empty() { file.path() } else { relative };
        if !fits(glob.as_ref(), shown) {
            continue;
        }
        if search(file.path(), &shown.display().to_string(), &pattern, &mut out, &mut hits).is_none() {
            let _ = writeln!(out, "[cut after {MAX_HITS} hits]");
            break;
        }
    }
    if hits == 0 {
        out.push_str("(no hits)");
    }
    Ok(out)
}

fn fits(glob: Option<&GlobMatcher>, path: &std::path::Path) -> bool {
    glob.is_none_or(|glob| glob.is_match(path) || path.file_name().is_some_and(|name| glob.is_match(name)))
}

/// Adds a file's hits; `None` when there are enough.
fn search(path: &std::path::Path, shown: &str, pattern: &Regex, out: &mut String, hits: &mut usize) -> Option<()> {
    let Ok(file) = std::fs::File::open(path) else { return Some(()) };
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let got = std::io::Read::take(&mut reader, MAX_SCAN).read_until(b'\n', &mut line).unwrap_or(0);
        if got == 0 || line.contains(&0) {
            break;
        }
        if pattern.is_match(line.strip_suffix(b"\n").unwrap_or(&line)) {
            if *hits == MAX_HITS {
                return None;
            }
            *hits += 1;
            let text = String::from_utf8_lossy(&line);
            let text: String = text.trim_end().chars().take(MAX_LINE).collect();
            let _ = writeln!(out, "{shown}:{number}:{text}");
        }
    }
    Some(())
}
