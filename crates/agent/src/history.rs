//! The conversation, made fit to be sent: whatever happened to earlier turns,
//! every tool call has exactly one result right after it. Providers reject a
//! history for ever in which one is missing.

use std::collections::BTreeMap;

use cloister_types::transcript::Entry;
use serde_json::Value;

/// What the model reads for a call whose result was never recorded.
const INTERRUPTED: &str =
    "This call was interrupted before its result was recorded. It may have had effects; check before repeating it.";

/// A tool call of an assistant message.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// The provider's id.
    pub id: String,
    /// The tool.
    pub name: String,
    /// The arguments.
    pub input: Value,
}

/// The tool calls in an assistant message's blocks.
#[must_use]
pub fn calls(blocks: &[Value]) -> Vec<Call> {
    let text = |block: &Value, field: &str| block[field].as_str().unwrap_or_default().to_owned();
    let tools = blocks.iter().filter(|block| block["type"] == "tool_use");
    tools
        .map(|block| Call { id: text(block, "id"), name: text(block, "name"), input: block["input"].clone() })
        .collect()
}

/// Entries in an order that every provider takes: no empty assistant message,
/// each call answered once, directly after its message and in its order.
#[must_use]
pub fn repair(entries: &[Entry]) -> Vec<Entry> {
    let mut out = Vec::with_capacity(entries.len());
    let mut rest = entries.iter().peekable();
    while let Some(entry) = rest.next() {
        match entry {
            Entry::User { .. } => out.push(entry.clone()),
            // Results are taken along with their message; others have none.
            Entry::ToolResult { .. } => {}
            Entry::Assistant { blocks, .. } => {
                let mut results = BTreeMap::new();
                while let Some(Entry::ToolResult { id, .. }) = rest.peek() {
                    let result = rest.next();
                    results.entry(id.clone()).or_insert(result);
                }
                if blocks.is_empty() {
                    continue;
                }
                out.push(entry.clone());
                for call in calls(blocks) {
                    out.push(match results.remove(&call.id).flatten() {
                        Some(result) => result.clone(),
                        None => Entry::ToolResult { id: call.id, content: INTERRUPTED.to_owned(), is_error: true },
                    });
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloister_types::model::Wire;
    use proptest::prelude::*;
    use serde_json::json;

    fn entry() -> impl Strategy<Value = Entry> {
        let id = || (0..4u8).prop_map(|n| format!("call_{n}"));
        prop_oneof![
            "[a-c]".prop_map(|text| Entry::User { text }),
            proptest::collection::btree_set(id(), 0..3).prop_map(|ids| Entry::Assistant {
                wire: Wire::AnthropicMessages,
                model: "m".into(),
                blocks: ids
                    .into_iter()
                    .map(|id| json!({"type": "tool_use", "id": id, "name": "bash", "input": {}}))
                    .collect(),
                malformed: vec![],
                stop: Default::default(),
                usage: Default::default(),
            }),
            (id(), "[a-c]").prop_map(|(id, content)| Entry::ToolResult { id, content, is_error: false }),
        ]
    }

    proptest! {
        // The pairing rule of both providers, for any damaged history.
        #[test]
        fn every_call_is_answered_once_and_in_place(entries in proptest::collection::vec(entry(), 0..30)) {
            let fixed = repair(&entries);
            let mut owed: std::collections::VecDeque<String> = Default::default();
            for entry in &fixed {
                match entry {
                    Entry::ToolResult { id, .. } => prop_assert_eq!(owed.pop_front(), Some(id.clone())),
                    Entry::Assistant { blocks, .. } => {
                        prop_assert!(owed.is_empty() && !blocks.is_empty());
                        owed.extend(calls(blocks).into_iter().map(|call| call.id));
                    }
                    Entry::User { .. } => prop_assert!(owed.is_empty()),
                }
            }
            prop_assert!(owed.is_empty());
            prop_assert_eq!(repair(&fixed), fixed);
        }
    }
}
