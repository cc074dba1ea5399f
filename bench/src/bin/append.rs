//! Durable appends: events a second that are on disk, beside a file that the
//! same bytes are written and synced to, one after another, on the same disk.
//! Rounds alternate, so that a busy machine is busy for both.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use cloister_bench::{median, quantiles};
use cloister_store::{Accept, Append, Idempotency, Life, LogItem, Mark, Store, StoredSession};
use cloister_types::event::{EventKind, StoredEvent};
use cloister_types::scope::FileAccess;
use cloister_types::wire::OnBusy;
use cloister_types::{ResponseId, SessionId};

const ROUND: Duration = Duration::from_millis(1500);
const ROUNDS: usize = 5;
const BYTES: usize = 300;

fn id(n: usize) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&(n as u64).to_be_bytes());
    bytes
}

fn event(seq: u64, kind: EventKind) -> LogItem {
    let data = format!("{{\"content\":\"{}\",\"sequence_number\":{seq}}}", "x".repeat(BYTES - 40));
    LogItem::Event(StoredEvent { seq, kind, data: data.into() })
}

/// Writes and syncs a second, and how long each took.
fn raw(folder: &Path) -> (f64, Vec<f64>) {
    let mut file = std::fs::File::create(folder.join("raw")).expect("a file");
    let (began, block, mut each) = (Instant::now(), [b'x'; BYTES], Vec::new());
    while began.elapsed() < ROUND {
        let start = Instant::now();
        file.write_all(&block).expect("write");
        file.sync_data().expect("fdatasync");
        each.push(start.elapsed().as_secs_f64() * 1e3);
    }
    (each.len() as f64 / began.elapsed().as_secs_f64(), each)
}

async fn writers(store: &Store, sessions: usize, first: usize) -> (f64, Vec<f64>) {
    let mut tasks = Vec::new();
    for n in first..first + sessions {
        let mut short = [0; 6];
        short.copy_from_slice(&id(n)[2..8]);
        let session = SessionId::from_random(short);
        let life = Life { born: 0.0, active: 0.0, rested: 0.0 };
        let stored = StoredSession {
            id: session.clone(),
            created_at: 0.0,
            last_activity: 0.0,
            life,
            persistent: true,
            ttl: None,
            metadata: Default::default(),
            file_access: FileAccess::everything(),
            model: "m".into(),
            context: String::new(),
            egress: Default::default(),
            connections: Vec::new(),
            metered: Default::default(),
        };
        store.add_session(stored).await.expect("a session");
        let turn = ResponseId::from_random(id(n));
        let accept = Accept {
            turn: turn.clone(),
            session,
            caller: "bench".into(),
            idempotency: None::<Idempotency>,
            on_busy: OnBusy::Reject,
            most_waiting: 0,
            items: vec![event(0, EventKind::MessageCreated)],
            now: 0.0,
            life: 0.0,
            key_life: 0.0,
        };
        store.accept_turn(accept).await.expect("a turn");
        tasks.push(turn);
    }
    let began = Instant::now();
    let tasks: Vec<_> = tasks
        .into_iter()
        .map(|turn| {
            let store = store.clone();
            tokio::spawn(async move {
                let (mut each, mut offset) = (Vec::new(), 0);
                while began.elapsed() < ROUND {
                    let start = Instant::now();
                    let items = vec![event(offset + 1, EventKind::TextDelta)];
                    let to = Mark { attempt: 1, offset: offset + 1, at_ms: 0 };
                    store.append(Append::new(turn.clone(), items, offset, to)).await.expect("append");
                    each.push(start.elapsed().as_secs_f64() * 1e3);
                    offset += 1;
                }
                each
            })
        })
        .collect();
    let mut each = Vec::new();
    for task in tasks {
        each.extend(task.await.expect("a writer"));
    }
    (each.len() as f64 / began.elapsed().as_secs_f64(), each)
}

#[tokio::main]
async fn main() {
    let folder = tempfile::Builder::new().prefix("cloister-bench-").tempdir_in(".").expect("a folder");
    println!("\n## Durable appends of {BYTES} bytes\n");
    println!("| sessions | events/s | x raw | p50 ms | p99 ms | raw writes + syncs/s | raw p50 | raw p99 |");
    println!("|---|---|---|---|---|---|---|---|");
    let store = Store::open(&folder.path().join("tenant.db"), "bench").expect("a store");
    // The write-ahead log has its size once it has been round.
    let mut first = 0;
    writers(&store, 256, first).await;
    for sessions in [1, 16, 256] {
        let (mut rates, mut raws, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        let (mut each, mut raw_each) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let (base, all) = raw(folder.path());
            raw_each.extend(all);
            first += 1000;
            let (rate, all) = writers(&store, sessions, first).await;
            each.extend(all);
            rates.push(rate);
            raws.push(base);
            ratios.push(rate / base);
        }
        let ((p50, p99), (raw50, raw99)) = (quantiles(&mut each), quantiles(&mut raw_each));
        println!(
            "| {sessions} | {:.0} | {:.1} | {p50:.2} | {p99:.2} | {:.0} | {raw50:.2} | {raw99:.2} |",
            median(&mut rates),
            median(&mut ratios),
            median(&mut raws)
        );
    }
}
