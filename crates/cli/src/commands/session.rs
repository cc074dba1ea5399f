//! Sessions and their turns.

use cloister_client::{Client, Events};
use cloister_types::SessionId;
use cloister_types::egress::{Mode, Policy};
use cloister_types::scope::FileAccess;
use cloister_types::transcript::Entry;
use cloister_types::wire::{CreateSession, Measured, OnBusy, SendMessage, SessionRecord, Verdict};

use crate::arguments::{NewArguments, RunArguments, SessionCommand};
use crate::output::{Failure, Output};
use crate::show;

pub(super) async fn run(client: &Client, options: RunArguments, output: Output) -> Result<(), Failure> {
    let session = client.create(&ask(options.new)).await?;
    output.aside(&format!("session {}", session.id));
    let events = client.message(&session.id, &options.message, None).await?;
    follow(&session.id, events, output).await
}

/// What the kernel says a session is held by.
pub(super) async fn explain(client: &Client, id: &SessionId, output: Output) -> Result<(), Failure> {
    let report = client.sandbox(id).await?;
    if output.json {
        return output.value(&report, "");
    }
    if !report.live {
        return output.data("asleep: the session has no process; its next message starts one");
    }
    for Measured { what, seen, verdict } in &report.measured {
        let mark = match verdict {
            Verdict::Holds => "holds  ",
            Verdict::Weaker => "weaker ",
            Verdict::Unknown => "unknown",
            Verdict::Broken => "BROKEN ",
        };
        output.data(&format!("{mark} {what}: {seen}"))?;
    }
    if report.measured.iter().any(|measured| measured.verdict == Verdict::Broken) {
        return Err(Failure::new("a restriction of the sandbox does not hold"));
    }
    output.next("cloister doctor");
    Ok(())
}

pub(super) async fn session(client: &Client, command: SessionCommand, output: Output) -> Result<(), Failure> {
    match command {
        SessionCommand::New(options) => {
            let session = client.create(&ask(options)).await?;
            output.value(&session, session.id.as_str())?;
            output.next(&format!("cloister session send {} \"your message\"", session.id));
            Ok(())
        }
        SessionCommand::Ls => list(client, output).await,
        SessionCommand::Show { id } => {
            let session = client.session(&id).await?;
            let pretty = serde_json::to_string_pretty(&session).map_err(|error| Failure::new(error.to_string()))?;
            output.value(&session, &pretty)?;
            output.next(&format!("cloister session attach {id}"));
            Ok(())
        }
        SessionCommand::Rm { id: Some(id), .. } => {
            client.delete(&id).await?;
            output.talk(&format!("destroyed {id}; workspace and memory stay"));
            Ok(())
        }
        SessionCommand::Rm { id: None, .. } => {
            let count = client.delete_idle().await?;
            output.value(&serde_json::json!({"deleted": count}), &format!("destroyed {count} idle session(s)"))
        }
        SessionCommand::Attach { id, turn } => {
            let turn = match turn {
                Some(turn) => turn,
                None => last_turn(&client.session(&id).await?)?,
            };
            follow(&id, client.events(&id, &turn, None).await?, output).await
        }
        SessionCommand::Send { id, message, idempotency_key, queue, interrupt } => {
            let on_busy = match (queue, interrupt) {
                (true, _) => OnBusy::Queue,
                (_, true) => OnBusy::Interrupt,
                _ => OnBusy::Reject,
            };
            let message = SendMessage { message, on_busy };
            let events = client.send_message(&id, &message, idempotency_key.as_deref()).await?;
            follow(&id, events, output).await
        }
        SessionCommand::Cancel { id, turn } => {
            let running = match turn {
                Some(turn) => Some(turn),
                None => client.session(&id).await?.current_response_id,
            };
            let turn = running.ok_or_else(|| Failure::new("the session is not working on anything"))?;
            let answer = client.cancel(&id, &turn).await?;
            output.value(&answer, &format!("{}: {}", answer.response_id, answer.status))
        }
        SessionCommand::Log { id } => log(client, &id, output).await,
    }
}

/// Prints the transcript, page by page.
async fn log(client: &Client, id: &SessionId, output: Output) -> Result<(), Failure> {
    let mut after = None;
    loop {
        let page = client.transcript(id, after.as_deref(), 200).await?;
        for entry in &page.data {
            if output.json {
                output.data(&serde_json::to_string(entry).map_err(|error| Failure::new(error.to_string()))?)?;
                continue;
            }
            match &entry.entry {
                Entry::User { text } => output.data(&format!("> {text}"))?,
                Entry::Assistant { blocks, .. } => {
                    for block in blocks {
                        match (block["text"].as_str(), block["name"].as_str()) {
                            (Some(text), _) => output.data(text)?,
                            (_, Some(name)) => output.data(&format!("[{name} {}]", block["input"]))?,
                            _ => {}
                        }
                    }
                }
                Entry::ToolResult { content, is_error, .. } => {
                    let mark = if *is_error { "!" } else { "=" };
                    output.data(&format!("{mark} {}", content.trim_end()))?;
                }
            }
        }
        after = page.next;
        if after.is_none() {
            return Ok(());
        }
    }
}

fn ask(options: NewArguments) -> CreateSession {
    let NewArguments { read, write, model, ttl, transient, allow, open, connection } = options;
    let file_access = (!read.is_empty() || !write.is_empty()).then_some(FileAccess { read, write });
    let egress = match (open, allow.is_empty()) {
        (true, _) => Some(Policy { mode: Mode::Open, allow: Vec::new() }),
        (false, false) => Some(Policy { mode: Mode::Allow, allow }),
        (false, true) => None,
    };
    let connections = (!connection.is_empty()).then_some(connection);
    CreateSession {
        persistent: transient.then_some(false),
        ttl,
        file_access,
        model,
        egress,
        connections,
        metadata: None,
    }
}

fn last_turn(session: &SessionRecord) -> Result<cloister_types::ResponseId, Failure> {
    let last = session.last_response.as_ref().map(|last| last.id.clone());
    session.current_response_id.clone().or(last).ok_or_else(|| Failure {
        hint: Some(format!("cloister session send {} \"your message\"", session.id)),
        ..Failure::new("the session has had no message yet")
    })
}

async fn list(client: &Client, output: Output) -> Result<(), Failure> {
    let sessions = client.sessions().await?;
    if output.json {
        return output.value(&sessions, "");
    }
    for session in &sessions {
        let state = if session.busy { "busy" } else { "idle" };
        let scope = if session.file_access == FileAccess::everything() {
            "whole workspace".to_owned()
        } else {
            format!("read {:?} write {:?}", session.file_access.read, session.file_access.write)
        };
        output.data(&format!("{}  {state}  {}  {scope}", session.id, session.model))?;
    }
    match sessions.last() {
        Some(session) => output.next(&format!("cloister session show {}", session.id)),
        None => output.next("cloister session new"),
    }
    Ok(())
}

async fn follow(id: &SessionId, mut events: Events, output: Output) -> Result<(), Failure> {
    let turn = events.turn().clone();
    let summary = show::follow(output, &mut events).await?;
    if let Some(why) = summary.failed {
        return Err(Failure {
            hint: Some(format!("to see it again: cloister session attach {id} {turn}")),
            ..Failure::new(why)
        });
    }
    let tokens = summary.usage["total_tokens"].as_u64().unwrap_or_default();
    output.aside(&format!("done: {} tool call(s), {tokens} tokens, session {id}", summary.tools));
    output.next(&format!("cloister files ls {id}"));
    Ok(())
}
