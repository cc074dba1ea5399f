//! About this machine and this program.

use std::path::Path;

use cloister_server::Kind;
use cloister_server::config::Config;
use cloister_server::doctor::{Verdict, examine};

use crate::arguments::ConfigCommand;
use crate::explain;
use crate::output::{Failure, Output};

pub(super) fn doctor(output: Output) -> Result<(), Failure> {
    let findings = examine()?;
    if output.json {
        output.value(&findings, "")?;
    } else {
        for finding in &findings {
            let mark = match finding.verdict {
                Verdict::Ok => "ok     ",
                Verdict::Weaker => "weaker ",
                Verdict::Missing => "MISSING",
            };
            output.data(&format!("{mark} {}: {}", finding.feature, finding.seen))?;
            if let Some(fix) = &finding.fix {
                output.data(&format!("        fix: {fix}"))?;
            }
        }
    }
    if findings.iter().any(|finding| finding.verdict == Verdict::Missing) {
        return Err(Failure::new("sessions cannot be made on this machine as it is"));
    }
    output.next("cloister dev");
    Ok(())
}

pub(super) fn explain(code: Option<&str>, output: Output) -> Result<(), Failure> {
    let Some(code) = code else {
        let codes: Vec<&str> = explain::PAGES.iter().map(|(code, _)| *code).collect();
        return output.value(&codes, &codes.join("\n"));
    };
    let page = explain::PAGES.iter().find(|(name, _)| *name == code);
    let (_, text) = page.ok_or_else(|| Failure {
        hint: Some("cloister explain lists all codes".into()),
        usage: true,
        ..Failure::new(format!("no error code is named {code:?}"))
    })?;
    output.value(&serde_json::json!({"code": code, "text": text}), text.trim_end())
}

pub(super) fn config(command: ConfigCommand, output: Output) -> Result<(), Failure> {
    let ConfigCommand::Show { config } = command;
    let config = match config {
        Some(path) => Config::read(&path)?,
        None => Config::default(),
    };
    let text = toml::to_string(&config).map_err(|error| Failure::new(error.to_string()))?;
    output.value(&config, text.trim_end())
}

pub(super) fn dev_ca(names: &[String], client: bool, folder: &Path, output: Output) -> Result<(), Failure> {
    let issued = cloister_server::issue(folder, names, if client { Kind::Client } else { Kind::Server })?;
    output.data(&serde_json::json!(issued).to_string())?;
    output.talk("For development: whoever has the folder can be anybody to those who trust its ca.pem.");
    Ok(())
}
