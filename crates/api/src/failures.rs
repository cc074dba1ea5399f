//! Callers that fail to show who they are: slowed down by network, and written
//! down, neither without bound.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cloister_types::address::network_of;
use cloister_types::egress::{AuditEntry, Decision};

use crate::Api;

/// The time in which failures are counted, and how many of one network pass
/// without delay.
const WINDOW: Duration = Duration::from_secs(60);
const PASS: u32 = 30;
/// How long an answer to a failure is held back for each that went before, and
/// at most. Calls with a valid key are never held back.
const STEP: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_millis(250);
/// Networks that are remembered.
const KEPT: usize = 10_000;
/// Failures that are written down in a second, of all addresses together: nobody
/// can fill the audit by having many.
const WRITTEN: u32 = 10;

/// Failures by network.
#[derive(Debug, Default)]
pub struct Failures(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// When counting began, and how many there were.
    by_network: HashMap<Option<IpAddr>, (Option<Instant>, u32)>,
    /// The second that is being written about, and how many were.
    written: (Option<Instant>, u32),
    /// Failures that were not written down.
    unwritten: u64,
}

impl Failures {
    /// One more failure: written down, and held back.
    pub(crate) async fn note(&self, api: &Api, address: Option<IpAddr>, rule: &str) {
        let (unwritten, delay) = self.count(address);
        tokio::time::sleep(delay).await;
        let Some(unwritten) = unwritten else { return };
        let entry = AuditEntry {
            stream: "access".into(),
            decision: Some(Decision::Denied),
            rule: rule.into(),
            address: address.map(|address| address.to_string()),
            flags: if unwritten > 0 { vec![format!("unwritten:{unwritten}")] } else { Vec::new() },
            ..AuditEntry::default()
        };
        let _ = api.vault.ask(&cloister_vault::wire::Request::Note(Box::new(entry))).await;
    }

    /// Counts it. First, if it is to be written down: with how many that were not;
    /// then how long its answer is held back.
    fn count(&self, address: Option<IpAddr>) -> (Option<u64>, Duration) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = |since: Option<Instant>, length| since.is_none_or(|since| since.elapsed() >= length);
        if state.by_network.len() >= KEPT {
            state.by_network.retain(|_, (since, _)| !is_over(*since, WINDOW));
            if state.by_network.len() >= KEPT {
                state.by_network.clear();
            }
        }
        let (since, failures) = state.by_network.entry(address.map(network_of)).or_default();
        if is_over(*since, WINDOW) {
            (*since, *failures) = (Some(Instant::now()), 0);
        }
        *failures += 1;
        let delay = (STEP * failures.saturating_sub(PASS)).min(LONGEST);
        if is_over(state.written.0, Duration::from_secs(1)) {
            state.written = (Some(Instant::now()), 0);
        }
        if state.written.1 >= WRITTEN {
            state.unwritten += 1;
            return (None, delay);
        }
        state.written.1 += 1;
        (Some(std::mem::take(&mut state.unwritten)), delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_is_slowed_and_many_do_not_fill_the_audit() {
        let failures = Failures::default();
        let one = Some(IpAddr::from([192, 0, 2, 1]));
        let delays: Vec<Duration> = (0..100).map(|_| failures.count(one).1).collect();
        assert!(delays[..30].iter().all(Duration::is_zero));
        assert_eq!((delays[30], delays[31], delays[99]), (STEP, STEP * 2, LONGEST));
        let began = Instant::now();
        let many = (0..20_000_u32).map(|n| failures.count(Some(IpAddr::from(n.to_be_bytes()))));
        let (written, slowed) = many.fold((0, 0), |sum, (told, delay)| {
            (sum.0 + u64::from(told.is_some()), sum.1 + u64::from(!delay.is_zero()))
        });
        assert!(written <= u64::from(WRITTEN) * (began.elapsed().as_secs() + 1), "{written}");
        assert_eq!(slowed, 0, "others are not");
        // Whoever has one address of version 6 has many.
        let many =
            (0..100_u128).map(|n| failures.count(Some(std::net::Ipv6Addr::from_bits(0x2001_0db8 << 96 | n).into())));
        assert_eq!(many.last().map(|(_, delay)| delay), Some(LONGEST));
    }
}
