//! The life of a session, from the contract's first page.

use cloister_testkit::{As, Stack, Turn, script};
use cloister_types::event::EventKind;
use cloister_types::wire::TurnStatus;
use serde_json::json;

/// Create scoped -> message -> stream -> drop the client -> reconnect -> fetch
/// the file -> delete -> memory still there in the next session.
async fn whole_life(who: As, model: &str) {
    let stack = Stack::start_as(who).await;
    let session = stack
        .session_with(json!({"file_access": {"read": ["shared"], "write": ["projects/acme"]}, "model": model}))
        .await;
    assert!(!session.busy && session.id == session.session_id);
    let lines = [
        json!({"think": "a plan"}),
        json!({"say": "Working."}),
        json!({"tool": "bash", "input": {"command": "echo 42 > projects/acme/answer.txt; echo 'remember me' >> .memory/MEMORY.md"}}),
        json!({"sleep_ms": 300}),
        json!({"tool": "read_file", "input": {"path": "projects/acme/answer.txt"}}),
        json!({"expect": "42"}),
        json!({"say": "Done."}),
    ];
    let mut first = stack.client.message(&session.id, &script(&lines), None).await.unwrap();
    // See a little, then go away in the middle of the turn.
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(first.next().await.unwrap().unwrap());
    }
    let (turn, last) = (first.turn().clone(), first.last());
    drop(first);
    assert_eq!(seen[0].kind, Some(EventKind::MessageCreated));
    assert_eq!(seen[0].data["scripted"], true);
    let record = stack.client.session(&session.id).await.unwrap();
    assert!(record.busy && record.current_response_id.as_ref() == Some(&turn));

    let rest = Turn::collect(stack.client.events(&session.id, &turn, last).await.unwrap()).await;
    assert_eq!(rest.events[0].seq, last.unwrap() + 1);
    assert_eq!(rest.end(), EventKind::MessageCompleted);

    let record = stack.client.session(&session.id).await.unwrap();
    let response = record.last_response.unwrap();
    assert!(!record.busy && response.status == TurnStatus::Completed && response.id == turn);
    assert_eq!(response.output_text, "Done.");
    assert!(response.usage.total_tokens > 0);

    let file = stack.client.download(&session.id, "projects/acme/answer.txt").await.unwrap().bytes().await.unwrap();
    assert_eq!(file, b"42\n");
    stack.client.delete(&session.id).await.unwrap();
    assert!(stack.client.session(&session.id).await.is_err());
    assert!(stack.client.delete(&session.id).await.is_err());

    let next = stack.session().await;
    let (memory, _) = stack.bash(&next, "cat .memory/MEMORY.md; cat projects/acme/answer.txt").await;
    assert!(memory.contains("remember me") && memory.contains("42"), "{memory}");
}

#[tokio::test]
async fn as_every_user_over_anthropic_messages() {
    for who in As::all() {
        whole_life(who, "scripted").await;
    }
}

#[tokio::test]
async fn as_every_user_over_openai_chat() {
    for who in As::all() {
        whole_life(who, "scripted-chat").await;
    }
}

#[tokio::test]
async fn the_conversation_goes_on_over_turns() {
    let stack = Stack::start().await;
    for model in ["scripted", "scripted-chat"] {
        let session = stack.session_with(json!({"model": model})).await.id;
        // The second turn must be a valid request: history with calls, results
        // and thinking in it. The provider would refuse anything else.
        for n in 0..3 {
            let lines = [
                json!({"think": "hm"}),
                json!({"parallel": [
                    {"tool": "bash", "input": {"command": format!("echo turn-{n}")}},
                    {"tool": "list_files", "input": {}},
                ]}),
                json!({"expect": ".memory"}),
                json!({"say": format!("answer {n}")}),
            ];
            let turn = stack.play(&session, &lines).await;
            assert_eq!(turn.end(), EventKind::MessageCompleted, "{:?}", turn.events.last());
            assert_eq!(turn.text(), format!("answer {n}"));
            assert_eq!(turn.results()[0], format!("turn-{n}\n"));
        }
    }
}

#[tokio::test]
async fn the_tour_shows_what_it_promises() {
    let stack = Stack::start().await;
    let session = stack.session_with(json!({"file_access": {"write": ["tour/data", "tour/report"]}})).await.id;
    let turn = Turn::collect(stack.client.message(&session, "tour", None).await.unwrap()).await;
    assert_eq!(turn.end(), EventKind::MessageCompleted);
    assert!(!turn.text().contains("mismatch"), "{}", turn.text());
    assert!(turn.events.iter().all(|event| event.data["scripted"] == true));
    let report = stack.client.download(&session, "tour/report/report.md").await.unwrap().bytes().await.unwrap();
    assert!(String::from_utf8(report).unwrap().contains("| 12 | 40 |"));
}

#[tokio::test]
async fn a_message_without_a_script_gets_the_plain_reply() {
    let stack = Stack::start().await;
    let session = stack.session().await;
    let turn = Turn::collect(stack.client.message(&session, "Please prove P = NP.", None).await.unwrap()).await;
    assert_eq!(turn.end(), EventKind::MessageCompleted);
    assert!(turn.text().contains("scripted model") && turn.text().contains("do not understand"));
}
