//! Creating, reading, listing and ending sessions.

use cloister_testkit::{Options, Stack, script};
use serde_json::{Value, json};

#[tokio::test]
async fn records_have_the_documented_shape() {
    let stack = Stack::start().await;
    let created = stack.raw("POST", "/v1/sessions", &[], b"").await;
    assert_eq!(created.status, 201);
    let record = created.json();
    let id = record["id"].as_str().unwrap().to_owned();
    assert!(id.starts_with("sess_") && id.len() == 17, "{id}");
    assert_eq!(record["session_id"], json!(id));
    assert_eq!(record["file_access"], json!({"read": [""], "write": [""]}));
    for (field, want) in [
        ("busy", json!(false)),
        ("persistent", json!(true)),
        ("ttl", Value::Null),
        ("status", json!("ready")),
        ("metadata", json!({})),
        ("last_response", Value::Null),
    ] {
        assert_eq!(record[field], want, "{field}");
    }
    assert!(record["created_at"].as_f64().unwrap() > 1.7e9);
    assert_eq!(stack.raw("GET", &format!("/v1/sessions/{id}"), &[], b"").await.json()["id"], json!(id));
    let listed = stack.raw("GET", "/v1/sessions", &[], b"").await.json();
    assert_eq!(listed.as_array().map(Vec::len), Some(1));

    let sent = json!({"persistent": false, "ttl": 60, "metadata": {"a": [1]}, "unknown": true, "file_access": {"write": ["x/./y/"]}});
    let record = stack.post("/v1/sessions", &sent).await.json();
    assert_eq!(
        (&record["persistent"], &record["ttl"], &record["metadata"]),
        (&json!(false), &json!(60), &json!({"a": [1]}))
    );
    assert_eq!(record["file_access"], json!({"read": [], "write": ["x/./y/"]}));
}

#[tokio::test]
async fn bad_creations_are_refused_with_the_reason() {
    let stack = Stack::start().await;
    std::fs::create_dir_all(stack.workspace().join("real")).unwrap();
    std::os::unix::fs::symlink("real", stack.workspace().join("link")).unwrap();
    for (body, word) in [
        (json!({"ttl": 0}), "ttl"),
        (json!({"ttl": -1}), "ttl"),
        (json!({"ttl": 1.5}), ""),
        (json!({"persistent": "yes"}), ""),
        (json!({"metadata": []}), ""),
        (json!({"model": "none"}), "none"),
        (json!({"file_access": {}}), "file_access"),
        (json!({"file_access": {"read": "a"}}), ""),
        (json!({"file_access": {"read": ["/etc"]}}), "/etc"),
        (json!({"file_access": {"read": ["a/../b"]}}), ".."),
        (json!({"file_access": {"write": ["a\\b"]}}), "backslash"),
        (json!({"file_access": {"write": ["link/x"]}}), "link"),
        (json!({"file_access": {"read": ["w/absent"], "write": ["w"]}}), "absent"),
        (json!([1]), "object"),
        (json!({"tools": [{"type": "function", "name": "f"}]}), "tools"),
    ] {
        let answer = stack.post("/v1/sessions", &body).await;
        assert_eq!((answer.status, answer.json()["error"].as_str()), (400, Some("invalid_request")), "{body}");
        assert!(answer.json()["message"].as_str().unwrap().contains(word), "{body}: {}", answer.text());
    }
    assert_eq!(stack.raw("POST", "/v1/sessions", &[], b"{").await.status, 400);
    let legal = stack.post("/v1/sessions", &json!({"file_access": {"read": [], "write": []}})).await;
    assert_eq!(legal.status, 201);
}

#[tokio::test]
async fn without_a_valid_key_there_is_nothing_but_health() {
    let stack = Stack::start().await;
    let session = stack.session().await;
    let bare = |method: &'static str, path: String| async move {
        cloister_testkit::raw(&stack.url, method, &path, &[], b"").await
    };
    let health = bare("GET", "/health".into()).await;
    assert_eq!((health.status, health.json()["status"].as_str()), (200, Some("ok")));
    let stack = Stack::start().await;
    for (method, path) in [
        ("GET", "/v1/sessions".to_owned()),
        ("POST", "/v1/sessions".to_owned()),
        ("DELETE", "/v1/sessions?status=idle".to_owned()),
        ("GET", format!("/v1/sessions/{session}")),
        ("GET", format!("/v1/sessions/{session}/files/a")),
        ("PUT", format!("/v1/sessions/{session}/files/a")),
        ("GET", format!("/v1/sessions/{session}/responses/msg_00/events")),
        ("GET", "/openapi.json".to_owned()),
        ("GET", "/nothing/here".to_owned()),
    ] {
        let wrong = stack.key.replace(['0', '1', '2', '3'], "4");
        let other_tenant = stack.key.replace("pk_dev_", "pk_other_");
        for authorization in [
            None,
            Some(String::new()),
            Some(format!("Bearer {wrong}")),
            Some(format!("Bearer {other_tenant}")),
            Some(format!("Basic {}", stack.key)),
        ] {
            let headers: Vec<(&str, &str)> =
                authorization.iter().map(|value| ("authorization", value.as_str())).collect();
            let answer = cloister_testkit::raw(&stack.url, method, &path, &headers, b"").await;
            assert_eq!(
                (answer.status, answer.json()["error"].as_str()),
                (401, Some("unauthorized")),
                "{method} {path}"
            );
        }
    }
    assert_eq!(stack.raw("GET", "/nothing/here", &[], b"").await.status, 404);
    assert_eq!(stack.raw("PATCH", "/v1/sessions", &[], b"").await.status, 405);
}

#[tokio::test]
async fn bulk_deletion_wants_a_condition_and_honours_all() {
    let stack = Stack::start().await;
    for bad in ["", "?status=busy", "?older_than=", "?older_than=0s", "?older_than=1x", "?older_than=5m1h", "?status="]
    {
        assert_eq!(stack.raw("DELETE", &format!("/v1/sessions{bad}"), &[], b"").await.status, 400, "{bad}");
    }
    let (busy, idle) = (stack.session().await, stack.session().await);
    let lines = [json!({"tool": "bash", "input": {"command": "sleep 3"}})];
    let events = stack.client.message(&busy, &script(&lines), None).await.unwrap();
    let deleted = async |query: &str| stack.raw("DELETE", &format!("/v1/sessions?{query}"), &[], b"").await.json();
    assert_eq!(deleted("status=idle&older_than=1h").await, json!({"deleted": 0}));
    assert_eq!(deleted("status=idle").await, json!({"deleted": 1}));
    assert!(stack.client.session(&idle).await.is_err());
    assert!(stack.client.session(&busy).await.unwrap().busy);
    drop(events);
}

#[tokio::test]
async fn sessions_end_by_ttl_and_by_idleness_and_bad_messages_start_nothing() {
    let config = "[limits]\nsession_idle_seconds = 1\nsandbox_idle_seconds = 1\n";
    let stack = Stack::with(Options { config: Some(config.into()), ..Options::default() }).await;
    let short = stack.session_with(json!({"ttl": 1})).await.id;
    let transient = stack.session_with(json!({"persistent": false})).await.id;
    let lasting = stack.session_with(json!({"persistent": true})).await.id;
    for body in [json!({}), json!({"message": ""}), json!({"message": 3}), json!([])] {
        let answer = stack.post(&format!("/v1/sessions/{lasting}/messages"), &body).await;
        assert_eq!(answer.status, 400, "{body}");
    }
    tokio::time::sleep(std::time::Duration::from_millis(3500)).await;
    assert!(stack.client.session(&short).await.is_err());
    assert!(stack.client.session(&transient).await.is_err());
    // The lasting one has no process any more, and works all the same.
    let record = stack.client.session(&lasting).await.unwrap();
    assert_eq!(record.sandbox, None);
    let (said, failed) = stack.bash(&lasting, "echo awake").await;
    assert_eq!((said.as_str(), failed), ("awake\n", false));
    assert!(stack.client.session(&lasting).await.unwrap().sandbox.is_some());
}
