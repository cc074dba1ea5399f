//! Files.

use std::io::Write;

use cloister_client::Client;
use cloister_types::wire::FileType;

use crate::arguments::FilesCommand;
use crate::output::{Failure, Output};

pub(super) async fn files(client: &Client, command: FilesCommand, output: Output) -> Result<(), Failure> {
    match command {
        FilesCommand::Ls { id, path } => {
            let entries = client.list(&id, &path).await?;
            if output.json {
                return output.value(&entries, "");
            }
            for entry in &entries {
                let mark = if entry.kind == FileType::Directory { "/" } else { "" };
                output.data(&format!("{:>12}  {}{mark}", entry.size, entry.name))?;
            }
            if let Some(file) = entries.iter().find(|entry| entry.kind == FileType::File) {
                let folder = if path.is_empty() { String::new() } else { format!("{}/", path.trim_end_matches('/')) };
                output.next(&format!("cloister files get {id} {folder}{}", file.name));
            }
            Ok(())
        }
        FilesCommand::Get { id, path, to } => {
            let mut download = client.download(&id, &path).await?;
            let Some(to) = to else {
                while let Some(piece) = download.chunk().await? {
                    output.raw(&piece)?;
                }
                return Ok(());
            };
            let mut file =
                std::fs::File::create(&to).map_err(|error| Failure::new(format!("{}: {error}", to.display())))?;
            while let Some(piece) = download.chunk().await? {
                file.write_all(&piece)?;
            }
            output.talk(&format!("wrote {}", to.display()));
            Ok(())
        }
        FilesCommand::Put { id, from, path } => {
            let own_name = || from.file_name().map(|name| name.to_string_lossy().into_owned());
            let path =
                path.or_else(own_name).ok_or_else(|| Failure::new("the file has no name: say where to put it"))?;
            let content = std::fs::read(&from).map_err(|error| Failure::new(format!("{}: {error}", from.display())))?;
            let written = client.upload(&id, &path, content).await?;
            output.value(&written, &format!("{} ({} bytes)", written.path, written.size))?;
            output.next(&format!("cloister files ls {id}"));
            Ok(())
        }
        FilesCommand::Rm { id, path } => {
            client.remove(&id, &path).await?;
            output.talk(&format!("deleted {path}"));
            Ok(())
        }
    }
}
