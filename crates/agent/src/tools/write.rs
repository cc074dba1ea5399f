//! `write_file`.

use std::io::Write;
use std::path::Path;

use serde::Deserialize;

use super::{io_message, resolve};

#[derive(Deserialize)]
pub(super) struct Input {
    path: String,
    content: String,
}

const MAX_BYTES: usize = 1 << 20;

pub(super) fn run(input: Input) -> Result<String, String> {
    if input.content.len() > MAX_BYTES {
        return Err(format!("{}: the content is over {MAX_BYTES} bytes; write it with bash in parts", input.path));
    }
    let path = resolve(&input.path);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| io_message(&input.path, &error))?;
    }
    replace(&path, input.content.as_bytes()).map_err(|error| io_message(&input.path, &error))?;
    Ok(format!("Wrote {} bytes to {}.", input.content.len(), input.path))
}

/// Writes beside the file and renames, so that no reader sees half of it. A
/// path that cannot be replaced (a link, a file that is a scope entry of its
/// own) is written in place.
pub(super) fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let metadata = std::fs::symlink_metadata(path);
    let in_place = metadata.as_ref().is_ok_and(|metadata| !metadata.is_file());
    if !in_place {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let beside = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
        let attempt = (|| {
            let mut file = std::fs::File::create_new(&beside)?;
            file.write_all(content)?;
            if let Ok(metadata) = &metadata {
                file.set_permissions(metadata.permissions())?;
            }
            std::fs::rename(&beside, path)
        })();
        match attempt {
            Ok(()) => return Ok(()),
            Err(error) => {
                let _ = std::fs::remove_file(&beside);
                if metadata.is_err() {
                    return Err(error);
                }
            }
        }
    }
    // A FIFO would wait for a reader, a device would act.
    if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(std::io::Error::other("is not a regular file"));
    }
    std::fs::write(path, content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_keeps_its_mode_and_leaves_nothing_beside() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.sh");
        std::fs::write(&path, "old").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_is_written_through() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("real"), "old").unwrap();
        std::os::unix::fs::symlink("real", folder.path().join("link")).unwrap();
        replace(&folder.path().join("link"), b"new").unwrap();
        assert_eq!(std::fs::read_to_string(folder.path().join("real")).unwrap(), "new");
        assert!(folder.path().join("link").is_symlink());
    }
}
