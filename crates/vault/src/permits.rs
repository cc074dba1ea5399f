//! What each session may use.

use cloister_types::egress::{Connection as Rules, ConnectionName};
use rusqlite::params;

use crate::VaultError;
use crate::records::{Records, rules_text};
use crate::seal::{self, keep_seal};

impl Records {
    /// Permits connections to a session, in place of those before. With
    /// `strict`, nothing changes if one does not exist, and that one is told;
    /// otherwise it is left out: it was removed since the session was made.
    pub(crate) fn permit(
        &mut self,
        session: &str,
        connections: &[ConnectionName],
        strict: bool,
    ) -> Result<Option<ConnectionName>, VaultError> {
        let transaction = self.db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        seal::check(&transaction, &self.root, &self.checked)?;
        let mut wanted = Vec::new();
        for name in connections {
            match rules_text(&transaction, name)? {
                Some(_) => wanted.push(name.to_string()),
                None if strict => return Ok(Some(name.clone())),
                None => {}
            }
        }
        wanted.sort();
        wanted.dedup();
        let had: Vec<String> = transaction
            .prepare_cached("SELECT connection FROM permit WHERE session = ?1 ORDER BY connection")?
            .query_map([session], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        if had == wanted {
            return Ok(None);
        }
        transaction.execute("DELETE FROM permit WHERE session = ?1", [session])?;
        for name in wanted {
            transaction.execute("INSERT INTO permit (session, connection) VALUES (?1, ?2)", params![session, name])?;
        }
        keep_seal(&transaction, &self.root)?;
        transaction.commit()?;
        Ok(None)
    }

    /// Takes all permits away from sessions that are not among these.
    pub(crate) fn prune(&mut self, sessions: &[String]) -> Result<(), VaultError> {
        let known = serde_json::to_string(sessions)?;
        let transaction = self.db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        seal::check(&transaction, &self.root, &self.checked)?;
        transaction.execute("DELETE FROM permit WHERE session NOT IN (SELECT value FROM json_each(?1))", [known])?;
        keep_seal(&transaction, &self.root)?;
        transaction.commit()?;
        Ok(())
    }

    /// The connections of a session: names, rules, and the version in use.
    pub(crate) fn permitted(&self, session: &str) -> Result<Vec<(ConnectionName, Rules, u64)>, VaultError> {
        let _snapshot = self.snapshot()?;
        let mut statement = self.db.prepare_cached(
            "SELECT c.name, c.rules, coalesce((SELECT max(version) FROM credential v WHERE v.name = c.name AND v.state = 'active'), 0)
             FROM permit p JOIN connection c ON c.name = p.connection WHERE p.session = ?1 ORDER BY c.name",
        )?;
        let rows = statement.query_map([session], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)?.cast_unsigned()))
        })?;
        let mut found = Vec::new();
        for row in rows {
            let (name, rules, version) = row?;
            let Ok(name) = name.parse() else { continue };
            found.push((name, serde_json::from_str(&rules)?, version));
        }
        Ok(found)
    }
}
