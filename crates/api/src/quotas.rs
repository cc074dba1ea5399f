//! How often a caller, and the tenant, may call in a minute.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderValue};
use cloister_types::ErrorCode;

use crate::error::{Answer, ApiError};

const WINDOW: Duration = Duration::from_secs(60);
/// Callers that are remembered.
const KEPT: usize = 10_000;

/// Calls in a minute; 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// Of one caller.
    pub caller: u64,
    /// Of all.
    pub tenant: u64,
}

/// What is left of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Left {
    /// Calls in a minute.
    pub(crate) most: u64,
    /// Of these.
    pub(crate) remaining: u64,
    /// Seconds until it is all there again.
    pub(crate) wait: u64,
}

impl Left {
    /// In the headers in which clients look for it.
    pub(crate) fn put(self, headers: &mut HeaderMap) {
        let Self { most, remaining, wait } = self;
        for (name, value) in [("ratelimit-limit", most), ("ratelimit-remaining", remaining), ("ratelimit-reset", wait)]
        {
            headers.insert(name, HeaderValue::from(value));
        }
    }
}

/// What callers have used of that.
#[derive(Debug)]
pub struct Quotas {
    rates: Rates,
    used: Mutex<HashMap<Option<String>, (Instant, u64)>>,
}

impl Quotas {
    /// With nothing used.
    #[must_use]
    pub fn new(rates: Rates) -> Self {
        Self { rates, used: Mutex::default() }
    }

    /// Counts a call. What is left of the nearest limit, if there is one.
    pub(crate) fn take(&self, caller: &str) -> Answer<Option<Left>> {
        if self.rates == Rates::default() {
            return Ok(None);
        }
        let mut nearest: Option<Left> = None;
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.len() >= KEPT {
            used.retain(|_, (since, _)| since.elapsed() < WINDOW);
        }
        for (who, most) in [(Some(caller.to_owned()), self.rates.caller), (None, self.rates.tenant)] {
            let (since, count) = used.entry(who).or_insert_with(|| (Instant::now(), 0));
            if since.elapsed() >= WINDOW {
                (*since, *count) = (Instant::now(), 0);
            }
            let wait = WINDOW.saturating_sub(since.elapsed()).as_secs() + 1;
            if most > 0 && *count >= most {
                let error = ApiError::new(ErrorCode::RateLimited, format!("at most {most} calls in a minute"));
                return Err(error.limited(Left { most, remaining: 0, wait }));
            }
            *count += 1;
            let left = Left { most, remaining: most.saturating_sub(*count), wait };
            if most > 0 && nearest.is_none_or(|nearest| left.remaining < nearest.remaining) {
                nearest = Some(left);
            }
        }
        Ok(nearest)
    }
}
