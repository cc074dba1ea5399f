//! Scripts: a fenced block tagged `script`, one JSON object a line.

use serde::Deserialize;
use serde_json::Value;

/// A tool call.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Call {
    pub(crate) tool: String,
    #[serde(default)]
    pub(crate) input: Value,
}

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Line {
    Say(String),
    Think(String),
    /// Calls made side by side in one answer; often just one.
    Calls(Vec<Call>),
    Sleep(u64),
    Fail {
        status: u16,
        times: u32,
        retry_after: Option<f64>,
    },
    Cut,
    Expect(String),
}

/// What a message asks for.
#[derive(Debug, PartialEq)]
pub(crate) enum Script {
    /// These lines.
    Lines(Vec<Line>),
    /// A script that cannot be played, and why.
    Bad(String),
    /// No script at all.
    None,
}

/// Played for the message `tour`.
const TOUR: &str = include_str!("tour.jsonl");

pub(crate) fn find(message: &str) -> Script {
    if message.trim().eq_ignore_ascii_case("tour") {
        return parse(TOUR);
    }
    let mut inside = None;
    for line in message.lines() {
        let fence = line.trim();
        match &mut inside {
            None if fence.strip_prefix("```").is_some_and(|tag| tag.trim() == "script") => inside = Some(String::new()),
            None => {}
            Some(text) if fence == "```" => return parse(text),
            Some(text) => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    inside.map_or(Script::None, |text| parse(&text))
}

fn parse(text: &str) -> Script {
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        match serde_json::from_str::<Value>(line)
            .map_err(|error| error.to_string())
            .and_then(|value| parse_line(&value))
        {
            Ok(line) => lines.push(line),
            Err(why) => return Script::Bad(format!("line {} of the script cannot be played: {why}", index + 1)),
        }
    }
    Script::Lines(lines)
}

fn parse_line(value: &Value) -> Result<Line, String> {
    let word = |field: &str| value[field].as_str().map(str::to_owned).ok_or(format!("{field:?} wants a string"));
    let number = |field: &str| value[field].as_u64().ok_or(format!("{field:?} wants a whole number"));
    let fields = value.as_object().ok_or("it is not an object")?;
    let has = |field: &str| fields.contains_key(field);
    if has("say") {
        Ok(Line::Say(word("say")?))
    } else if has("think") {
        Ok(Line::Think(word("think")?))
    } else if has("tool") {
        Ok(Line::Calls(vec![Call { tool: word("tool")?, input: value["input"].clone() }]))
    } else if has("parallel") {
        serde_json::from_value(value["parallel"].clone()).map(Line::Calls).map_err(|error| error.to_string())
    } else if has("sleep_ms") {
        Ok(Line::Sleep(number("sleep_ms")?))
    } else if has("fail") {
        let status = number("fail")?.try_into().map_err(|_| "\"fail\" wants a status")?;
        let times = if has("times") { number("times")?.try_into().unwrap_or(u32::MAX) } else { 1 };
        Ok(Line::Fail { status, times, retry_after: value["retry_after"].as_f64() })
    } else if has("cut") {
        Ok(Line::Cut)
    } else if has("expect") {
        Ok(Line::Expect(word("expect")?))
    } else {
        Err("it is none of say, think, tool, parallel, sleep_ms, fail, cut, expect".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fenced_block_is_found_and_every_line_kind_is_read() {
        let message = "Please:\n```script\n{\"say\":\"a\"}\n\n{\"tool\":\"bash\",\"input\":{\"command\":\"ls\"}}\n{\"fail\":529,\"times\":2}\n\
                       {\"parallel\":[{\"tool\":\"x\"},{\"tool\":\"y\",\"input\":{}}]}\n{\"sleep_ms\":5}\n{\"cut\":true}\n{\"expect\":\"r\"}\n{\"think\":\"t\"}\n```\nrest";
        let Script::Lines(lines) = find(message) else { panic!() };
        assert_eq!(lines.len(), 8);
        assert_eq!(lines[2], Line::Fail { status: 529, times: 2, retry_after: None });
    }

    #[test]
    fn other_messages_have_none_and_bad_lines_are_named() {
        assert_eq!(find("hello ``` {\"say\":1} ```"), Script::None);
        assert!(
            matches!(find("```script\n{\"say\":\"a\"}\n{\"dance\":1}\n```"), Script::Bad(why) if why.contains("line 2"))
        );
        assert!(matches!(find(" Tour\n"), Script::Lines(lines) if lines.len() > 5));
    }
}
