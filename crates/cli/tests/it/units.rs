//! The page about systemd, as it stands: units, files and commands.

use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;

use cloister_client::Client;
use cloister_testkit::{Turn, script};
use cloister_types::SessionId;
use cloister_types::event::EventKind;
use cloister_types::wire::Verdict;
use serde_json::json;

use crate::crash::Scripted;
use crate::front::Authority;

/// Blocks of one language: their files' names (from the first line, if it names one), and texts.
fn blocks(language: &str) -> Vec<(String, String)> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations/systemd.md");
    let page = std::fs::read_to_string(page).unwrap();
    let begin = format!("```{language}\n");
    let found = page.split(&begin).skip(1).map(|block| block.split("```").next().unwrap());
    let named = found.map(|text| {
        let name = text.lines().next().and_then(|line| line.strip_prefix("# "));
        (name.unwrap_or_default().to_owned(), text.to_owned())
    });
    named.collect()
}

#[test]
fn the_units_of_the_documentation_are_units() {
    let folder = tempfile::tempdir().unwrap();
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]);
    let units = blocks("ini");
    assert_eq!(units.len(), 4);
    for (name, text) in units {
        let path = folder.path().join(name.strip_prefix("/etc/systemd/system/").unwrap());
        let executable = cloister_testkit::executable().display().to_string();
        std::fs::write(&path, text.replace("/usr/bin/cloister", &executable)).unwrap();
        verify.arg(path);
    }
    let output = verify.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // Known from 254 on; before, no control groups limit sandboxes.
    let against = said.lines().filter(|line| !line.contains("'DelegateSubgroup'")).collect::<Vec<_>>();
    assert!(output.status.success() && against.is_empty(), "{against:?}");
}

fn systemctl(arguments: &[&str]) -> String {
    let output = Command::new("systemctl").args(arguments).output().unwrap();
    assert!(output.status.success(), "systemctl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Its version.
fn systemd() -> u32 {
    let said = systemctl(&["--version"]);
    said.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What the machine has noted, if a test fails on it.
struct Journal;

impl Drop for Journal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = Command::new("journalctl").args(["-b", "--no-pager", "-n", "60"]).output();
            let _ = log.map(|log| println!("{}", String::from_utf8_lossy(&log.stdout)));
        }
    }
}

/// Does what the page says, on this very machine.
fn set_up(provider: &Scripted, authority: &Authority) -> String {
    let built = cloister_testkit::executable();
    for name in ["cloister", "cloister-sandbox", "cloister-agent"] {
        std::fs::copy(built.with_file_name(name), Path::new("/usr/bin").join(name)).unwrap();
    }
    std::fs::write("/etc/hosts", "127.0.0.1 localhost acme.example.com\n").unwrap();
    let commands = &blocks("sh")[0].1;
    let made = Command::new("sh").args(["-euc", commands]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    for (name, text) in blocks("toml") {
        // With a model, and nothing else that the page does not say.
        let with_model = || provider.config(&text).replace("tenant = 'acme'\n", "");
        let whole = if name.ends_with("acme.toml") { with_model() } else { text };
        std::fs::write(name, whole).unwrap();
    }
    for (name, text) in blocks("ini") {
        // The model of the tests is none that a tenant is served with.
        std::fs::write(name, text.replace("cloister serve", "cloister serve --allow-scripted")).unwrap();
    }
    authority.sign("acme", "acme.example.com", |_| {});
    let id = Command::new("id").args(["-u", "cloister-acme"]).output().unwrap();
    let user: u32 = String::from_utf8_lossy(&id.stdout).trim().parse().unwrap();
    for file in ["acme.pem", "acme.key"] {
        let path = Path::new("/etc/cloister").join(file);
        std::fs::copy(authority.path(file), &path).unwrap();
        chown(&path, Some(user), None).unwrap();
    }
    chown(provider.key(), Some(user), None).unwrap();
    systemctl(&["daemon-reload"]);
    made["key"].as_str().unwrap().to_owned()
}

async fn bash(client: &Client, session: &SessionId, command: &str) -> Turn {
    let text = script(&[json!({"tool": "bash", "input": {"command": command}})]);
    Turn::collect(client.message(session, &text, None).await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it installs units: for a machine of its own that systemd runs, `cargo xtask kernel`"]
async fn they_serve_limit_and_take_over_as_the_page_says() {
    assert!(std::env::var_os("CLOISTER_OWN_MACHINE").is_some(), "it changes the machine it runs on");
    let _journal = Journal;
    let (provider, authority) = (Scripted::start().await, Authority::new());
    let key = set_up(&provider, &authority);
    let ca = std::fs::read(authority.path("ca.pem")).unwrap();
    let client = |at: &str| Client::new(at, &key, Some(&ca)).unwrap();

    // Whoever calls starts it.
    systemctl(&["start", "cloister-acme.socket", "cloister-door.socket"]);
    let own = client("https://acme.example.com:8443");
    let session = own.create(&serde_json::from_value(json!({})).unwrap()).await.unwrap();
    assert_eq!(systemctl(&["is-active", "cloister-acme.service"]), "active");
    let door = client("https://acme.example.com");
    assert_eq!(door.session(&session.id).await.unwrap().id, session.id);

    // Sandboxes are made, and limited, in spite of all that the unit restricts.
    let turn = bash(&door, &session.id, "id -u; ls /; python3 -c 'print(6 * 7)'").await;
    assert_eq!(turn.end(), EventKind::MessageCompleted);
    assert!(turn.results()[0].contains("42"), "{:?}", turn.results());
    let sandbox = door.session(&session.id).await.unwrap().sandbox.unwrap();
    // Before, a service's own group cannot have limited ones below it and take the next server.
    let limits =
        if systemd() >= 254 { ["cgroup-v2"; 3] } else { ["rlimit-per-process", "none", "rlimit-per-namespace"] };
    assert_eq!([sandbox.memory.as_str(), &sandbox.cpu, &sandbox.pids], limits);
    for measured in door.sandbox(&session.id).await.unwrap().measured {
        assert_ne!(measured.verdict, Verdict::Broken, "{measured:?}");
    }

    // The vault's key is the credential, and nobody else's.
    assert!(Path::new("/var/lib/cloister-acme/guard").exists());
    assert!(!Path::new("/var/lib/cloister/acme/vault.key").exists());

    // A turn goes on while the server is replaced, twice.
    let pid = || systemctl(&["show", "--value", "-p", "MainPID", "cloister-acme.service"]);
    let steps: Vec<_> =
        (0..12).map(|n| json!({"tool": "bash", "input": {"command": format!("sleep 1; echo {n} >> done")}})).collect();
    let mut events = door.message(&session.id, &script(&steps), None).await.unwrap();
    let mut seen = Vec::new();
    let mut servers = vec![pid()];
    while let Some(event) = events.next().await.unwrap() {
        if event.kind == Some(EventKind::ToolResult) && servers.len() < 3 {
            systemctl(&["restart", "cloister-acme.service"]);
            servers.push(pid());
        }
        seen.push(event);
    }
    assert_eq!(seen.last().unwrap().kind, Some(EventKind::MessageCompleted), "{:?}", seen.last());
    assert!(seen.windows(2).all(|pair| pair[0].seq < pair[1].seq), "{seen:?}");
    let results = seen.iter().filter(|event| event.kind == Some(EventKind::ToolResult)).count();
    assert_eq!(results, 12);
    servers.dedup();
    assert_eq!(servers.len(), 3, "{servers:?}");
    let done = own.download(&session.id, "done").await.unwrap().bytes().await.unwrap();
    assert_eq!(done.iter().filter(|byte| **byte == b'\n').count(), 12, "each step once");

    // The limits hold for the next server's sandboxes, too.
    let session = own.create(&serde_json::from_value(json!({})).unwrap()).await.unwrap();
    bash(&own, &session.id, "true").await;
    let sandbox = own.session(&session.id).await.unwrap().sandbox.unwrap();
    assert_eq!([sandbox.memory.as_str(), &sandbox.cpu, &sandbox.pids], limits);

    // The vault's commands have the credential as the service does. What the server had
    // at work ends first.
    let rotate = &blocks("sh")[1].1;
    let mut rotated = false;
    for _ in 0..20 {
        let output = Command::new("sh").args(["-euc", rotate]).output().unwrap();
        println!("{}", String::from_utf8_lossy(&output.stderr));
        rotated = output.status.success();
        if rotated {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    }
    assert!(rotated);
    assert!(!Path::new("/var/lib/cloister/acme/vault.key").exists());
    let audit = own.audit(None, 0, 1000).await.unwrap();
    assert!(audit.data.iter().any(|record| record.entry.rule == "vault_rotated"), "{audit:?}");

    systemctl(&["stop", "cloister-door.socket", "cloister-door.service"]);
    systemctl(&["stop", "cloister-acme.socket", "cloister-acme.service"]);
    assert!(std::net::TcpStream::connect("127.0.0.1:8443").is_err());
}
