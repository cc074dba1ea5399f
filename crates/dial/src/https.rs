//! One call to a service that the operator or a credential names: JSON comes
//! back.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use serde_json::Value;

use crate::{Connector, Dialer, Reach, Roots, TlsError, client_config};

/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of an answer.
const ANSWER: usize = 256 << 10;

/// Why there was no answer.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A client that makes one call a connection.
#[derive(Clone)]
pub struct Https(Connector);

impl Https {
    /// With the hosts that the operator has placed, and authorities besides the
    /// machine's.
    ///
    /// # Errors
    /// The file cannot be read, or holds no certificate.
    pub fn new(dialer: Dialer, reach: Reach, extra_ca: Option<&Path>) -> Result<Self, TlsError> {
        let tls = client_config(&Roots::read(extra_ca)?, None, false)?;
        Ok(Self(Connector { dialer: Arc::new(dialer), reach, tls }))
    }

    /// Gets what is there. What is not JSON comes back as null.
    ///
    /// # Errors
    /// There is no answer, or too long a one.
    pub async fn get(&self, url: &str) -> Result<(StatusCode, Value), Failure> {
        self.send(url, http::Request::get(url).header(header::ACCEPT, "application/json"), Bytes::new()).await
    }

    /// Posts a body. What is not JSON comes back as null.
    ///
    /// # Errors
    /// There is no answer, or too long a one.
    pub async fn post(
        &self,
        url: &str,
        request: http::request::Builder,
        body: Bytes,
    ) -> Result<(StatusCode, Value), Failure> {
        self.send(url, request.method(Method::POST), body).await
    }

    async fn send(
        &self,
        url: &str,
        request: http::request::Builder,
        body: Bytes,
    ) -> Result<(StatusCode, Value), Failure> {
        tokio::time::timeout(PATIENCE, self.call(url, request, body)).await?
    }

    async fn call(
        &self,
        url: &str,
        request: http::request::Builder,
        body: Bytes,
    ) -> Result<(StatusCode, Value), Failure> {
        let uri: Uri = url.parse()?;
        let stream = self.0.clone().connect(uri.clone()).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        // Ends with the answer.
        tokio::spawn(connection);
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let request = request
            .uri(path)
            .header(header::HOST, authority)
            .header(header::USER_AGENT, concat!("cloister/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(body))?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER).collect().await?;
        Ok((status, serde_json::from_slice(&body.to_bytes()).unwrap_or_default()))
    }
}
