//! API keys: who may do what with which, and for how long.

use std::collections::BTreeSet;
use std::time::Duration;

use cloister_testkit::{Options, Stack};
use serde_json::{Value, json};

use crate::crash::Scripted;

/// What happens to a call with a key.
async fn with(stack: &Stack, key: &str, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let answer = cloister_testkit::raw(&stack.url, method, path, &headers, body.as_bytes()).await;
    let json = serde_json::from_str(&answer.text()).unwrap_or_default();
    (answer.status, json)
}

/// A key with this role and more: its id, and the key.
async fn make(stack: &Stack, mut more: Value) -> (String, String) {
    if more.get("caller").is_none() {
        more["caller"] = "somebody".into();
    }
    let (status, made) = with(stack, &stack.key, "POST", "/v1/keys", &more).await;
    assert_eq!(status, 201, "{made}");
    (made["id"].as_str().unwrap().to_owned(), made["key"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_made_replaced_and_ended() {
    let stack = Stack::start().await;
    let me = |key: String| {
        let stack = &stack;
        async move { with(stack, &key, "GET", "/v1/me", &Value::Null).await }
    };
    let (id, first) = make(&stack, json!({"caller": "ci", "role": "developer"})).await;
    let (status, known) = me(first.clone()).await;
    assert_eq!((status, &known["caller"], &known["roles"]), (200, &json!("ci"), &json!(["developer"])));
    // A scanner can tell it from a look-alike.
    let wrong = first[..first.len() - 1].to_owned() + if first.ends_with('x') { "y" } else { "x" };
    assert_eq!(me(wrong).await.0, 401);
    let (status, rotated) =
        with(&stack, &stack.key, "POST", &format!("/v1/keys/{id}/rotate"), &json!({"grace": 2})).await;
    assert_eq!((status, rotated["id"].as_str().unwrap()), (200, id.as_str()));
    let second = rotated["key"].as_str().unwrap().to_owned();
    assert_ne!(first, second);
    for _ in 0..3 {
        assert_eq!((me(first.clone()).await.0, me(second.clone()).await.0), (200, 200));
    }
    let list = with(&stack, &stack.key, "GET", "/v1/keys", &Value::Null).await.1;
    let record = list["data"].as_array().unwrap().iter().find(|key| key["id"] == id).unwrap().clone();
    assert_eq!((&record["late_uses"], &record["state"]), (&json!(3), &json!("active")));
    assert!(record["grace_until"].as_f64().is_some());
    let listed = list.to_string();
    assert!(!listed.contains(&first) && !listed.contains(&second));
    tokio::time::sleep(Duration::from_millis(2200)).await;
    assert_eq!((me(first).await.0, me(second.clone()).await.0), (401, 200));
    // Ended at once, and never shown or used again.
    assert_eq!(with(&stack, &stack.key, "DELETE", &format!("/v1/keys/{id}"), &Value::Null).await.0, 204);
    assert_eq!(me(second.clone()).await.0, 401);
    let (status, _) = with(&stack, &stack.key, "POST", &format!("/v1/keys/{id}/rotate"), &json!({"grace": 0})).await;
    assert_eq!(status, 409);
    let (_, short) = make(&stack, json!({"role": "viewer", "expires_in": 1})).await;
    assert_eq!(me(short.clone()).await.0, 200);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(me(short).await.0, 401);
    // All of it is in the audit, with who did it and no key.
    let audit = stack.raw("GET", "/v1/egress?limit=1000", &[], b"").await;
    for rule in ["key_made", "key_rotated", "key_revoked", "unauthorized"] {
        assert!(audit.text().contains(rule), "{rule}");
    }
    assert!(!audit.text().contains(&second[8..]));
    // Nor is one in any file.
    let found = std::process::Command::new("grep").args(["-rlaF", &second]).arg(stack.folder().join("data")).output();
    assert_eq!(String::from_utf8_lossy(&found.unwrap().stdout), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_makes_a_key_that_may_more_than_they() {
    let stack = Stack::start().await;
    let (_, security) = make(&stack, json!({"role": "security"})).await;
    let (admin, _) = make(&stack, json!({"role": "admin"})).await;
    let ask = |body: Value| {
        let (stack, key) = (&stack, security.clone());
        async move { with(stack, &key, "POST", "/v1/keys", &body).await.0 }
    };
    assert_eq!(ask(json!({"caller": "c", "role": "developer"})).await, 201);
    assert_eq!(ask(json!({"caller": "c", "role": "admin"})).await, 403);
    for path in [format!("/v1/keys/{admin}/rotate"), format!("/v1/keys/{admin}")] {
        let method = if path.ends_with("rotate") { "POST" } else { "DELETE" };
        assert_eq!(with(&stack, &security, method, &path, &json!({"grace": 9})).await.0, 403, "{path}");
    }
    for bad in [
        json!({"caller": "c"}),
        json!({"caller": "", "role": "viewer"}),
        json!({"caller": "a b", "role": "viewer"}),
        json!({"caller": "c", "role": "root"}),
        json!({"caller": "c", "role": "viewer", "expires_in": 0}),
        json!({"caller": "c", "role": "viewer", "more": 1}),
        json!({"caller": "c", "role": "security", "session": "sess_0123456789ab"}),
        json!([]),
    ] {
        assert_eq!(ask(bad.clone()).await, 400, "{bad}");
    }
}

/// Which roles each operation is for; `known` is anybody with a key.
fn meant_for(operation: &str) -> &'static [&'static str] {
    match operation {
        "GET /openapi.json" | "GET /v1/me" | "POST /auth/sign-out" => {
            &["viewer", "operator", "developer", "security", "admin"]
        }
        "POST /v1/sessions"
        | "POST /v1/sessions/{id}/messages"
        | "PUT /v1/sessions/{id}/files/{path}"
        | "DELETE /v1/sessions/{id}/files/{path}" => &["developer", "admin"],
        "DELETE /v1/sessions" | "DELETE /v1/sessions/{id}" | "POST /v1/sessions/{id}/responses/{rid}/cancel" => {
            &["operator", "developer", "admin"]
        }
        "GET /v1/sessions"
        | "GET /v1/sessions/{id}"
        | "GET /v1/sessions/{id}/sandbox"
        | "POST /v1/sessions/{id}/tokens"
        | "GET /v1/sessions/{id}/messages"
        | "GET /v1/sessions/{id}/responses"
        | "GET /v1/sessions/{id}/responses/{rid}"
        | "GET /v1/sessions/{id}/responses/{rid}/events"
        | "GET /v1/sessions/{id}/files"
        | "GET /v1/sessions/{id}/files/{path}" => &["viewer", "operator", "developer", "admin"],
        "GET /v1/connections" | "GET /v1/connections/{name}" => &["operator", "developer", "security", "admin"],
        "PUT /v1/connections/{name}"
        | "DELETE /v1/connections/{name}"
        | "PUT /v1/connections/{name}/secret"
        | "DELETE /v1/connections/{name}/secret"
        | "DELETE /v1/connections/{name}/versions/{version}"
        | "POST /v1/connections/{name}/test"
        | "POST /v1/keys"
        | "GET /v1/keys"
        | "GET /v1/keys/{id}"
        | "DELETE /v1/keys/{id}"
        | "POST /v1/keys/{id}/rotate"
        | "POST /v1/auth/explain"
        | "GET /v1/sign-ins"
        | "DELETE /v1/sign-ins/{id}" => &["security", "admin"],
        "GET /v1/egress" => &["operator", "security", "admin"],
        _ => panic!("{operation} has no row: say who it is for"),
    }
}

/// What each operation answers that needs no key, where nobody vouches for
/// callers.
fn open_to_all(operation: &str) -> Option<u16> {
    match operation {
        "GET /health" => Some(200),
        "GET /auth/sign-in" | "GET /auth/callback" | "GET /.well-known/oauth-protected-resource" => Some(404),
        "POST /v1/token" => Some(400),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_refuses_whoever_it_is_not_for() {
    let stack = Stack::start().await;
    let other = {
        let provider = Scripted::start().await;
        let config = provider.config("").replace("tenant = 'acme'", "tenant = 'other'");
        Stack::with(Options { serve: true, config: Some(config), ..Options::default() }).await
    };
    let far = {
        let provider = Scripted::start().await;
        let config = provider.config("[listen]\nallow = ['192.0.2.0/24']\n");
        Stack::with(Options { serve: true, config: Some(config), ..Options::default() }).await
    };
    let session = stack.session().await;
    let mut keys = Vec::new();
    for role in ["viewer", "operator", "developer", "security", "admin"] {
        keys.push((role, make(&stack, json!({"role": role})).await.1));
    }
    let (_, expired) = make(&stack, json!({"role": "admin", "expires_in": 1})).await;
    let (id, revoked) = make(&stack, json!({"role": "admin"})).await;
    assert_eq!(with(&stack, &stack.key, "DELETE", &format!("/v1/keys/{id}"), &Value::Null).await.0, 204);
    let elsewhere = stack.session().await;
    let (_, bound) = make(&stack, json!({"role": "developer", "session": elsewhere})).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let renamed = stack.key.replace("pk_dev_", "pk_other_");
    let document = stack.raw("GET", "/openapi.json", &[], b"").await.json();
    let mut walked = BTreeSet::new();
    for (template, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys().map(|method| method.to_uppercase()) {
            if !["GET", "PUT", "POST", "DELETE"].contains(&method.as_str()) {
                continue;
            }
            let operation = format!("{method} {template}");
            // Things that are not there: whoever may, gets as far as that.
            let path = template
                .replace("{path}", "nothing")
                .replace("{name}", "nothing")
                .replace("{rid}", "msg_000000000000000000000000")
                .replace("{version}", "1");
            let path = if template.starts_with("/v1/keys") {
                path.replace("{id}", "key_0")
            } else {
                path.replace("{id}", session.as_str())
            };
            let (status, body) = with(&far, &far.key, &method, &path, &Value::Null).await;
            assert_eq!((status, &body["error"]), (403, &json!("forbidden")), "{operation}, from elsewhere");
            if let Some(expected) = open_to_all(&operation) {
                assert_eq!(with(&stack, "nothing", &method, &path, &Value::Null).await.0, expected, "{operation}");
                continue;
            }
            for (why, key) in [
                ("none", ""),
                ("no key", "nothing"),
                ("another tenant's", other.key.as_str()),
                ("another tenant's name", renamed.as_str()),
                ("expired", expired.as_str()),
                ("revoked", revoked.as_str()),
            ] {
                let (status, body) = with(&stack, key, &method, &path, &Value::Null).await;
                assert_eq!((status, &body["error"]), (401, &json!("unauthorized")), "{operation}, {why}");
            }
            let allowed = meant_for(&operation);
            for (role, key) in &keys {
                // Whatever ends everything is only asked for by those who may not.
                if allowed.contains(role) && method == "DELETE" && template == "/v1/sessions/{id}" {
                    continue;
                }
                let (status, body) = with(&stack, key, &method, &path, &Value::Null).await;
                let refused = status == 403 && body["error"] == "forbidden";
                assert_eq!(refused, !allowed.contains(role), "{operation} as {role}: {status} {body}");
            }
            if template.starts_with("/v1/") && template != "/v1/me" {
                let (status, _) = with(&stack, &bound, &method, &path, &Value::Null).await;
                let wanted = if template.starts_with("/v1/sessions/{id}") { 404 } else { 403 };
                assert_eq!(status, wanted, "{operation} with a key for another session");
            }
            walked.insert(operation);
        }
    }
    assert!(walked.len() >= 29, "{walked:?}");
    // Its own session it reaches.
    assert_eq!(with(&stack, &bound, "GET", &format!("/v1/sessions/{elsewhere}"), &Value::Null).await.0, 200);
    assert_eq!(with(&stack, &bound, "POST", "/v1/sessions", &json!({})).await.0, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_call_as_often_as_they_may() {
    let config = "[limits]\ncaller_requests_per_minute = 5\n";
    let stack = Stack::with(Options { config: Some(config.into()), ..Options::default() }).await;
    let (_, one) = make(&stack, json!({"caller": "one", "role": "viewer"})).await;
    let (_, another) = make(&stack, json!({"caller": "another", "role": "viewer"})).await;
    let bearer = format!("Bearer {one}");
    for left in ["4", "3", "2", "1", "0"] {
        let answer = cloister_testkit::raw(&stack.url, "GET", "/v1/me", &[("authorization", &bearer)], b"").await;
        assert_eq!((answer.status, answer.headers["ratelimit-remaining"].as_str()), (200, left));
    }
    let met = cloister_testkit::raw(&stack.url, "GET", "/v1/me", &[("authorization", &bearer)], b"").await;
    assert_eq!((met.status, met.json()["error"].as_str().unwrap()), (429, "rate_limited"));
    let head = |name: &str| met.headers.get(name).cloned();
    assert_eq!((head("ratelimit-limit").as_deref(), head("ratelimit-remaining").as_deref()), (Some("5"), Some("0")));
    assert!(head("retry-after").unwrap().parse::<u64>().unwrap() <= 61);
    assert_eq!(with(&stack, &another, "GET", "/v1/me", &Value::Null).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_callers_together_call_as_often_as_it_may() {
    let config = "[limits]\nrequests_per_minute = 12\ncaller_requests_per_minute = 8\n";
    let stack = Stack::with(Options { config: Some(config.into()), ..Options::default() }).await;
    let (_, one) = make(&stack, json!({"caller": "one", "role": "viewer"})).await;
    let (_, another) = make(&stack, json!({"caller": "another", "role": "viewer"})).await;
    let mut answers = Vec::new();
    for key in [&one, &another].into_iter().cycle().take(12) {
        answers.push(with(&stack, key, "GET", "/v1/me", &Value::Null).await.0);
    }
    assert_eq!(answers, [&[200; 10][..], &[429; 2]].concat(), "two calls have made the keys");
    // Calls that show nothing take nothing from those who do.
    let stack = Stack::with(Options { config: Some(config.into()), ..Options::default() }).await;
    for _ in 0..20 {
        assert_eq!(with(&stack, "nothing", "GET", "/v1/me", &Value::Null).await.0, 401);
    }
    assert_eq!(with(&stack, &stack.key, "GET", "/v1/me", &Value::Null).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_key_ends_when_its_time_is_over_though_the_server_was_replaced_too() {
    let mut stack = Stack::start().await;
    let (id, first) = make(&stack, json!({"caller": "ci", "role": "developer"})).await;
    let path = format!("/v1/keys/{id}/rotate");
    assert_eq!(with(&stack, &stack.key, "POST", &path, &json!({"grace": 15})).await.0, 200);
    let rotated = std::time::Instant::now();
    stack.kill().await;
    let stack = stack.restart().await;
    let session = stack.session().await;
    let wait = cloister_testkit::script(&[json!({"tool": "bash", "input": {"command": "sleep 30"}})]);
    let turn = stack.client.message(&session, &wait, None).await.unwrap().turn().clone();
    let bearer = format!("Bearer {first}");
    let events = format!("/v1/sessions/{session}/responses/{turn}/events");
    let followed = cloister_testkit::raw(&stack.url, "GET", &events, &[("authorization", bearer.as_str())], b"").await;
    let took = rotated.elapsed();
    assert_eq!(followed.status, 200);
    assert!((Duration::from_secs(14)..Duration::from_secs(28)).contains(&took), "{took:?}");
    assert_eq!(with(&stack, &first, "GET", "/v1/me", &Value::Null).await.0, 401);
}
