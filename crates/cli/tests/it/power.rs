//! A power cut: everything that was not on the disk is gone, and so is every
//! process. In the same cut, a writer that does not sync must lose what it has
//! acknowledged; else the rig would prove nothing.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cloister_testkit::{Options, Stack, Turn, is_gone, kill, script};
use cloister_types::event::EventKind;
use serde_json::json;

use crate::crash::Scripted;
use crate::disk::{SmallDisk, same_folder};

/// Writes lines without a sync and counts them as written.
fn control(path: std::path::PathBuf, stop: Arc<AtomicBool>) -> (std::thread::JoinHandle<()>, Arc<AtomicU64>) {
    let written = Arc::new(AtomicU64::new(0));
    let count = written.clone();
    let thread = std::thread::spawn(move || {
        let mut file = std::fs::File::create(path).unwrap();
        while !stop.load(Ordering::Relaxed) && writeln!(file, "{:020}", count.load(Ordering::Relaxed)).is_ok() {
            count.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    (thread, written)
}

#[tokio::test]
async fn nothing_that_was_seen_is_lost_by_a_power_cut_and_the_turn_goes_on() {
    let mut control_lost = 0;
    for round in 0..4u64 {
        let Some(disk) = SmallDisk::mount(160) else { return };
        let provider = Scripted::start().await;
        let options = Options { serve: true, config: Some(provider.config("")), ..Options::default() };
        let folder = disk.folder();
        std::fs::write(folder.path().join("config.toml"), provider.config("")).unwrap();
        let mut stack = Stack::on(folder, options.clone()).await;
        let session = stack.session().await;
        let tool = |n: u32| json!({"tool": "bash", "input": {"command": format!("echo {n} >> effects; sync effects; sleep 0.05")}});
        let mut lines = Vec::new();
        for n in 0..12 {
            lines.extend([json!({"say": format!("step {n} of a turn that is cut")}), tool(n)]);
        }
        lines.push(json!({"say": "end"}));
        let mut events = stack.client.message(&session, &script(&lines), Some("power")).await.unwrap();
        let turn = events.turn().clone();
        let stop = Arc::new(AtomicBool::new(false));
        let (writer, acknowledged) = control(disk.at.join("control"), stop.clone());
        let cut_at = Instant::now() + Duration::from_millis(150 + round * 170);
        let mut seen = Vec::new();
        while let Ok(event) = tokio::time::timeout_at(cut_at.into(), events.next()).await {
            seen.push(event.unwrap().expect("the turn is longer than this"));
        }
        // What was acknowledged before the cut, and nothing after it, counts.
        let acknowledged = acknowledged.load(Ordering::Relaxed);
        disk.cut_power();
        drop(events);
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        let dead: Vec<u32> = stack
            .processes()
            .supervisors()
            .chain(stack.processes().egress())
            .chain(stack.processes().spawner())
            .collect();
        stack.kill().await;
        dead.iter().for_each(|pid| kill(*pid));
        let began = Instant::now();
        while !dead.iter().all(|pid| is_gone(*pid)) {
            assert!(began.elapsed() < Duration::from_secs(10));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let again = disk.after_the_cut();
        let lines = std::fs::read_to_string(again.at.join("control")).unwrap_or_default().lines().count() as u64;
        control_lost += acknowledged.saturating_sub(lines);
        let stack_folder = same_folder(&again, stack.folder());
        // The operator's own file, which nobody had synced.
        std::fs::write(stack_folder.path().join("config.toml"), provider.config("")).unwrap();
        let stack = Stack::on(stack_folder, options).await;
        let whole = Turn::collect(stack.client.events(&session, &turn, None).await.unwrap()).await;
        assert_eq!(whole.events[..seen.len()], seen, "round {round}");
        assert!(whole.events.iter().map(|event| event.seq).eq(0..whole.events.len() as u64));
        assert_eq!(
            (whole.end(), whole.of(EventKind::TurnResumed).len()),
            (EventKind::MessageCompleted, 1),
            "round {round}"
        );
        // The key still stands for the turn, and no tool ran twice.
        let replay = stack.client.message(&session, &script(&[json!({"say": "other"})]), Some("power")).await;
        assert!(replay.is_err(), "another body");
        let effects = std::fs::read_to_string(stack.workspace().join("effects")).unwrap_or_default();
        let mut runs: Vec<u32> = effects.lines().filter_map(|line| line.parse().ok()).collect();
        let count = runs.len();
        runs.dedup();
        assert_eq!(runs.len(), count, "round {round}: {effects}");
        drop(stack);
    }
    assert!(control_lost > 0, "the control must lose what it acknowledged, or the rig proves nothing");
}
