//! Who the caller is, why, and who else is signed in.

use cloister_types::SessionId;
use cloister_types::access::{Explain, Explained, MadeKey, NewToken, SignInList};
use cloister_types::wire::Me;
use reqwest::Method;

use crate::{Client, Result};

impl Client {
    /// Who the caller is to the tenant.
    ///
    /// # Errors
    /// See [`crate::ClientError`], here and below.
    pub async fn me(&self) -> Result<Me> {
        self.json(self.request(Method::GET, "/v1/me")).await
    }

    /// What would become of a call, and which rule decides.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn explain_access(&self, ask: &Explain) -> Result<Explained> {
        self.json(self.request(Method::POST, "/v1/auth/explain").json(ask)).await
    }

    /// Who is signed in with a browser.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn sign_ins(&self) -> Result<SignInList> {
        self.json(self.request(Method::GET, "/v1/sign-ins")).await
    }

    /// Signs somebody out.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn end_sign_in(&self, id: &str) -> Result<()> {
        self.send(self.request(Method::DELETE, &format!("/v1/sign-ins/{id}"))).await.map(drop)
    }

    /// A token that reaches one session alone.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn session_token(&self, session: &SessionId, ask: &NewToken) -> Result<MadeKey> {
        self.json(self.request(Method::POST, &format!("/v1/sessions/{session}/tokens")).json(ask)).await
    }
}
