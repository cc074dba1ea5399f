//! Any bytes, and what must hold for them. `cargo xtask fuzz` builds this so that the
//! fuzzer sees which branches they reach, and runs the targets one by one.

#![no_main]

mod bytes;
mod outside;
mod wire;

use std::sync::OnceLock;

type Target = fn(&[u8]);

/// By the names that `CLOISTER_FUZZ` takes; `cargo xtask fuzz` reads them from here.
const TARGETS: [(&str, Target); 10] = [
    ("path", outside::path),
    ("names", outside::names),
    ("rules", outside::rules),
    ("scrub", outside::scrub),
    ("host", wire::host),
    ("scope", wire::scope),
    ("sse", wire::sse),
    ("frames", wire::frames),
    ("orders", wire::orders),
    ("vault", wire::vault),
];

fn chosen() -> Target {
    static CHOSEN: OnceLock<Target> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let name = std::env::var("CLOISTER_FUZZ").unwrap_or_default();
        let found = TARGETS.iter().find(|(known, _)| *known == name);
        found.unwrap_or_else(|| panic!("CLOISTER_FUZZ names no target: {name:?}")).1
    })
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| chosen()(data));
