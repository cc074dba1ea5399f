//! What a model call used, in the provider's own figures, read as its answer
//! streams by.

use cloister_types::model::Wire;
use cloister_types::sse;
use cloister_types::transcript::Usage;
use serde_json::Value;

/// Bytes of an answer that is not a stream of which the figures are read.
const WHOLE: usize = 4 << 20;
/// Bytes of text that are taken for one token where a provider says nothing.
const TOKEN: u64 = 4;

/// Reads one answer.
pub(crate) struct Meter {
    wire: Wire,
    streams: bool,
    events: sse::Parser,
    whole: Vec<u8>,
    usage: Usage,
    /// The provider has given figures.
    seen: bool,
    /// It has given its last ones.
    over: bool,
    /// Events of a stream, each of which holds a token or so.
    pieces: u64,
    bytes: u64,
}

impl Meter {
    pub(crate) fn new(wire: Wire, streams: bool) -> Self {
        let (events, whole, usage) = (sse::Parser::default(), Vec::new(), Usage::default());
        Self { wire, streams, events, whole, usage, seen: false, over: false, pieces: 0, bytes: 0 }
    }

    pub(crate) fn see(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        if self.streams {
            // What no provider sends is not understood.
            for event in self.events.push(bytes).unwrap_or_default() {
                self.pieces += 1;
                self.over |= event.data.trim() == "[DONE]" || event.name == "message_stop";
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

    /// The answer has come to its end.
    pub(crate) fn end(&mut self) {
        self.over = true;
    }

    /// What the provider says, so far.
    pub(crate) fn said(&self) -> Usage {
        self.usage
    }

    /// What a call used whose question had so many bytes. Where the provider has
    /// given no figures, or was cut off before the last, that is an estimate: a
    /// session must not be able to call for nothing.
    pub(crate) fn settle(&mut self, asked: u64) -> Usage {
        if !self.streams
            && let Ok(value) = serde_json::from_slice::<Value>(&self.whole)
        {
            self.read(&value);
            self.over = true;
        }
        let mut usage = self.usage;
        if !self.seen {
            usage.input_tokens = asked.div_ceil(TOKEN);
        }
        if !self.seen || !self.over {
            let heard = if self.streams { self.pieces } else { self.bytes.div_ceil(TOKEN) };
            usage.output_tokens = usage.output_tokens.max(heard);
            usage.estimated = true;
        }
        let mut sum = Usage::default();
        sum.add(&usage);
        sum
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
        // The total is renewed.
        self.usage.add(&Usage::default());
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
        let figures =
            |usage: Usage| (usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, usage.estimated);
        assert_eq!(figures(meter.said()), (12, 20, 3, false));
        assert!(meter.settle(1000).estimated);
        meter.see(b"event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n");
        assert_eq!(figures(meter.settle(1000)), (12, 20, 3, false));
        let mut meter = Meter::new(Wire::OpenaiChat, false);
        meter.see(
            br#"{"usage":{"prompt_tokens":10,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":6}}}"#,
        );
        assert_eq!((figures(meter.settle(1000)), meter.said().total_tokens), ((4, 4, 6, false), 14));
    }

    #[test]
    fn what_is_not_said_is_estimated() {
        let mut meter = Meter::new(Wire::OpenaiChat, true);
        for _ in 0..5 {
            meter.see(b"data: {\"choices\":[]}\n\n");
        }
        meter.see(b"data: [DONE]\n\n");
        let usage = meter.settle(41);
        assert_eq!((usage.input_tokens, usage.output_tokens, usage.total_tokens, usage.estimated), (11, 6, 17, true));
        // Cut off after the figures of the beginning.
        let mut meter = Meter::new(Wire::AnthropicMessages, true);
        meter.see(b"data: {\"message\":{\"usage\":{\"input_tokens\":12,\"output_tokens\":1}}}\n\n");
        for _ in 0..9 {
            meter.see(b"event: content_block_delta\ndata: {}\n\n");
        }
        let usage = meter.settle(4000);
        assert_eq!((usage.input_tokens, usage.output_tokens, usage.estimated), (12, 10, true));
    }
}
