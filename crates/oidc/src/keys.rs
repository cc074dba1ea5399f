//! An issuer's public keys (RFC 7517).

use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::Jwk;
use serde_json::Value;

use crate::Algorithm;

/// Keys of an issuer that are looked at; more have none.
const MOST: usize = 64;

/// What verifies signatures of an issuer's.
#[derive(Default)]
pub struct Keys(Vec<Key>);

struct Key {
    id: Option<String>,
    /// What it is for, by its kind and by what is said of it.
    algorithms: Vec<Algorithm>,
    inner: DecodingKey,
}

impl Keys {
    /// From a set as it is published. Keys that cannot be used, or not for this,
    /// are left out: one new kind must not lock everybody out.
    #[must_use]
    pub fn parse(set: &Value) -> Self {
        let keys = set["keys"].as_array().into_iter().flatten().take(MOST);
        Self(keys.filter_map(Key::parse).collect())
    }

    /// Those that may have signed something, by what it says of them.
    pub(crate) fn suited(&self, id: Option<&str>, algorithm: Algorithm) -> Vec<&DecodingKey> {
        let named = |key: &&Key| id.is_none_or(|id| key.id.as_deref() == Some(id));
        let suited = self.0.iter().filter(named).filter(|key| key.algorithms.contains(&algorithm));
        suited.map(|key| &key.inner).collect()
    }

    /// Is there any?
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Key {
    fn parse(value: &Value) -> Option<Self> {
        use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
        let text = |name: &str| value[name].as_str();
        let mut algorithms = match (text("kty")?, text("crv")) {
            ("RSA", _) => vec![RS256, RS384, RS512, PS256, PS384, PS512],
            ("EC", Some("P-256")) => vec![ES256],
            ("EC", Some("P-384")) => vec![ES384],
            ("OKP", Some("Ed25519")) => vec![EdDSA],
            // A shared secret verifies nobody.
            _ => return None,
        };
        if let Some(only) = text("alg") {
            algorithms.retain(|algorithm| Algorithm::named(only) == Some(*algorithm));
        }
        let verifies = value["key_ops"].as_array().is_none_or(|all| all.iter().any(|one| one == "verify"));
        if algorithms.is_empty() || !verifies || text("use").is_some_and(|used| used != "sig") {
            return None;
        }
        // Only what the key is made of: the rest has been looked at.
        let made: serde_json::Map<String, Value> = ["kty", "crv", "n", "e", "x", "y"]
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), value.get(name)?.clone())))
            .collect();
        let jwk: Jwk = serde_json::from_value(Value::Object(made)).ok()?;
        let inner = DecodingKey::from_jwk(&jwk).ok()?;
        Some(Self { id: text("kid").map(str::to_owned), algorithms, inner })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_public_keys_that_are_for_signatures_are_taken() {
        let rsa = |more: Value| {
            let mut key =
                json!({"kty": "RSA", "n": "sXchDaQebHnPiGvyDOAT4saGEUetSyo9MKLOoWFsueri", "e": "AQAB", "kid": "k"});
            key.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            Keys::parse(&json!({"keys": [key]}))
        };
        let suits = |keys: &Keys, algorithm| !keys.suited(Some("k"), algorithm).is_empty();
        assert!(suits(&rsa(json!({})), Algorithm::RS256) && suits(&rsa(json!({"use": "sig"})), Algorithm::PS512));
        let bound = rsa(json!({"alg": "RS256"}));
        assert!(
            suits(&bound, Algorithm::RS256) && !suits(&bound, Algorithm::PS256) && !suits(&bound, Algorithm::ES256)
        );
        for other in [json!({"use": "enc"}), json!({"key_ops": ["encrypt"]}), json!({"alg": "HS256"}), json!({"n": 7})]
        {
            assert!(rsa(other.clone()).is_empty(), "{other}");
        }
        assert!(
            Keys::parse(&json!({"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "k", "alg": "HS256"}]})).is_empty()
        );
        for odd in [json!(null), json!({"keys": 1}), json!({"keys": [1, "x", {}]})] {
            assert!(Keys::parse(&odd).is_empty());
        }
    }
}
