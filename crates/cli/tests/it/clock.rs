//! Setting the machine's clock, forwards and backwards, while sessions live.

use std::time::Duration;

use cloister_testkit::{Options, Stack};
use serde_json::json;

const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

#[tokio::test]
async fn setting_the_clock_ends_no_session_and_keeps_none() {
    let library = [FAKETIME, "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1"];
    let Some(library) = library.into_iter().find(|path| std::path::Path::new(path).exists()) else {
        eprintln!("SKIPPED: libfaketime is not installed (Debian package faketime)");
        return;
    };
    let setting = tempfile::NamedTempFile::new().unwrap();
    let set = |offset: &str| std::fs::write(setting.path(), offset).unwrap();
    set("+0");
    let environment = [
        ("LD_PRELOAD", library),
        ("FAKETIME_TIMESTAMP_FILE", setting.path().to_str().unwrap()),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let config = "[limits]\nsession_idle_seconds = 30\n".to_owned();
    let mut stack = Stack::with(Options { environment, config: Some(config), ..Options::default() }).await;
    let hour = stack.session_with(json!({"ttl": 3600})).await;
    let fleeting = stack.session_with(json!({"persistent": false})).await;
    let short = stack.session_with(json!({"ttl": 6})).await;
    stack.bash(&fleeting.id, "true").await;
    let before = stack.client.session(&fleeting.id).await.unwrap().last_activity;
    for offset in ["+2d", "-2d"] {
        set(offset);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        // The wall clock is what the server believes it to be.
        let made = stack.session_with(json!({})).await.created_at;
        assert!((made - before).abs() > 86_400.0, "{offset}: the clock was set");
        for session in [&hour.id, &fleeting.id] {
            stack.client.session(session).await.unwrap_or_else(|error| panic!("{offset}: {error}"));
        }
        let old = stack.raw("DELETE", "/v1/sessions?older_than=1h", &[], b"").await.json();
        assert_eq!(old["deleted"], 0, "{offset}");
        assert!(
            stack.client.session(&fleeting.id).await.unwrap().last_activity >= before,
            "activity is not moved back"
        );
        stack = stack.kill_and_restart().await;
        for session in [&hour.id, &fleeting.id] {
            stack.client.session(session).await.unwrap_or_else(|error| panic!("{offset}, restarted: {error}"));
        }
    }
    tokio::time::sleep(Duration::from_millis(4500)).await;
    assert!(stack.client.session(&short.id).await.is_err(), "six seconds are over, whatever the clock says");
}
