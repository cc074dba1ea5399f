//! What a model call used, in the provider's own figures, read as its answer
//! streams by.

use cloister_types::model::Wire;
use cloister_types::sse;
use cloister_types::transcript::Usage;
use serde_json::Value;

/// Bytes of an answer that is not a stream of which the figures are read.
const WHOLE: usize = 4 << 20;

/// Reads one answer.
pub(crate) struct Meter {
    wire: Wire,
    streams: bool,
    events: sse::Parser,
    whole: Vec<u8>,
    usage: Usage,
    seen: bool,
}

impl Meter {
    pub(crate) fn new(wire: Wire, streams: bool) -> Self {
        Self { wire, streams, events: sse::Parser::default(), whole: Vec::new(), usage: Usage::default(), seen: false }
    }

    pub(crate) fn see(&mut self, bytes: &[u8]) {
        if self.streams {
            // What no provider sends is not understood, and not metered.
            for event in self.events.push(bytes).unwrap_or_default() {
                // Only what can hold figures is parsed.
                if event.data.contains("usage")
                    && let Ok(value) = serde_json::from_str(&event.data)
                {
                    self.read(&value);
                }
            }
        } else if self.whole.len() + bytes.len() <= WHOLE {
            self.whole.extend_from_slice(bytes);
        }
    }

    pub(crate) fn finish(mut self) -> Option<Usage> {
        if !self.streams
            && let Ok(value) = serde_json::from_slice::<Value>(&self.whole)
        {
            self.read(&value);
        }
        self.seen.then_some(self.usage)
    }

    fn read(&mut self, value: &Value) {
        let (usage, base) = match self.wire {
            // The first event has the input, the last ones the output so far.
            Wire::AnthropicMessages => {
                (if value["message"]["usage"].is_object() { &value["message"]["usage"] } else { &value["usage"] }, 0)
            }
            Wire::OpenaiChat => (&value["usage"], 1),
        };
        if !usage.is_object() {
            return;
        }
        self.seen = true;
        let number = |name: &str| usage[name].as_u64();
        if base == 0 {
            let set = |place: &mut u64, found: Option<u64>| *place = (*place).max(found.unwrap_or(0));
            set(&mut self.usage.input_tokens, number("input_tokens"));
            set(&mut self.usage.output_tokens, number("output_tokens"));
            set(&mut self.usage.cache_read_tokens, number("cache_read_input_tokens"));
            set(&mut self.usage.cache_write_tokens, number("cache_creation_input_tokens"));
        } else {
            let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0);
            // Here, the input includes what came from the cache.
            self.usage.input_tokens = number("prompt_tokens").unwrap_or(0).saturating_sub(cached);
            self.usage.output_tokens = number("completion_tokens").unwrap_or(0);
            self.usage.cache_read_tokens = cached;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_both_wires() {
        let mut meter = Meter::new(Wire::AnthropicMessages, true);
        for piece in [
            "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":12,\"cache_read_in",
            "put_tokens\":3,\"output_tokens\":1}}}\n\nevent: message_delta\ndata: {\"usage\":{\"output_tokens\":20}}\n\n",
        ] {
            meter.see(piece.as_bytes());
        }
        let usage = meter.finish().unwrap();
        assert_eq!((usage.input_tokens, usage.output_tokens, usage.cache_read_tokens), (12, 20, 3));
        let mut meter = Meter::new(Wire::OpenaiChat, false);
        meter.see(
            br#"{"usage":{"prompt_tokens":10,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":6}}}"#,
        );
        let usage = meter.finish().unwrap();
        assert_eq!((usage.input_tokens, usage.output_tokens, usage.cache_read_tokens), (4, 4, 6));
        assert_eq!(Meter::new(Wire::OpenaiChat, true).finish(), None);
    }
}
