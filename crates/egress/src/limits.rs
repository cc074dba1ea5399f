//! How much may leave: requests and bytes, for each session and for all of the
//! tenant's together. Windows begin with the first request in them.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The limits; 0 is none, and of money nothing is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Requests of one session in a minute.
    pub session_requests_per_minute: u64,
    /// Requests of all sessions in a minute.
    pub requests_per_minute: u64,
    /// Bytes, both ways, of one session in a day.
    pub session_bytes_per_day: u64,
    /// Bytes, both ways, of all sessions in a day.
    pub bytes_per_day: u64,
    /// Dollars that one session's model calls may cost, by the models' prices.
    /// Calls that are under way when it is reached are not cut off.
    pub session_dollars: Option<f64>,
    /// Dollars that all sessions' model calls may cost in a day (UTC).
    pub dollars_per_day: Option<f64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            session_requests_per_minute: 1_200,
            requests_per_minute: 0,
            session_bytes_per_day: 20 << 30,
            bytes_per_day: 0,
            session_dollars: None,
            dollars_per_day: None,
        }
    }
}

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A count within a window.
#[derive(Debug)]
struct Window {
    length: Duration,
    most: u64,
    state: Mutex<(Option<Instant>, u64)>,
}

impl Window {
    fn new(length: Duration, most: u64) -> Self {
        Self { length, most, state: Mutex::new((None, 0)) }
    }

    /// Adds to the count if there is room; else when there will be.
    fn take(&self, amount: u64, now: Instant) -> Result<(), Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = state.0.is_none_or(|began| now.saturating_duration_since(began) >= self.length);
        if fresh {
            *state = (Some(now), 0);
        }
        if self.most > 0 && state.1 >= self.most {
            let began = state.0.unwrap_or(now);
            return Err(self.length.saturating_sub(now.saturating_duration_since(began)));
        }
        state.1 = state.1.saturating_add(amount);
        Ok(())
    }
}

/// What one session, or the whole tenant, has used.
#[derive(Debug)]
pub struct Budget {
    requests: Window,
    bytes: Window,
}

/// A limit that is met, and the seconds until it no longer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Met(pub u64);

impl Budget {
    /// Of one session.
    #[must_use]
    pub fn of_session(limits: &Limits) -> Self {
        let Limits { session_requests_per_minute: requests, session_bytes_per_day: bytes, .. } = *limits;
        Self { requests: Window::new(MINUTE, requests), bytes: Window::new(DAY, bytes) }
    }

    /// Of the tenant.
    #[must_use]
    pub fn of_tenant(limits: &Limits) -> Self {
        let Limits { requests_per_minute: requests, bytes_per_day: bytes, .. } = *limits;
        Self { requests: Window::new(MINUTE, requests), bytes: Window::new(DAY, bytes) }
    }

    /// Takes a request.
    ///
    /// # Errors
    /// A limit is met.
    pub fn request(&self) -> Result<(), Met> {
        let now = Instant::now();
        let taken = self.bytes.take(0, now).and_then(|()| self.requests.take(1, now));
        taken.map_err(|wait| Met(wait.as_secs() + 1))
    }

    /// Counts bytes. Those of a request that has begun are not held up.
    pub fn bytes(&self, count: u64) {
        let _ = self.bytes.take(count, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_fills_and_passes() {
        let window = Window::new(MINUTE, 2);
        let start = Instant::now();
        assert_eq!((window.take(1, start), window.take(1, start)), (Ok(()), Ok(())));
        assert_eq!(window.take(1, start + Duration::from_secs(20)), Err(Duration::from_secs(40)));
        assert_eq!(window.take(1, start + MINUTE), Ok(()));
        assert_eq!(Window::new(MINUTE, 0).take(u64::MAX, start), Ok(()));
    }
}
