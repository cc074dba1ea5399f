//! `edit_file`.

use serde::Deserialize;

use super::write::replace;
use super::{io_message, resolve};

#[derive(Deserialize)]
pub(super) struct Input {
    path: String,
    #[serde(alias = "old_string", alias = "old_text")]
    old: String,
    #[serde(alias = "new_string", alias = "new_text")]
    new: String,
    #[serde(default, alias = "replace_all")]
    all: bool,
}

const MAX_BYTES: u64 = 8 << 20;

pub(super) fn run(input: Input) -> Result<String, String> {
    let failed = |error: std::io::Error| io_message(&input.path, &error);
    let path = resolve(&input.path);
    let metadata = std::fs::metadata(&path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(format!("{}: is not a regular file", input.path));
    }
    if metadata.len() > MAX_BYTES {
        return Err(format!("{}: too large to edit; use bash", input.path));
    }
    let text = std::fs::read_to_string(&path).map_err(failed)?;
    let (edited, count) =
        substitute(&text, &input.old, &input.new, input.all).map_err(|why| format!("{}: {why}", input.path))?;
    replace(&path, edited.as_bytes()).map_err(failed)?;
    Ok(format!("Replaced {count} occurrence(s) in {}.", input.path))
}

fn substitute(text: &str, old: &str, new: &str, all: bool) -> Result<(String, usize), String> {
    if old.is_empty() {
        return Err("the old text is empty".into());
    }
    match text.matches(old).count() {
        0 => Err(match nearest(text, old) {
            Some((number, line)) => format!("the old text does not occur; line {number} is close: {line}"),
            None => "the old text does not occur".into(),
        }),
        count if count > 1 && !all => {
            Err(format!("the old text occurs {count} times; give more of its surroundings, or set all"))
        }
        count => Ok((text.replace(old, new), count)),
    }
}

/// A line that differs from the old text's first line in white space only.
fn nearest<'t>(text: &'t str, old: &str) -> Option<(usize, &'t str)> {
    let squeeze = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let wanted = squeeze(old.lines().find(|line| !line.trim().is_empty())?);
    text.lines().enumerate().find(|(_, line)| squeeze(line) == wanted).map(|(index, line)| (index + 1, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_occurrence_or_all_of_them() {
        assert_eq!(substitute("a b a", "b", "c", false), Ok(("a c a".into(), 1)));
        assert_eq!(substitute("a b a", "a", "c", true), Ok(("c b c".into(), 2)));
        assert!(substitute("a b a", "a", "c", false).unwrap_err().contains("2 times"));
        assert!(substitute("  let x\n", "let  x", "", false).unwrap_err().contains("line 1"));
        assert!(substitute("x", "", "y", true).is_err());
    }
}
