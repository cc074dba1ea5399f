//! Tenants of a host, and the door before them.

use std::path::Path;

use cloister_types::egress::AuditRecord;
use serde_json::json;

use crate::arguments::TenantCommand;
use crate::output::{Failure, Output};

pub(super) async fn tenant(command: TenantCommand, output: Output) -> Result<(), Failure> {
    match command {
        TenantCommand::Create { name, region, root, user } => {
            let made = cloister_server::create(&root, &name, &region, user).await?;
            // JSON for people too: whoever makes tenants is most often a program.
            output.data(&json!(made).to_string())?;
            output.talk("The key is shown once; only its hash is kept.");
            output.next(&format!("cloister serve --data {} --config <file>", made.data.display()));
            Ok(())
        }
        TenantCommand::Ls { root } => {
            let all = cloister_server::list(&root)?;
            let line = |one: &cloister_server::Listed| {
                let problem = one.problem.as_ref().map(|problem| format!("  {problem}")).unwrap_or_default();
                format!("{}  {}  {}  {}{problem}", one.tenant, one.region, one.state, one.data.display())
            };
            let text = all.iter().map(line).collect::<Vec<_>>().join("\n");
            output.value(&all, &text)
        }
        TenantCommand::Suspend { name, root } => {
            cloister_server::suspend(&root, &name)?;
            output.talk(&format!("Tenant {name} is suspended; nothing of it is at work."));
            Ok(())
        }
        TenantCommand::Resume { name, root } => {
            cloister_server::resume(&root, &name)?;
            output.talk(&format!("Tenant {name} may serve again."));
            Ok(())
        }
        TenantCommand::Log { root } => {
            let (mut after, mut last) = (0, String::new());
            loop {
                let page = cloister_server::acts(&root, after)?;
                for record in page.data {
                    output.data(&if output.json { json!(record).to_string() } else { act(&record) })?;
                    last = record.hash;
                }
                let Some(next) = page.next else { break };
                after = next;
            }
            output.talk(&format!("Keep the last hash, and nothing before it can be changed unseen: {last}"));
            Ok(())
        }
        TenantCommand::Rm { name, root } => {
            cloister_server::remove(&root, &name)?;
            output.talk(&format!("Tenant {name} is gone."));
            Ok(())
        }
    }
}

fn act(record: &AuditRecord) -> String {
    let entry = &record.entry;
    let words = [&entry.rule, &entry.flags.join(" "), &record.region, &entry.caller.clone().unwrap_or_default()];
    format!("{}  {}", record.seq, words.map(String::as_str).join("  "))
}

pub(super) async fn region(
    config: &Path,
    ready_file: Option<&Path>,
    given: cloister_server::Given,
    output: Output,
) -> Result<(), Failure> {
    cloister_server::region(config, ready_file, given, |address| {
        output.talk(&format!("The region's door is at {address}"));
    })
    .await?;
    Ok(())
}
