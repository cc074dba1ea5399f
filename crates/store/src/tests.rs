use std::path::Path;

use cloister_types::event::{EventKind, StoredEvent};
use cloister_types::scope::FileAccess;
use cloister_types::transcript::{Entry, Usage};
use cloister_types::wire::{OnBusy, TurnStatus};
use cloister_types::{ResponseId, SessionId};

use super::*;

fn session() -> StoredSession {
    StoredSession {
        id: SessionId::from_random([1; 6]),
        created_at: 1.5,
        last_activity: 1.5,
        life: Life { born: 1.0, active: 1.0, rested: 1.0 },
        persistent: true,
        ttl: Some(9),
        metadata: serde_json::Map::new(),
        file_access: FileAccess::everything(),
        model: "m".into(),
        context: String::new(),
        egress: Default::default(),
        connections: Vec::new(),
        metered: Default::default(),
    }
}

fn turn(n: u8) -> ResponseId {
    ResponseId::from_random([n; 12])
}

fn event(seq: u64, kind: EventKind) -> LogItem {
    LogItem::Event(StoredEvent { seq, kind, data: format!("{{\"sequence_number\":{seq}}}").into() })
}

fn accept(n: u8, key: Option<(&str, u8)>) -> Accept {
    Accept {
        turn: turn(n),
        session: session().id,
        caller: "default".into(),
        idempotency: key.map(|(key, print)| Idempotency { key: key.into(), fingerprint: [print; 32] }),
        on_busy: OnBusy::Reject,
        most_waiting: 2,
        items: vec![event(0, EventKind::MessageCreated), LogItem::Entry(Entry::User { text: "hi".into() })],
        now: 10.0,
        life: 10.0,
        key_life: 100.0,
    }
}

fn finish() -> Finish {
    Finish {
        status: TurnStatus::Completed,
        output_text: "done".into(),
        usage: Usage::default(),
        metered: None,
        error: None,
        now: 20.0,
        life: 19.0,
    }
}

fn mark(offset: u64) -> Mark {
    Mark { attempt: 1, offset, at_ms: offset }
}

fn append(n: u8, items: Vec<LogItem>, from: u64, to: u64) -> Append {
    Append::new(turn(n), items, from, mark(to))
}

fn ends(n: u8, seq: u64, from: u64) -> Append {
    append(n, vec![event(seq, EventKind::MessageCompleted)], from, from).finish(finish())
}

async fn opened(path: &Path) -> Store {
    let store = Store::open(path, "acme").unwrap();
    store.add_session(session()).await.unwrap();
    store
}

#[tokio::test]
async fn a_turn_from_acceptance_to_its_end_survives_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tenant.db");
    {
        let store = opened(&path).await;
        assert_eq!(store.accept_turn(accept(1, None)).await.unwrap(), Acceptance::Begun);
        assert_eq!(store.accept_turn(accept(2, None)).await.unwrap(), Acceptance::Busy);
        store.append(append(1, vec![event(1, EventKind::TextStart)], 0, 7)).await.unwrap();
    }
    // An open turn, then an ended one.
    let store = Store::open(&path, "acme").unwrap();
    let (items, at) = store.log_of_open(&turn(1)).await.unwrap();
    assert_eq!((items.len(), at), (3, mark(7)));
    assert_eq!(items[1], LogItem::Entry(Entry::User { text: "hi".into() }));
    store.append(ends(1, 2, 7)).await.unwrap();
    assert!(matches!(store.append(ends(1, 3, 7)).await, Err(StoreError::Ended)));
    drop(store);
    let store = Store::open(&path, "acme").unwrap();
    let seqs: Vec<u64> = store.events(&turn(1), 1, 10).await.unwrap().iter().map(|event| event.seq).collect();
    assert_eq!(seqs, [1, 2]);
    assert_eq!(store.next_seq(&turn(1)).await.unwrap(), Some(3));
    assert_eq!(store.last_ended(&session().id).await.unwrap().0.unwrap().output_text, "done");
    assert_eq!(store.conversation(&session().id).await.unwrap(), [Entry::User { text: "hi".into() }]);
    assert!(store.open_turns().await.unwrap().is_empty());
    let life = Life { born: 1.0, active: 19.0, rested: 19.0 };
    assert_eq!(store.sessions().await.unwrap(), [StoredSession { last_activity: 20.0, life, ..session() }]);
    assert_eq!(store.verify().await.unwrap(), 3);
    assert!(matches!(Store::open(&path, "other").err(), Some(StoreError::Foreign(_))));
}

#[tokio::test]
async fn only_the_present_attempt_may_append_and_only_where_the_log_ends() {
    let folder = tempfile::tempdir().unwrap();
    let store = opened(&folder.path().join("tenant.db")).await;
    store.accept_turn(accept(1, None)).await.unwrap();
    store.append(append(1, vec![event(1, EventKind::TextStart)], 0, 50)).await.unwrap();
    for wrong in [
        append(1, vec![event(2, EventKind::TextStop)], 0, 60),
        append(1, vec![event(1, EventKind::TextStop)], 50, 60),
        append(1, vec![event(3, EventKind::TextStop)], 50, 60),
        Append::new(turn(1), vec![event(2, EventKind::TextStop)], 50, Mark { attempt: 2, ..mark(60) }),
    ] {
        assert!(matches!(store.append(wrong).await, Err(StoreError::Stale)));
    }
    let resumed = Append::at(turn(1), vec![event(2, EventKind::TextStop)], mark(50)).renew();
    store.append(resumed).await.unwrap();
    // The old attempt's supervisor may still be writing somewhere.
    assert!(matches!(
        store.append(append(1, vec![event(3, EventKind::TextStart)], 50, 60)).await,
        Err(StoreError::Stale)
    ));
    let (items, at) = store.log_of_open(&turn(1)).await.unwrap();
    assert_eq!((items.len(), at), (4, Mark { attempt: 2, offset: 0, at_ms: 50 }));
    assert_eq!(store.turn(&turn(1)).await.unwrap().unwrap().attempt, 2);
    // Two appends at once: one of them is not where it believes to be.
    let at = |seq| {
        Append::new(turn(1), vec![event(seq, EventKind::TextStart)], 0, Mark { attempt: 2, offset: 9, at_ms: 60 })
    };
    let (a, b) = tokio::join!(store.append(at(3)), store.append(at(3)));
    assert!(a.is_ok() != b.is_ok());
}

#[tokio::test]
async fn a_long_turn_is_packed_as_it_goes_and_reads_the_same_from_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tenant.db");
    let store = opened(&path).await;
    store.accept_turn(accept(1, None)).await.unwrap();
    let data = |seq: u64| -> std::sync::Arc<str> { format!("{{\"content\":\"{seq}{}\"}}", "x".repeat(900)).into() };
    let (mut offset, mut all) = (0, store.events(&turn(1), 0, 9).await.unwrap());
    for seq in 1..1500 {
        let event = StoredEvent { seq, kind: EventKind::TextDelta, data: data(seq) };
        let mut items = vec![LogItem::Event(event.clone())];
        if seq % 100 == 0 {
            items.insert(0, LogItem::Intent(vec![seq.to_string()]));
        }
        store.append(append(1, items, offset, offset + 1)).await.unwrap();
        offset += 1;
        all.push(event);
    }
    let read = async |store: &Store, from: u64| {
        let mut events: Vec<StoredEvent> = Vec::new();
        loop {
            let next = events.last().map_or(from, |last| last.seq + 1);
            let page = store.events(&turn(1), next, 64).await.unwrap();
            assert!(page.iter().map(|event| event.data.len()).sum::<usize>() <= 300 << 10);
            if page.is_empty() {
                return events;
            }
            events.extend(page);
        }
    };
    let (items, _) = store.log_of_open(&turn(1)).await.unwrap();
    let chunks: i64 = rusqlite::Connection::open(&path)
        .unwrap()
        .query_row("SELECT count(*) FROM chunk", [], |row| row.get(0))
        .unwrap();
    assert!(chunks >= 4, "{chunks}");
    for from in [0, 1, 255, 256, 700, 1499] {
        assert_eq!(read(&store, from).await, all[from as usize..]);
    }
    drop(store);
    let store = Store::open(&path, "acme").unwrap();
    assert_eq!(store.log_of_open(&turn(1)).await.unwrap().0, items, "the order of entries and events, too");
    assert_eq!(read(&store, 0).await, all);
    store.append(ends(1, 1500, offset)).await.unwrap();
    assert_eq!(read(&store, 0).await[..1500], all);
    let rows: i64 =
        rusqlite::Connection::open(&path).unwrap().query_row("SELECT count(*) FROM log", [], |row| row.get(0)).unwrap();
    assert_eq!((rows, store.verify().await.unwrap()), (0, 1501));
}

#[tokio::test]
async fn racing_retries_with_one_key_make_one_turn() {
    let folder = tempfile::tempdir().unwrap();
    let store = opened(&folder.path().join("tenant.db")).await;
    let tasks: Vec<_> = (1..=20)
        .map(|n| {
            let (store, accept) = (store.clone(), accept(n, Some(("k", 7))));
            tokio::spawn(async move { store.accept_turn(accept).await.unwrap() })
        })
        .collect();
    let mut outcomes = Vec::new();
    for task in tasks {
        outcomes.push(task.await.unwrap());
    }
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Acceptance::Begun).count(), 1);
    assert_eq!(outcomes.iter().filter(|outcome| matches!(outcome, Acceptance::Replayed(_))).count(), 19);
    assert_eq!(store.accept_turn(accept(30, Some(("k", 8)))).await.unwrap(), Acceptance::Mismatch);
    // Another caller's key is another key; an expired one is none.
    let other = Accept { caller: "b".into(), ..accept(31, Some(("k", 8))) };
    assert_eq!(store.accept_turn(other).await.unwrap(), Acceptance::Busy);
    let late = Accept { life: 1000.0, ..accept(32, Some(("k", 8))) };
    assert_eq!(store.accept_turn(late).await.unwrap(), Acceptance::Busy);
}

#[tokio::test]
async fn turns_wait_in_order_an_interrupting_one_in_front_and_no_more_than_may() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tenant.db");
    let store = opened(&path).await;
    let queued = |n| Accept { on_busy: OnBusy::Queue, ..accept(n, None) };
    assert_eq!(store.accept_turn(queued(1)).await.unwrap(), Acceptance::Begun, "nothing to wait for");
    assert_eq!(store.accept_turn(queued(2)).await.unwrap(), Acceptance::Waiting);
    let urgent = Accept { on_busy: OnBusy::Interrupt, ..accept(3, None) };
    assert_eq!(store.accept_turn(urgent).await.unwrap(), Acceptance::Waiting);
    assert!(store.turn(&turn(1)).await.unwrap().unwrap().cancelling);
    assert_eq!(store.accept_turn(queued(4)).await.unwrap(), Acceptance::QueueFull);
    assert_eq!(store.begin_next(&session().id).await.unwrap(), None, "one is open");
    drop(store);
    let store = Store::open(&path, "acme").unwrap();
    let order: Vec<ResponseId> = store.open_turns().await.unwrap().into_iter().map(|turn| turn.id).collect();
    assert_eq!(order, [turn(1), turn(3), turn(2)]);
    assert_eq!(store.append(ends(1, 1, 0)).await.unwrap(), Some(turn(3)));
    assert_eq!(store.accept_turn(accept(5, None)).await.unwrap(), Acceptance::Busy);
    // One that waits may end without having begun.
    assert_eq!(store.append(ends(2, 1, 0)).await.unwrap(), None);
    assert_eq!(store.append(ends(3, 1, 0)).await.unwrap(), None);
    let begun: Vec<_> = store.begun_turns(&session().id, 0, 9).await.unwrap().into_iter().map(|turn| turn.id).collect();
    assert_eq!(begun, [turn(1), turn(3)]);
    assert_eq!(store.accept_turn(accept(6, None)).await.unwrap(), Acceptance::Begun);
}

#[tokio::test]
async fn a_deleted_session_keeps_its_rows_until_the_purge() {
    let folder = tempfile::tempdir().unwrap();
    let store = opened(&folder.path().join("tenant.db")).await;
    store.accept_turn(accept(1, None)).await.unwrap();
    store.append(ends(1, 1, 0)).await.unwrap();
    store.delete_session(&session().id, 50.0).await.unwrap();
    assert!(store.sessions().await.unwrap().is_empty());
    assert_eq!(store.events(&turn(1), 0, 10).await.unwrap().len(), 2);
    store.purge(51.0, 51.0).await.unwrap();
    assert!(store.events(&turn(1), 0, 10).await.unwrap().is_empty());
    assert_eq!(store.turn(&turn(1)).await.unwrap(), None);
}

#[tokio::test]
async fn a_database_of_the_first_version_is_brought_up_to_date() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tenant.db");
    let old = rusqlite::Connection::open(&path).unwrap();
    old.execute_batch(include_str!("../migrations/0001_init.sql")).unwrap();
    let (s, ended, open) = (session().id, turn(1), turn(2));
    old.execute_batch(&format!(
        "PRAGMA user_version = 1;
         INSERT INTO meta VALUES ('tenant', 'acme');
         INSERT INTO session VALUES ('{s}', 1.5, 3.5, 1, NULL, '{{}}', '{{\"read\":[\"\"],\"write\":[\"\"]}}', 'm', '', NULL);
         INSERT INTO turn VALUES ('{ended}', '{s}', 2.0, 'completed', 'done', '{{}}', NULL, 3.5);
         INSERT INTO turn VALUES ('{open}', '{s}', 3.0, 'in_progress', '', '{{}}', NULL, NULL);
         INSERT INTO log (turn, seq, kind, body) VALUES
           ('{ended}', 0, 'message.created', '{{}}'), ('{ended}', NULL, 'entry', '{{\"role\":\"user\",\"text\":\"hi\"}}'),
           ('{ended}', 1, 'message.completed', '{{}}'),
           ('{open}', 0, 'message.created', '{{}}'), ('{open}', NULL, 'entry', '{{\"role\":\"user\",\"text\":\"on\"}}');"
    ))
    .unwrap();
    drop(old);
    let store = Store::open(&path, "acme").unwrap();
    assert_eq!(store.events(&ended, 0, 9).await.unwrap().len(), 2);
    assert_eq!(store.conversation(&s).await.unwrap(), [Entry::User { text: "hi".into() }]);
    assert_eq!(store.entries(&open).await.unwrap(), [Entry::User { text: "on".into() }]);
    assert_eq!(store.sessions().await.unwrap()[0].life.active, 3.5);
    store.append(ends(2, 1, 0)).await.unwrap();
    assert_eq!(store.verify().await.unwrap(), 4);
}

/// A database whose last commits are only in its write-ahead log, as a killed
/// server leaves it; with the numbers of its turn's events.
async fn abandoned(folder: &Path) -> Vec<StoredEvent> {
    let path = folder.join("live/tenant.db");
    std::fs::create_dir_all(folder.join("live")).unwrap();
    let store = opened(&path).await;
    store.accept_turn(accept(1, None)).await.unwrap();
    for seq in 1..6 {
        store.append(append(1, vec![event(seq, EventKind::TextDelta)], seq - 1, seq)).await.unwrap();
    }
    let events = store.events(&turn(1), 0, 99).await.unwrap();
    // Copied while open: closing would fold the log into the database.
    for name in ["tenant.db", "tenant.db-wal"] {
        std::fs::copy(folder.join("live").join(name), folder.join(name)).unwrap();
    }
    events
}

/// Opens what is there: its events must be the first of those that were written.
async fn check_prefix(path: &Path, written: &[StoredEvent]) -> usize {
    let store = Store::open(path, "acme").expect("the database opens");
    let events = store.events(&turn(1), 0, 99).await.expect("what is there is whole");
    assert_eq!(events, written[..events.len()]);
    events.len()
}

/// Opens copies of an abandoned database, one after another in one folder.
struct Reopened<'a> {
    folder: std::path::PathBuf,
    abandoned: &'a Path,
    written: &'a [StoredEvent],
    runtime: tokio::runtime::Runtime,
}

impl<'a> Reopened<'a> {
    fn new(folder: std::path::PathBuf, abandoned: &'a Path, written: &'a [StoredEvent]) -> Self {
        std::fs::create_dir(&folder).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        Self { folder, abandoned, written, runtime }
    }

    /// How many events are there with this write-ahead log.
    fn with(&self, wal: &[u8]) -> usize {
        // The reserve may stay: it holds nothing, and is slow to make.
        let _ = std::fs::remove_file(self.folder.join("tenant.db-shm"));
        let path = self.folder.join("tenant.db");
        std::fs::copy(self.abandoned.join("tenant.db"), &path).unwrap();
        std::fs::write(self.folder.join("tenant.db-wal"), wal).unwrap();
        self.runtime.block_on(check_prefix(&path, self.written))
    }
}

#[test]
fn a_tail_cut_or_changed_at_any_byte_leaves_a_prefix() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let written = runtime.block_on(abandoned(folder.path()));
    let wal = std::fs::read(folder.path().join("tenant.db-wal")).unwrap();
    let whole = Reopened::new(folder.path().join("whole"), folder.path(), &written);
    assert_eq!(whole.with(&wal), written.len());
    // The last two pages that were written, every byte of them.
    let tail = wal.len() - 2 * (4096 + 24);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let shorter: usize = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                let (wal, written, folder) = (&wal, &written, folder.path());
                scope.spawn(move || {
                    let copy = Reopened::new(folder.join(worker.to_string()), folder, written);
                    let mut shorter = 0;
                    for at in (tail..wal.len()).skip(worker).step_by(threads) {
                        shorter += usize::from(copy.with(&wal[..at]) < written.len());
                        let mut changed = wal.clone();
                        changed[at] ^= 0x10;
                        shorter += usize::from(copy.with(&changed) < written.len());
                    }
                    shorter
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    assert_eq!(shorter, 2 * (wal.len() - tail), "every one must show");
}

#[tokio::test]
async fn a_changed_bit_in_the_middle_is_refused_and_nothing_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tenant.db");
    let store = opened(&path).await;
    for n in 1..=2 {
        store.accept_turn(accept(n, None)).await.unwrap();
        store.append(append(n, vec![event(1, EventKind::TextStart)], 0, 1)).await.unwrap();
        if n == 1 {
            store.append(ends(n, 2, 1)).await.unwrap();
        }
    }
    drop(store);
    let db = rusqlite::Connection::open(&path).unwrap();
    let tamper = |text: &str| assert_eq!(db.execute(text, []).unwrap(), 1, "{text}");
    let mut noticed = 0;
    for (change, undo) in [
        ("UPDATE chunk SET next = next + 1", "UPDATE chunk SET next = next - 1"),
        ("UPDATE chunk SET crc = crc + 1", "UPDATE chunk SET crc = crc - 1"),
        ("UPDATE chunk SET turn = turn + 5", "UPDATE chunk SET turn = turn - 5"),
        ("UPDATE turn SET last_seq = 3 WHERE last_seq = 2", "UPDATE turn SET last_seq = 2 WHERE last_seq = 3"),
        ("UPDATE turn SET last_seq = NULL WHERE last_seq = 2", "UPDATE turn SET last_seq = 2 WHERE key = 1"),
    ] {
        tamper(change);
        let store = Store::open(&path, "acme").unwrap();
        let read = async {
            store.events(&turn(1), 0, 9).await?;
            store.events(&turn(1), 3, 9).await
        };
        noticed += usize::from(matches!(read.await, Err(StoreError::Damaged(_))));
        assert!(matches!(store.verify().await, Err(StoreError::Damaged(_))), "{change}");
        assert!(store.events(&turn(2), 0, 9).await.is_ok(), "others are not touched");
        drop(store);
        tamper(undo);
    }
    assert_eq!(noticed, 5);
    for change in [
        "UPDATE log SET body = '{\"sequence_number\":8}' WHERE seq = 1 AND kind = 'text.start'",
        "UPDATE log SET kind = 'text.stop' WHERE seq = 1 AND kind = 'text.start'",
        "UPDATE log SET mark = 4096 WHERE seq = 1 AND kind = 'text.start'",
        "DELETE FROM log WHERE seq = 0",
    ] {
        db.execute_batch("SAVEPOINT before").unwrap();
        db.execute_batch("CREATE TABLE kept AS SELECT * FROM log; RELEASE before").unwrap();
        tamper(change);
        let rows = |db: &rusqlite::Connection| {
            db.query_row("SELECT count(*) FROM log", [], |row| row.get::<_, i64>(0)).unwrap()
        };
        let before = rows(&db);
        let store = Store::open(&path, "acme").unwrap();
        assert!(matches!(store.events(&turn(2), 0, 9).await, Err(StoreError::Damaged(_))), "{change}");
        let more = append(2, vec![event(2, EventKind::TextStop)], 1, 2);
        assert!(matches!(store.append(more).await, Err(StoreError::Damaged(_))));
        drop(store);
        assert_eq!(rows(&db), before, "nothing is cut");
        db.execute_batch("DELETE FROM log; INSERT INTO log SELECT * FROM kept; DROP TABLE kept").unwrap();
    }
}

#[tokio::test]
async fn a_copy_made_meanwhile_is_a_store_of_one_moment() {
    let folder = tempfile::tempdir().unwrap();
    let (path, copy) = (folder.path().join("tenant.db"), folder.path().join("copy.db"));
    let store = opened(&path).await;
    store.accept_turn(accept(1, None)).await.unwrap();
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            for seq in 1..300 {
                store.append(append(1, vec![event(seq, EventKind::TextDelta)], seq - 1, seq)).await.unwrap();
            }
        }
    });
    while store.next_seq(&turn(1)).await.unwrap() < Some(20) {
        tokio::task::yield_now().await;
    }
    let (from, to) = (path.clone(), copy.clone());
    tokio::task::spawn_blocking(move || Store::copy(&from, &to)).await.unwrap().unwrap();
    writer.await.unwrap();
    let copied = Store::open(&copy, "acme").unwrap();
    let (items, at) = copied.log_of_open(&turn(1)).await.unwrap();
    assert!(at.offset >= 19, "{at:?}");
    assert_eq!(items.len() as u64, at.offset + 2);
}
