//! The wire clients against recorded and hand-made provider streams.
#![allow(missing_docs, clippy::unwrap_used)]

mod cases;
mod recorded;

use cloister_agent::wire::{Answer, Block, Decoder, Piece, WireError};
use cloister_types::model::Wire;
use cloister_types::sse::Parser;

/// What a client would have seen and what would be stored, or the error.
#[derive(Debug, PartialEq)]
struct Reading {
    shown: String,
    answer: Result<Answer, WireError>,
}

fn read(wire: Wire, bytes: &[u8], cut: usize) -> Reading {
    let mut parser = Parser::default();
    let mut decoder = Decoder::new(wire, 1);
    let mut shown = String::new();
    for piece in bytes.chunks(cut.max(1)) {
        for event in parser.push(piece).unwrap() {
            match decoder.event(&event) {
                Ok(pieces) => pieces.into_iter().for_each(|piece| show(&mut shown, piece)),
                Err(error) => return Reading { shown, answer: Err(error) },
            }
        }
    }
    let answer = decoder.finish().map(|(pieces, answer)| {
        pieces.into_iter().for_each(|piece| show(&mut shown, piece));
        answer
    });
    Reading { shown, answer }
}

fn show(shown: &mut String, piece: Piece) {
    match piece {
        Piece::Open(Block::Text) => shown.push_str("<text>"),
        Piece::Open(Block::Thinking) => shown.push_str("<thinking>"),
        Piece::Open(Block::Tool { id, name }) => shown.push_str(&format!("<tool {id} {name}>")),
        Piece::More(text) => shown.push_str(&text),
        Piece::Close(_) => shown.push_str("</>"),
    }
}

/// Byte offsets just after each event's blank line.
fn borders(text: &str) -> Vec<usize> {
    text.match_indices("\n\n").map(|(at, _)| at + 2).collect()
}
