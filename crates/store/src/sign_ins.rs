//! People who have signed in with a browser, by the hashes of their cookies.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use cloister_types::access::{Role, SignIn};
use rusqlite::{Row, params};

use crate::keys::{Proof, end_children};
use crate::pepper::hex;
use crate::{Result, Store, StoreError};

/// What ids of sign-ins begin with.
pub const SIGN_IN: &str = "signin_";
/// Seconds for which somebody who is no longer signed in is remembered.
const KEPT: f64 = 86_400.0;

fn sign_in_of(row: &Row<'_>) -> Result<SignIn> {
    let text: String = row.get("roles")?;
    let roles: std::result::Result<Vec<Role>, _> = text.split(' ').map(str::parse).collect();
    Ok(SignIn {
        id: row.get("id")?,
        caller: row.get("caller")?,
        roles: roles.map_err(|_| StoreError::Broken(format!("roles {text:?}")))?,
        created_at: row.get("created_at")?,
        expires_at: row.get("expires_at")?,
    })
}

fn labelled(cookie: &str) -> String {
    format!("cookie {cookie}")
}

impl Store {
    /// An id for somebody who signs in, and a cookie; neither is stored yet.
    ///
    /// # Errors
    /// There is no randomness.
    pub fn fresh_sign_in() -> Result<(String, String)> {
        let (mut id, mut cookie) = ([0; 10], [0; 32]);
        let filled = aws_lc_rs::rand::fill(&mut id).and_then(|()| aws_lc_rs::rand::fill(&mut cookie));
        filled.map_err(|_| StoreError::Broken("no randomness".into()))?;
        Ok((format!("{SIGN_IN}{}", hex(&id)), hex(&cookie)))
    }

    /// Adds somebody who has signed in, by the cookie that they are given.
    ///
    /// # Errors
    /// The store's.
    pub async fn add_sign_in(&self, cookie: &str, who: SignIn) -> Result<()> {
        let hash = self.inner.pepper.hash_of(&labelled(cookie));
        self.write(move |db| {
            db.execute("DELETE FROM sign_in WHERE expires_at < ?1", [who.created_at - KEPT])?;
            let roles: Vec<&str> = who.roles.iter().map(|role| role.as_str()).collect();
            db.execute(
                "INSERT INTO sign_in (id, hash, caller, roles, created_at, expires_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![who.id, hash, who.caller, roles.join(" "), who.created_at, who.expires_at],
            )?;
            Ok(())
        })
        .await
    }

    /// Whose cookie it is, if they are signed in now; and by what that is asked
    /// again.
    ///
    /// # Errors
    /// The store's.
    pub async fn signed_in(&self, cookie: &str, now: f64) -> Result<Option<(SignIn, Proof)>> {
        let hash = self.inner.pepper.hash_of(&labelled(cookie));
        let proof = Proof(hash.clone());
        self.read(move |db| {
            let mut statement =
                db.prepare_cached("SELECT * FROM sign_in WHERE hash = ?1 AND ended_at IS NULL AND expires_at > ?2")?;
            let mut rows = statement.query(params![hash, now])?;
            rows.next()?.map(sign_in_of).transpose()
        })
        .await
        .map(|found| found.map(|who| (who, proof)))
    }

    /// Those who are signed in now, oldest first.
    ///
    /// # Errors
    /// The store's.
    pub async fn sign_ins(&self, now: f64) -> Result<Vec<SignIn>> {
        self.read(move |db| {
            let mut statement = db.prepare_cached(
                "SELECT * FROM sign_in WHERE ended_at IS NULL AND expires_at > ?1 ORDER BY created_at, id",
            )?;
            let mut rows = statement.query([now])?;
            let mut all = Vec::new();
            while let Some(row) = rows.next()? {
                all.push(sign_in_of(row)?);
            }
            Ok(all)
        })
        .await
    }

    /// Signs somebody out, with the tokens that they have made; false if they are
    /// not signed in.
    ///
    /// # Errors
    /// The store's.
    pub async fn end_sign_in(&self, id: &str, now: f64) -> Result<bool> {
        let id = id.to_owned();
        self.write_ending(true, move |db| {
            let ended = db.execute(
                "UPDATE sign_in SET ended_at = ?2 WHERE id = ?1 AND ended_at IS NULL AND expires_at > ?2",
                params![id, now],
            )?;
            if ended > 0 {
                end_children(db, &id, now)?;
            }
            Ok(ended > 0)
        })
        .await
    }

    /// What somebody who is signed in with this cookie sends with a change, so that
    /// no other site can have it made.
    #[must_use]
    pub fn csrf_token(&self, cookie: &str) -> String {
        hex(&self.inner.pepper.hash_of(&format!("csrf {cookie}")))
    }

    /// Closes a text, so that it can be told later whether it was changed.
    #[must_use]
    pub fn seal(&self, text: &str) -> String {
        hex(&self.inner.pepper.hash_of(&format!("seal {text}")))
    }

    /// Is it the seal of that text?
    #[must_use]
    pub fn is_sealed(&self, text: &str, seal: &str) -> bool {
        verify_slices_are_equal(self.seal(text).as_bytes(), seal.as_bytes()).is_ok()
    }
}
