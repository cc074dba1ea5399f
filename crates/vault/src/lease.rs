//! Tokens that were made from credentials: kept with them, and made by one vault
//! at a time.

use cloister_types::egress::{ConnectionName, Secret};
use rusqlite::{Transaction, params};
use zeroize::Zeroizing;

use crate::VaultError;
use crate::key::Key;
use crate::records::{Opened, Records, rules_text};
use crate::version::versions;

impl Records {
    /// Takes the right to make a token from a version, for so many seconds;
    /// false if another vault has it.
    pub(crate) fn lease(
        &mut self,
        name: &ConnectionName,
        version: u64,
        now: f64,
        seconds: f64,
    ) -> Result<bool, VaultError> {
        let changed = self.db.execute(
            "UPDATE credential SET lease = ?3 WHERE name = ?1 AND version = ?2 AND lease <= ?4",
            params![name.as_str(), version.cast_signed(), now + seconds, now],
        )?;
        Ok(changed > 0)
    }

    /// Gives that right up.
    pub(crate) fn release(&mut self, name: &ConnectionName, version: u64) -> Result<(), VaultError> {
        self.db.execute(
            "UPDATE credential SET lease = 0 WHERE name = ?1 AND version = ?2",
            params![name.as_str(), version.cast_signed()],
        )?;
        Ok(())
    }

    /// Opens a version again, if it is still the one in use.
    pub(crate) fn reopen(&self, name: &ConnectionName, version: u64) -> Result<Option<Opened>, VaultError> {
        let Some(text) = rules_text(&self.db, name)? else { return Ok(None) };
        let opened = self.open_active(name, &text, serde_json::from_str(&text)?)?;
        Ok(opened.ok().filter(|opened| opened.version == version))
    }

    /// Keeps a token, and what has changed of the credential with it (a new
    /// refresh token), before either is used.
    pub(crate) fn keep_token(
        &mut self,
        name: &ConnectionName,
        version: u64,
        token: Option<&[u8]>,
        renewed: Option<&Secret>,
    ) -> Result<(), VaultError> {
        let renewed = renewed.map(serde_json::to_vec).transpose()?.map(Zeroizing::new);
        let (name, token) = (name.clone(), token.map(|token| Zeroizing::new(token.to_vec())));
        let work = move |db: &Transaction<'_>, root: &Key, tenant: &str| -> Result<(), VaultError> {
            let Some(rules) = rules_text(db, &name)? else { return Ok(()) };
            let found =
                versions(db, &name)?.into_iter().find(|found| found.version == version && found.sealed.is_some());
            let Some(found) = found else { return Ok(()) };
            if let Some(renewed) = &renewed {
                found.write(db, root, tenant, &rules, renewed)?;
            }
            let sealed = token
                .as_ref()
                .map(|token| found.key(root).close(&found.about(tenant, &rules, "token"), token))
                .transpose()?;
            db.execute(
                "UPDATE credential SET token = ?3, lease = 0 WHERE name = ?1 AND version = ?2",
                params![name.as_str(), version.cast_signed(), sealed],
            )?;
            Ok(())
        };
        self.change(work)
    }

    /// The issuer does not take the version any more.
    pub(crate) fn needs_reauth(&mut self, name: &ConnectionName, version: u64) -> Result<(), VaultError> {
        self.change(|db, _, _| {
            db.execute(
                "UPDATE credential SET state = 'needs_reauth', token = NULL, lease = 0 WHERE name = ?1 AND version = ?2 AND state = 'active'",
                params![name.as_str(), version.cast_signed()],
            )?;
            Ok(())
        })
    }
}
