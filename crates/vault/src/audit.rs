//! The audit: a chain of records, each hashed over the one before, with signed
//! heads. Appends are grouped: one commit for all that has arrived.

use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use cloister_types::egress::{Audit, AuditEntry, AuditHead, AuditRecord};
use cloister_types::transcript::Metered;
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior, params};

use crate::VaultError;
use crate::key::{Key, hex, unhex};
use crate::scribe::now;
use crate::usage;

/// Records of a page, and bytes of their texts.
const PAGE: usize = 1000;
const PAGE_BYTES: usize = 512 << 10;

pub(crate) struct Chain {
    db: Connection,
    signer: Ed25519KeyPair,
    tenant: String,
    region: String,
}

/// Records that came together.
#[derive(Debug)]
pub(crate) struct Noted {
    /// Unix seconds.
    pub(crate) time: f64,
    pub(crate) entries: Vec<AuditEntry>,
    /// Who counts its records, and the number of the first of these: none is
    /// taken a second time.
    pub(crate) source: Option<(String, u64)>,
}

/// The hash of a record: over the one before, its place, and its text.
fn hash_of(previous: &[u8], seq: u64, body: &str) -> [u8; 32] {
    let mut text = previous.to_vec();
    text.extend(seq.to_be_bytes());
    text.extend(body.as_bytes());
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, &text).as_ref());
    hash
}

/// What a head's signature is over.
fn signed_text(tenant: &str, seq: u64, hash: &str, time: f64) -> String {
    // In milliseconds: not every parser reads a fraction back to the last bit.
    format!("cloister-audit/1\n{tenant}\n{seq}\n{hash}\n{}", (time * 1e3).round() as i64)
}

/// What stands in a record's text, as it is written.
#[derive(serde::Serialize)]
struct Said<'s> {
    time: f64,
    #[serde(skip_serializing_if = "str::is_empty")]
    region: &'s str,
    #[serde(flatten)]
    entry: &'s AuditEntry,
}

/// And as it is read.
#[derive(serde::Deserialize)]
struct Body {
    time: f64,
    #[serde(default)]
    region: String,
    #[serde(flatten)]
    entry: AuditEntry,
}

fn prepare(db: Connection) -> Result<Connection, VaultError> {
    db.busy_timeout(std::time::Duration::from_secs(10))?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.execute_batch(
        "CREATE TABLE IF NOT EXISTS record (seq INTEGER PRIMARY KEY, session TEXT, body TEXT NOT NULL, hash BLOB NOT NULL) STRICT;
         CREATE INDEX IF NOT EXISTS record_session ON record (session, seq);
         CREATE TABLE IF NOT EXISTS head (seq INTEGER NOT NULL, body TEXT NOT NULL) STRICT;
         CREATE TABLE IF NOT EXISTS source (name TEXT PRIMARY KEY, seq INTEGER NOT NULL) STRICT, WITHOUT ROWID;",
    )?;
    usage::make_table(&db)?;
    Ok(db)
}

impl Chain {
    pub(crate) fn open(path: &Path, (tenant, region): (&str, &str), key: &Key) -> Result<Self, VaultError> {
        let signer = Ed25519KeyPair::from_seed_unchecked(key.bytes()).map_err(|_| VaultError::Crypto)?;
        Ok(Self { db: prepare(Connection::open(path)?)?, signer, tenant: tenant.to_owned(), region: region.to_owned() })
    }

    /// Appends records in one commit. Another vault may be at work on the same
    /// chain, so where it ends is read under the lock.
    pub(crate) fn append(&mut self, group: &[Noted]) -> Result<(), VaultError> {
        append(&mut self.db, &self.region, group)
    }

    /// What model calls have used: those of a session so far, and in money those
    /// of all on the day of this time.
    pub(crate) fn used(&self, session: &str, time: f64) -> Result<(Metered, u64, u64), VaultError> {
        let (used, cost) = usage::of_session(&self.db, session)?;
        Ok((used, cost, usage::cost_of_day(&self.db, time)?))
    }

    /// Signs the end of the chain, if it has grown since the last head.
    pub(crate) fn sign(&mut self, time: f64) -> Result<Option<AuditHead>, VaultError> {
        let newest = newest_head(&self.db)?;
        let (seq, hash) = last(&self.db)?;
        if seq == 0 || newest.as_ref().is_some_and(|head| head.seq == seq) {
            return Ok(newest);
        }
        let hash = hex(&hash);
        let signature = self.signer.sign(signed_text(&self.tenant, seq, &hash, time).as_bytes());
        let (signature, key) = (hex(signature.as_ref()), hex(self.signer.public_key().as_ref()));
        let head = AuditHead { seq, hash, time, signature, key };
        self.db.execute(
            "INSERT INTO head (seq, body) VALUES (?1, ?2)",
            params![seq.cast_signed(), serde_json::to_string(&head)?],
        )?;
        Ok(Some(head))
    }

    /// A page of the records, of one session or of all, after a place.
    pub(crate) fn page(&self, session: Option<&str>, after: u64, limit: usize) -> Result<Audit, VaultError> {
        page(&self.db, session, after, limit)
    }
}

fn append(db: &mut Connection, region: &str, group: &[Noted]) -> Result<(), VaultError> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    {
        let (mut seq, mut previous) = last(&transaction)?;
        let mut insert =
            transaction.prepare_cached("INSERT INTO record (seq, session, body, hash) VALUES (?1, ?2, ?3, ?4)")?;
        for noted in group {
            for entry in news(&transaction, noted)? {
                seq += 1;
                usage::count(&transaction, noted.time, entry)?;
                let said = Said { time: noted.time, region, entry };
                let body = serde_json::to_string(&said)?;
                let hash = hash_of(&previous, seq, &body);
                insert.execute(params![seq.cast_signed(), entry.session, body, hash])?;
                previous = hash.to_vec();
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

/// Appends an act of somebody who is at the host itself to a chain whose file is there,
/// if only empty. A vault may be at work on the same chain; its next head covers it.
///
/// # Errors
/// It cannot be written. What is not written down is not done.
pub fn note(path: &Path, region: &str, entry: AuditEntry) -> Result<(), VaultError> {
    // SQLite takes no link for a database, wherever in the path it is.
    let path = path.parent().unwrap_or(Path::new(".")).canonicalize()?.join(path.file_name().unwrap_or_default());
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    append(
        &mut prepare(Connection::open_with_flags(path, flags)?)?,
        region,
        &[Noted { time: now(), entries: vec![entry], source: None }],
    )
}

/// A page of a chain's records after a place, at most a thousand.
///
/// # Errors
/// It cannot be read.
pub fn read(path: &Path, after: u64) -> Result<Audit, VaultError> {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    page(&db, None, after, PAGE)
}

fn page(db: &Connection, session: Option<&str>, after: u64, limit: usize) -> Result<Audit, VaultError> {
    let limit = limit.clamp(1, PAGE);
    // Each of the two with its own index.
    let mut statement = db.prepare_cached(match session {
        Some(_) => {
            "SELECT r.seq, r.body, r.hash, (SELECT hash FROM record WHERE seq = r.seq - 1) FROM record r
             WHERE r.session = ?1 AND r.seq > ?2 ORDER BY r.seq LIMIT ?3"
        }
        None => {
            "SELECT r.seq, r.body, r.hash, (SELECT hash FROM record WHERE seq = r.seq - 1) FROM record r
             WHERE ?1 IS NULL AND r.seq > ?2 ORDER BY r.seq LIMIT ?3"
        }
    })?;
    let mut rows = statement.query(params![session, after.cast_signed(), limit as i64 + 1])?;
    let (mut data, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let text: String = row.get(1)?;
        bytes += text.len();
        if bytes > PAGE_BYTES && !data.is_empty() {
            let next = data.last().map(|record: &AuditRecord| record.seq);
            return Ok(Audit { data, next, head: newest_head(db)? });
        }
        let body: Body = serde_json::from_str(&text)?;
        let previous: Option<Vec<u8>> = row.get(3)?;
        data.push(AuditRecord {
            seq: row.get::<_, i64>(0)?.cast_unsigned(),
            time: body.time,
            region: body.region,
            entry: body.entry,
            previous: hex(&previous.unwrap_or_else(|| vec![0; 32])),
            hash: hex(&row.get::<_, Vec<u8>>(2)?),
        });
    }
    let more = data.len() > limit;
    data.truncate(limit);
    let next = data.last().map(|record| record.seq).filter(|_| more);
    Ok(Audit { data, next, head: newest_head(db)? })
}

/// Those of the records that were not taken before; notes that they are now.
fn news<'n>(db: &Connection, noted: &'n Noted) -> Result<&'n [AuditEntry], VaultError> {
    let Some((name, first)) = &noted.source else { return Ok(&noted.entries) };
    let known: Option<i64> =
        db.prepare_cached("SELECT seq FROM source WHERE name = ?1")?.query_row([name], |row| row.get(0)).optional()?;
    let known = known.map_or(0, |seq| (seq.cast_unsigned() + 1).saturating_sub(*first));
    let entries = noted.entries.get(usize::try_from(known).unwrap_or(usize::MAX)..).unwrap_or_default();
    if let Some(last) = (noted.entries.len() as u64 + first).checked_sub(1).filter(|_| !entries.is_empty()) {
        db.prepare_cached("INSERT INTO source (name, seq) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET seq = ?2")?
            .execute(params![name, last.cast_signed()])?;
    }
    Ok(entries)
}

fn last(db: &Connection) -> Result<(u64, Vec<u8>), VaultError> {
    let found = db
        .query_row("SELECT seq, hash FROM record ORDER BY seq DESC LIMIT 1", [], |row| {
            Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get(1)?))
        })
        .optional()?;
    Ok(found.unwrap_or_else(|| (0, vec![0; 32])))
}

fn newest_head(db: &Connection) -> Result<Option<AuditHead>, VaultError> {
    let body: Option<String> =
        db.query_row("SELECT body FROM head ORDER BY seq DESC LIMIT 1", [], |row| row.get(0)).optional()?;
    body.map(|body| Ok(serde_json::from_str(&body)?)).transpose()
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified {
    /// Records in the chain.
    pub records: u64,
    /// The hash of the last one.
    pub hash: String,
    /// Signed heads, all of which fit.
    pub heads: u64,
}

/// Verifies a chain: that nothing is missing in it, nothing was changed, and
/// every signed head lies on it. `kept` is a head that somebody has kept
/// elsewhere; `key` the public key that heads must be signed with, if it is
/// known from elsewhere.
///
/// # Errors
/// The first fault, in words.
pub fn verify(path: &Path, tenant: &str, kept: Option<&AuditHead>, key: Option<&str>) -> Result<Verified, String> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let db = Connection::open_with_flags(path, flags).map_err(|error| error.to_string())?;
    let mut heads: Vec<AuditHead> = rows(&db, "SELECT body FROM head ORDER BY seq")?
        .iter()
        .map(|body| serde_json::from_str(body).map_err(|error| format!("a head cannot be read: {error}")))
        .collect::<Result<_, _>>()?;
    let stored = heads.len() as u64;
    let first_key = heads.first().map(|head| head.key.clone());
    heads.extend(kept.cloned());
    for head in &heads {
        let expected = key.map(str::to_owned).or_else(|| first_key.clone());
        if expected.is_some_and(|expected| expected != head.key) {
            return Err(format!("the head at {} is signed with another key", head.seq));
        }
        let public = unhex(&head.key).ok_or("a head's key cannot be read")?;
        let signature = unhex(&head.signature).ok_or("a head's signature cannot be read")?;
        UnparsedPublicKey::new(&ED25519, public)
            .verify(signed_text(tenant, head.seq, &head.hash, head.time).as_bytes(), &signature)
            .map_err(|_| format!("the head at {} has a signature that is not the vault's", head.seq))?;
    }
    let mut statement =
        db.prepare("SELECT seq, session, body, hash FROM record ORDER BY seq").map_err(|error| error.to_string())?;
    let mut records = statement.query([]).map_err(|error| error.to_string())?;
    let (mut seq, mut previous, mut used) = (0, vec![0; 32], usage::Recount::default());
    while let Some(row) = records.next().map_err(|error| error.to_string())? {
        let broken = |error: rusqlite::Error| error.to_string();
        let found: i64 = row.get(0).map_err(broken)?;
        seq += 1;
        if found != seq {
            return Err(format!("record {seq} is missing"));
        }
        let (session, body): (Option<String>, String) = (row.get(1).map_err(broken)?, row.get(2).map_err(broken)?);
        let hash: Vec<u8> = row.get(3).map_err(broken)?;
        let read: Body =
            serde_json::from_str(&body).map_err(|error| format!("record {seq} cannot be read: {error}"))?;
        if read.entry.session != session || hash_of(&previous, seq.cast_unsigned(), &body)[..] != hash {
            return Err(format!("record {seq} was changed"));
        }
        if let Some(head) = heads.iter().find(|head| head.seq == seq.cast_unsigned() && head.hash != hex(&hash)) {
            return Err(format!("the chain is another one than the head at {} was signed for", head.seq));
        }
        used.add(read.time, &read.entry);
        previous = hash;
    }
    if let Some(head) = heads.iter().find(|head| head.seq > seq.cast_unsigned()) {
        return Err(format!("the chain ends at {seq}, but a head was signed at {}: records were cut off", head.seq));
    }
    if !used.is_kept(&db).map_err(|error| error.to_string())? {
        return Err("the account of usage is not what the records say".into());
    }
    Ok(Verified { records: seq.cast_unsigned(), hash: hex(&previous), heads: stored })
}

fn rows(db: &Connection, query: &str) -> Result<Vec<String>, String> {
    let mut statement = db.prepare(query).map_err(|error| error.to_string())?;
    let found = statement.query_map([], |row| row.get(0)).map_err(|error| error.to_string())?;
    found.collect::<Result<_, _>>().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use cloister_types::transcript::Usage;

    use super::*;

    fn entry(rule: &str) -> AuditEntry {
        AuditEntry { session: Some("s".into()), stream: "http".into(), rule: rule.into(), ..AuditEntry::default() }
    }

    fn noted(time: f64, entry: AuditEntry) -> Noted {
        Noted { time, entries: vec![entry], source: None }
    }

    fn call(output_tokens: u64) -> AuditEntry {
        let usage = Usage { output_tokens, ..Usage::default() };
        AuditEntry { usage: Some(usage), cost: Some(3), connection: Some("model:m".into()), ..entry("c") }
    }

    #[test]
    fn what_comes_again_is_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.db");
        let mut chain = Chain::open(&path, ("t", "r"), &Key::random().unwrap()).unwrap();
        let batch = |first, entries| Noted { time: 1.0, entries, source: Some(("egress".into(), first)) };
        chain.append(&[batch(1, vec![call(1), call(2)]), batch(1, vec![call(1), call(2), call(4)])]).unwrap();
        chain.append(&[batch(3, vec![call(4), call(8)]), batch(2, vec![call(2)]), batch(5, vec![call(32)])]).unwrap();
        chain.append(&[Noted { source: Some(("another".into(), 1)), ..noted(100_000.0, call(16)) }]).unwrap();
        let (used, cost, today) = chain.used("s", 100_000.0).unwrap();
        assert_eq!((used.usage.output_tokens, used.usage.total_tokens, cost, today), (63, 63, 18, 3));
        assert_eq!(verify(&path, "t", None, None).map(|found| found.records), Ok(6));
        // The account of a chain that is older than accounts.
        chain.db.execute_batch("DROP TABLE usage").unwrap();
        usage::make_table(&chain.db).unwrap();
        assert!(verify(&path, "t", None, None).is_ok());
    }

    #[test]
    fn every_kind_of_tampering_shows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.db");
        let mut chain = Chain::open(&path, ("t", "r"), &Key::random().unwrap()).unwrap();
        chain.append(&[noted(1.0, entry("a")), noted(2.0, entry("b"))]).unwrap();
        chain.append(&[noted(3.0, call(7))]).unwrap();
        // A time that does not come back from JSON to the last bit.
        let head = chain.sign(1_795_650_525.123_456_7).unwrap().unwrap();
        chain.append(&[noted(5.0, entry("d"))]).unwrap();
        assert_eq!(verify(&path, "t", Some(&head), None).map(|found| (found.records, found.heads)), Ok((4, 1)));
        assert!(verify(&path, "other", None, None).is_err());
        let page = chain.page(Some("s"), 1, 2).unwrap();
        assert_eq!(page.data.iter().map(|record| record.seq).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(page.next, Some(3));
        let keep = std::fs::read(&path).unwrap();
        drop(chain);
        for (tampering, shows) in [
            ("UPDATE record SET body = replace(body, '\"b\"', '\"x\"') WHERE seq = 2", "changed"),
            ("UPDATE record SET session = 'other' WHERE seq = 2", "changed"),
            ("DELETE FROM record WHERE seq = 2", "missing"),
            ("DELETE FROM record WHERE seq >= 3", "cut off"),
            ("UPDATE record SET seq = seq + 10 WHERE seq = 2", "missing"),
            ("UPDATE usage SET output = output - 1", "account of usage"),
            ("UPDATE head SET body = replace(body, '\"seq\":3', '\"seq\":2')", "signature"),
        ] {
            let copy = folder.path().join("copy.db");
            let _ = std::fs::remove_file(folder.path().join("copy.db-wal"));
            let _ = std::fs::remove_file(folder.path().join("copy.db-shm"));
            std::fs::write(&copy, &keep).unwrap();
            std::fs::copy(folder.path().join("audit.db"), &copy).unwrap();
            let db = Connection::open(&copy).unwrap();
            db.execute_batch(tampering).unwrap();
            drop(db);
            let said = verify(&copy, "t", None, None).unwrap_err();
            assert!(said.contains(shows), "{tampering}: {said}");
        }
        // With the head deleted as well, only whoever kept it can tell.
        let db = Connection::open(&path).unwrap();
        db.execute_batch("DELETE FROM record WHERE seq >= 3; DELETE FROM usage; DELETE FROM head").unwrap();
        assert!(verify(&path, "t", None, None).is_ok());
        assert!(verify(&path, "t", Some(&head), None).unwrap_err().contains("cut off"));
    }
}
