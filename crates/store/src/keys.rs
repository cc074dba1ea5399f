//! Hashes of API keys, and notes about the tenant.

use rusqlite::{OptionalExtension, params};

use crate::{Result, Store};

impl Store {
    /// Adds a key's hash for a caller.
    ///
    /// # Errors
    /// The store's.
    pub async fn add_key(&self, hash: [u8; 32], caller: &str, now: f64) -> Result<()> {
        let caller = caller.to_owned();
        self.write(move |db| {
            db.execute(
                "INSERT OR REPLACE INTO api_key (hash, caller, created_at) VALUES (?1, ?2, ?3)",
                params![hash, caller, now],
            )?;
            Ok(())
        })
        .await
    }

    /// The caller whose key has this hash.
    ///
    /// # Errors
    /// The store's.
    pub async fn caller_of(&self, hash: [u8; 32]) -> Result<Option<String>> {
        self.read(move |db| {
            Ok(db
                .prepare_cached("SELECT caller FROM api_key WHERE hash = ?1")?
                .query_row([hash], |row| row.get(0))
                .optional()?)
        })
        .await
    }
}

impl Store {
    /// A note about the tenant as a whole.
    ///
    /// # Errors
    /// The store's.
    pub async fn noted(&self, name: &'static str) -> Result<Option<String>> {
        self.read(move |db| {
            let mut statement = db.prepare_cached("SELECT value FROM meta WHERE name = ?1")?;
            Ok(statement.query_row([name], |row| row.get(0)).optional()?)
        })
        .await
    }

    /// Writes a note about the tenant as a whole.
    ///
    /// # Errors
    /// The store's.
    pub async fn note(&self, name: &'static str, value: String) -> Result<()> {
        self.write_essential(move |db| {
            db.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)", params![name, value])?;
            Ok(())
        })
        .await
    }
}
