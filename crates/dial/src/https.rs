//! One call to a service that the operator or a credential names.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use serde_json::Value;

use crate::{Connector, Dialer, Reach, Roots, TlsError, client_config};

/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of an answer.
const ANSWER: usize = 256 << 10;

const AGENT: &str = concat!("cloister/", env!("CARGO_PKG_VERSION"));

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
        let answer = self.exchange(request.uri(url).body(body)?).await?;
        Ok((answer.status(), serde_json::from_slice(answer.body()).unwrap_or_default()))
    }

    /// Makes one call, whose URI is a whole one.
    ///
    /// # Errors
    /// There is no answer, or too long a one.
    pub async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>, Failure> {
        tokio::time::timeout(PATIENCE, self.call(request)).await?
    }

    async fn call(&self, request: Request<Bytes>) -> Result<Response<Bytes>, Failure> {
        let (mut parts, body) = request.into_parts();
        let uri = parts.uri;
        let stream = self.0.clone().connect(uri.clone()).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        // Ends with the answer.
        tokio::spawn(connection);
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        parts.headers.insert(header::HOST, HeaderValue::from_str(authority)?);
        parts.headers.insert(header::USER_AGENT, HeaderValue::from_static(AGENT));
        parts.uri = uri.path_and_query().map_or("/", |path| path.as_str()).parse()?;
        let answer = sender.send_request(Request::from_parts(parts, Full::new(body))).await?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER).collect().await?.to_bytes();
        Ok(Response::from_parts(parts, body))
    }
}
