//! Sign-in of people by a browser: they are sent to the issuer, and come back
//! with a code (OpenID Connect Core 1.0, section 3.1, with PKCE, RFC 7636).

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Request, header};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use url::Url;
use url::form_urlencoded::Serializer;

use crate::{Claims, Issuer, Rejected};

/// How people are sent to an issuer.
#[derive(Clone)]
pub struct Flow {
    /// Whom they are sent to.
    pub issuer: Issuer,
    /// What we are to it.
    pub client_id: String,
    /// What proves that; a public client has none.
    pub client_secret: Option<String>,
    /// Where it sends them back.
    pub redirect_uri: String,
    /// What is asked for, `openid` among it.
    pub scope: String,
}

/// A sign-in under way: to be kept by the browser that has begun it, where
/// nobody else can read or change it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// Comes back beside the code.
    pub state: String,
    /// Comes back in the token.
    nonce: String,
    /// What the code is exchanged with.
    verifier: String,
}

/// Why nobody is signed in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoSignIn {
    /// The issuer does not answer, or cannot do this.
    #[error("the issuer: {0}")]
    Issuer(String),
    /// It does not take the code.
    #[error("the issuer does not take the code: {0}")]
    Code(String),
    /// Its token is not good.
    #[error("the issuer's token: {0}")]
    Token(#[from] Rejected),
    /// Its token is of another sign-in.
    #[error("the issuer's token is of another sign-in")]
    Nonce,
    /// There is no randomness.
    #[error("no randomness")]
    Random,
}

/// 32 random bytes.
fn random() -> Result<String, NoSignIn> {
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| NoSignIn::Random)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// Both are form-encoded first (RFC 6749, section 2.3.1).
fn basic_of(id: &str, secret: &str) -> String {
    let encode = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    format!("Basic {}", STANDARD.encode(format!("{}:{}", encode(id), encode(secret))))
}

impl Flow {
    /// Begins a sign-in: what to keep, and where to send the browser.
    ///
    /// # Errors
    /// The issuer cannot be asked, or takes nobody.
    pub async fn begin(&self) -> Result<(Begun, String), NoSignIn> {
        let metadata = self.issuer.metadata().await.map_err(NoSignIn::Issuer)?;
        let place = metadata.authorization_endpoint.and_then(|place| Url::parse(&place).ok());
        let mut place = place.ok_or_else(|| NoSignIn::Issuer("it has no place to sign in".into()))?;
        let begun = Begun { state: random()?, nonce: random()?, verifier: random()? };
        let challenge = URL_SAFE_NO_PAD.encode(digest(&SHA256, begun.verifier.as_bytes()));
        place
            .query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", &self.client_id)
            .append_pair("redirect_uri", &self.redirect_uri)
            .append_pair("scope", &self.scope)
            .append_pair("state", &begun.state)
            .append_pair("nonce", &begun.nonce)
            .append_pair("code_challenge", &challenge)
            .append_pair("code_challenge_method", "S256");
        Ok((begun, place.into()))
    }

    /// Ends it: who has signed in, by what the issuer says at a time in Unix
    /// seconds.
    ///
    /// # Errors
    /// Nobody has.
    pub async fn end(&self, begun: &Begun, code: &str, now: f64) -> Result<Claims, NoSignIn> {
        let metadata = self.issuer.metadata().await.map_err(NoSignIn::Issuer)?;
        let basic = metadata.takes_basic();
        let place = metadata.token_endpoint.ok_or_else(|| NoSignIn::Issuer("it gives no tokens".into()))?;
        let (request, form) = self.request(begun, code, basic);
        let answer = self.issuer.https().post(&place, request, form).await;
        let (status, answer) = answer.map_err(|error| NoSignIn::Issuer(error.to_string()))?;
        if !status.is_success() {
            let why = answer["error"].as_str().unwrap_or_default();
            return Err(NoSignIn::Code(format!("{status} {why}")));
        }
        let token = answer["id_token"].as_str().ok_or_else(|| NoSignIn::Code("there is no ID token".into()))?;
        let claims = self.issuer.verify_as(token, &self.client_id, now).await?;
        if claims.get("nonce").and_then(Value::as_str) != Some(begun.nonce.as_str()) {
            return Err(NoSignIn::Nonce);
        }
        Ok(claims)
    }

    /// The exchange of a code, as it is asked for.
    fn request(&self, begun: &Begun, code: &str, basic: bool) -> (http::request::Builder, Bytes) {
        let mut form = Serializer::new(String::new());
        form.append_pair("grant_type", "authorization_code")
            .append_pair("code", code)
            .append_pair("redirect_uri", &self.redirect_uri)
            .append_pair("code_verifier", &begun.verifier)
            .append_pair("client_id", &self.client_id);
        let mut request = Request::builder()
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(header::ACCEPT, "application/json");
        match &self.client_secret {
            Some(secret) if basic => request = request.header(header::AUTHORIZATION, basic_of(&self.client_id, secret)),
            Some(secret) => _ = form.append_pair("client_secret", secret),
            None => {}
        }
        (request, form.finish().into())
    }
}
