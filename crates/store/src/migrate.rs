//! Bringing an older database up to date.

use cloister_types::ResponseId;
use rusqlite::{Connection, params};

use crate::row::{Chunk, Mark, Row};
use crate::{Result, StoreError, log};

/// A step from one version to the next: statements, then what they cannot do.
struct Step {
    sql: &'static str,
    then: fn(&Connection) -> Result<()>,
}

const STEPS: &[Step] = &[
    Step { sql: include_str!("../migrations/0001_init.sql"), then: |_| Ok(()) },
    Step { sql: include_str!("../migrations/0002_log.sql"), then: pack_the_log },
    Step { sql: include_str!("../migrations/0003_egress.sql"), then: |_| Ok(()) },
    Step { sql: include_str!("../migrations/0004_metered.sql"), then: |_| Ok(()) },
    Step { sql: include_str!("../migrations/0005_keys.sql"), then: |_| Ok(()) },
    Step { sql: include_str!("../migrations/0006_sign_ins.sql"), then: |_| Ok(()) },
];

pub(crate) fn migrate(connection: &mut Connection) -> Result<()> {
    let version: usize =
        connection.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))?.try_into().unwrap_or(usize::MAX);
    if version > STEPS.len() {
        return Err(StoreError::Foreign("the data directory was written by a newer version of Cloister".into()));
    }
    for (index, step) in STEPS.iter().enumerate().skip(version) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(step.sql)?;
        (step.then)(&transaction)?;
        transaction.pragma_update(None, "user_version", index as i64 + 1)?;
        transaction.commit()?;
    }
    Ok(())
}

/// Version 2: turns get keys, and the rows of ended ones become chunks.
fn pack_the_log(db: &Connection) -> Result<()> {
    let mut turns = db.prepare(
        "SELECT id, session, created_at, status, output_text, usage, error, completed_at FROM turn_1 ORDER BY created_at",
    )?;
    let mut found = turns.query([])?;
    while let Some(turn) = found.next()? {
        let (id, status): (String, String) = (turn.get(0)?, turn.get(3)?);
        let id: ResponseId = id.parse().map_err(|_| StoreError::Broken(format!("turn id {id:?}")))?;
        let rows = old_rows(db, &id)?;
        let mark = Mark { attempt: 1, offset: 0, at_ms: 0 };
        let open = status == "in_progress";
        let last = rows.iter().rev().find_map(|row| matches!(row, Row::Event(_)).then(|| row.seq().cast_signed()));
        let mut insert = db.prepare_cached(
            "INSERT INTO turn (id, session, created_at, status, place, started, output_text, usage, error, completed_at, ended, last_seq)
             VALUES (?1, ?2, ?3, ?4, 0, (SELECT coalesce(max(started), 0) + 1 FROM turn WHERE session = ?2), ?5, ?6, ?7, ?8, ?8, ?9)",
        )?;
        let key = insert.insert(params![
            id.as_str(),
            turn.get::<_, String>(1)?,
            turn.get::<_, f64>(2)?,
            status,
            turn.get::<_, String>(4)?,
            turn.get::<_, String>(5)?,
            turn.get::<_, Option<String>>(6)?,
            turn.get::<_, Option<f64>>(7)?,
            if open { None } else { last }
        ])?;
        if open {
            for row in &rows {
                log::Insert::new(db)?.row(key, row, mark)?;
            }
        } else if let Some(chunk) = Chunk::pack(rows.iter(), mark) {
            log::close(db, key, &chunk, &[])?;
        }
    }
    db.execute_batch("DROP TABLE log_1; DROP TABLE turn_1")?;
    Ok(())
}

fn old_rows(db: &Connection, turn: &ResponseId) -> Result<Vec<Row>> {
    let mut statement = db.prepare_cached("SELECT seq, kind, body FROM log_1 WHERE turn = ?1 ORDER BY id")?;
    let mut found = statement.query([turn.as_str()])?;
    let (mut rows, mut next) = (Vec::new(), 0);
    while let Some(row) = found.next()? {
        let seq = row.get::<_, Option<i64>>(0)?.map_or(next, i64::cast_unsigned);
        let read = Row::read(seq, &row.get::<_, String>(1)?, row.get(2)?)?;
        next = seq + u64::from(matches!(read, Row::Event(_)));
        rows.push(read);
    }
    Ok(rows)
}
