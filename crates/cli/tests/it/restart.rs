//! Ends and beginnings of the server.

use std::time::{Duration, Instant};

use cloister_testkit::{Options, Stack, Turn, descendants, freeze, is_gone, kill, script, thaw, until};
use cloister_types::event::EventKind;
use serde_json::{Value, json};

#[tokio::test]
async fn sigterm_to_dev_ends_everything_with_status_0_and_a_terminal_event() {
    let mut stack = Stack::start().await;
    let session = stack.session().await;
    let lines = [json!({"tool": "bash", "input": {"command": "setsid sleep 1000 & sleep 1000"}})];
    let mut events = stack.client.message(&session, &script(&lines), None).await.unwrap();
    while events.next().await.unwrap().unwrap().kind != Some(EventKind::ToolUseStop) {}
    tokio::time::sleep(Duration::from_millis(200)).await;
    let running = descendants(stack.pid());
    assert!(running.len() >= 6, "server, egress, spawner, supervisor, init, agent, shell: {running:?}");
    let reader = tokio::spawn(Turn::collect(events));
    let status = stack.terminate().await;
    assert_eq!(status.code(), Some(0));
    let rest = reader.await.unwrap();
    assert_eq!(rest.events.last().unwrap().data["code"], "interrupted");
    assert_eq!(running.into_iter().find(|pid| !is_gone(*pid)), None, "a process is left");
    // The same key, the same sessions, the turn's end kept.
    let key = stack.key.clone();
    let stack = stack.restart().await;
    assert_eq!(stack.key, key);
    let record = stack.client.session(&session).await.unwrap();
    assert_eq!(record.last_response.unwrap().error.unwrap().error.as_str(), "interrupted");
    assert_eq!(stack.bash(&session, "echo on").await.0, "on\n");
    let left = stack.run_folders().len();
    assert_eq!(left, 1, "the folders of sandboxes that are gone");
}

#[tokio::test]
async fn sigterm_at_the_very_first_moment_ends_with_status_0_too() {
    for _ in 0..5 {
        let mut stack = Stack::start().await;
        assert_eq!(stack.terminate().await.code(), Some(0));
    }
}

#[tokio::test]
async fn a_killed_dev_is_followed_by_one_that_takes_its_turns_over() {
    let mut stack = Stack::start().await;
    let (session, idle) = (stack.session().await, stack.session().await);
    let lines = [
        json!({"say": "before"}),
        json!({"tool": "bash", "input": {"command": "echo $PPID; while [ ! -e go ]; do sleep 0.02; done; echo went"}}),
        json!({"say": "after"}),
    ];
    let mut events = stack.client.message(&session, &script(&lines), Some("key")).await.unwrap();
    let mut seen = Vec::new();
    while seen.last().is_none_or(|event: &cloister_client::Event| event.kind != Some(EventKind::ToolUseStop)) {
        seen.push(events.next().await.unwrap().unwrap());
    }
    let (turn, key, url) = (events.turn().clone(), stack.key.clone(), stack.url.clone());
    drop(events);
    let agent = stack.processes().agent(session.as_str()).unwrap();
    let sleeper = stack.processes().sandbox(idle.as_str()).unwrap();
    stack.kill().await;
    until("an idle sandbox does not outlive its server", || is_gone(sleeper.init)).await;
    assert!(!is_gone(agent), "a turn does");
    let stack = stack.restart().await;
    assert_eq!((&stack.key, &stack.url), (&key, &url));
    let record = stack.client.session(&session).await.unwrap();
    assert_eq!((record.busy, record.current_response_id), (true, Some(turn.clone())));
    // The same turn for the same key, although the answer was lost.
    let again = stack.client.message(&session, &script(&lines), Some("key")).await.unwrap();
    assert_eq!(again.turn(), &turn);
    std::fs::write(stack.workspace().join("go"), "").unwrap();
    let whole = Turn::collect(again).await;
    assert_eq!(whole.events[..seen.len()], seen, "what was seen is what is kept");
    assert_eq!((whole.end(), whole.text().as_str()), (EventKind::MessageCompleted, "beforeafter"));
    let result = whole.results().remove(0);
    assert!(result.ends_with("went\n"), "the very same tool ran on: {result}");
    assert_eq!(whole.of(EventKind::TurnResumed).len(), 0, "nothing was lost");
    assert_eq!(stack.bash(&idle, "echo awake").await.0, "awake\n");
}

#[tokio::test]
async fn a_turn_that_ends_while_no_server_is_there_is_found_ended() {
    let mut stack = Stack::start().await;
    let session = stack.session().await;
    let lines = [json!({"parallel": [
        {"tool": "bash", "input": {"command": "sleep 0.5; echo one"}},
        {"tool": "bash", "input": {"command": "echo two"}},
    ]})];
    let mut events = stack.client.message(&session, &script(&lines), None).await.unwrap();
    while events.next().await.unwrap().unwrap().kind != Some(EventKind::ToolUseStop) {}
    let (turn, sandbox) = (events.turn().clone(), stack.processes().sandbox(session.as_str()).unwrap());
    drop(events);
    stack.kill().await;
    // The model is part of the killed server, so the last call fails until its
    // retries are over; the next server comes in between.
    tokio::time::sleep(Duration::from_millis(900)).await;
    let stack = stack.restart().await;
    let whole = Turn::collect(stack.client.events(&session, &turn, None).await.unwrap()).await;
    assert_eq!(whole.end(), EventKind::MessageCompleted, "{:?}", whole.events.last());
    assert_eq!(whole.results(), ["one\n", "two\n"]);
    drop(sandbox);
}

#[tokio::test]
async fn a_stopped_serve_leaves_its_turns_to_the_next() {
    let provider = crate::crash::Scripted::start().await;
    let mut stack = Stack::with(Options { serve: true, config: Some(provider.config("")), ..Options::default() }).await;
    let session = stack.session().await;
    let lines = [
        json!({"tool": "bash", "input": {"command": "while [ ! -e go ]; do sleep 0.02; done; echo a >> effects"}}),
        json!({"say": "done"}),
    ];
    let mut events = stack.client.message(&session, &script(&lines), None).await.unwrap();
    while events.next().await.unwrap().unwrap().kind != Some(EventKind::ToolUseStop) {}
    let turn = events.turn().clone();
    let agent = stack.processes().agent(session.as_str()).unwrap();
    let reader = tokio::spawn(Turn::collect(events));
    // Another, that sees every byte.
    let (url, bearer) = (stack.url.clone(), format!("Bearer {}", stack.key));
    let path = format!("/v1/sessions/{session}/responses/{turn}/events");
    let watcher = tokio::spawn(async move {
        cloister_testkit::raw(&url, "GET", &path, &[("authorization", &bearer)], b"").await.text()
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let began = Instant::now();
    assert_eq!(stack.terminate().await.code(), Some(0));
    let seen = watcher.await.unwrap();
    assert!(seen.ends_with("retry: 250\n: the server is being replaced; reconnect\n\n"), "{seen}");
    assert!(began.elapsed() < Duration::from_secs(6), "streams that are open do not hold it up for ever");
    assert!(!is_gone(agent));
    // The turn ends while nobody serves; so does everything that it needed.
    let (sandbox, workspace) = (stack.processes().sandbox(session.as_str()).unwrap(), stack.workspace());
    std::fs::write(workspace.join("go"), "").unwrap();
    until("the supervisor ends with its turn", || is_gone(sandbox.supervisor) && is_gone(sandbox.init)).await;
    let stack = stack.restart().await;
    let whole = reader.await.unwrap();
    assert_eq!((whole.end(), whole.text().as_str()), (EventKind::MessageCompleted, "done"));
    assert_eq!(whole.of(EventKind::TurnResumed).len(), 0);
    assert_eq!(std::fs::read_to_string(workspace.join("effects")).unwrap(), "a\n");
    let response = stack.client.response(&session, &turn, 0).await.unwrap();
    assert_eq!((response.output_text.as_str(), response.attempts), ("done", 1));
}

#[tokio::test]
async fn an_upgrade_under_load_fails_no_turn() {
    let provider = crate::crash::Scripted::start().await;
    let mut stack = Stack::with(Options { serve: true, config: Some(provider.config("")), ..Options::default() }).await;
    let mut readers = Vec::new();
    for n in 0..6 {
        let session = stack.session().await;
        let tool =
            |at: u32| json!({"tool": "bash", "input": {"command": format!("sleep 0.3; echo {n}.{at} >> effects")}});
        let lines = [tool(1), json!({"say": "on"}), tool(2), tool(3), tool(4), json!({"say": "end"})];
        let events = stack.client.message(&session, &script(&lines), None).await.unwrap();
        readers.push(tokio::spawn(Turn::collect(events)));
    }
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        assert_eq!(stack.terminate().await.code(), Some(0));
        stack = stack.restart().await;
    }
    for reader in readers {
        let turn = reader.await.unwrap();
        assert_eq!(turn.end(), EventKind::MessageCompleted, "{:?}", turn.events.last());
        assert!(turn.events.iter().map(|event| event.seq).eq(0..turn.events.len() as u64));
    }
    let mut effects: Vec<String> =
        std::fs::read_to_string(stack.workspace().join("effects")).unwrap().lines().map(str::to_owned).collect();
    effects.sort();
    let want: Vec<String> = (0..6).flat_map(|n| (1..5).map(move |at| format!("{n}.{at}"))).collect();
    assert_eq!(effects, want, "each tool ran once");
}

#[tokio::test]
async fn a_cancel_outlives_the_server_that_promised_it() {
    let mut stack = Stack::start().await;
    let session = stack.session().await;
    // An agent that does not hear: its supervisor would end it after a grace.
    let lines = [json!({"tool": "bash", "input": {"command": "echo a >> effects; kill -STOP $PPID; sleep 100"}})];
    let mut events = stack.client.message(&session, &script(&lines), None).await.unwrap();
    while events.next().await.unwrap().unwrap().kind != Some(EventKind::ToolUseStop) {}
    until("the tool runs", || stack.workspace().join("effects").exists()).await;
    let turn = events.turn().clone();
    assert_eq!(stack.client.cancel(&session, &turn).await.unwrap().status, "cancelling");
    stack.kill().await;
    let stack = stack.restart().await;
    let whole = Turn::collect(stack.client.events(&session, &turn, None).await.unwrap()).await;
    assert_eq!(whole.end(), EventKind::MessageCancelled);
    assert_eq!(stack.bash(&session, "cat effects").await.0, "a\n");
}

#[tokio::test]
async fn a_server_that_comes_between_reads_what_its_predecessor_did_not() {
    let provider = crate::crash::Scripted::start().await;
    let mut stack = Stack::with(Options { serve: true, config: Some(provider.config("")), ..Options::default() }).await;
    let session = stack.session().await;
    let tool = json!({"tool": "bash", "input": {"command": "while [ ! -e go ]; do sleep 0.02; done"}});
    let lines = [tool, json!({"say": "end"})];
    let mut events = stack.client.message(&session, &script(&lines), None).await.unwrap();
    while events.next().await.unwrap().unwrap().kind != Some(EventKind::ToolUseStop) {}
    let (turn, sandbox) = (events.turn().clone(), stack.processes().sandbox(session.as_str()).unwrap());
    drop(events);
    // The agent has its result and waits for it to be on disk; the server has
    // been told and does not act; the supervisor does not notice what follows.
    freeze(stack.pid());
    std::fs::write(stack.workspace().join("go"), "").unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    freeze(sandbox.supervisor);
    stack.kill().await;
    // It finds the end of one server and the beginning of the next at once.
    let thawing = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        thaw(sandbox.supervisor);
    });
    let stack = stack.restart().await;
    thawing.join().unwrap();
    let collected = Turn::collect(stack.client.events(&session, &turn, None).await.unwrap());
    let whole = tokio::time::timeout(Duration::from_secs(10), collected).await.expect("the turn goes on");
    assert_eq!((whole.end(), whole.text().as_str()), (EventKind::MessageCompleted, "end"));
}

#[tokio::test]
async fn a_killed_agent_is_replaced_and_so_is_a_killed_egress() {
    let stack = Stack::start().await;
    let session = stack.session().await;
    let kill_it = "echo x >> effects; kill -9 $PPID; sleep 5";
    let lines = [json!({"tool": "bash", "input": {"command": kill_it}}), json!({"say": "on"})];
    let turn = stack.play(&session, &lines).await;
    assert_eq!((turn.end(), turn.text().as_str()), (EventKind::MessageCompleted, "on"));
    let resumed: &Value = &turn.of(EventKind::TurnResumed)[0].data;
    assert!(resumed["cause"].as_str().unwrap().contains("signal 9") && resumed["discard_from"].is_null(), "{resumed}");
    let result = &turn.of(EventKind::ToolResult)[0].data;
    assert!(
        result["is_error"] == true && result["content"].as_str().unwrap().contains("may have had effects"),
        "{result}"
    );
    assert_eq!(stack.bash(&session, "cat effects").await.0, "x\n", "it was not run twice");

    kill(stack.processes().egress().unwrap());
    assert_eq!(stack.bash(&session, "echo through").await.0, "through\n");
}

#[tokio::test]
async fn an_agent_that_never_gets_anywhere_fails_its_turn_in_the_end() {
    let stack = Stack::start().await;
    let session = stack.session().await;
    // Agents are killed as soon as they show themselves.
    let events = stack.client.message(&session, &script(&[json!({"sleep_ms": 5000})]), None).await.unwrap();
    let turn = tokio::spawn(Turn::collect(events));
    while !turn.is_finished() {
        if let Some(agent) = stack.processes().agent(session.as_str()) {
            kill(agent);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let turn = turn.await.unwrap();
    let last = &turn.events.last().unwrap().data;
    assert_eq!((turn.end(), &last["code"]), (EventKind::MessageError, &json!("agent_died")));
    assert!(turn.of(EventKind::TurnResumed).len() >= 3);
    assert_eq!(stack.bash(&session, "echo again").await.0, "again\n");
}
