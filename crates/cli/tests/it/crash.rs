//! Every process is killed at every point of a turn, and the turn comes out
//! the same: its end, its tools' effects, and every event that was seen.
//!
//! `CLOISTER_KILLS=1000 cargo test -p cloister-cli --test it crash` goes on
//! until so many have been killed at random; without it, a few are.

use std::path::Path;
use std::time::Duration;

use cloister_client::Event;
use cloister_testkit::{Options, Stack, Turn, kill, script};
use cloister_types::event::EventKind;
use cloister_types::{ResponseId, SessionId};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// The scripted model on the far side of the network: it survives what is
/// done to the server.
pub(crate) struct Scripted {
    port: u16,
    key: tempfile::NamedTempFile,
    task: tokio::task::JoinHandle<()>,
}

impl Scripted {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let key = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(key.path(), "far-key").unwrap();
        let task = tokio::spawn(async move { cloister_scripted::serve(listener, "far-key".into()).await.unwrap() });
        Self { port, key, task }
    }

    /// The file that holds its key.
    pub(crate) fn key(&self) -> &Path {
        self.key.path()
    }

    /// A server's configuration with this model.
    pub(crate) fn config(&self, more: &str) -> String {
        format!(
            "tenant = 'acme'\n{more}\n[[model]]\nname = 'scripted'\nwire = 'anthropic-messages'\nbase_url = 'http://127.0.0.1:{}'\n\
             allow_private = true\nkey_file = '{}'\n",
            self.port,
            self.key.path().display()
        )
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whom to kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Server,
    Egress,
    Vault,
    Spawner,
    Supervisor,
    Init,
    Agent,
}

const VICTIMS: [Victim; 7] =
    [Victim::Server, Victim::Egress, Victim::Vault, Victim::Spawner, Victim::Supervisor, Victim::Init, Victim::Agent];

impl Victim {
    fn pid(self, stack: &Stack, session: &str) -> Option<u32> {
        let processes = stack.processes();
        match self {
            Self::Server => Some(stack.pid()),
            Self::Egress => processes.egress(),
            Self::Vault => processes.vault(),
            Self::Spawner => processes.spawner(),
            Self::Supervisor => Some(processes.sandbox(session)?.supervisor),
            Self::Init => Some(processes.sandbox(session)?.init),
            Self::Agent => processes.agent(session),
        }
    }

    /// On a busy machine an event may be seen before the one who is to die of it
    /// is there.
    async fn coming(self, stack: &Stack, session: &str) -> Option<u32> {
        for _ in 0..100 {
            match self.pid(stack, session) {
                None => tokio::time::sleep(Duration::from_millis(1)).await,
                there => return there,
            }
        }
        None
    }
}

/// A turn with everything in it: reasoning, text, one tool, two side by side
/// that only read, a slow one. Each that has an effect leaves it in a file of
/// the turn's own.
fn lines(name: &str) -> Vec<Value> {
    let effect = |call: &str| json!({"tool": "bash", "input": {"command": format!("echo {call} >> effects-{name}; sleep 0.02; echo {call}")}});
    vec![
        json!({"think": "hm"}),
        json!({"say": "first a tool"}),
        effect("one"),
        json!({"say": "then two that read"}),
        json!({"parallel": [{"tool": "list_files", "input": {}}, {"tool": "list_files", "input": {"path": ".memory"}}]}),
        json!({"sleep_ms": 20}),
        effect("two"),
        json!({"say": "that was all"}),
    ]
}

/// What a client holds that keeps to the rules: void blocks dropped, what only
/// tells of recovery left out, deltas joined. Results of tools that were
/// interrupted are put down as such, and the turn's name as `*`.
fn story(events: &[Event], name: &str) -> Vec<String> {
    let mut kept: Vec<&Event> = Vec::new();
    for event in events {
        match event.kind.unwrap() {
            EventKind::TurnResumed => {
                if let Some(from) = event.data["discard_from"].as_u64() {
                    kept.retain(|event| event.seq < from);
                }
            }
            EventKind::AttemptDiscarded => {
                // The request's blocks: everything since the last result.
                let from = kept
                    .iter()
                    .rposition(|event| matches!(event.kind, Some(EventKind::ToolResult | EventKind::MessageCreated)));
                kept.truncate(from.map_or(0, |at| at + 1));
            }
            EventKind::RetryScheduled => {}
            _ => kept.push(event),
        }
    }
    let mut story: Vec<String> = Vec::new();
    for event in kept {
        let (kind, data) = (event.kind.unwrap(), &event.data);
        match kind {
            EventKind::TextDelta | EventKind::ThinkingDelta | EventKind::ToolUseInputDelta => {
                let last = story.last_mut().expect("a block is open");
                last.push_str(data["content"].as_str().unwrap());
            }
            EventKind::ToolUseExecuting => story.push(format!("{kind} {} {}", data["id"], data["input"])),
            EventKind::ToolResult if data["content"].as_str().unwrap().contains("may have had effects") => {
                story.push(format!("{kind} {} interrupted", data["id"]));
            }
            // Folders show what other turns of the test made.
            EventKind::ToolResult => story.push(format!("{kind} {} {}", data["id"], data["is_error"])),
            EventKind::MessageCompleted => story.push(format!("{kind} {}", data["stop_reason"])),
            _ => story.push(kind.to_string()),
        }
    }
    story.into_iter().map(|line| line.replace(name, "*")).collect()
}

/// Compares with the undisturbed turn, up to interrupted results; says how
/// many of those there were.
fn compare(undisturbed: &[String], disturbed: &[String], what: &str) -> usize {
    assert_eq!(disturbed.len(), undisturbed.len(), "{what}: {disturbed:#?}");
    let mut interrupted = 0;
    for (want, got) in undisturbed.iter().zip(disturbed) {
        match got.strip_suffix(" interrupted") {
            Some(call) => {
                assert!(want.starts_with(call), "{what}: {got}, not {want}");
                interrupted += 1;
            }
            None => assert_eq!(got, want, "{what}"),
        }
    }
    interrupted
}

/// Runs a turn, kills the victim when the event with that number has been
/// seen, and judges what came out. False if the turn has no such event, or the
/// victim was not there any more.
async fn round(mut stack: Stack, victim: Victim, at: u64, undisturbed: &[String]) -> (Stack, bool) {
    let session = stack.session().await;
    let name = format!("{session}-{at}");
    let what = format!("{victim:?} killed at event {at}");
    let mut events = stack.client.message(&session, &script(&lines(&name)), None).await.unwrap();
    let (id, mut seen, mut killed) = (events.turn().clone(), Vec::new(), false);
    while let Some(event) =
        tokio::time::timeout(Duration::from_secs(60), events.next()).await.expect(&what).expect(&what)
    {
        let due = event.seq == at;
        let over = event.kind.is_some_and(EventKind::is_terminal);
        seen.push(event);
        if due && !over {
            if victim == Victim::Server {
                stack.kill().await;
                stack = stack.restart().await;
                killed = true;
            } else if let Some(pid) = victim.coming(&stack, session.as_str()).await {
                kill(pid);
                killed = true;
            }
        }
    }
    assert!(seen.iter().map(|event| event.seq).eq(0..seen.len() as u64), "{what}: numbers without gaps");
    let ends = seen.iter().filter(|event| event.kind.is_some_and(EventKind::is_terminal)).count();
    assert_eq!((ends, seen.last().unwrap().kind), (1, Some(EventKind::MessageCompleted)), "{what}: {:?}", seen.last());
    let again = Turn::collect(stack.client.events(&session, &id, None).await.unwrap()).await;
    assert_eq!(again.events, seen, "{what}: seen once, seen for ever");
    let interrupted = compare(undisturbed, &story(&seen, &name), &what);
    let effects = std::fs::read_to_string(stack.workspace().join(format!("effects-{name}"))).unwrap_or_default();
    for call in ["one", "two"] {
        let count = effects.lines().filter(|line| *line == call).count();
        assert!(count == 1 || (interrupted > 0 && count == 0), "{what}: {call} had its effect {count} times");
    }
    stack.client.delete(&session).await.unwrap();
    (stack, killed)
}

async fn stack(provider: &Scripted) -> (Stack, Vec<String>, Vec<Event>) {
    let stack = Stack::with(Options { serve: true, config: Some(provider.config("")), ..Options::default() }).await;
    let session = stack.session().await;
    let turn = stack.play(&session, &lines("undisturbed")).await;
    assert_eq!(turn.end(), EventKind::MessageCompleted);
    (stack, story(&turn.events, "undisturbed"), turn.events)
}

/// Kills the victim at every event of the turn, one turn for each.
async fn at_every_event(victim: Victim) {
    let provider = Scripted::start().await;
    let (mut stack, undisturbed, events) = stack(&provider).await;
    // After the last result, all that is left comes at once: whoever sees it may be late.
    let last = events.iter().rposition(|event| event.kind == Some(EventKind::ToolResult)).unwrap();
    for at in 0..events.len() {
        // On a busy machine a turn may be further than what is seen of it.
        let mut there = false;
        for _ in 0..if at <= last { 5 } else { 1 } {
            let killed;
            (stack, killed) = round(stack, victim, at as u64, &undisturbed).await;
            there = killed;
            if killed {
                break;
            }
        }
        assert!(there || at > last, "{victim:?} was not there at event {at}");
    }
}

#[tokio::test]
async fn the_server_may_die_at_every_event() {
    at_every_event(Victim::Server).await;
}

#[tokio::test]
async fn egress_may_die_at_every_event() {
    at_every_event(Victim::Egress).await;
}

#[tokio::test]
async fn the_vault_may_die_at_every_event() {
    at_every_event(Victim::Vault).await;
}

#[tokio::test]
async fn the_spawner_may_die_at_every_event() {
    at_every_event(Victim::Spawner).await;
}

#[tokio::test]
async fn the_supervisor_may_die_at_every_event() {
    at_every_event(Victim::Supervisor).await;
}

#[tokio::test]
async fn init_may_die_at_every_event() {
    at_every_event(Victim::Init).await;
}

#[tokio::test]
async fn the_agent_may_die_at_every_event() {
    at_every_event(Victim::Agent).await;
}

/// A small generator with a seed that a failure can be repeated with.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

/// A turn that does not end: says all there is to say of it.
async fn stuck(stack: &Stack, session: &SessionId, turn: &ResponseId, what: &str) -> Turn {
    let record = stack.client.session(session).await;
    let mut events = stack.client.events(session, turn, None).await.unwrap();
    let mut last = Vec::new();
    while let Ok(Ok(Some(event))) = tokio::time::timeout(Duration::from_millis(500), events.next()).await {
        last.push(format!("{} {}", event.name, event.raw));
    }
    let (sandbox, agent) = (stack.processes().sandbox(session.as_str()), stack.processes().agent(session.as_str()));
    let run: Vec<_> = stack.run_folders();
    panic!("{what} is stuck: {record:#?}\n{last:#?}\n{sandbox:?} agent {agent:?}\n{run:#?}");
}

/// Turns of several sessions at once, and somebody killed every few dozen
/// milliseconds, sometimes several at a stroke.
#[tokio::test]
async fn anybody_may_die_at_any_time_under_load() {
    let wanted: u64 = std::env::var("CLOISTER_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let seed: u64 = std::env::var("CLOISTER_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0x5eed_c105);
    let mut random = Random(seed);
    let provider = Scripted::start().await;
    let (mut stack, undisturbed, _) = stack(&provider).await;
    let (mut kills, mut turns, mut batch) = (0, 0, 0);
    while kills < wanted {
        batch += 1;
        let mut readers = Vec::new();
        let mut sessions = Vec::new();
        for n in 0..4 {
            let session = stack.session().await;
            let name = format!("load-{batch}-{n}");
            let events = stack.client.message(&session, &script(&lines(&name)), None).await.unwrap();
            readers.push((name, session.clone(), events.turn().clone(), tokio::spawn(Turn::collect(events))));
            sessions.push(session);
        }
        // Fewer kills than would keep a turn from ever getting anywhere.
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(random.below(120))).await;
            for _ in 0..1 + random.below(2) {
                let victim = VICTIMS[random.below(VICTIMS.len() as u64) as usize];
                let session = &sessions[random.below(sessions.len() as u64) as usize];
                if victim == Victim::Server {
                    stack.kill().await;
                    tokio::time::sleep(Duration::from_millis(random.below(60))).await;
                    stack = stack.restart().await;
                    kills += 1;
                } else if let Some(pid) = victim.pid(&stack, session.as_str()) {
                    kill(pid);
                    kills += 1;
                }
            }
        }
        for (name, session, id, reader) in readers {
            let what = format!("seed {seed}, {name}");
            let turn = match tokio::time::timeout(Duration::from_secs(60), reader).await {
                Ok(turn) => turn.expect(&what),
                Err(_) => stuck(&stack, &session, &id, &what).await,
            };
            turns += 1;
            assert!(turn.events.iter().map(|event| event.seq).eq(0..turn.events.len() as u64), "{what}");
            assert_eq!(turn.end(), EventKind::MessageCompleted, "{what}: {:?}", turn.events.last());
            let again = Turn::collect(stack.client.events(&session, &id, None).await.unwrap()).await;
            assert_eq!(again.events, turn.events, "{what}");
            let interrupted = compare(&undisturbed, &story(&turn.events, &name), &what);
            let effects =
                std::fs::read_to_string(stack.workspace().join(format!("effects-{name}"))).unwrap_or_default();
            for call in ["one", "two"] {
                let count = effects.lines().filter(|line| *line == call).count();
                assert!(count == 1 || (interrupted > 0 && count == 0), "{what}: {call}: {count}");
            }
            stack.client.delete(&session).await.unwrap();
        }
    }
    println!("{kills} kills, {turns} turns, all whole");
}
