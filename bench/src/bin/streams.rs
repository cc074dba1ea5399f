//! Open streams: what one costs, and how long an event takes from the moment
//! at which a tool ended, over the agent, the spool and the commit, to its
//! subscribers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cloister_bench::{Server, quantiles, script};
use cloister_types::wire::CreateSession;
use cloister_types::{ResponseId, SessionId};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Reads a stream and notes, for each result that holds a time, how old it is.
async fn listen(
    address: String,
    key: String,
    session: SessionId,
    turn: ResponseId,
    opened: Arc<AtomicU64>,
    ages: Arc<Mutex<Vec<f64>>>,
    from: f64,
) {
    let Ok(mut socket) = TcpStream::connect(&address).await else { return };
    let head = format!(
        "GET /v1/sessions/{session}/responses/{turn}/events HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\nauthorization: Bearer {key}\r\n\r\n"
    );
    if socket.write_all(head.as_bytes()).await.is_err() {
        return;
    }
    let mut buffer = vec![0; 2048];
    let mut first = true;
    let mut mine = Vec::new();
    while let Ok(got @ 1..) = socket.read(&mut buffer).await {
        let at = now();
        if std::mem::take(&mut first) {
            opened.fetch_add(1, Ordering::Relaxed);
        }
        let text = String::from_utf8_lossy(&buffer[..got]);
        for piece in text.split("\"content\":\"T").skip(1) {
            let digits: String = piece.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
            if let Ok(time) = digits.parse::<f64>()
                && time > from
            {
                mine.push((at - time) * 1e3);
            }
        }
    }
    ages.lock().await.extend(mine);
}

/// A command that says the time once a second, each session at a moment of its
/// own: what is measured is how events spread, not how sessions collide.
fn tick(session: usize, sessions: usize) -> String {
    let at = session * 1_000_000 / sessions;
    format!(
        "t=$EPOCHREALTIME; printf -v d 0.%06d $(( (1000000 + {at} - 10#${{t#*.}}) % 1000000 )); sleep $d; echo T$EPOCHREALTIME"
    )
}

async fn measure(sessions: usize, each: usize) {
    let server = Server::start("[limits]\nlive_sessions = 200\n");
    let client = server.client();
    let seconds = 14;
    let mut turns = Vec::new();
    for n in 0..sessions {
        let tool = json!({"tool": "bash", "input": {"command": tick(n, sessions)}});
        let lines: Vec<_> = (0..seconds).map(|_| tool.clone()).collect();
        let session = client.create(&CreateSession::default()).await.expect("a session").id;
        let events = client.message(&session, &script(&lines), None).await.expect("a turn");
        turns.push((session, events.turn().clone()));
    }
    let before = server.resident();
    let (opened, ages) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Vec::new())));
    let began = now();
    // Counted from the moment at which everybody has surely arrived.
    let from = began + 5.0;
    let mut readers = Vec::new();
    for (session, turn) in &turns {
        for _ in 0..each {
            let (address, key) = (server.address().to_owned(), server.key.clone());
            let (session, turn) = (session.clone(), turn.clone());
            readers.push(tokio::spawn(listen(address, key, session, turn, opened.clone(), ages.clone(), from)));
            if readers.len() % 200 == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
    let total = (sessions * each) as u64;
    while opened.load(Ordering::Relaxed) < total && now() < from {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (arrived, took) = (opened.load(Ordering::Relaxed), now() - began);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let per_stream = (server.resident() - before) / total as f64;
    for reader in readers {
        let _ = reader.await;
    }
    let mut ages = ages.lock().await;
    let (p50, p99) = quantiles(&mut ages);
    println!(
        "| {sessions} x {each} | {arrived} in {took:.1} s | {} | {p50:.2} | {p99:.2} | {:.1} | {per_stream:.1} |",
        ages.len(),
        p99 / p50
    );
}

#[tokio::main]
async fn main() {
    println!("\n## Streams: a tool's end to its event at the subscribers\n");
    println!("| sessions x subscribers | streams opened | deliveries | p50 ms | p99 ms | p99/p50 | KiB a stream |");
    println!("|---|---|---|---|---|---|---|");
    for (sessions, each) in [(1, 1), (1, 100), (1, 1000), (10, 1000), (100, 100)] {
        measure(sessions, each).await;
    }
}
