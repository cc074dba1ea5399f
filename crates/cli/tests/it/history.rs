//! Asking later: results, transcripts, streams from any cursor.

use std::time::{Duration, Instant};

use cloister_testkit::{Stack, Turn, script};
use cloister_types::SessionId;
use cloister_types::transcript::Entry;
use cloister_types::wire::TurnStatus;
use serde_json::json;

/// The raw bytes of a turn's stream after a cursor.
async fn bytes(stack: &Stack, session: &SessionId, turn: &str, after: Option<u64>) -> Vec<u8> {
    let query = after.map(|after| format!("?last_event_id={after}")).unwrap_or_default();
    let answer = stack.raw("GET", &format!("/v1/sessions/{session}/responses/{turn}/events{query}"), &[], b"").await;
    assert_eq!(answer.status, 200);
    answer.body
}

#[tokio::test]
async fn for_every_cut_what_was_seen_and_what_comes_are_the_whole_byte_for_byte() {
    let mut stack = Stack::start().await;
    let session = stack.session().await;
    let lines = [
        json!({"think": "über"}),
        json!({"say": "first\nsecond \u{2028} third"}),
        json!({"tool": "bash", "input": {"command": "while [ ! -e go ]; do sleep 0.02; done; echo done"}}),
        json!({"say": "end"}),
    ];
    let path = format!("/v1/sessions/{session}/messages");
    let body = json!({"message": script(&lines)}).to_string();
    let posted = {
        let (url, key) = (stack.url.clone(), format!("Bearer {}", stack.key));
        tokio::spawn(async move {
            cloister_testkit::raw(&url, "POST", &path, &[("authorization", &key)], body.as_bytes()).await
        })
    };
    let turn = loop {
        if let Some(turn) = stack.client.session(&session).await.unwrap().current_response_id {
            break turn.to_string();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    // Readers from every cursor, some of which are ahead, while it runs.
    let mut during = Vec::new();
    for cut in 0..40 {
        let (url, key) = (stack.url.clone(), format!("Bearer {}", stack.key));
        let path = format!("/v1/sessions/{session}/responses/{turn}/events?last_event_id={cut}");
        during.push(tokio::spawn(async move {
            cloister_testkit::raw(&url, "GET", &path, &[("authorization", &key)], b"").await.body
        }));
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    std::fs::write(stack.workspace().join("go"), "").unwrap();
    let whole = posted.await.unwrap().body;
    let strip = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap().replace(": ping\n\n", "");
    let whole = strip(&whole);
    let ends: Vec<usize> = whole.match_indices("\n\n").map(|(at, _)| at + 2).collect();
    assert!(ends.len() > 15);
    for round in 0..2 {
        assert_eq!(strip(&bytes(&stack, &session, &turn, None).await), whole);
        for (cut, end) in ends.iter().enumerate() {
            let rest = bytes(&stack, &session, &turn, Some(cut as u64)).await;
            assert_eq!(format!("{}{}", &whole[..*end], strip(&rest)), whole, "round {round}, cut {cut}");
        }
        if round == 0 {
            for (cut, reader) in during.drain(..).enumerate() {
                let end = ends.get(cut).copied().unwrap_or(whole.len());
                assert_eq!(strip(&reader.await.unwrap()), whole[end..], "during, cut {cut}");
            }
            stack = stack.kill_and_restart().await;
        }
    }
}

#[tokio::test]
async fn results_and_transcripts_are_there_page_by_page_and_after_a_restart() {
    let mut stack = Stack::start().await;
    let session = stack.session().await;
    let mut turns = Vec::new();
    for n in 0..5 {
        let tool = json!({"tool": "bash", "input": {"command": format!("echo {n}")}});
        turns.push(stack.play(&session, &[tool, json!({"say": format!("said {n}")})]).await);
    }
    for _ in 0..2 {
        let mut entries = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = stack.client.transcript(&session, after.as_deref(), 3).await.unwrap();
            assert!(page.data.len() == 3 || page.next.is_none());
            entries.extend(page.data);
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        assert_eq!(entries.len(), 20, "message, call, result, answer; five times");
        assert!(matches!(&entries[18].entry, Entry::ToolResult { content, .. } if content == "4\n"));
        let whole = stack.client.transcript(&session, None, 1000).await.unwrap();
        assert_eq!((whole.data, whole.next), (entries, None));
        for (n, turn) in turns.iter().enumerate() {
            let response = stack.client.response(&session, &turn.id, 0).await.unwrap();
            assert_eq!((response.status, response.output_text), (TurnStatus::Completed, format!("said {n}")));
            assert_eq!((response.output.len(), response.attempts), (4, 1));
            assert_eq!(response.last_sequence_number, turn.events.last().unwrap().seq);
        }
        let list = stack.raw("GET", &format!("/v1/sessions/{session}/responses?limit=2"), &[], b"").await.json();
        assert_eq!((list["data"].as_array().unwrap().len(), &list["data"][0]["id"]), (2, &json!(turns[0].id)));
        let next = list["next"].as_str().unwrap();
        let path = format!("/v1/sessions/{session}/responses?limit=4&after={next}");
        let rest = stack.raw("GET", &path, &[], b"").await.json();
        assert_eq!((rest["data"].as_array().unwrap().len(), &rest["next"]), (3, &json!(null)));
        stack = stack.kill_and_restart().await;
    }
    for bad in ["after=x", "after=1", "limit=0", "limit=1001", "limit=x"] {
        let answer = stack.raw("GET", &format!("/v1/sessions/{session}/messages?{bad}"), &[], b"").await;
        assert_eq!(answer.status, 400, "{bad}");
    }
    for far in ["18446744073709551615.0", "9223372036854775808.0"] {
        for list in ["messages", "responses"] {
            let answer = stack.raw("GET", &format!("/v1/sessions/{session}/{list}?after={far}"), &[], b"").await;
            assert_eq!((answer.status, &answer.json()["data"]), (200, &json!([])), "{list} {far}");
        }
    }
    // Another session's turn is none of this one's.
    let other = stack.session().await;
    let answer = stack.raw("GET", &format!("/v1/sessions/{other}/responses/{}", turns[0].id), &[], b"").await;
    assert_eq!(answer.status, 404);
}

#[tokio::test]
async fn whoever_polls_may_wait_and_waits_no_longer_than_asked() {
    let stack = Stack::start().await;
    let session = stack.session().await;
    let lines =
        [json!({"tool": "bash", "input": {"command": "while [ ! -e go ]; do sleep 0.02; done"}}), json!({"say": "so"})];
    let events = stack.client.message(&session, &script(&lines), None).await.unwrap();
    let began = Instant::now();
    let response = stack.client.response(&session, events.turn(), 1).await.unwrap();
    assert_eq!(response.status, TurnStatus::InProgress);
    assert!((900..3000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    let waiting = {
        let (client, session, turn) = (stack.client.clone(), session.clone(), events.turn().clone());
        tokio::spawn(async move { client.response(&session, &turn, 30).await.unwrap() })
    };
    let idle = {
        let (url, key, path) =
            (stack.url.clone(), format!("Bearer {}", stack.key), format!("/v1/sessions/{session}?wait=30"));
        tokio::spawn(
            async move { cloister_testkit::raw(&url, "GET", &path, &[("authorization", &key)], b"").await.json() },
        )
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    std::fs::write(stack.workspace().join("go"), "").unwrap();
    let response = waiting.await.unwrap();
    assert_eq!((response.status, response.output_text.as_str()), (TurnStatus::Completed, "so"));
    let record = idle.await.unwrap();
    assert_eq!((&record["busy"], &record["last_response"]["output_text"]), (&json!(false), &json!("so")));
    assert!(began.elapsed() < Duration::from_secs(10));
    Turn::collect(events).await;
    let answer = stack.raw("GET", &format!("/v1/sessions/{session}?wait=61"), &[], b"").await;
    assert_eq!(answer.status, 400);
}

#[tokio::test]
async fn a_reader_that_stops_reading_holds_nobody_up() {
    let stack = Stack::start().await;
    let session = stack.session().await;
    let noise = json!({"tool": "bash", "input": {"command": "head -c 40000 /dev/zero | tr '\\0' x"}});
    let mut lines: Vec<_> = (0..60).map(|_| noise.clone()).collect();
    lines.push(json!({"say": "end"}));
    let began = Instant::now();
    let events = stack.client.message(&session, &script(&lines), None).await.unwrap();
    let turn = events.turn().clone();
    // A client that has sent its request and reads nothing at all.
    let host = stack.url.trim_start_matches("http://").to_owned();
    let mut deaf = Vec::new();
    for _ in 0..20 {
        let mut socket = tokio::net::TcpStream::connect(&host).await.unwrap();
        let head = format!(
            "GET /v1/sessions/{session}/responses/{turn}/events HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {}\r\n\r\n",
            stack.key
        );
        tokio::io::AsyncWriteExt::write_all(&mut socket, head.as_bytes()).await.unwrap();
        deaf.push(socket);
    }
    let whole = Turn::collect(events).await;
    assert_eq!(whole.text(), "end");
    assert!(began.elapsed() < Duration::from_secs(30));
    let status = std::fs::read_to_string(format!("/proc/{}/status", stack.pid())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: u64 = resident.trim().split(' ').next().unwrap().parse().unwrap();
    assert!(kib < 300 << 10, "{kib} KiB for twenty deaf readers of three megabytes");
    drop(deaf);
}
