//! The database in the hands of somebody else: whatever is written into it, no
//! credential comes out that would not have come out before.

use proptest::prelude::*;
use rusqlite::types::Value;
use rusqlite::{Connection, params};
use tempfile::TempDir;

use super::tests::{open, place, replace, rules, secret};
use super::{Records, Refusal};
use crate::place::Place;

/// Everything that decides about credentials. (The lease decides who asks for a
/// token, and is not under the seal.)
const CELLS: [(&str, &[&str]); 4] = [
    ("meta", &["key", "value"]),
    ("connection", &["name", "rules", "created_at", "updated_at"]),
    (
        "credential",
        &["name", "version", "kind", "state", "fingerprint", "created_at", "grace_until", "sealed", "token"],
    ),
    ("permit", &["session", "connection"]),
];

/// A vault with a permitted credential, one that was revoked, and one that
/// nobody may use; its database in one piece.
struct Kept {
    folder: TempDir,
    whole: Vec<u8>,
}

impl Kept {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = place(folder.path());
        let mut records = Records::open(&at).unwrap();
        for (name, host) in [("a", "api.example.com"), ("b", "evil.example.com")] {
            let name = name.parse().unwrap();
            records.put(&name, &rules(host), 1.0).unwrap();
            records.add_version(&name, &secret("former"), 0.0, 2.0).unwrap();
            records.revoke(&name, None).unwrap();
            records.add_version(&name, &secret(name.as_str()), 0.0, 3.0).unwrap();
        }
        records.permit("s", &["a".parse().unwrap()], true).unwrap();
        records.db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        drop(records);
        let whole = std::fs::read(at.database()).unwrap();
        Self { folder, whole }
    }

    /// The vault with this database.
    fn with(&self, database: &[u8]) -> Place {
        let at = place(self.folder.path());
        replace(&at, database);
        at
    }
}

/// What the session gets for each host, by whichever connection.
fn credentials(records: &Records) -> Vec<String> {
    let mut found = Vec::new();
    for name in ["a", "b"] {
        for host in ["api.example.com", "evil.example.com"] {
            let opened = records.open_for("s", &name.parse().unwrap(), &host.parse().unwrap(), 443);
            if let Ok(Ok(opened)) = opened {
                found.push(format!("{host} {}", String::from_utf8_lossy(&opened.secret)));
            }
        }
    }
    found
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::Integer),
        (-2_i64..5).prop_map(Value::Integer),
        any::<f64>().prop_filter("a number", |number| !number.is_nan()).prop_map(Value::Real),
        "[a-z0-9:_.{}\"]{0,24}".prop_map(Value::Text),
        prop_oneof!["a", "b", "s", "active", "grace", "static"].prop_map(Value::Text),
        proptest::collection::vec(any::<u8>(), 0..80).prop_map(Value::Blob),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// One cell of one row, while the vault is at work and before its next start.
    #[test]
    fn any_value_in_any_cell_gives_nobody_a_credential(table in 0..CELLS.len(), column: prop::sample::Index, row: prop::sample::Index, new in value()) {
        let kept = Kept::new();
        let at = kept.with(&kept.whole);
        let records = Records::open(&at).unwrap();
        prop_assert_eq!(open(&records, "api.example.com").map(|text| text.contains("\"a\"")), Ok(true));
        let (table, columns) = CELLS[table];
        let column = columns[column.index(columns.len())];
        let db = Connection::open(at.database()).unwrap();
        let rows: Vec<i64> = db.prepare(&format!("SELECT rowid FROM {table}")).unwrap()
            .query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        let row = rows[row.index(rows.len())];
        let read = |what: &str| -> Value {
            db.query_row(&format!("SELECT {what} FROM {table} WHERE rowid = ?1"), [row], |row| row.get(0)).unwrap()
        };
        let (old, about_root) = (read(column), table == "meta" && read("key") == Value::Text("root".into()));
        // What the table's own types or keys forbid is no edit.
        let changed = db.execute(&format!("UPDATE {table} SET {column} = ?1 WHERE rowid = ?2"), params![new, row]).is_ok()
            && read(column) != old;
        prop_assume!(changed);
        // The vault at work has its root key, and does not read it again.
        if !about_root {
            prop_assert_eq!(credentials(&records), Vec::<String>::new());
        }
        drop((records, db));
        prop_assert!(Records::open(&at).is_err());
    }

    /// Any bytes of the file: it may be no database any more, and is no other one.
    #[test]
    fn any_bytes_of_the_file_give_nobody_another_credential(places in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let kept = Kept::new();
        let expected = credentials(&Records::open(&kept.with(&kept.whole)).unwrap());
        prop_assert_eq!(expected.len(), 1);
        let mut bytes = kept.whole.clone();
        for (at, byte) in places {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(records) = Records::open(&kept.with(&bytes)) {
            let found = credentials(&records);
            prop_assert!(found.is_empty() || found == expected, "{found:?}");
        }
    }
}

#[test]
fn without_an_edit_the_credential_is_there() {
    let kept = Kept::new();
    let records = Records::open(&kept.with(&kept.whole)).unwrap();
    assert_eq!(credentials(&records).len(), 1);
    let other = records.open_for("s", &"b".parse().unwrap(), &"evil.example.com".parse().unwrap(), 443);
    assert!(matches!(other, Ok(Err(Refusal::NotGranted))));
}
