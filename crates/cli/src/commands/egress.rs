//! Connections, credentials, and what left.

use std::io::Read;
use std::path::PathBuf;

use cloister_client::Client;
use cloister_server::config::Config;
use cloister_types::egress::{AuditHead, AuditRecord, Connection, Secret};
use serde_json::json;

use crate::arguments::{AuditCommand, ConnectionCommand, EgressArguments, ServerArguments, VaultCommand};
use crate::connect::data_directory;
use crate::output::{Failure, Output};

/// What a file or standard input (`-`) holds.
fn read(from: &std::path::Path) -> Result<String, Failure> {
    let mut text = String::new();
    let failed = |error: std::io::Error| Failure::new(format!("{}: {error}", from.display()));
    if from.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text).map_err(failed)?;
    } else {
        text = std::fs::read_to_string(from).map_err(failed)?;
    }
    Ok(text)
}

pub(super) async fn connection(client: &Client, command: ConnectionCommand, output: Output) -> Result<(), Failure> {
    match command {
        ConnectionCommand::Ls => {
            let connections = client.connections().await?;
            if output.json {
                return output.value(&connections, "");
            }
            for one in &connections {
                let hosts: Vec<String> = one.connection.targets.iter().map(|target| target.host.to_string()).collect();
                let version = one.versions.first().map_or("no credential".to_owned(), |version| {
                    format!("version {} ({}, {:?})", version.version, version.kind.as_str(), version.state)
                        .to_lowercase()
                });
                output.data(&format!("{}  {}  {version}", one.name, hosts.join(",")))?;
            }
            output.next("cloister connection set NAME --from FILE");
            Ok(())
        }
        ConnectionCommand::Show { name } => {
            let shown = client.connection(&name).await?;
            let text = serde_json::to_string_pretty(&shown).map_err(|error| Failure::new(error.to_string()))?;
            output.value(&shown, &text)
        }
        ConnectionCommand::Set { name, from } => {
            let connection: Connection =
                serde_json::from_str(&read(&from)?).map_err(|error| Failure::new(error.to_string()))?;
            let set = client.set_connection(&name, &connection).await?;
            output.value(&set, &format!("{name} is set"))?;
            output.next(&format!("cloister connection secret {name} --from FILE"));
            Ok(())
        }
        ConnectionCommand::Secret { name, from, json, grace } => {
            let text = read(&from)?;
            let secret = if json {
                // A parser's own words could repeat what it has read.
                serde_json::from_str(&text).map_err(|_| Failure::new("the secret is not JSON of a known kind"))?
            } else {
                Secret::Static { value: text.trim_end_matches(['\r', '\n']).to_owned() }
            };
            let version = client.set_secret(&name, &secret, grace).await?;
            output.value(&version, &format!("version {} of {name} is in use", version.version))?;
            output.next(&format!("cloister connection test {name}"));
            Ok(())
        }
        ConnectionCommand::Revoke { name, version } => {
            client.revoke(&name, version).await?;
            output.talk(&format!("{name} is revoked"));
            Ok(())
        }
        ConnectionCommand::Rm { name } => {
            client.remove_connection(&name).await?;
            output.talk(&format!("{name} is removed"));
            Ok(())
        }
        ConnectionCommand::Test { name } => {
            let tried = client.test_connection(&name).await?;
            output.value(&tried, &tried.message)?;
            if tried.ok { Ok(()) } else { Err(Failure::new(format!("{name} does not work"))) }
        }
    }
}

pub(super) async fn egress(client: &Client, options: EgressArguments, output: Output) -> Result<(), Failure> {
    let mut after = options.after;
    loop {
        let page = client.audit(options.session.as_ref(), after, 500).await?;
        for record in &page.data {
            let text = serde_json::to_string(record).map_err(|error| Failure::new(error.to_string()))?;
            output.data(&if output.json { text } else { line(record) })?;
        }
        match page.next {
            Some(next) => after = next,
            None => {
                if let Some(head) = page.head.filter(|_| !output.json) {
                    output.talk(&format!("signed head: {} {}", head.seq, head.hash));
                }
                return Ok(());
            }
        }
    }
}

fn line(record: &AuditRecord) -> String {
    let entry = &record.entry;
    let decision = entry.decision.map_or(String::new(), |decision| format!("{decision:?}").to_lowercase());
    let status = entry.status.map_or(String::new(), |status| status.to_string());
    let words = [
        record.seq.to_string(),
        entry.stream.clone(),
        decision,
        entry.rule.clone(),
        entry.method.clone(),
        format!("{}{}", entry.host, entry.path),
        status,
        entry.connection.clone().unwrap_or_default(),
        entry.flags.join(","),
    ];
    words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

pub(super) fn audit(server: &ServerArguments, command: AuditCommand, output: Output) -> Result<(), Failure> {
    let AuditCommand::Verify { tenant, head, key } = command;
    let folder = data_directory(server)?;
    let head: Option<AuditHead> = match head {
        Some(from) => {
            Some(serde_json::from_str(&read(&from)?).map_err(|error| Failure::new(format!("the head: {error}")))?)
        }
        None => None,
    };
    let found = cloister_server::verify_audit(&folder, &tenant, head.as_ref(), key.as_deref()).map_err(Failure::new)?;
    let text = format!("{} records, {} signed heads; the last hash is {}", found.records, found.heads, found.hash);
    output.value(&json!({"records": found.records, "heads": found.heads, "hash": found.hash}), &text)
}

pub(super) fn vault(server: &ServerArguments, command: VaultCommand, output: Output) -> Result<(), Failure> {
    let of = |config: Option<PathBuf>| -> Result<(Config, PathBuf), Failure> {
        let config = config.as_deref().map(Config::read).transpose()?.unwrap_or_default();
        let data = server.data.clone().or(config.data.clone());
        let data = data.map_or_else(|| data_directory(server), Ok)?;
        Ok((config, data))
    };
    match command {
        VaultCommand::Rotate { config } => {
            let (config, data) = of(config)?;
            let count = cloister_server::rotate_vault(&config, &data)?;
            output.value(&json!({"credentials": count}), &format!("{count} credentials are closed with a new key"))
        }
        VaultCommand::AcceptRollback { config } => {
            let (config, data) = of(config)?;
            cloister_server::accept_rollback(&config, &data)?;
            output.talk("The vault takes the present data for the newest.");
            Ok(())
        }
        VaultCommand::RecoveryKey => {
            let made = cloister_server::make_recovery_key();
            let (public, private) = made.map_err(|error| Failure::new(error.to_string()))?;
            let text = format!("public:  {public}\nprivate: {}", *private);
            output.value(&json!({"public": public.to_string(), "private": *private}), &text)
        }
        VaultCommand::Recover { config, recovery_key } => {
            let (config, data) = of(config)?;
            cloister_server::recover_vault(&config, &data, &read(&recovery_key)?)?;
            output.talk("The vault opens with the present key file again.");
            Ok(())
        }
    }
}
