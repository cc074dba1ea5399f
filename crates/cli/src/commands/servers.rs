//! Starting servers, making keys.

use std::path::Path;

use cloister_server::{Dev, Serve};
use cloister_types::access::NewKey;
use serde_json::json;

use crate::arguments::{DevArguments, KeyCommand, ServeArguments, ServerArguments};
use crate::connect::data_directory;
use crate::output::{Failure, Output};

pub(super) async fn dev(server: &ServerArguments, options: DevArguments, output: Output) -> Result<(), Failure> {
    let data = data_directory(server)?;
    let DevArguments { listen, config, ready_file } = options;
    let options = Dev { data: data.clone(), listen, config, ready_file };
    cloister_server::dev(options, |url, key| {
        if output.json {
            // The ready file says the same to those who cannot read this.
            let _ = output.data(&json!({"url": url, "key": key}).to_string());
        }
        output.talk(&format!("Cloister is ready at {url}"));
        output.talk(&format!("  key   {key}"));
        output.talk(&format!("  data  {}", data.display()));
        output.talk("  The model is the scripted one, which is no language model; Ctrl-C ends everything.");
        output.next("cloister run tour");
    })
    .await?;
    Ok(())
}

pub(super) async fn serve(
    server: &ServerArguments,
    options: ServeArguments,
    given: cloister_server::Given,
    output: Output,
) -> Result<(), Failure> {
    let ServeArguments { config, listen, ready_file, allow_scripted } = options;
    let shown = config.display().to_string();
    let options = Serve { config, data: server.data.clone(), listen, ready_file, given, allow_scripted };
    cloister_server::serve(options, |url| {
        output.talk(&format!("Cloister serves at {url}"));
        output.next(&format!("cloister key new --config {shown}"));
    })
    .await?;
    Ok(())
}

pub(super) async fn key(server: &ServerArguments, command: KeyCommand, output: Output) -> Result<(), Failure> {
    let KeyCommand::New { config, caller, role, expires_in } = command;
    let what = NewKey { expires_in, ..NewKey::new(&*caller, role) };
    let key = cloister_server::new_key(&config, server.data.clone(), what).await?;
    output.value(&json!({"key": key.reveal(), "caller": caller, "role": role}), key.reveal())?;
    output.talk("This key is shown once; the server keeps only its hash.");
    output.next("export CLOISTER_KEY=<the key>");
    Ok(())
}

pub(super) fn backup(server: &ServerArguments, to: &Path, output: Output) -> Result<(), Failure> {
    let data = data_directory(server)?;
    let summary = cloister_server::backup(&data, to)?;
    let text = format!("{} entries, {} bytes", summary.entries, summary.bytes);
    output.value(&summary, &text)?;
    for path in &summary.skipped {
        output.talk(&format!("left out: {path}"));
    }
    output.next(&format!("cloister --data <new directory> restore {}", to.display()));
    Ok(())
}

pub(super) async fn restore(server: &ServerArguments, from: &Path, output: Output) -> Result<(), Failure> {
    let data = server.data.clone();
    let data = data.ok_or_else(|| Failure::new("say where to: --data <new directory>"))?;
    let summary = cloister_server::restore(from, &data).await?;
    let text = format!("{} entries, {} bytes, {} events checked", summary.entries, summary.bytes, summary.events);
    output.value(&summary, &text)?;
    output.talk("Turns that were open go on as soon as a server starts on it.");
    Ok(())
}
