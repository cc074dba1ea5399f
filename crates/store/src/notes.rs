//! Notes about the tenant as a whole.

use rusqlite::{OptionalExtension, params};

use crate::{Result, Store};

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
