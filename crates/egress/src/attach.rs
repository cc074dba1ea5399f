//! The model's key: read, attached, forgotten. It exists in this process for
//! the length of one request.

use cloister_types::model::Wire;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};

use crate::control::Upstream;

/// A key that could not be attached. The path stays in the log; the session
/// learns only that there is a fault of configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    #[error("the key file {0} cannot be read: {1}")]
    Unreadable(std::path::PathBuf, std::io::Error),
    #[error("the key file {0} does not hold a key: it is empty or has characters that no header can carry")]
    NotAKey(std::path::PathBuf),
}

/// The version of the protocol that our client speaks.
const ANTHROPIC_VERSION: &str = "2023-06-01";

/// A credential, ready for one request.
pub(crate) struct Credential {
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// To find it again in what comes back.
    secret: String,
}

impl Credential {
    /// Reads the key of an upstream.
    pub(crate) async fn read(upstream: &Upstream) -> Result<Self, AttachError> {
        let mut headers = Vec::new();
        if upstream.wire == Wire::AnthropicMessages {
            headers.push((HeaderName::from_static("anthropic-version"), HeaderValue::from_static(ANTHROPIC_VERSION)));
        }
        let Some(path) = &upstream.key_file else { return Ok(Self { headers, secret: String::new() }) };
        let text =
            tokio::fs::read_to_string(path).await.map_err(|error| AttachError::Unreadable(path.clone(), error))?;
        let secret = text.trim().to_owned();
        let (name, value) = match upstream.wire {
            Wire::AnthropicMessages => (HeaderName::from_static("x-api-key"), secret.clone()),
            Wire::OpenaiChat => (AUTHORIZATION, format!("Bearer {secret}")),
        };
        let mut value = HeaderValue::from_str(&value).map_err(|_| AttachError::NotAKey(path.clone()))?;
        if secret.is_empty() {
            return Err(AttachError::NotAKey(path.clone()));
        }
        // Never indexed by HTTP/2, never printed.
        value.set_sensitive(true);
        headers.push((name, value));
        Ok(Self { headers, secret })
    }

    /// Takes the key out of an error's text, should a provider echo it.
    pub(crate) fn scrub(&self, text: &str) -> String {
        if self.secret.is_empty() { text.to_owned() } else { text.replace(&self.secret, "[credential]") }
    }
}
