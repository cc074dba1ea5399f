//! Where a script stands, from the conversation alone: as many calls have
//! been made as answers with calls stand in it. Only faults need a memory.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use regex::Regex;

use crate::request::Conversation;
use crate::script::{self, Call, Line, Script};

/// A block of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Block {
    Text(String),
    Thinking(String),
    Call {
        id: String,
        call: Call,
    },
    /// Milliseconds of silence, in the middle of the stream.
    Pause(u64),
    /// The connection is dropped here; what follows is never sent.
    Cut,
}

/// An answer to stream.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Answer {
    pub(crate) blocks: Vec<Block>,
    /// Milliseconds between deltas: a demo should be seen to stream.
    pub(crate) pace_ms: u64,
}

/// What to do with a request.
#[derive(Debug, PartialEq)]
pub(crate) enum Play {
    Answer(Answer),
    Fail { status: u16, retry_after: Option<f64> },
}

/// How often a faulty line has been played for a call.
#[derive(Debug, Default)]
pub(crate) struct Attempts(Mutex<HashMap<(String, usize), u32>>);

impl Attempts {
    /// Most calls remembered; beyond, all are forgotten.
    const MOST: usize = 10_000;

    /// Counts one more, and says which it is, from 1.
    fn next(&self, call: &str, line: usize) -> u32 {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= Self::MOST {
            counts.clear();
        }
        let count = counts.entry((call.to_owned(), line)).or_default();
        *count += 1;
        *count
    }
}

const PLAIN: &str = "I am Cloister's built-in scripted model. I do not understand language, so I cannot work on this message. I play scripts: \
                     send \"tour\" to be shown around, or put a fenced block tagged `script` into the message (docs/scripted.md). For real \
                     work, configure a model ([[model]] in the configuration; docs/quickstart.md).";

pub(crate) fn play(conversation: &Conversation, call: &str, attempts: &Attempts) -> Play {
    let lines = match script::find(&conversation.message) {
        Script::Lines(lines) => lines,
        Script::Bad(why) => return say(why),
        Script::None => return say(PLAIN.to_owned()),
    };
    let is_tour = conversation.message.trim().eq_ignore_ascii_case("tour");
    let mut answer = Answer { pace_ms: if is_tour { 15 } else { 0 }, ..Answer::default() };
    let mut passed = 0;
    for (index, line) in lines.iter().enumerate() {
        let due = passed == conversation.steps;
        match line {
            Line::Calls(calls) => {
                passed += 1;
                if due {
                    let numbered = calls.iter().enumerate();
                    answer.blocks.extend(
                        numbered.map(|(n, call)| Block::Call { id: format!("call_{index}_{n}"), call: call.clone() }),
                    );
                    return Play::Answer(answer);
                }
            }
            _ if !due => {}
            Line::Say(text) => answer.blocks.push(Block::Text(text.clone())),
            Line::Think(text) => answer.blocks.push(Block::Thinking(text.clone())),
            Line::Sleep(ms) => answer.blocks.push(Block::Pause(*ms)),
            // Faults come one by one: what lies behind a cut is not due yet.
            Line::Fail { .. } | Line::Cut if answer.blocks.contains(&Block::Cut) => {}
            Line::Fail { status, times, retry_after } => {
                if attempts.next(call, index) <= *times {
                    return Play::Fail { status: *status, retry_after: *retry_after };
                }
            }
            Line::Cut => {
                if attempts.next(call, index) == 1 {
                    answer.blocks.push(Block::Cut);
                }
            }
            Line::Expect(pattern) => {
                if let Err(why) = expect(pattern, &conversation.last_result) {
                    answer.blocks.push(Block::Text(why));
                    return Play::Answer(answer);
                }
            }
        }
    }
    Play::Answer(answer)
}

fn say(text: String) -> Play {
    Play::Answer(Answer { blocks: vec![Block::Text(text)], ..Answer::default() })
}

fn expect(pattern: &str, result: &str) -> Result<(), String> {
    let regex = Regex::new(pattern)
        .map_err(|error| format!("script: the expectation /{pattern}/ is not a regular expression: {error}"))?;
    if regex.is_match(result) {
        return Ok(());
    }
    let start: String = result.chars().take(500).collect();
    Err(format!("script: mismatch: the last result does not match /{pattern}/. It begins: {start}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(script: &str, steps: usize, last: &str, attempts: &Attempts) -> Play {
        let conversation =
            Conversation { message: format!("```script\n{script}\n```"), steps, last_result: last.into() };
        play(&conversation, "call", attempts)
    }

    fn texts(play: &Play) -> Vec<String> {
        let Play::Answer(answer) = play else { return vec!["failed".into()] };
        answer
            .blocks
            .iter()
            .map(|block| match block {
                Block::Text(text) | Block::Thinking(text) => text.clone(),
                Block::Call { call, .. } => format!("<{}>", call.tool),
                Block::Pause(ms) => format!("<{ms} ms>"),
                Block::Cut => "<cut>".into(),
            })
            .collect()
    }

    #[test]
    fn lines_up_to_a_call_are_one_answer_and_the_rest_ends_the_turn() {
        let script = "{\"say\":\"a\"}\n{\"tool\":\"t1\"}\n{\"expect\":\"ok\"}\n{\"say\":\"b\"}\n{\"parallel\":[{\"tool\":\"t2\"},{\"tool\":\"t3\"}]}\n{\"say\":\"c\"}";
        let attempts = Attempts::default();
        assert_eq!(texts(&at(script, 0, "", &attempts)), ["a", "<t1>"]);
        assert_eq!(texts(&at(script, 1, "ok", &attempts)), ["b", "<t2>", "<t3>"]);
        assert_eq!(texts(&at(script, 2, "ok", &attempts)), ["c"]);
        assert_eq!(texts(&at(script, 3, "ok", &attempts)), Vec::<String>::new());
        assert!(texts(&at(script, 1, "no", &attempts))[0].contains("mismatch"));
    }

    #[test]
    fn faults_pass_after_their_number() {
        let attempts = Attempts::default();
        let script = "{\"fail\":529,\"times\":2}\n{\"cut\":true}\n{\"say\":\"a\"}";
        assert_eq!(at(script, 0, "", &attempts), Play::Fail { status: 529, retry_after: None });
        assert_eq!(at(script, 0, "", &attempts), Play::Fail { status: 529, retry_after: None });
        let cut = |play: &Play| matches!(play, Play::Answer(answer) if answer.blocks.contains(&Block::Cut));
        assert!(cut(&at(script, 0, "", &attempts)));
        assert!(!cut(&at(script, 0, "", &attempts)));
        // In the order of their lines, each on its own attempt.
        let script = "{\"cut\":true}\n{\"fail\":500}\n{\"say\":\"a\"}";
        let attempts = Attempts::default();
        assert!(cut(&at(script, 0, "", &attempts)));
        assert_eq!(at(script, 0, "", &attempts), Play::Fail { status: 500, retry_after: None });
        assert!(!cut(&at(script, 0, "", &attempts)));
    }
}
