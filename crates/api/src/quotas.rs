//! How often a caller, and the tenant, may call in a minute.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

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

    /// Counts a call.
    pub(crate) fn take(&self, caller: &str) -> Answer<()> {
        if self.rates == Rates::default() {
            return Ok(());
        }
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.len() >= KEPT {
            used.retain(|_, (since, _)| since.elapsed() < WINDOW);
        }
        for (who, most) in [(Some(caller.to_owned()), self.rates.caller), (None, self.rates.tenant)] {
            let (since, count) = used.entry(who).or_insert_with(|| (Instant::now(), 0));
            if since.elapsed() >= WINDOW {
                (*since, *count) = (Instant::now(), 0);
            }
            if most > 0 && *count >= most {
                let wait = WINDOW.saturating_sub(since.elapsed()).as_secs() + 1;
                let error = ApiError::new(ErrorCode::RateLimited, format!("at most {most} calls in a minute"));
                return Err(error.limited(most, wait));
            }
            *count += 1;
        }
        Ok(())
    }
}
