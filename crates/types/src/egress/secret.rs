//! Credentials on their way in, and all that is told of them afterwards.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Attach;
use crate::host::Host;

/// Body of `PUT /v1/connections/{name}/secret`. It is sealed for the vault as
/// soon as it has arrived, and there is no way to read it again.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Secret {
    /// A value that is sent as it is.
    Static {
        /// The value.
        value: String,
    },
    /// OAuth 2: a refresh token, from which access tokens are made.
    Oauth2Refresh {
        /// The token endpoint, https.
        token_url: String,
        /// The client.
        client_id: String,
        /// Its secret, if it has one.
        #[serde(default)]
        client_secret: Option<String>,
        /// The refresh token.
        refresh_token: String,
        /// The scope to ask for.
        #[serde(default)]
        scope: Option<String>,
    },
    /// OAuth 2: client credentials.
    Oauth2ClientCredentials {
        /// The token endpoint, https.
        token_url: String,
        /// The client.
        client_id: String,
        /// Its secret.
        client_secret: String,
        /// The scope to ask for.
        #[serde(default)]
        scope: Option<String>,
        /// The audience to ask for.
        #[serde(default)]
        audience: Option<String>,
    },
    /// OAuth 2: an assertion that we sign (RFC 7523), as Google's service
    /// accounts want it.
    Oauth2JwtBearer {
        /// The token endpoint, https.
        token_url: String,
        /// `iss` of the assertion.
        issuer: String,
        /// `sub`; the issuer if left out.
        #[serde(default)]
        subject: Option<String>,
        /// `aud`; the token endpoint if left out.
        #[serde(default)]
        audience: Option<String>,
        /// The scope to ask for.
        #[serde(default)]
        scope: Option<String>,
        /// PEM: PKCS #8, RSA or P-256.
        private_key: String,
        /// `kid` of the assertion.
        #[serde(default)]
        key_id: Option<String>,
    },
    /// A GitHub App's installation.
    GithubApp {
        /// The app.
        app_id: String,
        /// The installation.
        installation_id: String,
        /// PEM: PKCS #8, RSA.
        private_key: String,
        /// `https://api.github.com` if left out.
        #[serde(default)]
        api_url: Option<String>,
        /// Narrows the token to these repositories.
        #[serde(default)]
        repositories: Vec<String>,
        /// Narrows the token to these permissions.
        #[serde(default)]
        #[cfg_attr(feature = "openapi", schema(value_type = Object))]
        permissions: Map<String, Value>,
    },
    /// Keys of AWS, for `sigv4`.
    Aws {
        /// The key's id.
        access_key_id: String,
        /// The key.
        secret_access_key: String,
        /// Of temporary keys.
        #[serde(default)]
        session_token: Option<String>,
    },
    /// A certificate and its key, for `client_certificate`.
    ClientCertificate {
        /// PEM: the certificate, and those between it and the root.
        certificate: String,
        /// PEM: PKCS #8.
        private_key: String,
    },
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret::{}", self.kind().as_str())
    }
}

/// The kind of a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "they are those of Secret")]
pub enum SecretKind {
    Static,
    Oauth2Refresh,
    Oauth2ClientCredentials,
    Oauth2JwtBearer,
    GithubApp,
    Aws,
    ClientCertificate,
}

impl SecretKind {
    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Oauth2Refresh => "oauth2_refresh",
            Self::Oauth2ClientCredentials => "oauth2_client_credentials",
            Self::Oauth2JwtBearer => "oauth2_jwt_bearer",
            Self::GithubApp => "github_app",
            Self::Aws => "aws",
            Self::ClientCertificate => "client_certificate",
        }
    }

    /// Can a credential of this kind be attached in this way?
    #[must_use]
    pub const fn fits(self, attach: &Attach) -> bool {
        match attach {
            Attach::Sigv4 { .. } => matches!(self, Self::Aws),
            Attach::ClientCertificate => matches!(self, Self::ClientCertificate),
            _ => !matches!(self, Self::Aws | Self::ClientCertificate),
        }
    }
}

impl Secret {
    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> SecretKind {
        match self {
            Self::Static { .. } => SecretKind::Static,
            Self::Oauth2Refresh { .. } => SecretKind::Oauth2Refresh,
            Self::Oauth2ClientCredentials { .. } => SecretKind::Oauth2ClientCredentials,
            Self::Oauth2JwtBearer { .. } => SecretKind::Oauth2JwtBearer,
            Self::GithubApp { .. } => SecretKind::GithubApp,
            Self::Aws { .. } => SecretKind::Aws,
            Self::ClientCertificate { .. } => SecretKind::ClientCertificate,
        }
    }

    /// Checks what the types do not say.
    ///
    /// # Errors
    /// What is wrong, for people; never a value.
    pub fn check(&self) -> Result<(), String> {
        let line = |what: &str, text: &str| {
            // What a header can carry (RFC 9110, 5.5), and no white space at the ends.
            let fits =
                !text.is_empty() && text.len() <= 16 << 10 && text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
            if fits && text.trim() == text {
                Ok(())
            } else {
                Err(format!("{what} must be one line of visible characters"))
            }
        };
        let https = |url: &str| {
            let host = url.strip_prefix("https://").map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
            let host = host.map(|authority| authority.split(':').next().unwrap_or_default());
            match host.map(str::parse::<Host>) {
                Some(Ok(_)) => Ok(()),
                _ => Err("a token endpoint is an https URL with a host name".to_owned()),
            }
        };
        match self {
            Self::Static { value } => line("value", value),
            Self::Oauth2Refresh { token_url, client_id, refresh_token, .. } => {
                https(token_url)?;
                line("client_id", client_id)?;
                line("refresh_token", refresh_token)
            }
            Self::Oauth2ClientCredentials { token_url, client_id, client_secret, .. } => {
                https(token_url)?;
                line("client_id", client_id)?;
                line("client_secret", client_secret)
            }
            Self::Oauth2JwtBearer { token_url, issuer, .. } => {
                https(token_url)?;
                line("issuer", issuer)
            }
            Self::GithubApp { app_id, installation_id, api_url, .. } => {
                let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
                if !digits(installation_id) {
                    return Err("installation_id is a number".into());
                }
                line("app_id", app_id)?;
                api_url.as_deref().map_or(Ok(()), https)
            }
            Self::Aws { access_key_id, secret_access_key, session_token } => {
                line("access_key_id", access_key_id)?;
                line("secret_access_key", secret_access_key)?;
                session_token.as_deref().map_or(Ok(()), |token| line("session_token", token))
            }
            Self::ClientCertificate { certificate, private_key } => {
                let pem = |text: &str| text.contains("-----BEGIN ") && text.len() <= 256 << 10;
                if pem(certificate) && pem(private_key) {
                    Ok(())
                } else {
                    Err("certificate and private_key are PEM".into())
                }
            }
        }
    }
}

/// State of a version of a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum VersionState {
    /// In use.
    Active,
    /// Replaced; requests under way may still end with it.
    Grace,
    /// Not usable any more.
    Revoked,
    /// The issuer does not take it any more: a new one is needed.
    NeedsReauth,
}

/// A version of a credential: everything about it but itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VersionRecord {
    /// 1 for the first.
    pub version: u64,
    /// The kind.
    pub kind: SecretKind,
    /// The state.
    pub state: VersionState,
    /// Tells versions apart, and says when two connections hold the same: a
    /// keyed hash, of no use without the vault's key.
    pub fingerprint: String,
    /// Unix seconds.
    pub created_at: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_secrets_are_refused_and_none_is_shown() {
        let secret = |text: &str| serde_json::from_str::<Secret>(text).map_err(|error| error.to_string())?.check();
        assert_eq!(secret(r#"{"kind":"static","value":"abc"}"#), Ok(()));
        for bad in [
            r#"{"kind":"static","value":""}"#,
            r#"{"kind":"static","value":"a\r\nb"}"#,
            r#"{"kind":"static","value":" a"}"#,
        ] {
            assert!(secret(bad).is_err(), "{bad}");
        }
        let shown = format!("{:?}", Secret::Static { value: "hush".into() });
        assert!(!shown.contains("hush"), "{shown}");
    }
}
