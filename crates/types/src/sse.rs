//! Server-sent events as they are really sent, by providers and by us: LF, CRLF or CR, a byte
//! order mark, comments, several data lines, cuts anywhere.

/// Largest event in bytes.
const MAX_EVENT: usize = 10 << 20;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Event {
    /// The `event:` field; empty if it had none.
    pub name: String,
    /// The `id:` field of this event; empty if it had none.
    pub id: String,
    /// The `data:` lines, joined by newlines.
    pub data: String,
}

/// An event that is larger than any provider's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a server-sent event of more than {MAX_EVENT} bytes")]
pub struct TooLarge;

/// Cuts a byte stream into events. An event counts once its blank line has
/// arrived; what is unfinished at the end of the stream does not.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    after_cr: bool,
    started: bool,
    name: String,
    id: String,
    data: Vec<u8>,
    has_data: bool,
}

impl Parser {
    /// Takes the next bytes and returns the events that they complete.
    ///
    /// # Errors
    /// [`TooLarge`]: give the stream up.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, TooLarge> {
        let mut events = Vec::new();
        for &byte in bytes {
            let second_half = std::mem::take(&mut self.after_cr) && byte == b'\n';
            match byte {
                b'\n' if second_half => {}
                b'\n' | b'\r' => {
                    self.after_cr = byte == b'\r';
                    events.extend(self.end_line());
                }
                _ if self.line.len() + self.data.len() >= MAX_EVENT => return Err(TooLarge),
                _ => self.line.push(byte),
            }
        }
        Ok(events)
    }

    fn end_line(&mut self) -> Option<Event> {
        let mut line = std::mem::take(&mut self.line);
        if !std::mem::replace(&mut self.started, true) && line.starts_with(b"\xef\xbb\xbf") {
            line.drain(..3);
        }
        if line.is_empty() {
            let name = std::mem::take(&mut self.name);
            let id = std::mem::take(&mut self.id);
            let data = std::mem::take(&mut self.data);
            return std::mem::take(&mut self.has_data).then(|| Event {
                name,
                id,
                data: String::from_utf8_lossy(&data).into_owned(),
            });
        }
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (field, value) = line.split_at(colon);
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"event" => self.name = String::from_utf8_lossy(value).into_owned(),
            b"id" => self.id = String::from_utf8_lossy(value).into_owned(),
            b"data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(bytes: &[u8], cut: usize) -> Vec<(String, String)> {
        let mut parser = Parser::default();
        let pieces = bytes.chunks(cut);
        pieces.flat_map(|piece| parser.push(piece).unwrap()).map(|event| (event.name, event.data)).collect()
    }

    #[test]
    fn every_line_ending_and_every_cut_give_the_same_events() {
        let plain = "\u{feff}: hello\nevent: a\ndata: 1\ndata: \u{e9}\u{1f600}\n\ndata:2\nid: 7\nretry: 1\n\nevent: none\n\ndata: unfinished";
        let want = [("a".to_owned(), "1\n\u{e9}\u{1f600}".to_owned()), (String::new(), "2".to_owned())];
        for ending in ["\n", "\r\n", "\r"] {
            let text = plain.replace('\n', ending);
            for cut in 1..=text.len() {
                assert_eq!(parse(text.as_bytes(), cut), want, "{ending:?} {cut}");
            }
        }
    }

    #[test]
    fn a_giant_is_refused() {
        let mut parser = Parser::default();
        parser.push(b"data: ").unwrap();
        let mut outcome = Ok(Vec::new());
        for _ in 0..12 {
            outcome = outcome.and(parser.push(&vec![b'x'; 1 << 20]));
        }
        assert_eq!(outcome, Err(TooLarge));
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_cuts_are_the_same(bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b':'), Just(b'd'), any::<u8>()], 0..200), cut in 1usize..20) {
            prop_assert_eq!(parse(&bytes, cut), parse(&bytes, bytes.len().max(1)));
        }
    }
}
