//! Callers that fail to show who they are: slowed down by address, and written
//! down, neither without bound.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cloister_types::egress::{AuditEntry, Decision};

use crate::Api;

/// The time in which failures are counted, and how many of one address pass
/// without delay.
const WINDOW: Duration = Duration::from_secs(60);
const PASS: u32 = 30;
/// How long an answer to a failure is held back for each that went before, and
/// at most. Calls with a valid key are never held back.
const STEP: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_millis(250);
/// Addresses that are remembered.
const KEPT: usize = 10_000;

/// Failures by address.
#[derive(Debug, Default)]
pub struct Failures(Mutex<HashMap<Option<IpAddr>, Count>>);

#[derive(Debug)]
struct Count {
    since: Instant,
    failures: u32,
    /// Failures that were not written down.
    unwritten: u32,
    written: Option<Instant>,
}

impl Failures {
    /// One more failure: written down, and held back.
    pub(crate) async fn note(&self, api: &Api, address: Option<IpAddr>, rule: &str) {
        let (unwritten, before) = self.count(address);
        if before > PASS {
            tokio::time::sleep((STEP * (before - PASS)).min(LONGEST)).await;
        }
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
    /// then how many there have been.
    fn count(&self, address: Option<IpAddr>) -> (Option<u32>, u32) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= KEPT {
            counts.retain(|_, count| count.since.elapsed() < WINDOW);
            if counts.len() >= KEPT {
                counts.clear();
            }
        }
        let fresh = || Count { since: Instant::now(), failures: 0, unwritten: 0, written: None };
        let count = counts.entry(address).or_insert_with(fresh);
        if count.since.elapsed() >= WINDOW {
            (count.since, count.failures) = (Instant::now(), 0);
        }
        count.failures += 1;
        if count.written.is_some_and(|written| written.elapsed() < Duration::from_secs(1)) {
            count.unwritten += 1;
            return (None, count.failures);
        }
        count.written = Some(Instant::now());
        (Some(std::mem::take(&mut count.unwritten)), count.failures)
    }
}
