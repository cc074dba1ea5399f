//! What model calls have used, summed from the audit in the transaction that
//! appends to it: by session, day and model. The one account of usage; it can be
//! worked out again from the chain, and a verification does.

use std::collections::BTreeMap;

use cloister_types::egress::AuditEntry;
use cloister_types::transcript::{Metered, Usage};
use rusqlite::{Connection, params};

use crate::VaultError;

const DAY: f64 = 86_400.0;

/// Session, day since 1970 (UTC) and model.
type Key = (String, i64, String);

/// Calls, input, output, read from a cache, written to one, calls whose figures
/// are not all the provider's, and millionths of a dollar.
type Sums = [u64; 7];

/// Makes the table; from the records, if there were any before it.
pub(crate) fn make_table(db: &Connection) -> Result<(), VaultError> {
    let there = db.prepare("SELECT 1 FROM sqlite_master WHERE name = 'usage'")?.exists([])?;
    if there {
        return Ok(());
    }
    db.execute_batch(
        "BEGIN IMMEDIATE;
         CREATE TABLE IF NOT EXISTS usage (session TEXT NOT NULL, day INTEGER NOT NULL, model TEXT NOT NULL, calls INTEGER NOT NULL,
           input INTEGER NOT NULL, output INTEGER NOT NULL, cache_read INTEGER NOT NULL, cache_write INTEGER NOT NULL,
           estimated INTEGER NOT NULL, cost INTEGER NOT NULL, PRIMARY KEY (session, day, model)) STRICT, WITHOUT ROWID;
         CREATE INDEX IF NOT EXISTS usage_of_day ON usage (day, cost);
         INSERT OR IGNORE INTO usage
           SELECT session, CAST(json_extract(body, '$.time') / 86400 AS INTEGER), json_extract(body, '$.connection'), count(*),
             sum(json_extract(body, '$.usage.input_tokens')), sum(json_extract(body, '$.usage.output_tokens')),
             sum(json_extract(body, '$.usage.cache_read_tokens')), sum(json_extract(body, '$.usage.cache_write_tokens')),
             sum(json_extract(body, '$.usage.estimated')), sum(coalesce(json_extract(body, '$.cost'), 0))
           FROM record WHERE session IS NOT NULL AND json_extract(body, '$.usage') IS NOT NULL GROUP BY 1, 2, 3;
         COMMIT;",
    )?;
    Ok(())
}

/// What a record adds, if it is a model call's.
fn part(time: f64, entry: &AuditEntry) -> Option<(Key, Sums)> {
    let (session, usage) = (entry.session.clone()?, entry.usage?);
    let key = (session, (time / DAY).floor() as i64, entry.connection.clone().unwrap_or_default());
    let Usage { input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, estimated, .. } = usage;
    let cost = entry.cost.unwrap_or(0);
    Some((key, [1, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, u64::from(estimated), cost]))
}

/// Counts a record that is being appended.
pub(crate) fn count(db: &Connection, time: f64, entry: &AuditEntry) -> Result<(), VaultError> {
    let Some(((session, day, model), sums)) = part(time, entry) else { return Ok(()) };
    let [calls, input, output, cache_read, cache_write, estimated, cost] = sums.map(u64::cast_signed);
    db.prepare_cached(
        "INSERT INTO usage VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) ON CONFLICT DO UPDATE SET
         calls = calls + ?4, input = input + ?5, output = output + ?6, cache_read = cache_read + ?7,
         cache_write = cache_write + ?8, estimated = estimated + ?9, cost = cost + ?10",
    )?
    .execute(params![session, day, model, calls, input, output, cache_read, cache_write, estimated, cost])?;
    Ok(())
}

/// What a session has used, and what that cost.
pub(crate) fn of_session(db: &Connection, session: &str) -> Result<(Metered, u64), VaultError> {
    let mut statement = db.prepare_cached(
        "SELECT coalesce(sum(input), 0), coalesce(sum(output), 0), coalesce(sum(cache_read), 0),
         coalesce(sum(cache_write), 0), coalesce(sum(estimated), 0), coalesce(sum(cost), 0) FROM usage WHERE session = ?1",
    )?;
    let found = statement.query_row([session], |row| {
        let number = |at| row.get::<_, i64>(at).map(i64::cast_unsigned);
        let mut metered = Metered { usage: Usage::default(), estimated: number(4)? };
        metered.usage.add(&Usage {
            input_tokens: number(0)?,
            output_tokens: number(1)?,
            cache_read_tokens: number(2)?,
            cache_write_tokens: number(3)?,
            estimated: metered.estimated > 0,
            total_tokens: 0,
        });
        Ok((metered, number(5)?))
    })?;
    Ok(found)
}

/// What all sessions' calls cost on the day of this time.
pub(crate) fn cost_of_day(db: &Connection, time: f64) -> Result<u64, VaultError> {
    let mut statement = db.prepare_cached("SELECT coalesce(sum(cost), 0) FROM usage WHERE day = ?1")?;
    Ok(statement.query_row([(time / DAY).floor() as i64], |row| row.get::<_, i64>(0))?.cast_unsigned())
}

/// The account as the chain has it.
#[derive(Default)]
pub(crate) struct Recount(BTreeMap<Key, Sums>);

impl Recount {
    pub(crate) fn add(&mut self, time: f64, entry: &AuditEntry) {
        if let Some((key, sums)) = part(time, entry) {
            let known = self.0.entry(key).or_default();
            known.iter_mut().zip(sums).for_each(|(known, more)| *known += more);
        }
    }

    /// Is it the account that is kept?
    pub(crate) fn is_kept(&self, db: &Connection) -> rusqlite::Result<bool> {
        let mut statement = db.prepare("SELECT * FROM usage")?;
        let rows = statement.query_map([], |row| {
            let mut sums = [0; 7];
            for (at, sum) in sums.iter_mut().enumerate() {
                *sum = row.get::<_, i64>(at + 3)?.cast_unsigned();
            }
            Ok(((row.get(0)?, row.get(1)?, row.get(2)?), sums))
        })?;
        Ok(rows.collect::<rusqlite::Result<BTreeMap<_, _>>>()? == self.0)
    }
}
