//! Answers of our own: fixed words, a stable code, and what an agent can do.
//! Nothing of the request is repeated but its host.

use cloister_vault::wire::Refusal as VaultRefusal;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::json;

use crate::body::{Body, full};
use crate::path::PathError;
use crate::rules::Refusal;

/// Names the rule, for programs that look at headers.
pub(crate) const REFUSED_HEADER: &str = "x-cloister-refused";

/// A refusal, on its way to the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) status: u16,
    /// The stable word.
    pub(crate) word: &'static str,
    pub(crate) message: String,
    /// Seconds until it may be tried again.
    pub(crate) retry: Option<u64>,
}

impl Refused {
    pub(crate) fn new(status: u16, word: &'static str, message: impl Into<String>) -> Self {
        Self { status, word, message: message.into(), retry: None }
    }

    /// The request is not about the host that was dialled.
    pub(crate) fn misdirected() -> Self {
        Self::new(421, "host_mismatch", "the host of the request is not the one that was connected to")
    }

    pub(crate) fn response(&self) -> Response<Body> {
        let hint = match self.word {
            "host_not_allowed" => {
                Some("ask whoever runs the session to add the host to egress.allow or to connections")
            }
            "agent_credential" => Some("leave the credential out; a connection attaches one"),
            "connection_ambiguous" => Some("name one in the header x-cloister-connection"),
            _ => None,
        };
        let mut body = json!({"error": self.word, "message": self.message});
        if let Some(hint) = hint {
            body["hint"] = hint.into();
        }
        let mut response = Response::new(full(body.to_string()));
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::FORBIDDEN);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(REFUSED_HEADER, HeaderValue::from_static(self.word));
        if let Some(seconds) = self.retry {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.status(), refusal.word(), refusal.to_string())
    }
}

impl From<PathError> for Refused {
    fn from(error: PathError) -> Self {
        Self::new(400, "path_refused", error.to_string())
    }
}

impl From<VaultRefusal> for Refused {
    fn from(refusal: VaultRefusal) -> Self {
        let (status, word) = match refusal {
            VaultRefusal::NotGranted => (403, "connection_not_granted"),
            VaultRefusal::NotATarget => (403, "not_covered"),
            VaultRefusal::NoCredential => (403, "no_credential"),
            VaultRefusal::NeedsReauth => (403, "needs_reauth"),
            VaultRefusal::IssuerUnavailable => (502, "issuer_unavailable"),
            VaultRefusal::AuditUnavailable => (503, "audit_unavailable"),
            VaultRefusal::Failed => (503, "vault_unavailable"),
        };
        let retry = (status >= 500).then_some(1);
        Self { retry, ..Self::new(status, word, refusal.to_string()) }
    }
}

impl From<crate::limits::Met> for Refused {
    fn from(met: crate::limits::Met) -> Self {
        Self { retry: Some(met.0), ..Self::new(429, "egress_limit", "the limit of requests or bytes is met") }
    }
}
