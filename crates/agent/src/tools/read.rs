//! `read_file`.

use std::fmt::Write;
use std::io::{BufRead, BufReader, Read};

use serde::Deserialize;

use super::{io_message, resolve};

#[derive(Deserialize)]
pub(super) struct Input {
    path: String,
    offset: Option<usize>,
    limit: Option<usize>,
}

const MAX_LINES: usize = 2_000;
const MAX_BYTES: usize = 50 << 10;
/// Longest line read in one piece; a longer one counts as several.
const LONGEST: u64 = 1 << 20;
/// Longest line shown.
const MAX_LINE: usize = 2_000;

pub(super) fn run(input: Input) -> Result<String, String> {
    let failed = |error: std::io::Error| io_message(&input.path, &error);
    let path = resolve(&input.path);
    let metadata = std::fs::metadata(&path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(format!("{}: is not a regular file; use list_files for folders", input.path));
    }
    let mut reader = BufReader::new(std::fs::File::open(&path).map_err(failed)?);
    if reader.fill_buf().map_err(failed)?.iter().take(8_000).any(|byte| *byte == 0) {
        return Ok(format!("[{} is a binary file of {} bytes]", input.path, metadata.len()));
    }
    let first = input.offset.unwrap_or(1).max(1);
    let limit = input.limit.unwrap_or(MAX_LINES).clamp(1, MAX_LINES);
    let mut out = String::new();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if (&mut reader).take(LONGEST).read_until(b'\n', &mut line).map_err(failed)? == 0 {
            if number <= first {
                return Ok(format!("[{} has {} lines; nothing from line {first}]", input.path, number - 1));
            }
            break;
        }
        if number < first {
            continue;
        }
        if number >= first + limit || out.len() > MAX_BYTES {
            let _ = writeln!(out, "[more follows: read on with offset {number}]");
            break;
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches(['\n', '\r']);
        let shown: String = text.chars().take(MAX_LINE).collect();
        let cut = if shown.len() < text.len() { " [line cut]" } else { "" };
        let _ = writeln!(out, "{number}\t{shown}{cut}");
    }
    Ok(out)
}
