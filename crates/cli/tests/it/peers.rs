//! Other people's servers and clients at both ends of the way out.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cloister_testkit::{Options, Stack, Upstream, peers};
use serde_json::{Value, json};

use crate::egress::connect;

const CANARY: &str = "sk_canary+9f8e/7d6c=5b4a3210";

/// A server that says one line about itself; ended when dropped.
pub(crate) struct Server(Child, pub(crate) String);

impl Server {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "it does not start");
        Self(child, line)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(name)
}

async fn stack(upstream: &Upstream, name: &str, port: u64) -> Stack {
    let config =
        format!("[egress]\nextra_ca = {:?}\n[egress.hosts]\n\"{name}\" = \"127.0.0.1:{port}\"\n", upstream.ca());
    Stack::with(Options { config: Some(config), serve: false, ..Options::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oauth_server_gives_tokens_and_replaces_refresh_tokens() {
    const NAME: &str = "issuer.example.test";
    let upstream = Upstream::start(&[NAME]).await;
    let (certificate, key) = upstream.server_certificate(NAME);
    let mut node = Command::new("node");
    node.arg(script("oauth.mjs")).arg(peers()).args([certificate, key]).arg(format!("https://{NAME}"));
    let server = Server::start(&mut node);
    let told: Value = serde_json::from_str(&server.1).unwrap();
    let mut stack = stack(&upstream, NAME, told["port"].as_u64().unwrap()).await;
    let target = json!({"targets": [{"host": NAME, "paths": ["/protected"]}], "attach": {"kind": "header"}});
    let common =
        json!({"token_url": format!("https://{NAME}/token"), "client_secret": "client-secret-canary-0123456789"});
    let secret = |more: Value| {
        let mut secret = common.clone();
        secret.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        secret
    };
    let service = secret(json!({"kind": "oauth2_client_credentials", "client_id": "service"}));
    let refresh = secret(json!({"kind": "oauth2_refresh", "client_id": "app", "refresh_token": told["refresh_token"]}));
    connect(&stack, "service", target.clone(), service).await;
    connect(&stack, "app", target, refresh).await;
    let call = "for i in 1 2 3; do curl -sS -m 10 https://issuer.example.test/protected; echo; done";
    for (name, client) in [("service", "service"), ("app", "app")] {
        let session = stack.session_with(json!({"connections": [name]})).await.id;
        // Tokens live for 4 s here. The server takes a refresh token that it has
        // replaced for a theft, and then gives nothing more: each new one is kept.
        for killed in [false, true, false] {
            if killed {
                stack = stack.kill_and_restart().await;
            }
            let (said, _) = stack.bash(&session, call).await;
            assert_eq!(said, format!("for {client}\n").repeat(3), "{name}");
            tokio::time::sleep(Duration::from_secs(4)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_goes_through_with_its_trailers_and_statuses() {
    const NAME: &str = "grpc.example.test";
    let upstream = Upstream::start(&[NAME]).await;
    let (certificate, key) = upstream.server_certificate(NAME);
    let server = Server::start(Command::new("/usr/bin/python3").arg(script("grpc_server.py")).args([certificate, key]));
    let stack = stack(&upstream, NAME, server.1.trim().parse().unwrap()).await;
    let connection = json!({"targets": [{"host": NAME}], "attach": {"kind": "header"}});
    connect(&stack, "grpc", connection, json!({"kind": "static", "value": CANARY})).await;
    let session = stack.session_with(json!({"connections": ["grpc"]})).await.id;
    let client = std::fs::read_to_string(script("grpc_client.py")).unwrap();
    let command = format!("cat > client.py <<'END'\n{client}\nEND\n/usr/bin/python3 client.py");
    let (said, _) = stack.bash(&session, &command).await;
    let hidden = format!("Bearer {}", "*".repeat(CANARY.len()));
    let wanted = format!(
        "<one with {hidden}> {hidden} OK\n<a with {hidden}>\n<b with {hidden}>\n<c with {hidden}>\nFAILED_PRECONDITION not {hidden}\n"
    );
    assert_eq!(said, wanted);
}
