//! Waiting for what must come about.

use std::time::{Duration, Instant};

/// Looks again and again until it holds.
///
/// # Panics
/// It does not within 15 seconds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(15), "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
