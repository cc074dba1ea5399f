//! One call to a service that the operator or a credential names: JSON comes
//! back.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use cloister_dial::{Connector, Dialer, Reach, Roots, TlsError, client_config};
use http::{Method, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use serde_json::Value;

/// Bytes of an answer.
const ANSWER: usize = 256 << 10;

#[derive(Clone)]
pub(crate) struct Https(Connector);

impl Https {
    pub(crate) fn new(dialer: Dialer, reach: Reach, extra_ca: Option<&Path>) -> Result<Self, TlsError> {
        let tls = client_config(&Roots::read(extra_ca)?, None, false)?;
        Ok(Self(Connector { dialer: Arc::new(dialer), reach, tls }))
    }

    /// Posts a body. What is not JSON comes back as null.
    pub(crate) async fn post(
        &self,
        url: &str,
        request: http::request::Builder,
        body: Bytes,
    ) -> Result<(StatusCode, Value), Box<dyn std::error::Error + Send + Sync>> {
        let uri: Uri = url.parse()?;
        let stream = self.0.clone().connect(uri.clone()).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        // Ends with the answer.
        tokio::spawn(connection);
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let request = request
            .method(Method::POST)
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
