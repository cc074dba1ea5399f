//! Random sequences of everything that can be asked of a session, the server
//! killed among them, against what must hold whatever the order.

use std::collections::HashMap;
use std::time::Duration;

use cloister_client::ClientError;
use cloister_testkit::{Options, Stack, Turn, script};
use cloister_types::event::EventKind;
use cloister_types::wire::{OnBusy, SendMessage};
use cloister_types::{ErrorCode, ResponseId, SessionId};
use serde_json::json;

use crate::crash::{Random, Scripted};

/// What is known of a turn from outside.
#[derive(Debug, Default)]
struct Known {
    name: String,
    promised: bool,
    too_late: bool,
}

async fn run(seed: u64) {
    let provider = Scripted::start().await;
    let config = provider.config("[limits]\nqueued_messages = 3\n");
    let mut stack = Stack::with(Options { serve: true, config: Some(config), ..Options::default() }).await;
    let sessions: Vec<SessionId> = vec![stack.session().await, stack.session().await];
    let mut random = Random(seed);
    let mut turns: HashMap<(SessionId, ResponseId), Known> = HashMap::new();
    for step in 0..45 {
        let session = sessions[random.below(2) as usize].clone();
        match random.below(10) {
            0..5 => {
                let on_busy =
                    [OnBusy::Reject, OnBusy::Queue, OnBusy::Queue, OnBusy::Interrupt][random.below(4) as usize];
                let name = format!("s{step}");
                let command = format!("echo {name} >> effects; sleep 0.0{}", random.below(9));
                let lines = [json!({"tool": "bash", "input": {"command": command}}), json!({"say": name})];
                let message = SendMessage { message: script(&lines), on_busy };
                match stack.client.send_message(&session, &message, Some(&name)).await {
                    Ok(events) => {
                        let turn = events.turn().clone();
                        turns.insert((session, turn), Known { name, ..Known::default() });
                    }
                    Err(ClientError::Refused { code, .. }) => {
                        let fits = match on_busy {
                            OnBusy::Reject => code == ErrorCode::SessionBusy,
                            _ => code == ErrorCode::QueueFull,
                        };
                        assert!(fits, "seed {seed}, step {step}: {code}");
                    }
                    Err(error) => panic!("seed {seed}, step {step}: {error}"),
                }
            }
            5 | 6 => {
                let keys: Vec<_> = turns.keys().cloned().collect();
                if !keys.is_empty() {
                    let (session, turn) = &keys[random.below(keys.len() as u64) as usize];
                    let answer = stack.client.cancel(session, turn).await.unwrap();
                    let known = turns.get_mut(&(session.clone(), turn.clone())).unwrap();
                    match answer.status.as_str() {
                        "cancelling" => known.promised = true,
                        _ => known.too_late = true,
                    }
                    assert!(!(known.promised && known.too_late) || answer.status == "already_complete");
                }
            }
            7 => {
                stack.kill().await;
                tokio::time::sleep(Duration::from_millis(random.below(80))).await;
                stack = stack.restart().await;
            }
            _ => tokio::time::sleep(Duration::from_millis(random.below(120))).await,
        }
    }
    let effects = async |stack: &Stack| std::fs::read_to_string(stack.workspace().join("effects")).unwrap_or_default();
    for ((session, turn), known) in &turns {
        let what = format!("seed {seed}, {known:?}");
        let events = stack.client.events(session, turn, None).await.unwrap();
        let whole = tokio::time::timeout(Duration::from_secs(30), Turn::collect(events)).await.expect(&what);
        assert!(whole.events.iter().map(|event| event.seq).eq(0..whole.events.len() as u64), "{what}");
        let ends = whole.events.iter().filter(|event| event.kind.is_some_and(EventKind::is_terminal)).count();
        assert_eq!(ends, 1, "{what}");
        let effect = effects(&stack).await.lines().filter(|line| *line == known.name).count();
        match whole.end() {
            EventKind::MessageCompleted => {
                assert!(!known.promised, "{what}: a cancel was promised");
                assert_eq!(whole.text(), known.name, "{what}");
                assert_eq!(effect, 1, "{what}");
            }
            // By a cancel, or by a message that interrupted it.
            EventKind::MessageCancelled => assert!(effect <= 1, "{what}"),
            other => panic!("{what}: {other} {:?}", whole.events.last()),
        }
        // The key stands for it, still.
        let again = stack.client.response(session, turn, 0).await.unwrap();
        assert!(again.status.is_over(), "{what}");
    }
    for session in &sessions {
        let record = stack.client.session(session).await.unwrap();
        assert_eq!((record.busy, record.queued), (false, 0), "seed {seed}");
        // Turns do not mix: each message is followed by its own turn's entries.
        let page = stack.client.transcript(session, None, 1000).await.unwrap();
        let mut order: Vec<_> = page.data.iter().map(|entry| entry.response_id.clone()).collect();
        order.dedup();
        let count = order.len();
        order.sort();
        order.dedup();
        assert_eq!(order.len(), count, "seed {seed}: turns one after another");
    }
}

#[tokio::test]
async fn whatever_is_asked_in_whatever_order_holds() {
    for seed in [3, 77, 1234] {
        run(seed).await;
    }
}
