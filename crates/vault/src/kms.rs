//! A key file that does not hold the key but its ciphertext, which a key
//! management service opens when the vault starts. Never per call: a service that
//! is away later stops nothing.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cloister_dial::{Dialer, Https, Reach};
use http::{Request, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::key::{Key, hex};
use crate::sign::{self, AwsKeys, aws_time};
use crate::wire::AwsCall;

/// How long a service may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// What a key file begins with whose rest is a ciphertext.
pub(crate) const MARK: &str = "kms:";

/// A key management service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Kms {
    /// The transit engine of HashiCorp Vault or OpenBao.
    Transit(Transit),
    /// AWS KMS.
    Aws(Aws),
}

/// A key of a transit engine, of a kind that takes associated data, such as
/// `aes256-gcm96`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transit {
    /// `https://host:port`.
    pub address: String,
    /// Where the engine is mounted.
    #[serde(default = "transit")]
    pub mount: String,
    /// The key's name.
    pub key: String,
    /// A file with the token.
    pub token_file: PathBuf,
    /// The namespace, where there are some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// A symmetric key of AWS KMS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Aws {
    /// The key's id or ARN.
    pub key: String,
    /// Its region.
    pub region: String,
    /// A file of AWS's form, with `aws_access_key_id` and so on.
    pub credentials_file: PathBuf,
    /// Another address than the region's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

fn transit() -> String {
    "transit".into()
}

/// Whose key it is: a ciphertext opens for no other tenant and in no other
/// region.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Whose<'w> {
    pub(crate) tenant: &'w str,
    pub(crate) region: &'w str,
}

impl Kms {
    /// The file that lets us call it.
    pub fn file(&mut self) -> &mut PathBuf {
        match self {
            Self::Transit(transit) => &mut transit.token_file,
            Self::Aws(aws) => &mut aws.credentials_file,
        }
    }

    /// Closes a key: the text for the key file.
    pub(crate) fn close(&self, whose: Whose<'_>, key: &Key, extra_ca: Option<&Path>) -> Result<String, String> {
        let plain = Zeroizing::new(STANDARD.encode(key.bytes()));
        let answer = match self {
            Self::Transit(service) => {
                service.call("encrypt", whose, ("plaintext", &plain), extra_ca)?["data"]["ciphertext"].take()
            }
            Self::Aws(service) => {
                service.call("Encrypt", whose, ("Plaintext", &plain), extra_ca)?["CiphertextBlob"].take()
            }
        };
        let text = answer.as_str().ok_or("the key service gave no ciphertext")?;
        Ok(format!("{MARK}{text}\n"))
    }

    /// Opens what stands after the mark.
    pub(crate) fn open(&self, whose: Whose<'_>, closed: &str, extra_ca: Option<&Path>) -> Result<Key, String> {
        let answer = match self {
            Self::Transit(service) => {
                service.call("decrypt", whose, ("ciphertext", closed), extra_ca)?["data"]["plaintext"].take()
            }
            Self::Aws(service) => {
                service.call("Decrypt", whose, ("CiphertextBlob", closed), extra_ca)?["Plaintext"].take()
            }
        };
        let Value::String(plain) = answer else { return Err("the key service gave no plaintext".into()) };
        let bytes = Zeroizing::new(STANDARD.decode(Zeroizing::new(plain).as_bytes()).unwrap_or_default());
        Key::from_bytes(&bytes).map_err(|_| "the key service opened something else than a key".into())
    }
}

impl Transit {
    fn call(
        &self,
        verb: &str,
        Whose { tenant, region }: Whose<'_>,
        (name, value): (&str, &str),
        extra_ca: Option<&Path>,
    ) -> Result<Value, String> {
        let Self { address, mount, key, token_file, namespace } = self;
        let token = read(token_file)?;
        let mut request = Request::builder().header("x-vault-token", token.trim());
        if let Some(namespace) = namespace {
            request = request.header("x-vault-namespace", namespace);
        }
        let about = STANDARD.encode(format!("cloister-vault/1\n{tenant}\n{region}"));
        let body = json!({name: value, "associated_data": about});
        let url = format!("{}/v1/{}/{verb}/{key}", address.trim_end_matches('/'), mount.trim_matches('/'));
        call(&url, request, body, extra_ca)
    }
}

impl Aws {
    fn call(
        &self,
        verb: &str,
        Whose { tenant, region: home }: Whose<'_>,
        (name, value): (&str, &str),
        extra_ca: Option<&Path>,
    ) -> Result<Value, String> {
        let Self { key, region, credentials_file, endpoint } = self;
        let text = read(credentials_file)?;
        let field = |name: &str| {
            let lines = text.lines().filter_map(|line| line.split_once('='));
            lines.into_iter().find(|(known, _)| known.trim() == name).map(|(_, value)| value.trim())
        };
        let missing = || format!("{} has no aws_access_key_id or no aws_secret_access_key", credentials_file.display());
        let (Some(id), Some(secret)) = (field("aws_access_key_id"), field("aws_secret_access_key")) else {
            return Err(missing());
        };
        let keys = AwsKeys { id, secret, token: field("aws_session_token") };
        let address = endpoint.clone().unwrap_or_else(|| format!("https://kms.{region}.amazonaws.com"));
        let address = address.trim_end_matches('/');
        let authority = address.split_once("://").map_or(address, |(_, authority)| authority);
        // One of the tenant's alone: empty values are not taken.
        let mut context = json!({"cloister-tenant": tenant});
        if !home.is_empty() {
            context["cloister-region"] = home.into();
        }
        let body = json!({name: value, "KeyId": key, "EncryptionContext": context});
        let target = format!("TrentService.{verb}");
        let headers = [("content-type", "application/x-amz-json-1.1"), ("host", authority), ("x-amz-target", &target)];
        let signed = AwsCall {
            method: "POST".into(),
            path: "/".into(),
            query: String::new(),
            headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            payload: hex(digest(&SHA256, body.to_string().as_bytes()).as_ref()),
            time: aws_time(SystemTime::now()),
        };
        let mut request =
            Request::builder().header(header::CONTENT_TYPE, headers[0].1).header("x-amz-target", target.as_str());
        for (name, value) in sign::aws(&keys, "kms", region, &signed) {
            request = request.header(name, value);
        }
        call(&format!("{address}/"), request, body, extra_ca)
    }
}

fn read(path: &Path) -> Result<Zeroizing<String>, String> {
    std::fs::read_to_string(path).map(Zeroizing::new).map_err(|error| format!("{}: {error}", path.display()))
}

/// Makes the call, on a thread of its own: this may be one that others wait on.
fn call(url: &str, request: http::request::Builder, body: Value, extra_ca: Option<&Path>) -> Result<Value, String> {
    let https = Https::new(Dialer::new(Default::default()), Reach::Any, extra_ca).map_err(|error| error.to_string())?;
    if !url.starts_with("https://") {
        return Err(format!("{url} is not https"));
    }
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|error| error.to_string())?.block_on(async {
            let post = https.post(url, request, body.to_string().into());
            let answered = tokio::time::timeout(PATIENCE, post).await.map_err(|_| "no answer in time".to_owned())?;
            let (status, answer) = answered.map_err(|error| error.to_string())?;
            if status == StatusCode::OK { Ok(answer) } else { Err(format!("{status} {}", words(&answer))) }
        })
    };
    let done = std::thread::scope(|scope| scope.spawn(work).join());
    done.unwrap_or_else(|_| Err("the call failed".into())).map_err(|why| format!("the key service at {url}: {why}"))
}

/// What a service says went wrong, in either's form.
fn words(answer: &Value) -> String {
    let texts = [&answer["errors"][0], &answer["__type"], &answer["message"], &answer["Message"]];
    texts.into_iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ").chars().take(300).collect()
}
