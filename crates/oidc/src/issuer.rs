//! An issuer: who it is, where its things are, and its keys, kept at hand.
//!
//! Keys are fetched when they are first needed, again in the background once
//! they are no longer fresh, and at once for a key that nobody has seen, but
//! then only now and then: whoever makes names of keys up does not have the
//! issuer asked. If it does not answer, the keys it had hold for an hour.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cloister_dial::Https;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use url::{Host, Url};

use crate::token::{Head, verify};
use crate::{Claims, Expect, Keys, Rejected, issuer_of};

/// Keys of this age are used, and new ones fetched meanwhile.
const FRESH: Duration = Duration::from_secs(300);
/// Keys of this age are not used.
const STALE: Duration = Duration::from_secs(3600);
/// Between two questions to an issuer, at least.
const PAUSE: Duration = Duration::from_secs(5);
/// How long an issuer may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// An issuer's name, which is where it is: `https`, or `http` on loopback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IssuerUrl(String);

/// It is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no issuer: it is https://host[/path], without a query; http is for loopback alone")]
pub struct BadIssuer(String);

impl FromStr for IssuerUrl {
    type Err = BadIssuer;

    fn from_str(text: &str) -> Result<Self, BadIssuer> {
        let url = Url::parse(text).ok().filter(|url| {
            let bare = url.username().is_empty() && url.password().is_none();
            is_safe(url) && bare && url.query().is_none() && url.fragment().is_none()
        });
        // As it is written: issuers are compared letter by letter.
        url.map(|_| Self(text.to_owned())).ok_or_else(|| BadIssuer(text.to_owned()))
    }
}

/// Nothing that matters travels in the clear, but on this machine.
fn is_safe(url: &Url) -> bool {
    match (url.scheme(), url.host()) {
        ("https", Some(_)) => true,
        ("http", Some(Host::Ipv4(address))) => address.is_loopback(),
        ("http", Some(Host::Ipv6(address))) => address.is_loopback(),
        ("http", Some(Host::Domain(name))) => name == "localhost",
        _ => false,
    }
}

impl TryFrom<String> for IssuerUrl {
    type Error = BadIssuer;

    fn try_from(text: String) -> Result<Self, BadIssuer> {
        text.parse()
    }
}

impl From<IssuerUrl> for String {
    fn from(url: IssuerUrl) -> Self {
        url.0
    }
}

impl fmt::Display for IssuerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an issuer says of itself (OpenID Connect Discovery 1.0).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Metadata {
    issuer: String,
    jwks_uri: String,
    /// Where people are sent.
    #[serde(default)]
    pub authorization_endpoint: Option<String>,
    /// Where codes are turned to tokens.
    #[serde(default)]
    pub token_endpoint: Option<String>,
    /// How clients may prove there who they are.
    #[serde(default)]
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
}

impl Metadata {
    /// Does it take a client's secret in a header? That is so unless it says
    /// otherwise (section 3).
    pub(crate) fn takes_basic(&self) -> bool {
        let named = self.token_endpoint_auth_methods_supported.as_ref();
        named.is_none_or(|methods| methods.iter().any(|method| method == "client_secret_basic"))
    }

    fn parse(answer: Value, url: &IssuerUrl) -> Result<Self, String> {
        let found: Self = serde_json::from_value(answer).map_err(|error| format!("its metadata: {error}"))?;
        if found.issuer != url.0 {
            return Err(format!("its metadata is of {:?}", found.issuer));
        }
        let named = [Some(&found.jwks_uri), found.authorization_endpoint.as_ref(), found.token_endpoint.as_ref()];
        if let Some(place) = named.into_iter().flatten().find(|text| !Url::parse(text).is_ok_and(|url| is_safe(&url))) {
            return Err(format!("its metadata names {place:?}, which is not https"));
        }
        Ok(found)
    }
}

/// Whose tokens are taken.
#[derive(Clone)]
pub struct Issuer(Arc<Inner>);

struct Inner {
    url: IssuerUrl,
    expect: Expect,
    https: Https,
    kept: Mutex<Kept>,
    /// Held by whoever asks it.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Kept {
    keys: Option<(Arc<Keys>, Instant)>,
    metadata: Option<Metadata>,
    /// When it was last asked, and what went wrong.
    asked: Option<(Instant, Option<String>)>,
}

impl Issuer {
    /// One whose tokens must be for one of `audience`, and signed by one of
    /// `algorithms`.
    #[must_use]
    pub fn new(url: IssuerUrl, audience: Vec<String>, algorithms: Vec<crate::Algorithm>, https: Https) -> Self {
        let expect = Expect { issuer: url.0.clone(), audience, algorithms };
        Self(Arc::new(Inner { url, expect, https, kept: Mutex::default(), asking: tokio::sync::Mutex::default() }))
    }

    /// Does it expect the same of the same issuer's tokens?
    #[must_use]
    pub fn expects_as(&self, other: &Self) -> bool {
        self.0.expect == other.0.expect
    }

    /// Its name.
    #[must_use]
    pub fn url(&self) -> &IssuerUrl {
        &self.0.url
    }

    /// How it is asked.
    pub(crate) fn https(&self) -> &Https {
        &self.0.https
    }

    /// What a token says, if it is good at a time in Unix seconds.
    ///
    /// # Errors
    /// Why it is not.
    pub async fn verify(&self, token: &str, now: f64) -> Result<Claims, Rejected> {
        self.verify_for(token, &self.0.expect, now).await
    }

    /// The same for another audience.
    pub(crate) async fn verify_as(&self, token: &str, audience: &str, now: f64) -> Result<Claims, Rejected> {
        let expect = Expect { audience: vec![audience.to_owned()], ..self.0.expect.clone() };
        self.verify_for(token, &expect, now).await
    }

    async fn verify_for(&self, token: &str, expect: &Expect, now: f64) -> Result<Claims, Rejected> {
        // What cannot be good has nobody asked.
        let (head, algorithm) = Head::of(token, expect)?;
        match issuer_of(token) {
            Some(issuer) if issuer == expect.issuer => {}
            other => return Err(Rejected::Issuer(other.unwrap_or_default())),
        }
        let mut keys = self.keys().await?;
        if keys.suited(head.kid.as_deref(), algorithm).is_empty() {
            // A new one, perhaps; if it cannot be asked now, what is known decides.
            keys = self.fetch().await.unwrap_or(keys);
        }
        verify(token, &keys, expect, now)
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn keys(&self) -> Result<Arc<Keys>, Rejected> {
        let kept = self.kept().keys.as_ref().map(|(keys, at)| (keys.clone(), at.elapsed()));
        match kept {
            Some((keys, age)) if age < FRESH => Ok(keys),
            Some((keys, age)) if age < STALE => {
                let this = self.clone();
                tokio::spawn(async move { this.fetch().await });
                Ok(keys)
            }
            _ => self.fetch().await.map_err(Rejected::Unavailable),
        }
    }

    /// What it says of itself.
    ///
    /// # Errors
    /// It does not answer, or not for itself.
    pub async fn metadata(&self) -> Result<Metadata, String> {
        let known = || self.kept().metadata.clone();
        if known().is_none() {
            self.fetch().await?;
        }
        known().ok_or_else(|| "it says nothing of itself".into())
    }

    /// Asks it, one at a time, and not again at once. Its keys.
    async fn fetch(&self) -> Result<Arc<Keys>, String> {
        let _asking = self.0.asking.lock().await;
        if let Kept { asked: Some((at, failed)), keys, .. } = &*self.kept()
            && at.elapsed() < PAUSE
        {
            let keys = keys.as_ref().map(|(keys, _)| keys.clone());
            return failed.clone().map_or_else(|| keys.ok_or_else(|| "it was asked just now".into()), Err);
        }
        let asked = tokio::time::timeout(PATIENCE, self.ask()).await;
        let outcome = asked.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())));
        let mut kept = self.kept();
        let now = Instant::now();
        match outcome {
            Ok((metadata, keys)) => {
                let keys = Arc::new(keys);
                kept.asked = Some((now, None));
                kept.metadata = Some(metadata);
                kept.keys = Some((keys.clone(), now));
                Ok(keys)
            }
            Err(why) => {
                tracing::warn!(issuer = %self.0.url, why, "the issuer's keys cannot be had");
                kept.asked = Some((now, Some(why.clone())));
                Err(why)
            }
        }
    }

    async fn ask(&self) -> Result<(Metadata, Keys), String> {
        let get = async |url: &str| match self.0.https.get(url).await {
            Ok((status, answer)) if status.is_success() => Ok(answer),
            Ok((status, _)) => Err(format!("{url} answers {status}")),
            Err(error) => Err(format!("{url}: {error}")),
        };
        let place = format!("{}/.well-known/openid-configuration", self.0.url.0.trim_end_matches('/'));
        let metadata = Metadata::parse(get(&place).await?, &self.0.url)?;
        let keys = Keys::parse(&get(&metadata.jwks_uri).await?);
        if keys.is_empty() {
            return Err(format!("{} has no key that verifies signatures", metadata.jwks_uri));
        }
        Ok((metadata, keys))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_issuer_is_a_safe_place() {
        for good in ["https://id.example", "https://id.example/realms/x", "http://127.0.0.1:9", "http://localhost:9/"] {
            assert_eq!(good.parse::<IssuerUrl>().map(|url| url.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "id.example", "http://id.example", "https://u@id.example", "https://id.example?x", "ftp://x"] {
            assert!(bad.parse::<IssuerUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn metadata_is_of_the_issuer_that_was_asked_and_names_safe_places() {
        let url: IssuerUrl = "https://id.example".parse().unwrap();
        let parse = |issuer: &str, keys: &str| Metadata::parse(json!({"issuer": issuer, "jwks_uri": keys}), &url);
        assert!(parse("https://id.example", "https://keys.example/jwks").is_ok());
        assert!(parse("https://id.example/", "https://keys.example/jwks").is_err());
        assert!(parse("https://id.example", "http://keys.example/jwks").is_err());
        assert!(Metadata::parse(Value::Null, &url).is_err());
    }
}
