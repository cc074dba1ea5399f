//! Connections, credentials and the audit.

use cloister_types::SessionId;
use cloister_types::egress::{Audit, Connection, ConnectionName, ConnectionRecord, Secret, TestResult, VersionRecord};
use reqwest::Method;

use crate::{Client, Result};

impl Client {
    /// Lists connections.
    ///
    /// # Errors
    /// See [`crate::ClientError`], here and below.
    pub async fn connections(&self) -> Result<Vec<ConnectionRecord>> {
        self.json(self.request(Method::GET, "/v1/connections")).await
    }

    /// Reads a connection.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn connection(&self, name: &ConnectionName) -> Result<ConnectionRecord> {
        self.json(self.request(Method::GET, &format!("/v1/connections/{name}"))).await
    }

    /// Sets a connection.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn set_connection(&self, name: &ConnectionName, connection: &Connection) -> Result<ConnectionRecord> {
        self.json(self.request(Method::PUT, &format!("/v1/connections/{name}")).json(connection)).await
    }

    /// Removes a connection and its credentials.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn remove_connection(&self, name: &ConnectionName) -> Result<()> {
        self.send(self.request(Method::DELETE, &format!("/v1/connections/{name}"))).await.map(drop)
    }

    /// Sets a connection's credential.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn set_secret(
        &self,
        name: &ConnectionName,
        secret: &Secret,
        grace: Option<f64>,
    ) -> Result<VersionRecord> {
        let grace = grace.map(|grace| format!("?grace={grace}")).unwrap_or_default();
        self.json(self.request(Method::PUT, &format!("/v1/connections/{name}/secret{grace}")).json(secret)).await
    }

    /// Revokes one version of a credential, or all.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn revoke(&self, name: &ConnectionName, version: Option<u64>) -> Result<()> {
        let path = match version {
            Some(version) => format!("/v1/connections/{name}/versions/{version}"),
            None => format!("/v1/connections/{name}/secret"),
        };
        self.send(self.request(Method::DELETE, &path)).await.map(drop)
    }

    /// Tries a connection.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn test_connection(&self, name: &ConnectionName) -> Result<TestResult> {
        self.json(self.request(Method::POST, &format!("/v1/connections/{name}/test"))).await
    }

    /// A page of the audit, after a place.
    ///
    /// # Errors
    /// See [`crate::ClientError`].
    pub async fn audit(&self, session: Option<&SessionId>, after: u64, limit: usize) -> Result<Audit> {
        let session = session.map(|session| format!("&session={session}")).unwrap_or_default();
        self.json(self.request(Method::GET, &format!("/v1/egress?after={after}&limit={limit}{session}"))).await
    }
}
