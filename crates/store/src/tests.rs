use cloister_types::event::{EventKind, StoredEvent};
use cloister_types::scope::FileAccess;
use cloister_types::transcript::{Entry, Usage};
use cloister_types::wire::TurnStatus;
use cloister_types::{ResponseId, SessionId};

use super::*;

fn session() -> StoredSession {
    StoredSession {
        id: SessionId::from_random([1; 6]),
        created_at: 1.5,
        last_activity: 1.5,
        persistent: true,
        ttl: Some(9),
        metadata: serde_json::Map::new(),
        file_access: FileAccess::everything(),
        model: "m".into(),
        context: String::new(),
    }
}

fn event(seq: u64, kind: EventKind) -> LogItem {
    LogItem::Event(StoredEvent { seq, kind, data: format!("{{\"sequence_number\":{seq}}}") })
}

fn accept(turn: u8, key: Option<(&str, u8)>) -> Accept {
    Accept {
        turn: ResponseId::from_random([turn; 12]),
        session: session().id,
        caller: "default".into(),
        idempotency: key.map(|(key, print)| Idempotency { key: key.into(), fingerprint: [print; 32] }),
        items: vec![event(0, EventKind::MessageCreated), LogItem::Entry(Entry::User { text: "hi".into() })],
        now: 10.0,
        key_life: 100.0,
    }
}

fn finish() -> Finish {
    Finish {
        status: TurnStatus::Completed,
        output_text: "done".into(),
        usage: Usage::default(),
        error: None,
        now: 20.0,
    }
}

#[tokio::test]
async fn a_turn_from_acceptance_to_its_end_survives_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tenant.db");
    let turn = ResponseId::from_random([1; 12]);
    {
        let store = Store::open(&path, "acme").unwrap();
        store.add_session(session()).await.unwrap();
        assert_eq!(store.accept_turn(accept(1, None)).await.unwrap(), Acceptance::Accepted);
        assert_eq!(store.accept_turn(accept(2, None)).await.unwrap(), Acceptance::Busy);
        store.append(&turn, vec![event(1, EventKind::TextStart)], None).await.unwrap();
        assert!(
            store.append(&turn, vec![event(1, EventKind::TextStop)], None).await.is_err(),
            "a number is given once"
        );
        store.append(&turn, vec![event(2, EventKind::MessageCompleted)], Some(finish())).await.unwrap();
    }
    let store = Store::open(&path, "acme").unwrap();
    let seqs: Vec<u64> = store.events(&turn, 1, 10).await.unwrap().iter().map(|event| event.seq).collect();
    assert_eq!(seqs, [1, 2]);
    assert_eq!(store.last_seq(&turn).await.unwrap(), Some(2));
    assert_eq!(store.last_ended(&session().id).await.unwrap().unwrap().output_text, "done");
    assert_eq!(store.conversation(&session().id).await.unwrap(), [Entry::User { text: "hi".into() }]);
    assert!(store.open_turns().await.unwrap().is_empty());
    assert_eq!(store.sessions().await.unwrap(), [StoredSession { last_activity: 20.0, ..session() }]);
    assert!(matches!(Store::open(&path, "other").err(), Some(StoreError::Foreign(_))));
}

#[tokio::test]
async fn racing_retries_with_one_key_make_one_turn() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("tenant.db"), "acme").unwrap();
    store.add_session(session()).await.unwrap();
    let outcomes = futures(&store, (1..=20).map(|n| accept(n, Some(("k", 7)))).collect()).await;
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Acceptance::Accepted).count(), 1);
    assert_eq!(outcomes.iter().filter(|outcome| matches!(outcome, Acceptance::Replayed(_))).count(), 19);
    assert_eq!(store.accept_turn(accept(30, Some(("k", 8)))).await.unwrap(), Acceptance::Mismatch);
    // Another caller's key is another key; an expired one is none.
    let other = Accept { caller: "b".into(), ..accept(31, Some(("k", 8))) };
    assert_eq!(store.accept_turn(other).await.unwrap(), Acceptance::Busy);
    let late = Accept { now: 1000.0, ..accept(32, Some(("k", 8))) };
    assert_eq!(store.accept_turn(late).await.unwrap(), Acceptance::Busy);
}

async fn futures(store: &Store, accepts: Vec<Accept>) -> Vec<Acceptance> {
    let tasks: Vec<_> = accepts
        .into_iter()
        .map(|accept| {
            let store = store.clone();
            tokio::spawn(async move { store.accept_turn(accept).await.unwrap() })
        })
        .collect();
    let mut outcomes = Vec::new();
    for task in tasks {
        outcomes.push(task.await.unwrap());
    }
    outcomes
}

#[tokio::test]
async fn a_deleted_session_keeps_its_rows_until_the_purge() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("tenant.db"), "acme").unwrap();
    store.add_session(session()).await.unwrap();
    store.accept_turn(accept(1, None)).await.unwrap();
    store.delete_session(&session().id, 50.0).await.unwrap();
    let turn = ResponseId::from_random([1; 12]);
    assert!(store.sessions().await.unwrap().is_empty());
    assert_eq!(store.events(&turn, 0, 10).await.unwrap().len(), 1);
    store.purge(51.0, 51.0).await.unwrap();
    assert!(store.events(&turn, 0, 10).await.unwrap().is_empty());
    assert_eq!(store.turn(&turn).await.unwrap(), None);
}
