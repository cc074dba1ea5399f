//! Wall time as the wire shows it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Unix seconds with a fraction.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
