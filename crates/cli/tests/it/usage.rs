//! Usage is metered where calls leave, in the provider's figures: whoever calls,
//! and whoever is killed meanwhile. Limits of money hang on it.

use std::time::Duration;

use cloister_testkit::{Options, Provider, Reply, Stack, freeze, kill, until};
use cloister_types::event::EventKind;
use serde_json::{Value, json};

use crate::providers::{anthropic, anthropic_call, anthropic_text, chat, config};

async fn serve(provider: &Provider, wire: &str, more: &str) -> Stack {
    let config = format!("{more}\n{}", config(provider, wire));
    Stack::with(Options { serve: true, config: Some(config), ..Options::default() }).await
}

fn stream(events: &[Value]) -> Reply {
    Reply::stream(anthropic(events))
}

/// Input, output, read from the cache, and whether that is estimated.
fn figures(usage: &Value) -> (u64, u64, u64, bool) {
    let number = |name: &str| usage[name].as_u64().unwrap();
    (number("input_tokens"), number("output_tokens"), number("cache_read_tokens"), usage["estimated"] == true)
}

/// What a program in the session does to call the model by itself.
const OWN_CALL: &str = "curl -sS -X POST http://127.127.127.127/m/v1/messages -H 'content-type: application/json' -d '{\"model\": \"vendor-1\", \"stream\": true}' > /dev/null";

#[tokio::test]
async fn a_programs_own_calls_are_the_turns() {
    let replies =
        [anthropic_call(OWN_CALL), anthropic_text("by itself"), anthropic_text("done"), anthropic_text("next")];
    let provider = Provider::start(replies.iter().map(|events| stream(events)).collect()).await;
    let stack = serve(&provider, "anthropic-messages", "").await;
    let session = stack.session().await;
    let turn = stack.play(&session, &[]).await;
    assert_eq!((turn.end(), turn.text().as_str()), (EventKind::MessageCompleted, "done"));
    assert_eq!(figures(&turn.events.last().unwrap().data["usage"]), (21, 15, 10, false));
    let last = stack.client.session(&session).await.unwrap().last_response.unwrap();
    assert_eq!(figures(&json!(last.usage)), (21, 15, 10, false));
    // The next turn is charged with its own.
    let turn = stack.play(&session, &[]).await;
    assert_eq!(figures(&turn.events.last().unwrap().data["usage"]), (7, 3, 5, false));
}

#[tokio::test]
async fn no_kill_loses_or_doubles_what_was_used() {
    let late = Reply { delay: Duration::from_millis(600), ..stream(&anthropic_call("sleep 1")) };
    let replies = vec![stream(&anthropic_call("sleep 1")), late, stream(&anthropic_text("done"))];
    let provider = Provider::start(replies).await;
    let mut stack = serve(&provider, "anthropic-messages", "").await;
    let session = stack.session().await;
    let mut events = stack.client.message(&session, "go", None).await.unwrap();
    let turn = events.turn().clone();
    while events.next().await.unwrap().unwrap().kind != Some(EventKind::ToolUseStop) {}
    tokio::time::sleep(Duration::from_millis(200)).await;
    kill(stack.processes().egress().unwrap());
    // A vault that dies with records of a call that was not written down yet.
    until("the second call is made", || provider.received().len() == 2).await;
    let vault = stack.processes().vault().unwrap();
    freeze(vault);
    while events.next().await.unwrap().unwrap().kind != Some(EventKind::ToolUseStop) {}
    kill(vault);
    drop(events);
    tokio::time::sleep(Duration::from_millis(300)).await;
    stack.kill().await;
    let stack = stack.restart().await;
    let whole = cloister_testkit::Turn::collect(stack.client.events(&session, &turn, None).await.unwrap()).await;
    assert_eq!((whole.end(), whole.text().as_str()), (EventKind::MessageCompleted, "done"));
    assert_eq!(figures(&whole.events.last().unwrap().data["usage"]), (21, 21, 5, false));
}

#[tokio::test]
async fn what_a_provider_does_not_say_is_estimated_and_said_to_be() {
    let silent = chat(&[
        json!({"choices": [{"index": 0, "delta": {"content": "some"}}]}),
        json!({"choices": [{"index": 0, "delta": {"content": " words"}, "finish_reason": "stop"}]}),
    ]);
    let provider = Provider::start(vec![Reply::stream(silent)]).await;
    let stack = serve(&provider, "openai-chat", "").await;
    let session = stack.session().await;
    let turn = stack.play(&session, &[]).await;
    let (input, output, _, estimated) = figures(&turn.events.last().unwrap().data["usage"]);
    assert!(estimated && input > 100 && output > 0, "{input} {output} {estimated}");
}

#[tokio::test]
async fn a_session_spends_what_it_may_and_no_more() {
    for (limit, others_too) in [("session_dollars", false), ("dollars_per_day", true)] {
        let replies = (0..4).map(|n| stream(&anthropic_text(&format!("answer {n}")))).collect();
        let provider = Provider::start(replies).await;
        let table = format!("[egress.limits]\n{limit} = 0.00001\n");
        let config = table + &config(&provider, "anthropic-messages") + "price = { input = 1.0, output = 1.0 }\n";
        let stack = Stack::with(Options { serve: true, config: Some(config), ..Options::default() }).await;
        let session = stack.session().await;
        assert_eq!(stack.play(&session, &[]).await.end(), EventKind::MessageCompleted);
        for killed in [false, true] {
            if killed {
                kill(stack.processes().egress().unwrap());
            }
            let turn = stack.play(&session, &[]).await;
            assert_eq!(turn.events.last().unwrap().data["code"], "spend_limit", "{:?}", turn.events.last());
            assert!(turn.events.last().unwrap().data["error"].as_str().unwrap().contains(limit));
        }
        let other = stack.session().await;
        let end = stack.play(&other, &[]).await.end();
        assert_eq!(end, if others_too { EventKind::MessageError } else { EventKind::MessageCompleted });
        assert_eq!(provider.received().len(), if others_too { 1 } else { 2 });
    }
}
