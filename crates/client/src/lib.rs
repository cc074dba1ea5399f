//! A client of our own API: typed calls, and event streams that resume.

mod access;
mod egress;
mod login;
mod stream;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use cloister_types::wire::{
    CancelAnswer, CreateSession, Deleted, ErrorBody, FileEntry, FileWritten, Health, OnBusy, Response as TurnResponse,
    SandboxReport, SendMessage, SessionRecord, Transcript,
};
use cloister_types::{ErrorCode, ResponseId, SessionId, WorkspacePath};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, RequestBuilder, Response};
use serde::de::DeserializeOwned;

pub use login::{Device, Login, Place, SignedIn};
pub use stream::{Event, Events};

/// What may go wrong.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server said no, in its own words.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The stable code.
        code: ErrorCode,
        /// What happened.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// The server could not be reached, or hung up.
    #[error("cannot reach {url}: {cause}")]
    Unreachable {
        /// The base URL.
        url: String,
        /// Why.
        cause: String,
    },
    /// An answer that is not one of ours.
    #[error("an answer that makes no sense: {0}")]
    Malformed(String),
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, ClientError>;

/// Unreserved characters and the slash stay as they are in a path.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// A connection to one tenant's server.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    key: Arc<RwLock<String>>,
}

/// Without the key.
impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Client {
    /// A client for the server at `base`, with an API key. `authority` is a
    /// PEM certificate to trust besides the system's.
    ///
    /// # Errors
    /// The certificate is none.
    pub fn new(base: &str, key: &str, authority: Option<&[u8]>) -> Result<Self> {
        // A second installation in one process is harmless.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let malformed = |error: reqwest::Error| ClientError::Malformed(error.to_string());
        let mut builder = reqwest::Client::builder().connect_timeout(Duration::from_secs(10)).no_proxy();
        if let Some(pem) = authority {
            builder = builder.tls_certs_merge(reqwest::Certificate::from_pem_bundle(pem).map_err(malformed)?);
        }
        let http = builder.build().map_err(malformed)?;
        Ok(Self { http, base: base.trim_end_matches('/').to_owned(), key: Arc::new(RwLock::new(key.to_owned())) })
    }

    /// Shows another key from now on, in all clones, and in what they follow.
    pub fn set_key(&self, key: &str) {
        key.clone_into(&mut self.key.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let key = self.key.read().unwrap_or_else(PoisonError::into_inner);
        self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&*key)
    }

    fn unreachable(&self, error: &reqwest::Error) -> ClientError {
        let mut cause = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(inner) = source {
            cause = inner.to_string();
            source = inner.source();
        }
        ClientError::Unreachable { url: self.base.clone(), cause }
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.text().await.unwrap_or_default();
        match serde_json::from_str::<ErrorBody>(&text) {
            Ok(body) => Err(ClientError::Refused {
                status: status.as_u16(),
                code: body.error,
                message: body.message,
                hint: body.hint,
            }),
            Err(_) => {
                Err(ClientError::Malformed(format!("status {status}: {}", text.chars().take(200).collect::<String>())))
            }
        }
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T> {
        let response = self.send(request).await?;
        response.json().await.map_err(|error| ClientError::Malformed(error.to_string()))
    }

    /// `GET /health`.
    ///
    /// # Errors
    /// See [`ClientError`], here and below.
    pub async fn health(&self) -> Result<Health> {
        self.json(self.request(Method::GET, "/health")).await
    }

    /// Creates a session.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn create(&self, ask: &CreateSession) -> Result<SessionRecord> {
        self.json(self.request(Method::POST, "/v1/sessions").json(ask)).await
    }

    /// Lists sessions.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn sessions(&self) -> Result<Vec<SessionRecord>> {
        self.json(self.request(Method::GET, "/v1/sessions")).await
    }

    /// Measures a session's sandbox.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn sandbox(&self, id: &SessionId) -> Result<SandboxReport> {
        self.json(self.request(Method::GET, &format!("/v1/sessions/{id}/sandbox"))).await
    }

    /// Reads a session.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn session(&self, id: &SessionId) -> Result<SessionRecord> {
        self.json(self.request(Method::GET, &format!("/v1/sessions/{id}"))).await
    }

    /// Destroys a session.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete(&self, id: &SessionId) -> Result<()> {
        self.send(self.request(Method::DELETE, &format!("/v1/sessions/{id}"))).await.map(drop)
    }

    /// Destroys the idle sessions.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete_idle(&self) -> Result<u64> {
        let deleted: Deleted = self.json(self.request(Method::DELETE, "/v1/sessions?status=idle")).await?;
        Ok(deleted.deleted)
    }

    /// Sends a message and follows its turn, over reconnections if need be.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn message(&self, id: &SessionId, text: &str, idempotency_key: Option<&str>) -> Result<Events> {
        let message = SendMessage { message: text.to_owned(), on_busy: OnBusy::Reject };
        self.send_message(id, &message, idempotency_key).await
    }

    /// The same, with a word on what to do if the session is at work.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn send_message(
        &self,
        id: &SessionId,
        message: &SendMessage,
        idempotency_key: Option<&str>,
    ) -> Result<Events> {
        let mut request = self.request(Method::POST, &format!("/v1/sessions/{id}/messages")).json(message);
        if let Some(key) = idempotency_key {
            request = request.header("idempotency-key", key);
        }
        let response = self.send(request).await?;
        let turn = response.headers().get("x-response-id").and_then(|value| value.to_str().ok()?.parse().ok());
        let turn: ResponseId = turn.ok_or_else(|| ClientError::Malformed("no X-Response-Id".into()))?;
        Ok(Events::new(self.clone(), id.clone(), turn, None, Some(response)))
    }

    /// Follows a turn from a cursor.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn events(&self, id: &SessionId, turn: &ResponseId, after: Option<u64>) -> Result<Events> {
        let response = self.open_events(id, turn, after).await?;
        Ok(Events::new(self.clone(), id.clone(), turn.clone(), after, Some(response)))
    }

    async fn open_events(&self, id: &SessionId, turn: &ResponseId, after: Option<u64>) -> Result<Response> {
        let mut request = self.request(Method::GET, &format!("/v1/sessions/{id}/responses/{turn}/events"));
        if let Some(after) = after {
            request = request.header("last-event-id", after);
        }
        self.send(request).await
    }

    /// A turn with the first page of its output; waits up to `wait` seconds
    /// for its end.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn response(&self, id: &SessionId, turn: &ResponseId, wait: u64) -> Result<TurnResponse> {
        self.json(self.request(Method::GET, &format!("/v1/sessions/{id}/responses/{turn}?wait={wait}"))).await
    }

    /// A page of the transcript, after a cursor.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn transcript(&self, id: &SessionId, after: Option<&str>, limit: usize) -> Result<Transcript> {
        let after = after.map(|after| format!("&after={after}")).unwrap_or_default();
        self.json(self.request(Method::GET, &format!("/v1/sessions/{id}/messages?limit={limit}{after}"))).await
    }

    /// Cancels a turn.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn cancel(&self, id: &SessionId, turn: &ResponseId) -> Result<CancelAnswer> {
        self.json(self.request(Method::POST, &format!("/v1/sessions/{id}/responses/{turn}/cancel"))).await
    }

    /// URL of a file. Checked here, because URL libraries resolve `..` and
    /// would ask for something else altogether.
    fn file_path(id: &SessionId, path: &str) -> Result<String> {
        let path = WorkspacePath::parse(path.as_bytes()).map_err(|error| ClientError::Refused {
            status: ErrorCode::InvalidPath.status(),
            code: ErrorCode::InvalidPath,
            message: error.to_string(),
            hint: None,
        })?;
        Ok(format!("/v1/sessions/{id}/files/{}", utf8_percent_encode(&path.to_text(), PATH)))
    }

    /// Lists a folder.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn list(&self, id: &SessionId, path: &str) -> Result<Vec<FileEntry>> {
        let path = utf8_percent_encode(path, NON_ALPHANUMERIC);
        self.json(self.request(Method::GET, &format!("/v1/sessions/{id}/files?path={path}"))).await
    }

    /// Downloads a file, piece by piece.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn download(&self, id: &SessionId, path: &str) -> Result<Download> {
        let response = self.send(self.request(Method::GET, &Self::file_path(id, path)?)).await?;
        Ok(Download { client: self.clone(), response })
    }

    /// Uploads a file.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn upload(&self, id: &SessionId, path: &str, content: impl Into<reqwest::Body>) -> Result<FileWritten> {
        self.json(self.request(Method::PUT, &Self::file_path(id, path)?).body(content)).await
    }

    /// Deletes a file.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn remove(&self, id: &SessionId, path: &str) -> Result<()> {
        self.send(self.request(Method::DELETE, &Self::file_path(id, path)?)).await.map(drop)
    }
}

/// A download under way.
#[derive(Debug)]
pub struct Download {
    client: Client,
    response: Response,
}

impl Download {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// The connection broke: what came is not the whole file.
    pub async fn chunk(&mut self) -> Result<Option<bytes::Bytes>> {
        self.response.chunk().await.map_err(|error| self.client.unreachable(&error))
    }

    /// All of it at once.
    ///
    /// # Errors
    /// As for [`Download::chunk`].
    pub async fn bytes(mut self) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(piece) = self.chunk().await? {
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }
}
