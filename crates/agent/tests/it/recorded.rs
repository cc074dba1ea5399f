//! Recorded streams that lie beside the project, where they do. They are not
//! ours to carry; without them this is skipped, and says so.

use super::{borders, read};
use cloister_agent::wire::WireError;
use cloister_types::model::Wire;

fn streams(prefix: &str) -> Vec<(String, String)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/fixtures/provider-streams");
    let Ok(entries) = std::fs::read_dir(folder) else {
        eprintln!("SKIPPED: no recorded provider streams beside the project");
        return Vec::new();
    };
    let files = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    files
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), std::fs::read_to_string(entry.path()).unwrap()))
        .collect()
}

fn check(wire: Wire, prefix: &str) {
    for (name, text) in streams(prefix) {
        let text = text.replace("\r\n", "\n");
        let whole = read(wire, text.as_bytes(), text.len());
        let holds_error =
            text.contains("\"error\":{") || text.contains("event: error") || text.contains("\"error\": {");
        match &whole.answer {
            Ok(answer) => assert!(answer.malformed.is_empty(), "{name}: {:?}", answer.malformed),
            Err(WireError::Reported { .. }) => assert!(holds_error, "{name}"),
            Err(WireError::Incomplete) => eprintln!("{name}: has no end"),
            Err(error) => panic!("{name}: {error}"),
        }
        // Every split of small streams, many of large ones.
        let cuts: Vec<usize> = if text.len() < 8_000 { (1..200).collect() } else { vec![1, 2, 3, 7, 64, 1021, 4096] };
        for cut in cuts {
            assert_eq!(read(wire, text.as_bytes(), cut), whole, "{name} cut every {cut}");
        }
        let crlf = text.replace('\n', "\r\n");
        assert_eq!(read(wire, crlf.as_bytes(), 5), whole, "{name} with CRLF");
        if whole.answer.is_ok() {
            truncated(wire, &name, &text);
        }
    }
}

/// Cut at an event border, a stream is incomplete until the provider has said
/// why it ends. (On the chat wire that comes before usage and `[DONE]`, which
/// not every server sends.)
fn truncated(wire: Wire, name: &str, text: &str) {
    let borders = borders(text);
    let step = (borders.len() / 60).max(1);
    let tail = borders.len().saturating_sub(6);
    for (index, border) in borders.iter().enumerate().filter(|(index, _)| index % step == 0 || *index > tail) {
        let part = &text[..*border];
        let told = match wire {
            Wire::AnthropicMessages => part.contains("message_stop"),
            Wire::OpenaiChat => {
                part.contains("\"finish_reason\":\"")
                    || part.contains("\"finish_reason\": \"")
                    || part.contains("[DONE]")
            }
        };
        match read(wire, part.as_bytes(), usize::MAX).answer {
            Ok(_) => assert!(told, "{name} at border {index}: complete without an end"),
            Err(WireError::Incomplete) => assert!(!told, "{name} at border {index}: incomplete in spite of its end"),
            Err(error) => panic!("{name} at border {index}: {error}"),
        }
    }
}

#[test]
fn anthropic_messages() {
    check(Wire::AnthropicMessages, "anthropic-");
}

#[test]
fn openai_chat() {
    check(Wire::OpenaiChat, "chat-");
}
