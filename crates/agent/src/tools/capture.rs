//! Keeps the head and the tail of a command's output, and all of it in a file
//! once it is too long to show.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Bytes of the beginning and of the end that are shown.
const HEAD: usize = 12 << 10;
const TAIL: usize = 18 << 10;
/// Output after which a command is killed.
pub(super) const FLOOD: u64 = 64 << 20;

pub(super) struct Capture {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    total: u64,
    lines_lost: u64,
    spill_to: PathBuf,
    spill: Option<File>,
}

impl Capture {
    pub(super) fn new(spill_to: PathBuf) -> Self {
        Self { head: Vec::new(), tail: VecDeque::new(), total: 0, lines_lost: 0, spill_to, spill: None }
    }

    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        self.total += bytes.len() as u64;
        if self.spill.is_none() && self.total > (HEAD + TAIL) as u64 {
            self.begin_spill();
        }
        if let Some(file) = &mut self.spill {
            // A full disk costs the copy, not the command.
            let _ = file.write_all(bytes);
        }
        let room = HEAD - self.head.len();
        let (first, rest) = bytes.split_at(room.min(bytes.len()));
        self.head.extend_from_slice(first);
        bytes = rest;
        self.tail.extend(bytes);
        let excess = self.tail.len().saturating_sub(TAIL);
        self.lines_lost += self.tail.drain(..excess).filter(|byte| *byte == b'\n').count() as u64;
    }

    fn begin_spill(&mut self) {
        let folder = self.spill_to.parent().unwrap_or(Path::new("/tmp"));
        let opened = std::fs::create_dir_all(folder).and_then(|()| File::create(&self.spill_to));
        if let Ok(mut file) = opened {
            let _ = file.write_all(&self.head);
            let (a, b) = self.tail.as_slices();
            let _ = file.write_all(a).and_then(|()| file.write_all(b));
            self.spill = Some(file);
        }
    }

    pub(super) fn is_flood(&self) -> bool {
        self.total > FLOOD
    }

    /// The text to show, valid UTF-8 without half characters at the cut.
    pub(super) fn text(&mut self) -> String {
        let shown = (self.head.len() + self.tail.len()) as u64;
        let tail: Vec<u8> = self.tail.iter().copied().collect();
        if self.total <= shown {
            let all: Vec<u8> = self.head.iter().copied().chain(tail).collect();
            return String::from_utf8_lossy(&all).into_owned();
        }
        let head = &self.head[..whole_characters(&self.head)];
        let start = tail.iter().take(4).take_while(|byte| **byte & 0xc0 == 0x80).count();
        let whole = match &self.spill {
            Some(_) => format!("; all of it is in {}", self.spill_to.display()),
            None => String::new(),
        };
        format!(
            "{}\n[... {} bytes ({} lines) left out{whole} ...]\n{}",
            String::from_utf8_lossy(head),
            self.total - shown,
            self.lines_lost,
            String::from_utf8_lossy(&tail[start..])
        )
    }
}

/// Length of `bytes` without a character that is cut at its end.
fn whole_characters(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn capture(folder: &Path) -> Capture {
        Capture::new(folder.join("out/1.txt"))
    }

    #[test]
    fn short_output_is_whole_and_long_output_keeps_both_ends() {
        let folder = tempfile::tempdir().unwrap();
        let mut short = capture(folder.path());
        short.push(b"hello\n");
        assert_eq!(short.text(), "hello\n");
        assert!(!folder.path().join("out").exists());

        let mut long = capture(folder.path());
        let text: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
        for piece in text.as_bytes().chunks(7_777) {
            long.push(piece);
        }
        let shown = long.text();
        assert!(shown.starts_with("line 0\n") && shown.ends_with("line 19999\n") && shown.len() < 32 << 10);
        assert_eq!(std::fs::read_to_string(folder.path().join("out/1.txt")).unwrap(), text);
    }

    proptest! {
        #[test]
        fn a_cut_never_halves_a_character(lead in 0usize..4, piece in 1usize..5000) {
            let folder = tempfile::tempdir().unwrap();
            let mut capture = capture(folder.path());
            let text = format!("{}{}", "x".repeat(lead), "\u{1f600}".repeat(20_000));
            for bytes in text.as_bytes().chunks(piece) {
                capture.push(bytes);
            }
            let halved = capture.text().contains(char::REPLACEMENT_CHARACTER);
            prop_assert!(!halved);
        }
    }
}
