//! An OpenID issuer on loopback: it says what it is, publishes its keys, and
//! signs whatever a test wants signed.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PSS_SHA256,
    RsaKeyPair, RsaPublicKeyComponents,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// Seconds since 1970.
#[must_use]
pub fn unix_now() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Its keys: one of each kind, all of one generation.
struct Keys {
    generation: usize,
    rsa: RsaKeyPair,
    ec: EcdsaKeyPair,
    ed: Ed25519KeyPair,
}

fn text(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Keys {
    fn new(generation: usize) -> Self {
        Self {
            generation,
            rsa: RsaKeyPair::generate(KeySize::Rsa2048).expect("a key"),
            ec: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key"),
            ed: Ed25519KeyPair::generate().expect("a key"),
        }
    }

    fn published(&self) -> Value {
        let id = |kind: &str| format!("{kind}-{}", self.generation);
        let rsa = RsaPublicKeyComponents::<Vec<u8>>::from(self.rsa.public_key());
        let point = self.ec.public_key().as_ref();
        json!({"keys": [
            {"kty": "RSA", "kid": id("rsa"), "use": "sig", "n": text(&rsa.n), "e": text(&rsa.e)},
            {"kty": "EC", "crv": "P-256", "kid": id("ec"), "x": text(&point[1..33]), "y": text(&point[33..])},
            {"kty": "OKP", "crv": "Ed25519", "kid": id("ed"), "x": text(self.ed.public_key().as_ref())},
            {"kty": "oct", "kid": id("shared"), "k": text(b"a shared secret of thirty-two by")},
            {"kty": "new", "kid": id("new")},
        ]})
    }
}

struct State {
    url: String,
    keys: Mutex<Keys>,
    asked: AtomicUsize,
    /// It does not answer.
    down: std::sync::atomic::AtomicBool,
}

/// The issuer; it ends when dropped.
pub struct Issuer {
    /// Its name, which is where it is.
    pub url: String,
    state: Arc<State>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Issuer {
    /// Starts one.
    ///
    /// # Panics
    /// It cannot.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let state = Arc::new(State {
            url: url.clone(),
            keys: Mutex::new(Keys::new(1)),
            asked: AtomicUsize::new(0),
            down: false.into(),
        });
        let shared = state.clone();
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let state = shared.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(state.clone(), request));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), service)
                        .await;
                });
            }
        });
        Self { url, state, task }
    }

    /// New keys; what the old ones signed is no longer good.
    pub fn rotate(&self) {
        let mut keys = self.state.keys.lock().expect("no test panics with it");
        *keys = Keys::new(keys.generation + 1);
    }

    /// How often its keys were asked for.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.state.asked.load(Ordering::Relaxed)
    }

    /// Whether it answers.
    pub fn set_down(&self, down: bool) {
        self.state.down.store(down, Ordering::Relaxed);
    }

    /// A token as it is usual, of an audience, with changes: `null` takes a claim
    /// away.
    #[must_use]
    pub fn token(&self, audience: &str, changes: Value) -> String {
        let now = unix_now().floor();
        let mut claims = json!({"iss": self.url, "aud": audience, "sub": "somebody", "iat": now, "exp": now + 300.0});
        for (name, value) in changes.as_object().into_iter().flatten() {
            claims[name] = value.clone();
        }
        claims.as_object_mut().expect("an object").retain(|_, value| !value.is_null());
        self.sign("RS256", json!({}), &claims)
    }

    /// Signs claims by an algorithm, whatever it is called in the header.
    ///
    /// # Panics
    /// It does not know the algorithm.
    #[must_use]
    pub fn sign(&self, algorithm: &str, header: Value, claims: &Value) -> String {
        let keys = self.state.keys.lock().expect("no test panics with it");
        let kind = match algorithm {
            "ES256" => "ec",
            "EdDSA" => "ed",
            _ => "rsa",
        };
        let mut head = json!({"alg": algorithm, "typ": "JWT", "kid": format!("{kind}-{}", keys.generation)});
        for (name, value) in header.as_object().into_iter().flatten() {
            head[name] = value.clone();
        }
        head.as_object_mut().expect("an object").retain(|_, value| !value.is_null());
        let message = format!("{}.{}", text(head.to_string().as_bytes()), text(claims.to_string().as_bytes()));
        let random = SystemRandom::new();
        let rsa = |padding: &'static dyn aws_lc_rs::signature::RsaEncoding| {
            let mut signature = vec![0; keys.rsa.public_modulus_len()];
            keys.rsa.sign(padding, &random, message.as_bytes(), &mut signature).expect("a signature");
            signature
        };
        let signature = match algorithm {
            "RS256" => rsa(&RSA_PKCS1_SHA256),
            "PS256" => rsa(&RSA_PSS_SHA256),
            "ES256" => keys.ec.sign(&random, message.as_bytes()).expect("a signature").as_ref().to_vec(),
            "EdDSA" => keys.ed.sign(message.as_bytes()).as_ref().to_vec(),
            // What everybody can see of the issuer, taken for a secret.
            "HS256" => {
                let published = RsaPublicKeyComponents::<Vec<u8>>::from(keys.rsa.public_key());
                let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &published.n);
                aws_lc_rs::hmac::sign(&key, message.as_bytes()).as_ref().to_vec()
            }
            "none" => return format!("{message}."),
            other => panic!("{other} is not an algorithm"),
        };
        format!("{message}.{}", text(&signature))
    }
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    if state.down.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut down = Response::new(Full::default());
        *down.status_mut() = StatusCode::BAD_GATEWAY;
        return Ok(down);
    }
    let said = match request.uri().path() {
        "/.well-known/openid-configuration" => json!({
            "issuer": state.url,
            "jwks_uri": format!("{}/keys", state.url),
            "authorization_endpoint": format!("{}/authorize", state.url),
            "token_endpoint": format!("{}/token", state.url),
        }),
        "/keys" => {
            state.asked.fetch_add(1, Ordering::Relaxed);
            state.keys.lock().expect("no test panics with it").published()
        }
        _ => json!({"error": "nothing here"}),
    };
    Ok(Response::new(Full::from(said.to_string())))
}
