//! What holds while no server is there, and what is over when a turn is.

use std::time::{Duration, Instant};

use cloister_testkit::{Options, Stack, Turn, children, is_gone, script, until};
use cloister_types::event::EventKind;
use serde_json::json;

use crate::crash::Scripted;

async fn serve(provider: &Scripted, more: &str) -> Stack {
    Stack::with(Options { serve: true, config: Some(provider.config(more)), ..Options::default() }).await
}

/// Kills the server in the middle of the turn, waits until its sandbox has
/// ended by itself, and returns the turn as the next server finds it.
async fn without_a_server(mut stack: Stack, lines: &[serde_json::Value]) -> (Stack, Turn, Duration) {
    let session = stack.session().await;
    let mut events = stack.client.message(&session, &script(lines), None).await.unwrap();
    while events.next().await.unwrap().unwrap().kind != Some(EventKind::ToolUseStop) {}
    let (turn, sandbox) = (events.turn().clone(), stack.processes().sandbox(session.as_str()).unwrap());
    drop(events);
    let began = Instant::now();
    stack.kill().await;
    until("the turn ends", || is_gone(sandbox.init) && is_gone(sandbox.supervisor)).await;
    let took = began.elapsed();
    let stack = stack.restart().await;
    let whole = Turn::collect(stack.client.events(&session, &turn, None).await.unwrap()).await;
    (stack, whole, took)
}

#[tokio::test]
async fn a_deadline_holds_without_a_server() {
    let provider = Scripted::start().await;
    let stack = serve(&provider, "[limits]\nturn_seconds = 2\n").await;
    let lines = [json!({"tool": "bash", "input": {"command": "sleep 100"}})];
    let (_stack, turn, took) = without_a_server(stack, &lines).await;
    assert_eq!(turn.events.last().unwrap().data["code"], "time_limit");
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test]
async fn steps_and_dollars_hold_without_a_server() {
    let provider = Scripted::start().await;
    let tool = json!({"tool": "bash", "input": {"command": "sleep 0.3; echo x >> effects"}});
    let lines: Vec<_> = (0..6).map(|_| tool.clone()).collect();
    let stack = serve(&provider, "[limits]\nsteps = 3\n").await;
    let (stack, turn, _) = without_a_server(stack, &lines).await;
    assert_eq!(turn.events.last().unwrap().data["code"], "step_limit");
    assert_eq!(std::fs::read_to_string(stack.workspace().join("effects")).unwrap(), "x\nx\nx\n");

    let config = provider.config("[limits]\nturn_dollars = 0.001\n") + "price = { input = 1.0, output = 1.0 }\n";
    let stack = Stack::with(Options { serve: true, config: Some(config), ..Options::default() }).await;
    let (_stack, turn, _) = without_a_server(stack, &lines).await;
    assert_eq!(turn.events.last().unwrap().data["code"], "spend_limit", "{:?}", turn.events.last());
}

#[tokio::test]
async fn a_turn_works_on_and_ends_without_a_server() {
    let provider = Scripted::start().await;
    let stack = serve(&provider, "").await;
    let tool = |n: u32| json!({"tool": "bash", "input": {"command": format!("sleep 0.1; echo {n} >> effects")}});
    let lines = [tool(1), json!({"say": "on"}), tool(2), tool(3), json!({"say": "end"})];
    let (stack, turn, _) = without_a_server(stack, &lines).await;
    assert_eq!((turn.end(), turn.text().as_str()), (EventKind::MessageCompleted, "onend"));
    assert_eq!(turn.of(EventKind::TurnResumed).len(), 0);
    assert_eq!(std::fs::read_to_string(stack.workspace().join("effects")).unwrap(), "1\n2\n3\n");
    let left = stack.run_folders().len();
    assert_eq!(left, 0, "what was left has been taken in");
}

#[tokio::test]
async fn a_calls_way_out_passes_from_server_to_server() {
    let provider = Scripted::start().await;
    let mut stack = serve(&provider, "").await;
    let session = stack.session().await;
    let tool = json!({"tool": "bash", "input": {"command": "sleep 0.4"}});
    let lines = [
        tool.clone(),
        json!({"sleep_ms": 600}),
        json!({"say": "a"}),
        tool.clone(),
        json!({"say": "b"}),
        tool,
        json!({"say": "c"}),
    ];
    let mut events = stack.client.message(&session, &script(&lines), None).await.unwrap();
    while events.next().await.unwrap().unwrap().kind != Some(EventKind::ToolUseStop) {}
    let turn = events.turn().clone();
    drop(events);
    let first = stack.processes().egress().unwrap();
    // Killed while the call with the long silence is under way.
    tokio::time::sleep(Duration::from_millis(650)).await;
    stack.kill().await;
    assert!(!is_gone(first), "the way out outlives the server");
    let stack = stack.restart().await;
    let second = stack.processes().egress().unwrap();
    let whole = Turn::collect(stack.client.events(&session, &turn, None).await.unwrap()).await;
    assert_eq!((whole.end(), whole.text().as_str()), (EventKind::MessageCompleted, "abc"));
    assert_eq!(
        whole.of(EventKind::RetryScheduled).len() + whole.of(EventKind::AttemptDiscarded).len(),
        0,
        "no call failed"
    );
    until("the old way out ends when its last call has", || is_gone(first)).await;
    assert!(!is_gone(second));
}

#[tokio::test]
async fn nothing_that_a_tool_left_running_outlives_its_turn() {
    let stack = Stack::start().await;
    let session = stack.session().await;
    let left = "setsid sh -c 'while :; do date >> ticks; sleep 0.05; done' > /dev/null 2>&1 & (sleep 500 & disown) ; sleep 0.2; echo left";
    let (said, _) = stack.bash(&session, left).await;
    assert!(said.starts_with("left\n[") && said.contains("they end with this turn"), "{said}");
    let init = stack.processes().sandbox(session.as_str()).unwrap().init;
    assert_eq!(children(init), Vec::<u32>::new(), "the sandbox is warm and empty");
    let ticks = std::fs::read(stack.workspace().join("ticks")).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(std::fs::read(stack.workspace().join("ticks")).unwrap(), ticks);
    assert!(stack.bash(&session, "ps ax | grep -c '[s]leep 500'").await.0.starts_with("0\n"));
    let page = stack.client.transcript(&session, None, 10).await.unwrap();
    assert_eq!(page.data.len(), 8);
}
