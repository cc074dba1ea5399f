//! A token in compact form (RFC 7519), verified against what is expected of it.
//! Pure.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Keys;

/// Bytes of a token; headers are no longer.
const LONGEST: usize = 16 << 10;
/// Seconds that an issuer's clock may be ahead of ours. A token's end is not
/// put off by it: whoever renews in time does not notice.
const AHEAD: f64 = 30.0;
/// Types of tokens that give access or say who somebody is (RFC 9068, RFC 7519).
/// Others are signed with the same keys for other ends (RFC 8725, section 3.11).
const TYPES: [&str; 3] = ["jwt", "at+jwt", "application/at+jwt"];

/// A way to sign that a public key verifies (RFC 7518, RFC 8037).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Algorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

impl Algorithm {
    /// Those that are taken if the operator names none.
    pub const USUAL: [Self; 5] = [Self::RS256, Self::PS256, Self::ES256, Self::ES384, Self::EdDSA];

    /// By its name in a token's header; none of the symmetric ones is here, nor
    /// `none`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        serde_json::from_value(Value::from(name)).ok()
    }

    pub(crate) fn inner(self) -> jsonwebtoken::Algorithm {
        use jsonwebtoken::Algorithm as Inner;
        match self {
            Self::RS256 => Inner::RS256,
            Self::RS384 => Inner::RS384,
            Self::RS512 => Inner::RS512,
            Self::PS256 => Inner::PS256,
            Self::PS384 => Inner::PS384,
            Self::PS512 => Inner::PS512,
            Self::ES256 => Inner::ES256,
            Self::ES384 => Inner::ES384,
            Self::EdDSA => Inner::EdDSA,
        }
    }
}

/// What a token says.
pub type Claims = Map<String, Value>;

/// What is expected of a token.
#[derive(Debug, Clone, PartialEq)]
pub struct Expect {
    /// Who made it.
    pub issuer: String,
    /// For whom: one of these.
    pub audience: Vec<String>,
    /// Signed how: one of these.
    pub algorithms: Vec<Algorithm>,
}

/// Why a token is not taken. For whoever runs the server, not for whoever sent
/// the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// It is no token.
    #[error("it is not a signed token in compact form")]
    Malformed,
    /// Another algorithm, `none` included.
    #[error("its algorithm {0:?} is not one that is taken")]
    Algorithm(String),
    /// It must not be read by who does not know its extensions.
    #[error("its header has critical extensions")]
    Critical,
    /// It is for another end.
    #[error("its type {0:?} is not that of a token for access")]
    Type(String),
    /// The issuer has no such key.
    #[error("the issuer has no key {0:?} for its algorithm")]
    UnknownKey(String),
    /// Somebody else made it, or changed it.
    #[error("its signature is not the issuer's")]
    Signature,
    /// By another issuer.
    #[error("its issuer is {0:?}")]
    Issuer(String),
    /// For somebody else.
    #[error("its audience is {0}")]
    Audience(String),
    /// It has ended.
    #[error("it ended at {0} (Unix seconds)")]
    Expired(u64),
    /// It has not begun.
    #[error("it is valid from {0} (Unix seconds)")]
    NotYet(u64),
    /// Something that it must say is not there, or not of its kind.
    #[error("its claim {0:?} is missing, or not what it must be")]
    Claim(&'static str),
    /// Only whoever holds another key may use it.
    #[error("it is bound to a key of its holder (cnf), which is not asked for here")]
    Bound,
    /// The issuer does not answer.
    #[error("the issuer's keys cannot be had: {0}")]
    Unavailable(String),
}

/// A token's header, as far as it decides something.
#[derive(Debug, Deserialize)]
pub(crate) struct Head {
    alg: String,
    pub(crate) kid: Option<String>,
    typ: Option<String>,
    crit: Option<Value>,
}

/// Reads a part of a token without believing it.
fn part<T: serde::de::DeserializeOwned>(token: &str, at: usize) -> Result<T, Rejected> {
    let parts: Vec<&str> = token.split('.').collect();
    if token.len() > LONGEST || parts.len() != 3 || parts.iter().any(|part| part.is_empty()) {
        // Without a signature it is as good as unsigned.
        return Err(Rejected::Malformed);
    }
    let bytes = URL_SAFE_NO_PAD.decode(parts[at]).map_err(|_| Rejected::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| Rejected::Malformed)
}

/// Who a token says has made it. Nothing of it is verified.
#[must_use]
pub fn issuer_of(token: &str) -> Option<String> {
    let claims: Claims = part(token, 1).ok()?;
    claims.get("iss")?.as_str().map(str::to_owned)
}

impl Head {
    /// A token's header, and its algorithm, if it is one that is expected.
    pub(crate) fn of(token: &str, expect: &Expect) -> Result<(Self, Algorithm), Rejected> {
        let head: Self = part(token, 0)?;
        let algorithm = Algorithm::named(&head.alg).filter(|algorithm| expect.algorithms.contains(algorithm));
        let Some(algorithm) = algorithm else { return Err(Rejected::Algorithm(head.alg)) };
        if head.crit.is_some() {
            return Err(Rejected::Critical);
        }
        match &head.typ {
            Some(kind) if !TYPES.contains(&kind.to_ascii_lowercase().as_str()) => Err(Rejected::Type(kind.clone())),
            _ => Ok((head, algorithm)),
        }
    }
}

/// Verifies a token at a time in Unix seconds. What it says, if it is good.
pub(crate) fn verify(token: &str, keys: &Keys, expect: &Expect, now: f64) -> Result<Claims, Rejected> {
    let (head, algorithm) = Head::of(token, expect)?;
    let mut validation = jsonwebtoken::Validation::new(algorithm.inner());
    // What it says is looked at below; here, who says it.
    (validation.validate_exp, validation.validate_nbf, validation.validate_aud) = (false, false, false);
    validation.required_spec_claims.clear();
    let suited = keys.suited(head.kid.as_deref(), algorithm);
    if suited.is_empty() {
        return Err(Rejected::UnknownKey(head.kid.unwrap_or_default()));
    }
    let verified = suited.iter().find_map(|key| jsonwebtoken::decode::<Claims>(token, key, &validation).ok());
    let claims = verified.ok_or(Rejected::Signature)?.claims;
    check(&claims, expect, now)?;
    Ok(claims)
}

fn check(claims: &Claims, expect: &Expect, now: f64) -> Result<(), Rejected> {
    let text = |name: &'static str| claims.get(name).and_then(Value::as_str).ok_or(Rejected::Claim(name));
    let time = |name: &'static str| match claims.get(name) {
        None => Ok(None),
        Some(value) => value.as_f64().filter(|time| *time >= 0.0).map(Some).ok_or(Rejected::Claim(name)),
    };
    let issuer = text("iss")?;
    if issuer != expect.issuer {
        return Err(Rejected::Issuer(issuer.into()));
    }
    let audience = claims.get("aud").ok_or(Rejected::Claim("aud"))?;
    let is_ours = |value: &Value| value.as_str().is_some_and(|one| expect.audience.iter().any(|ours| ours == one));
    if !is_ours(audience) && !audience.as_array().is_some_and(|all| all.iter().any(is_ours)) {
        return Err(Rejected::Audience(audience.to_string()));
    }
    let ends = time("exp")?.ok_or(Rejected::Claim("exp"))?;
    if now >= ends {
        return Err(Rejected::Expired(ends as u64));
    }
    for begins in [time("nbf")?, time("iat")?].into_iter().flatten() {
        if begins > now + AHEAD {
            return Err(Rejected::NotYet(begins as u64));
        }
    }
    if text("sub")?.is_empty() {
        return Err(Rejected::Claim("sub"));
    }
    if claims.contains_key("cnf") {
        return Err(Rejected::Bound);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
    use proptest::prelude::*;
    use serde_json::json;

    const NOW: f64 = 1_800_000_000.0;

    struct Maker(EcdsaKeyPair);

    impl Maker {
        fn new() -> Self {
            Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
        }

        fn keys(&self, kid: &str) -> Keys {
            let point = self.0.public_key().as_ref();
            let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
            let (x, y) = (text(&point[1..33]), text(&point[33..]));
            Keys::parse(&json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": kid, "x": x, "y": y}]}))
        }

        fn sign(&self, head: &Value, claims: &Value) -> String {
            let text = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
            let message = format!("{}.{}", text(head), text(claims));
            let signature = self.0.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
            format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
        }
    }

    fn expect() -> Expect {
        let (issuer, audience) = ("https://id.example".into(), vec!["cloister".into()]);
        Expect { issuer, audience, algorithms: Algorithm::USUAL.to_vec() }
    }

    fn good() -> Value {
        json!({"iss": "https://id.example", "aud": "cloister", "sub": "u", "exp": NOW + 60.0, "iat": NOW})
    }

    fn with(changes: Value) -> Value {
        let mut claims = good();
        for (name, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => claims.as_object_mut().unwrap().remove(name),
                value => claims.as_object_mut().unwrap().insert(name.clone(), value.clone()),
            };
        }
        claims
    }

    #[test]
    fn every_claim_decides() {
        let maker = Maker::new();
        let keys = maker.keys("k");
        let head = json!({"alg": "ES256", "kid": "k"});
        let verdict = |claims: Value| verify(&maker.sign(&head, &claims), &keys, &expect(), NOW).map(|_| ());
        for fine in [
            good(),
            with(json!({"aud": ["other", "cloister"]})),
            with(json!({"exp": NOW + 0.5})),
            with(json!({"nbf": NOW + AHEAD})),
            with(json!({"iat": null})),
        ] {
            assert_eq!(verdict(fine.clone()), Ok(()), "{fine}");
        }
        for (bad, why) in [
            (json!({"iss": "https://id.example/"}), Rejected::Issuer("https://id.example/".into())),
            (json!({"iss": null}), Rejected::Claim("iss")),
            (json!({"aud": "other"}), Rejected::Audience("\"other\"".into())),
            (json!({"aud": []}), Rejected::Audience("[]".into())),
            (json!({"aud": null}), Rejected::Claim("aud")),
            (json!({"exp": NOW}), Rejected::Expired(NOW as u64)),
            (json!({"exp": null}), Rejected::Claim("exp")),
            (json!({"exp": "2100-01-01"}), Rejected::Claim("exp")),
            (json!({"nbf": NOW + AHEAD + 1.0}), Rejected::NotYet(NOW as u64 + 31)),
            (json!({"iat": NOW + 3600.0}), Rejected::NotYet(NOW as u64 + 3600)),
            (json!({"sub": ""}), Rejected::Claim("sub")),
            (json!({"sub": 7}), Rejected::Claim("sub")),
            (json!({"cnf": {"jkt": "x"}}), Rejected::Bound),
        ] {
            assert_eq!(verdict(with(bad.clone())), Err(why), "{bad}");
        }
    }

    #[test]
    fn nothing_in_a_header_chooses_what_is_trusted() {
        let (maker, other) = (Maker::new(), Maker::new());
        let keys = maker.keys("k");
        let verdict = |token: &str| verify(token, &keys, &expect(), NOW).map(|_| ());
        let signed = |head: Value| maker.sign(&head, &good());
        assert_eq!(verdict(&signed(json!({"alg": "ES256", "kid": "k", "typ": "at+JWT"}))), Ok(()));
        assert_eq!(verdict(&signed(json!({"alg": "ES256"}))), Ok(()), "the only key that suits");
        for name in ["none", "None", "HS256", "HS512", "ES256K", "RS384", ""] {
            let token = signed(json!({"alg": name, "kid": "k"}));
            assert_eq!(verdict(&token), Err(Rejected::Algorithm(name.into())));
        }
        let named = |name: &str| Err(Rejected::UnknownKey(name.into()));
        assert_eq!(verdict(&signed(json!({"alg": "ES256", "kid": "l"}))), named("l"));
        assert_eq!(verdict(&signed(json!({"alg": "RS256", "kid": "k"}))), named("k"), "a key is of one kind");
        assert_eq!(verdict(&signed(json!({"alg": "ES256", "kid": "k", "crit": ["b64"]}))), Err(Rejected::Critical));
        assert_eq!(
            verdict(&signed(json!({"alg": "ES256", "kid": "k", "typ": "logout+jwt"}))),
            Err(Rejected::Type("logout+jwt".into()))
        );
        // A key that comes with the token is nobody's.
        let forged =
            other.sign(&json!({"alg": "ES256", "kid": "k", "jwk": {"kty": "EC"}, "jku": "https://x"}), &good());
        assert_eq!(verdict(&forged), Err(Rejected::Signature));
        let token = signed(json!({"alg": "ES256", "kid": "k"}));
        let (message, signature) = token.rsplit_once('.').unwrap();
        for cut in [message.to_owned(), format!("{message}."), format!("{token}.x"), String::new(), "a.b.c".into()] {
            assert_eq!(verdict(&cut), Err(Rejected::Malformed), "{cut}");
        }
        assert_eq!(verdict(&format!("{message}.{}", &signature[..20])), Err(Rejected::Signature));
    }

    proptest! {
        #[test]
        fn no_text_is_taken_and_none_breaks_it(text in "\\PC{0,200}", a in "[A-Za-z0-9_-]{0,40}", b in "[A-Za-z0-9_-]{0,40}") {
            let keys = Maker::new().keys("k");
            for token in [text, format!("{a}.{b}.{a}")] {
                prop_assert!(verify(&token, &keys, &expect(), NOW).is_err());
                let _ = issuer_of(&token);
            }
        }

        #[test]
        fn one_changed_byte_is_noticed(at in 0_usize..200, to in "[A-Za-z0-9_-]") {
            let maker = Maker::new();
            let token = maker.sign(&json!({"alg": "ES256", "kid": "k"}), &good());
            // The last character of a part has bits that say nothing.
            let at = at % (token.len() - 1);
            let mut changed = token.clone();
            changed.replace_range(at..=at, &to);
            prop_assume!(changed != token);
            prop_assert!(verify(&changed, &maker.keys("k"), &expect(), NOW).is_err());
        }
    }
}
