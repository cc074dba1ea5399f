//! The session's own authority, where tools look for it. Whatever a tool dials
//! is answered by egress in that name, so it is the only one that they need.

use std::path::Path;

use cloister_types::link::{AUTHORITY_FILE, AUTHORITY_PATH, AUTHORITY_STORE, AUTHORITY_STORE_PATH};

use crate::http;

/// Brings it in, unless an earlier turn has. A session without it reaches
/// nothing by TLS, and its tools say so.
pub(crate) async fn bring(egress: &str) {
    for (path, file) in [(AUTHORITY_PATH, AUTHORITY_FILE), (AUTHORITY_STORE_PATH, AUTHORITY_STORE)] {
        if Path::new(file).exists() {
            continue;
        }
        let brought = match http::get(&format!("{egress}{path}")).await {
            Ok(content) => place(Path::new(file), &content).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = brought {
            eprintln!("the session's authority cannot be brought in: {error}");
        }
    }
}

/// Whole or not at all: a tool of an earlier turn may be reading.
fn place(file: &Path, content: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let new = file.with_extension("new");
    std::fs::write(&new, content)?;
    std::fs::rename(new, file)
}
