//! Key services as far as the vault speaks to them: the transit engine, and AWS
//! KMS. What they close opens with the same data about it alone.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

/// The token that the transit engine takes.
pub const TRANSIT_TOKEN: &str = "s.transit-token";

/// Answers a call, if it is one to a key service.
pub(crate) fn answer(path: &str, headers: &HeaderMap, body: &[u8]) -> Option<(StatusCode, Value)> {
    let asked: Value = serde_json::from_slice(body).unwrap_or_default();
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if let Some(verb) = path.strip_prefix("/v1/transit/").and_then(|rest| rest.strip_suffix("/cloister")) {
        if header("x-vault-token") != TRANSIT_TOKEN {
            return Some((StatusCode::FORBIDDEN, json!({"errors": ["permission denied"]})));
        }
        let about = &asked["associated_data"];
        return Some(match verb {
            "encrypt" => (
                StatusCode::OK,
                json!({"data": {"ciphertext": format!("vault:v1:{}", close(about, &asked["plaintext"]))}}),
            ),
            _ => {
                let closed =
                    asked["ciphertext"].as_str().and_then(|text| text.strip_prefix("vault:v1:")).unwrap_or_default();
                match open(about, closed) {
                    Some(plain) => (StatusCode::OK, json!({"data": {"plaintext": plain}})),
                    None => (StatusCode::BAD_REQUEST, json!({"errors": ["cipher: message authentication failed"]})),
                }
            }
        });
    }
    let verb = header("x-amz-target").strip_prefix("TrentService.")?;
    let about = &asked["EncryptionContext"];
    Some(match verb {
        "Encrypt" => (StatusCode::OK, json!({"CiphertextBlob": close(about, &asked["Plaintext"])})),
        _ => match open(about, asked["CiphertextBlob"].as_str().unwrap_or_default()) {
            Some(plain) => (StatusCode::OK, json!({"Plaintext": plain})),
            None => (StatusCode::BAD_REQUEST, json!({"__type": "InvalidCiphertextException"})),
        },
    })
}

fn close(about: &Value, plain: &Value) -> String {
    STANDARD.encode(json!([about, plain]).to_string())
}

fn open(about: &Value, closed: &str) -> Option<Value> {
    let [known, plain]: [Value; 2] = serde_json::from_slice(&STANDARD.decode(closed).ok()?).ok()?;
    (known == *about).then_some(plain)
}
