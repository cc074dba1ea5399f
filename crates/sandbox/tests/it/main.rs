//! The sandbox with real namespaces: see the modules.
#![allow(missing_docs, clippy::unwrap_used)]

mod faults;
mod fuzz;
mod stand;
