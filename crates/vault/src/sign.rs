//! Signatures: assertions for token endpoints, calls to AWS, TLS handshakes.
//! The keys never leave this process.

use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256, RSA_PSS_SHA256,
    RsaKeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::key::hex;
use crate::wire::AwsCall;

/// A private key that signs.
pub(crate) enum Signer {
    Rsa(Box<RsaKeyPair>),
    /// PKCS #8 of a P-256 key; it signs in two forms.
    P256(Vec<u8>),
}

/// A key or a signature that does not work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the private key must be RSA or P-256, in PEM")]
pub(crate) struct BadKey;

impl Signer {
    pub(crate) fn from_pem(pem: &str) -> Result<Self, BadKey> {
        match PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| BadKey)? {
            PrivateKeyDer::Pkcs1(der) => {
                RsaKeyPair::from_der(der.secret_pkcs1_der()).map(|key| Self::Rsa(Box::new(key))).map_err(|_| BadKey)
            }
            PrivateKeyDer::Pkcs8(der) => {
                let der = der.secret_pkcs8_der();
                if let Ok(key) = RsaKeyPair::from_pkcs8(der) {
                    return Ok(Self::Rsa(Box::new(key)));
                }
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der).map_err(|_| BadKey)?;
                Ok(Self::P256(der.to_vec()))
            }
            _ => Err(BadKey),
        }
    }

    fn rsa(
        key: &RsaKeyPair,
        padding: &'static dyn aws_lc_rs::signature::RsaEncoding,
        text: &[u8],
    ) -> Result<Vec<u8>, BadKey> {
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(padding, &SystemRandom::new(), text, &mut signature).map_err(|_| BadKey)?;
        Ok(signature)
    }

    /// Signs a TLS handshake with one of the schemes that every peer knows
    /// (RFC 8446, 4.2.3).
    pub(crate) fn tls(&self, scheme: u16, message: &[u8]) -> Result<Vec<u8>, BadKey> {
        match (self, scheme) {
            (Self::Rsa(key), 0x0804) => Self::rsa(key, &RSA_PSS_SHA256, message),
            (Self::Rsa(key), 0x0401) => Self::rsa(key, &RSA_PKCS1_SHA256, message),
            (Self::P256(der), 0x0403) => {
                let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der).map_err(|_| BadKey)?;
                Ok(key.sign(&SystemRandom::new(), message).map_err(|_| BadKey)?.as_ref().to_vec())
            }
            _ => Err(BadKey),
        }
    }

    /// A signed JWT (RFC 7515, compact).
    pub(crate) fn jwt(&self, claims: &Value, key_id: Option<&str>) -> Result<String, BadKey> {
        let algorithm = if matches!(self, Self::Rsa(_)) { "RS256" } else { "ES256" };
        let mut header = json!({"alg": algorithm, "typ": "JWT"});
        if let Some(key_id) = key_id {
            header["kid"] = key_id.into();
        }
        let text =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = match self {
            Self::Rsa(key) => Self::rsa(key, &RSA_PKCS1_SHA256, text.as_bytes())?,
            Self::P256(der) => {
                let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der).map_err(|_| BadKey)?;
                key.sign(&SystemRandom::new(), text.as_bytes()).map_err(|_| BadKey)?.as_ref().to_vec()
            }
        };
        Ok(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// Keys of AWS.
pub(crate) struct AwsKeys<'a> {
    pub(crate) id: &'a str,
    pub(crate) secret: &'a str,
    pub(crate) token: Option<&'a str>,
}

/// The headers that sign a call, by Signature Version 4.
pub(crate) fn aws(keys: &AwsKeys<'_>, service: &str, region: &str, call: &AwsCall) -> Vec<(String, String)> {
    let mut headers = call.headers.clone();
    headers.push(("x-amz-date".into(), call.time.clone()));
    headers.push(("x-amz-content-sha256".into(), call.payload.clone()));
    headers.extend(keys.token.map(|token| ("x-amz-security-token".into(), token.to_owned())));
    headers.sort();
    let names: Vec<&str> = headers.iter().map(|(name, _)| name.as_str()).collect();
    let names = names.join(";");
    let shown: String = headers.iter().map(|(name, value)| format!("{name}:{}\n", collapse(value))).collect();
    // S3 takes paths as they are sent; all others want them encoded once more.
    let path = if service == "s3" { call.path.clone() } else { encode_path(&call.path) };
    let canonical =
        format!("{}\n{path}\n{}\n{shown}\n{names}\n{}", call.method, canonical_query(&call.query), call.payload);
    let day = call.time.get(..8).unwrap_or_default();
    let scope = format!("{day}/{region}/{service}/aws4_request");
    let text =
        format!("AWS4-HMAC-SHA256\n{}\n{scope}\n{}", call.time, hex(digest(&SHA256, canonical.as_bytes()).as_ref()));
    let mac = |key: &[u8], text: &str| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes());
    let mut key = mac(format!("AWS4{}", keys.secret).as_bytes(), day);
    for part in [region, service, "aws4_request"] {
        key = mac(key.as_ref(), part);
    }
    let signature = hex(mac(key.as_ref(), &text).as_ref());
    let authorization =
        format!("AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}", keys.id);
    let ours = ["x-amz-date", "x-amz-content-sha256", "x-amz-security-token"];
    let mut signed: Vec<(String, String)> =
        headers.into_iter().filter(|(name, _)| ours.contains(&name.as_str())).collect();
    signed.push(("authorization".into(), authorization));
    signed
}

/// White space in a value counts as one space.
fn collapse(value: &str) -> String {
    value.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

fn encode_path(path: &str) -> String {
    path.bytes()
        .map(
            |byte| {
                if is_unreserved(byte) || byte == b'/' { char::from(byte).to_string() } else { format!("%{byte:02X}") }
            },
        )
        .collect()
}

/// The query with names and values encoded in one way, in order.
fn canonical_query(query: &str) -> String {
    let recode = |text: &str| -> String {
        let bytes = text.as_bytes();
        let (mut out, mut at) = (String::new(), 0);
        while at < bytes.len() {
            let escaped = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
            let decoded = escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok());
            let byte = decoded.unwrap_or(bytes[at]);
            at += if decoded.is_some() { 3 } else { 1 };
            if is_unreserved(byte) { out.push(byte.into()) } else { out.push_str(&format!("%{byte:02X}")) }
        }
        out
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let mut pairs: Vec<(String, String)> = pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (recode(name), recode(value))
        })
        .collect();
    pairs.sort();
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

/// A time in AWS's form: `20260102T030405Z`.
#[must_use]
pub fn aws_time(time: SystemTime) -> String {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    // `Fri, 02 Jan 2026 03:04:05 GMT`
    let date = httpdate::HttpDate::from(time).to_string();
    let words: Vec<&str> = date.split([' ', ':']).collect();
    let [_, day, month, year, hour, minute, second, ..] = words[..] else { return String::new() };
    let month = MONTHS.iter().position(|known| *known == month).unwrap_or(0) + 1;
    format!("{year}{month:02}{day}T{hour}{minute}{second}Z")
}

/// Is it that time, within a minute or two?
pub(crate) fn is_now(time: &str) -> bool {
    let (now, minute) = (SystemTime::now(), Duration::from_secs(60));
    let near = [now.checked_sub(minute), Some(now), now.checked_add(minute)].map(|time| time.map(aws_time));
    let minute_of = |text: &str| text.get(..13).map(str::to_owned);
    near.into_iter().flatten().any(|known| minute_of(&known) == minute_of(time))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example in AWS's own documentation ("Authenticating requests:
    /// signature calculations", GET with a range).
    #[test]
    fn the_documented_call_has_the_documented_signature() {
        let keys =
            AwsKeys { id: "AKIAIOSFODNN7EXAMPLE", secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", token: None };
        let call = AwsCall {
            method: "GET".into(),
            path: "/test.txt".into(),
            query: String::new(),
            headers: vec![
                ("host".into(), "examplebucket.s3.amazonaws.com".into()),
                ("range".into(), "bytes=0-9".into()),
            ],
            payload: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".into(),
            time: "20130524T000000Z".into(),
        };
        let signed = aws(&keys, "s3", "us-east-1", &call);
        let (_, authorization) = signed.iter().find(|(name, _)| name == "authorization").unwrap();
        assert!(
            authorization.ends_with("Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"),
            "{authorization}"
        );
    }

    #[test]
    fn times_have_the_form_that_aws_reads() {
        let time = std::time::UNIX_EPOCH + Duration::from_secs(1_369_353_600);
        assert_eq!(aws_time(time), "20130524T000000Z");
        assert!(is_now(&aws_time(SystemTime::now())) && !is_now("20130524T000000Z") && !is_now(""));
    }

    #[test]
    fn queries_have_one_form() {
        assert_eq!(canonical_query("b=2&a=x%2fy&a=%41&c"), "a=A&a=x%2Fy&b=2&c=");
        assert_eq!(canonical_query("q=%zz+a"), "q=%25zz%2Ba");
    }

    #[test]
    fn assertions_are_signed_and_keys_of_other_kinds_refused() {
        let key = rcgen::KeyPair::generate().unwrap();
        let signer = Signer::from_pem(&key.serialize_pem()).unwrap();
        let jwt = signer.jwt(&json!({"iss": "me"}), Some("k")).unwrap();
        let parts: Vec<&str> = jwt.split('.').collect();
        let public = aws_lc_rs::signature::UnparsedPublicKey::new(
            &aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED,
            key.public_key_raw(),
        );
        let signature = URL_SAFE_NO_PAD.decode(parts[2]).unwrap();
        public.verify(format!("{}.{}", parts[0], parts[1]).as_bytes(), &signature).unwrap();
        assert!(signer.tls(0x0403, b"x").is_ok() && signer.tls(0x0804, b"x").is_err());
        assert!(Signer::from_pem("nothing").is_err());
        let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        assert!(Signer::from_pem(&other.serialize_pem()).is_err());
    }
}
