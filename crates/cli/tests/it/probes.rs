//! Attacks from inside, as a hostile agent would make them. Every group has a
//! control that must succeed, so that a dead harness cannot pass.

use cloister_testkit::{As, Stack};
use serde_json::Value;

/// Prints one JSON object: probe name -> outcome.
const PROBES: &str = include_str!("probes.py");

/// Errno names that count as "denied".
const DENIED: [&str; 8] = ["EPERM", "EROFS", "EACCES", "ENOSYS", "EAFNOSUPPORT", "ENOSPC", "EPROTONOSUPPORT", "ESRCH"];

#[tokio::test]
async fn nothing_gets_out() {
    for who in As::all() {
        let stack = Stack::start_as(who).await;
        // A canary that must appear nowhere, and a port of the host.
        std::fs::write(stack.folder().join("canary"), "canary-7f3a").unwrap();
        let port = stack.url.rsplit(':').next().unwrap().to_owned();
        let session =
            stack.session_with(serde_json::json!({"file_access": {"read": ["in/ro"], "write": ["in/rw"]}})).await;
        assert_eq!(session.sandbox.as_ref().unwrap().mode, if who == As::Root { "root" } else { "user" });
        let path = format!("/v1/sessions/{}/files/.memory/probes.py", session.id);
        assert_eq!(stack.raw("PUT", &path, &[], PROBES.as_bytes()).await.status, 201);
        let command = format!("python3 .memory/probes.py {port} {}", stack.folder().display());
        let (said, failed) = stack.bash(&session.id, &command).await;
        assert!(!failed, "{said}");
        let outcomes: Value =
            serde_json::from_str(said.lines().last().unwrap_or_default()).unwrap_or_else(|_| panic!("{said}"));
        let outcomes = outcomes.as_object().unwrap();
        let mut open = Vec::new();
        for (probe, outcome) in outcomes {
            let outcome = outcome.as_str().unwrap();
            let (kind, _) = probe.split_once(' ').unwrap();
            let held = match kind {
                "absent" => outcome == "ENOENT",
                "denied" => DENIED.contains(&outcome),
                "readonly" => outcome == "EROFS",
                "unreachable" => {
                    matches!(
                        outcome,
                        "ENETUNREACH" | "EINVAL" | "EHOSTUNREACH" | "ECONNREFUSED" | "EADDRNOTAVAIL" | "EAI"
                    ) || DENIED.contains(&outcome)
                }
                "is" | "control" => outcome == "ok",
                _ => false,
            };
            if !held {
                open.push(format!("{probe}: {outcome}"));
            }
        }
        assert!(open.is_empty(), "{who:?}: {} of {} open:\n{}", open.len(), outcomes.len(), open.join("\n"));
        assert!(outcomes.len() > 120, "only {} probes ran", outcomes.len());
        // The session is none the worse for it, and neither is a new one.
        assert_eq!(stack.bash(&session.id, "echo fine").await.0, "fine\n");
        assert_eq!(stack.bash(&stack.session().await, "echo fine").await.0, "fine\n");
    }
}
