//! What the sessions' model calls have used: what the audit has, and what has
//! happened since. All that is said of usage, and every limit on it, comes from
//! here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cloister_types::SessionId;
use cloister_types::model::Price;
use cloister_types::transcript::{Metered, Usage};
use cloister_vault::client::{Away, Client};
use cloister_vault::wire::{Reply, Request};

use crate::limits::Limits;
use crate::meter::Meter;

/// A model call under way, from the beginning of its answer.
pub(crate) struct Call {
    price: Price,
    meter: Mutex<Meter>,
}

impl Call {
    pub(crate) fn meter(&self) -> MutexGuard<'_, Meter> {
        self.meter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct Account {
    used: Metered,
    /// Millionths of a dollar.
    cost: u64,
    under_way: Vec<Arc<Call>>,
}

impl Account {
    fn cost(&self) -> u64 {
        self.cost + self.under_way.iter().map(|call| call.price.of(&call.meter().said())).sum::<u64>()
    }
}

#[derive(Default)]
struct Accounts {
    of: HashMap<SessionId, Account>,
    /// The day since 1970 (UTC), and what all have cost on it.
    today: (u64, u64),
}

impl Accounts {
    fn today(&mut self) -> &mut u64 {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let day = now.as_secs() / 86_400;
        if self.today.0 != day {
            self.today = (day, 0);
        }
        &mut self.today.1
    }
}

#[derive(Default)]
pub(crate) struct Ledger(Mutex<Accounts>);

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, Accounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure that a session's account is here.
    pub(crate) async fn open(&self, vault: &Client, session: &SessionId) -> Result<(), Away> {
        if self.lock().of.contains_key(session) {
            return Ok(());
        }
        let Reply::Used(before) = vault.ask(&Request::Used(session.clone())).await? else { return Err(Away) };
        let mut accounts = self.lock();
        if accounts.of.is_empty() {
            *accounts.today() = before.today;
        }
        let account = Account { used: before.session, cost: before.cost, under_way: Vec::new() };
        accounts.of.entry(session.clone()).or_insert(account);
        Ok(())
    }

    /// The limit that a session has reached, if it has: it may make no more calls.
    pub(crate) fn reached(&self, session: &SessionId, limits: &Limits) -> Option<&'static str> {
        let mut accounts = self.lock();
        let cost = accounts.of.get(session).map_or(0, Account::cost);
        let is_met = |limit: Option<f64>, cost: u64| limit.is_some_and(|dollars| cost as f64 >= dollars * 1e6);
        if is_met(limits.session_dollars, cost) {
            return Some("egress.limits.session_dollars");
        }
        let under_way: u64 = accounts.of.values().map(|account| account.cost() - account.cost).sum();
        is_met(limits.dollars_per_day, *accounts.today() + under_way).then_some("egress.limits.dollars_per_day")
    }

    /// A call's answer begins.
    pub(crate) fn begin(&self, session: &SessionId, price: Price, meter: Meter) -> Arc<Call> {
        let call = Arc::new(Call { price, meter: Mutex::new(meter) });
        self.lock().of.entry(session.clone()).or_default().under_way.push(call.clone());
        call
    }

    /// A call is over, whose question had so many bytes. What it used, and what
    /// that cost, is told while nobody can look.
    pub(crate) fn end(&self, session: &SessionId, call: &Arc<Call>, asked: u64, told: impl FnOnce(Usage, u64)) {
        let usage = call.meter().settle(asked);
        let cost = call.price.of(&usage);
        let mut accounts = self.lock();
        *accounts.today() += cost;
        let account = accounts.of.entry(session.clone()).or_default();
        account.under_way.retain(|other| !Arc::ptr_eq(other, call));
        account.used.add(&usage);
        account.cost += cost;
        told(usage, cost);
    }

    /// What a session has used, calls under way included as far as they are.
    pub(crate) fn used(&self, session: &SessionId) -> Metered {
        let accounts = self.lock();
        let mut sum = Metered::default();
        if let Some(account) = accounts.of.get(session) {
            sum = account.used;
            account.under_way.iter().for_each(|call| sum.add(&call.meter().said()));
        }
        sum
    }
}
