//! A killed server with many turns in flight: how long until the next one
//! answers, has taken them all over, and a waiting client hears again; and a
//! tenant with very many idle sessions.

use std::time::{Duration, Instant};

use cloister_bench::{Server, median, quantiles, script};
use cloister_types::wire::{CreateSession, TurnStatus};
use serde_json::json;

async fn in_flight(turns: usize) {
    let config = format!("[limits]\nlive_sessions = {}\n", turns + 10);
    let mut server = Server::start(&config);
    let client = server.client();
    let tool = json!({"tool": "bash", "input": {"command": "while [ ! -e go ]; do sleep 1; done"}});
    let message = script(&[tool, json!({"say": "end"})]);
    let mut all = Vec::new();
    for _ in 0..turns {
        let session = client.create(&CreateSession::default()).await.expect("a session").id;
        let mut events = client.message(&session, &message, None).await.expect("a turn");
        while !events.next().await.expect("events").expect("more").name.ends_with("executing") {}
        all.push((session, events.turn().clone(), events.last()));
    }
    // Each tool has begun, and sleeps.
    tokio::time::sleep(Duration::from_secs(3)).await;
    server.kill();
    let ready = server.launch().as_secs_f64();
    let asked = Instant::now();
    let busy = server.client().sessions().await.expect("a list").iter().filter(|session| session.busy).count();
    let listed = asked.elapsed().as_secs_f64();
    std::fs::write(server.workspace().join("go"), "").expect("the sign");
    let client = server.client();
    let mut completed = 0;
    let mut resumed = 0;
    for (session, turn, _) in &all {
        let response = client.response(session, turn, 60).await.expect("a response");
        completed += usize::from(response.status == TurnStatus::Completed);
        if response.attempts > 1 {
            resumed += 1;
            let mut events = client.events(session, turn, None).await.expect("events");
            while let Some(event) = events.next().await.expect("an event") {
                if event.name == "turn.resumed" {
                    eprintln!("begun anew: {}", event.data["cause"]);
                }
            }
        }
    }
    println!("| {turns} | {ready:.2} | {listed:.2} | {busy} | {completed} | {resumed} |");
}

async fn idle(sessions: usize) {
    let mut server = Server::start("[limits]\nsandbox_idle_seconds = 1\n");
    let client = server.client();
    let empty = server.resident();
    let began = Instant::now();
    let mut all = Vec::new();
    for n in 0..sessions {
        let session = client.create(&CreateSession::default()).await.expect("a session").id;
        if n % 100 == 0 {
            let mut events = client.message(&session, &script(&[json!({"say": "kept"})]), None).await.expect("a turn");
            while events.next().await.expect("events").is_some() {}
        }
        all.push(session);
    }
    let created = began.elapsed().as_secs_f64();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let each = (server.resident() - empty) / sessions as f64;
    server.kill();
    let ready = server.launch().as_secs_f64();
    let after = (server.resident() - empty) / sessions as f64;
    let client = server.client();
    let mut wakes = Vec::new();
    for session in all.iter().step_by(sessions / 100) {
        let asked = Instant::now();
        let mut events = client.message(session, &script(&[json!({"say": "awake"})]), None).await.expect("a turn");
        while events.next().await.expect("events").expect("more").name != "text.start" {}
        wakes.push(asked.elapsed().as_secs_f64() * 1e3);
        while events.next().await.expect("events").is_some() {}
    }
    let (p50, p99) = quantiles(&mut wakes);
    println!("\n## Idle sessions\n");
    println!(
        "| sessions | created in s | KiB a session | after a restart | ready after the kill, s | wake to first word, ms p50 | p99 |"
    );
    println!("|---|---|---|---|---|---|---|");
    println!("| {sessions} | {created:.0} | {each:.1} | {after:.1} | {ready:.2} | {p50:.1} | {p99:.1} |");
}

#[tokio::main]
async fn main() {
    println!("\n## Turns in flight at a kill -9 of the server\n");
    println!(
        "| turns | next server ready and all adopted, s | listing them, s | still busy | completed | begun anew |"
    );
    println!("|---|---|---|---|---|---|");
    let most = std::env::var("TURNS").ok().and_then(|text| text.parse().ok()).unwrap_or(1000);
    for turns in [10, most / 10, most] {
        in_flight(turns).await;
    }
    let mut ready: Vec<f64> = Vec::new();
    for _ in 0..5 {
        let mut server = Server::start("");
        server.kill();
        ready.push(server.launch().as_secs_f64() * 1e3);
    }
    println!("\nWith nothing in flight the next server is ready after {:.0} ms (median of 5).", median(&mut ready));
    idle(std::env::var("SESSIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(10_000)).await;
}
