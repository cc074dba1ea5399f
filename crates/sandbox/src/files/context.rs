//! The tenant's own text for the system prompt: `.pokee/*.md`. Read from the
//! workspace itself, because it reaches the prompt whatever a session's scope.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use cloister_types::scope::CONTEXT;
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};

use super::kind;
use crate::identity::Identity;

/// Most bytes of all files together, headings included; loading stops at the
/// first that does not fit.
pub const MAX_CONTEXT: u64 = 1 << 20;
/// Most files, and most names looked at.
const MAX_FILES: usize = 256;
const MAX_NAMES: usize = 4096;

/// Joins the markdown files, in byte order of their names, each under a
/// heading with its name. What is not a plain UTF-8 file is left out; the
/// second list names what was.
#[must_use]
pub fn read_context(workspace: impl AsFd, identity: Identity) -> (String, Vec<String>) {
    identity.act(|| {
        let mut text = String::new();
        let mut skipped = Vec::new();
        let strict = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let Ok(folder) = openat2(workspace, CONTEXT, flags | OFlags::DIRECTORY, Mode::empty(), strict) else {
            return (text, skipped);
        };
        let mut size = 0;
        for name in names(&folder) {
            match read_one(&folder, &name, strict, flags) {
                Ok(content) if size + (content.len() + name.len() + 8) as u64 <= MAX_CONTEXT => {
                    size += (content.len() + name.len() + 8) as u64;
                    if !text.is_empty() {
                        text.push_str("\n\n");
                    }
                    text.push_str(&format!("## {name}\n\n{}", content.trim_end()));
                }
                Ok(_) | Err(Unread::TooLarge) => {
                    skipped.push(name);
                    break;
                }
                Err(Unread::NotText) => skipped.push(name),
            }
        }
        (text, skipped)
    })
}

fn names(folder: &OwnedFd) -> Vec<String> {
    let entries = Dir::read_from(folder).into_iter().flatten().flatten().take(MAX_NAMES);
    let names = entries.filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned));
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".md")).collect();
    names.sort_unstable();
    names.truncate(MAX_FILES);
    names
}

/// Why a file is left out.
enum Unread {
    /// Not a plain file of UTF-8.
    NotText,
    /// More than all files together may be: loading stops here.
    TooLarge,
}

/// A regular file's text. The kind is checked on a handle: opening a FIFO
/// would wait for a writer.
fn read_one(folder: &OwnedFd, name: &str, strict: ResolveFlags, flags: OFlags) -> Result<String, Unread> {
    let not_text = |_| Unread::NotText;
    let handle = openat2(folder, name, OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty(), strict);
    let handle = handle.map_err(not_text)?;
    let stat = fstat(&handle).map_err(not_text)?;
    if kind(&stat) != FileType::RegularFile {
        return Err(Unread::NotText);
    }
    if stat.st_size.cast_unsigned() > MAX_CONTEXT {
        return Err(Unread::TooLarge);
    }
    let mut content = String::new();
    let file = File::from(super::reopen(&handle, flags).map_err(not_text)?);
    file.take(MAX_CONTEXT + 1).read_to_string(&mut content).map_err(|_| Unread::NotText)?;
    Ok(content)
}
