//! The way out: what reaches the other side, with which credential, and what
//! comes back of it.

use std::path::Path;
use std::process::Command;

use cloister_testkit::{As, Options, Processes, Stack, Upstream};
use serde_json::{Value, json};

/// What must never be seen inside, nor written anywhere in the clear.
const CANARY: &str = "sk_canary+9f8e/7d6c=5b4a3210";
const NAMES: [&str; 7] = [
    "api.example.test",
    "other.example.test",
    "ruled.example.test",
    "plain.example.test",
    "public.example.test",
    "wrong.example.test",
    "api.github.com",
];
const PROBES: &str = include_str!("egress_probes.py");

pub(crate) async fn stack(who: As, upstream: &Upstream, names: &[&str]) -> Stack {
    let config = Some(upstream.config(names));
    Stack::with(Options { config, as_user: who == As::User, ..Options::default() }).await
}

pub(crate) async fn connect(stack: &Stack, name: &str, connection: Value, secret: Value) {
    let put = |path: String, body: Value| async move {
        let answer =
            stack.raw("PUT", &path, &[("content-type", "application/json")], body.to_string().as_bytes()).await;
        assert!(answer.status < 300, "{path}: {} {}", answer.status, answer.text());
    };
    put(format!("/v1/connections/{name}"), connection).await;
    put(format!("/v1/connections/{name}/secret"), secret).await;
}

pub(crate) fn bearer(host: &str) -> Value {
    json!({"targets": [{"host": host}], "attach": {"kind": "header"}})
}

async fn audit(stack: &Stack, session: &str) -> Vec<Value> {
    let answer = stack.raw("GET", &format!("/v1/egress?session={session}&limit=1000"), &[], b"").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["data"].as_array().unwrap().clone()
}

/// Every file below a folder that holds the text.
fn files_with(folder: &Path, text: &str) -> Vec<String> {
    let output = Command::new("grep").args(["-rlaF", "--", text]).arg(folder).output().unwrap();
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_attack_from_inside_gets_a_credential_out() {
    for who in As::all() {
        let upstream =
            Upstream::start(&NAMES.iter().copied().filter(|name| !name.starts_with("wrong")).collect::<Vec<_>>()).await;
        let stack = stack(who, &upstream, &NAMES).await;
        connect(&stack, "api", bearer("api.example.test"), json!({"kind": "static", "value": CANARY})).await;
        connect(
            &stack,
            "someone-elses",
            bearer("api.example.test"),
            json!({"kind": "static", "value": "other-canary-1234"}),
        )
        .await;
        let ruled = json!({"targets": [{"host": "ruled.example.test", "paths": ["/v1"], "methods": ["GET"]}], "attach": {"kind": "header"}});
        connect(&stack, "ruled", ruled, json!({"kind": "static", "value": CANARY})).await;
        let allow = [
            "plain.example.test",
            "public.example.test",
            "wrong.example.test",
            "api.github.com",
            "localhost",
            "nobody.invalid",
            "other.example.test",
        ];
        let body = json!({"egress": {"mode": "allow", "allow": allow}, "connections": ["api", "ruled"]});
        let session = stack.session_with(body).await;
        let id = session.id.clone();
        let put = stack.raw("PUT", &format!("/v1/sessions/{id}/files/probes.py"), &[], PROBES.as_bytes()).await;
        assert_eq!(put.status, 201);
        let turned: String = CANARY.chars().rev().collect();
        let (said, failed) = stack.bash(&id, &format!("python3 probes.py '{turned}'; rm probes.py")).await;
        assert!(!failed, "{said}");
        let outcomes: Value =
            serde_json::from_str(said.trim().lines().last().unwrap_or_default()).unwrap_or_else(|_| panic!("{said}"));
        let open: Vec<String> = outcomes
            .as_object()
            .unwrap()
            .iter()
            .filter(|(_, said)| *said != "ok")
            .map(|(probe, said)| format!("{probe}: {said}"))
            .collect();
        assert!(open.is_empty(), "{who:?}: {} open:\n{}", open.len(), open.join("\n"));
        assert!(outcomes.as_object().unwrap().len() >= 120, "only {} probes ran", outcomes.as_object().unwrap().len());
        // What arrived: the credential where it belongs and nowhere else, no
        // path around a rule, nothing smuggled, nothing of the agent's own.
        for seen in upstream.seen() {
            let authorization = seen.headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
            let host = seen.host.split(':').next().unwrap().to_owned();
            let credentialed = matches!(host.as_str(), "api.example.test" | "ruled.example.test");
            assert_eq!(authorization, credentialed.then(|| format!("Bearer {CANARY}")), "{seen:?}");
            assert!(
                !seen.target.contains("smuggled") && !seen.target.contains("admin") && !seen.target.contains("hunter2"),
                "{seen:?}"
            );
            assert!(!seen.certified && host != "wrong.example.test", "{seen:?}");
            assert!(
                host != "ruled.example.test" || (seen.method == "GET" && seen.target.starts_with("/v1/")),
                "{seen:?}"
            );
        }
        // Each of it is written down, with its reason, and the chain holds.
        let records = audit(&stack, id.as_str()).await;
        for rule in [
            "host_mismatch",
            "not_covered",
            "path_refused",
            "agent_credential",
            "connection_not_granted",
            "method_not_passed",
            "host_refused",
            "address_refused",
            "connection",
            "policy",
        ] {
            assert!(records.iter().any(|record| record["rule"] == rule), "{rule} is not in the audit");
        }
        for flag in ["reflected", "stripped_auth", "withheld_cookie", "withheld_token", "redirected"] {
            assert!(
                records.iter().any(|record| record["flags"]
                    .as_array()
                    .is_some_and(|flags| flags.iter().any(|known| known == flag))),
                "{flag}"
            );
        }
        let hidden = |text: &str| records.iter().all(|record| !record.to_string().contains(text));
        assert!(hidden("hunter2") && hidden(CANARY), "a value in the audit");
        // Not anywhere on disk, nor in the memory of anything inside.
        use base64::Engine;
        for form in [CANARY.to_owned(), base64::engine::general_purpose::STANDARD_NO_PAD.encode(CANARY)] {
            assert_eq!(files_with(stack.folder(), &form), Vec::<String>::new(), "{form}");
        }
        memory_is_clean(&stack);
        let verified = Command::new(stack.executable())
            .args(["--data"])
            .arg(stack.folder().join("data"))
            .args(["audit", "verify"])
            .output()
            .unwrap();
        assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    }
}

/// The memory of agents and inits, where this test may read it.
fn memory_is_clean(stack: &Stack) {
    use std::io::{Read, Seek, SeekFrom};
    for pid in cloister_testkit::descendants(stack.pid()) {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if !name.starts_with("cloister-") {
            continue;
        }
        let (Ok(maps), Ok(mut memory)) =
            (std::fs::read_to_string(format!("/proc/{pid}/maps")), std::fs::File::open(format!("/proc/{pid}/mem")))
        else {
            continue;
        };
        for line in maps.lines().filter(|line| line.contains(" rw")) {
            let Some((from, to)) = line.split(' ').next().and_then(|range| range.split_once('-')) else { continue };
            let (Ok(from), Ok(to)) = (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16)) else { continue };
            let mut bytes = vec![0; usize::try_from(to - from).unwrap().min(64 << 20)];
            if memory.seek(SeekFrom::Start(from)).is_ok() && memory.read(&mut bytes).is_ok() {
                assert!(
                    !bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes()),
                    "the credential is in the memory of {name}"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offline_session_reaches_its_model_and_nothing_else() {
    let upstream = Upstream::start(&NAMES).await;
    let stack = stack(As::User, &upstream, &NAMES).await;
    let session = stack.session().await;
    let (said, _) = stack.bash(&session, "curl -sS -m 5 https://plain.example.test/; curl -sS -m 5 -k --resolve plain.example.test:443:198.18.0.1 https://plain.example.test/; curl -sS -m 5 http://plain.example.test/ --resolve plain.example.test:80:198.18.0.1; echo done").await;
    assert!(said.contains("Could not resolve host") && said.ends_with("done\n"), "{said}");
    assert!(upstream.seen().is_empty(), "{:?}", upstream.seen());
    let records = audit(&stack, session.as_str()).await;
    assert!(
        records.iter().any(|record| record["stream"] == "dns" && record["host"] == "plain.example.test"),
        "{records:?}"
    );
    assert!(records.iter().any(|record| record["stream"] == "tls" && record["decision"] == "denied"), "{records:?}");
    assert!(records.iter().any(|record| record["stream"] == "model" && record["usage"].is_object()), "{records:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ordinary_clients_work_without_being_told_anything() {
    let upstream = Upstream::start(&NAMES).await;
    let stack = stack(As::User, &upstream, &NAMES).await;
    connect(&stack, "api", bearer("api.example.test"), json!({"kind": "static", "value": CANARY})).await;
    let id = stack.session_with(json!({"connections": ["api"]})).await.id;
    let host = "api.example.test";
    for (client, command, want) in [
        ("curl h1", format!("curl -sS --http1.1 https://{host}/x"), "/x over HTTP"),
        ("curl h2", format!("curl -sS --http2 -w ' by %{{http_version}}' https://{host}/x"), "by 2"),
        ("curl http", format!("curl -sS http://{host}/x"), "/x over HTTP"),
        ("git", format!("git ls-remote https://{host}/repo.git"), "refs/heads/main"),
        (
            "urllib",
            format!("python3 -c \"import urllib.request as u; print(u.urlopen('https://{host}/x').read())\""),
            "/x over HTTP",
        ),
        (
            "requests",
            format!("python3 -c \"import requests; print(requests.get('https://{host}/x').text)\""),
            "/x over HTTP",
        ),
        ("httpx", format!("python3 -c \"import httpx; print(httpx.get('https://{host}/x').text)\""), "/x over HTTP"),
        (
            "aiohttp",
            format!(
                "python3 -c \"import aiohttp,asyncio\nasync def f():\n async with aiohttp.ClientSession() as s:\n  async with s.get('https://{host}/x') as r: print(await r.text())\nasyncio.run(f())\""
            ),
            "/x over HTTP",
        ),
        (
            "pip",
            format!(
                "python3 -m pip --disable-pip-version-check index versions demo-package --index-url https://{host}/simple/"
            ),
            "1.2.3",
        ),
        ("npm", format!("npm view demo-package version --registry https://{host}/ --fetch-retries 0"), "1.2.3"),
        (
            "node fetch",
            format!("node -e \"fetch('https://{host}/x').then(r => r.text()).then(console.log)\""),
            "/x over HTTP",
        ),
        (
            "node https",
            format!(
                "node -e \"require('https').get('https://{host}/x', r => r.on('data', d => console.log(d.toString())))\""
            ),
            "/x over HTTP",
        ),
        (
            "cargo",
            format!(
                "mkdir -p /tmp/c && cd /tmp/c && RUSTC_BOOTSTRAP=1 cargo search -Z sparse-registry demo-package --index sparse+https://{host}/crates/"
            ),
            "1.2.3",
        ),
        (
            "go",
            format!(
                "mkdir -p /tmp/go && cd /tmp/go && printf 'package main\\nimport (\"fmt\";\"io\";\"net/http\")\\nfunc main() {{ r, e := http.Get(\"https://{host}/x\"); if e != nil {{ panic(e) }}; b, _ := io.ReadAll(r.Body); fmt.Println(string(b)) }}\\n' > g.go && GOTOOLCHAIN=local go run g.go"
            ),
            "/x over HTTP",
        ),
        (
            "java",
            format!(
                "mkdir -p /tmp/j && cd /tmp/j && printf 'public class G {{ public static void main(String[] a) throws Exception {{ System.out.println(new String(new java.net.URL(\"https://{host}/x\").openStream().readAllBytes())); }} }}' > G.java && java G.java"
            ),
            "/x over HTTP",
        ),
        (
            "openssl",
            format!(
                "printf 'GET /x HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: close\\r\\n\\r\\n' | openssl s_client -quiet -verify_return_error -connect {host}:443 2>/dev/null"
            ),
            "/x over HTTP",
        ),
    ] {
        let seen = upstream.seen().len();
        let (said, _) = stack.bash(&id, &command).await;
        assert!(said.contains(want), "{client}: {said}");
        let news = upstream.seen().split_off(seen);
        assert!(!news.is_empty(), "{client} did not arrive");
        assert!(
            news.iter().all(|seen| seen.headers["authorization"] == format!("Bearer {CANARY}").as_str()),
            "{client}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_credential_is_attached_in_its_place() {
    let upstream = Upstream::start(&NAMES).await;
    let stack = stack(As::User, &upstream, &NAMES).await;
    let value = json!({"kind": "static", "value": CANARY});
    let host = "api.example.test";
    let at = |path: &str, attach: Value| json!({"targets": [{"host": host, "paths": [path]}], "attach": attach});
    connect(
        &stack,
        "header",
        at("/header", json!({"kind": "header", "name": "X-Key", "template": "k={secret}"})),
        value.clone(),
    )
    .await;
    connect(&stack, "basic", at("/basic", json!({"kind": "basic", "username": "me"})), value.clone()).await;
    connect(&stack, "query", at("/query", json!({"kind": "query", "name": "key"})), value.clone()).await;
    connect(&stack, "cookie", at("/cookies", json!({"kind": "cookie", "name": "sid"})), value.clone()).await;
    connect(&stack, "body", at("/body", json!({"kind": "body", "pointer": "/auth/token"})), value.clone()).await;
    let aws = json!({"kind": "aws", "access_key_id": "AKIDEXAMPLE", "secret_access_key": CANARY, "session_token": "session-token-canary"});
    connect(&stack, "aws", at("/aws", json!({"kind": "sigv4", "service": "execute-api", "region": "eu-west-1"})), aws)
        .await;
    let (certificate, private_key) = upstream.client_certificate();
    let certificate = json!({"kind": "client_certificate", "certificate": certificate, "private_key": private_key});
    connect(&stack, "cert", at("/cert", json!({"kind": "client_certificate"})), certificate).await;
    let names = ["header", "basic", "query", "cookie", "body", "aws", "cert"];
    let id = stack.session_with(json!({"connections": names})).await.id;
    let (said, failed) = stack
        .bash(
            &id,
            &format!(
                "set -e; for p in header basic 'query?a=1' cookies cert; do curl -sSf https://{host}/$p; done
                 curl -sSf -d '{{\"auth\":{{\"token\":\"mine\"}},\"b\":2}}' https://{host}/body; curl -sSf -X POST -d 'x=1' 'https://{host}/aws/a?b=c&a=%20b'"
            ),
        )
        .await;
    assert!(!failed, "{said}");
    assert!(!said.contains("canary"), "{said}");
    let seen = upstream.seen();
    let of =
        |path: &str| seen.iter().find(|seen| seen.target.starts_with(path)).unwrap_or_else(|| panic!("{path}")).clone();
    let header = |path: &str, name: &str| {
        of(path).headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
    };
    assert_eq!(header("/header", "x-key"), format!("k={CANARY}"));
    use base64::Engine;
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("me:{CANARY}"));
    assert_eq!(header("/basic", "authorization"), format!("Basic {pair}"));
    assert_eq!(of("/query").target, "/query?a=1&key=sk_canary%2B9f8e%2F7d6c%3D5b4a3210");
    assert_eq!(header("/cookies", "cookie"), format!("sid={CANARY}"));
    let body: Value = serde_json::from_slice(&of("/body").body).unwrap();
    assert_eq!(body, json!({"auth": {"token": CANARY}, "b": 2}));
    assert!(of("/cert").certified && !of("/header").certified);
    assert_eq!(header("/aws", "x-amz-security-token"), "session-token-canary");
    assert!(of("/aws").headers.contains_key("x-amz-security-token"));
    verify_aws(&of("/aws"), CANARY, ("eu-west-1", "execute-api"));
}

/// Checks a signature as AWS does, from what arrived.
pub(crate) fn verify_aws(seen: &cloister_testkit::Seen, secret: &str, whose: (&str, &str)) {
    let script = r#"
import sys, json, hmac, hashlib, urllib.parse as u
s = json.load(sys.stdin)
a = dict(p.strip().split("=", 1) for p in s["headers"]["authorization"].split(" ", 1)[1].split(","))
path, _, query = s["target"].partition("?")
q = "&".join("%s=%s" % (u.quote(k, safe="-_.~"), u.quote(v, safe="-_.~")) for k, v in sorted(u.parse_qsl(query, keep_blank_values=True)))
names = a["SignedHeaders"].split(";")
body = hashlib.sha256(s["body"].encode()).hexdigest()
assert s["headers"]["x-amz-content-sha256"] == body
canonical = "\n".join([s["method"], u.quote(path, safe="/-_.~"), q, "".join("%s:%s\n" % (n, " ".join(s["headers"][n].split())) for n in names), a["SignedHeaders"], body])
_, day, region, service, _ = a["Credential"].split("/")
key = ("AWS4" + s["secret"]).encode()
for part in (day, region, service, "aws4_request"):
    key = hmac.new(key, part.encode(), hashlib.sha256).digest()
text = "\n".join(["AWS4-HMAC-SHA256", s["headers"]["x-amz-date"], "/".join([day, region, service, "aws4_request"]), hashlib.sha256(canonical.encode()).hexdigest()])
assert hmac.new(key, text.encode(), hashlib.sha256).hexdigest() == a["Signature"], canonical
assert [region, service] == s["whose"] and ("x-amz-security-token" in names) == ("x-amz-security-token" in s["headers"]) and "host" in names
"#;
    let mut headers: serde_json::Map<String, Value> =
        seen.headers.iter().map(|(name, value)| (name.to_string(), json!(value.to_str().unwrap()))).collect();
    headers.insert("host".into(), json!(seen.host));
    let input = json!({"method": seen.method, "target": seen.target, "headers": headers, "body": String::from_utf8_lossy(&seen.body), "secret": secret, "whose": [whose.0, whose.1]});
    let mut child = Command::new("python3").args(["-c", script]).stdin(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.to_string().as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{input}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_made_once_renewed_and_given_up() {
    let upstream = Upstream::start(&NAMES).await;
    let mut stack = stack(As::User, &upstream, &NAMES).await;
    let token_url = "https://other.example.test/oauth/token";
    let secret = json!({"kind": "oauth2_refresh", "token_url": token_url, "client_id": "c", "client_secret": "s", "refresh_token": "refresh-token-0"});
    connect(&stack, "oauth", bearer("api.example.test"), secret.clone()).await;
    let id = stack.session_with(json!({"connections": ["oauth"]})).await.id;
    // Fifty at once, before there is a token: one is made.
    let (said, _) =
        stack.bash(&id, "for i in $(seq 50); do curl -sS https://api.example.test/protected & done; wait").await;
    assert_eq!(said.matches("protected").count(), 50, "{said}");
    assert_eq!(upstream.tokens(), 1);
    assert!(!said.contains("access-token"));
    // It outlives the vault.
    stack.kill().await;
    stack = stack.restart().await;
    let (said, _) = stack.bash(&id, "curl -sS https://api.example.test/protected").await;
    assert_eq!((said.as_str(), upstream.tokens()), ("protected", 1));
    // One that the other side does not take is made anew, once, with the refresh
    // token that came with it.
    upstream.reject_up_to(1);
    let (said, _) = stack.bash(&id, "curl -sS https://api.example.test/protected").await;
    assert_eq!((said.as_str(), upstream.tokens()), ("protected", 2));
    let asked: Vec<String> = upstream
        .seen()
        .iter()
        .filter(|seen| seen.target == "/oauth/token")
        .map(|seen| String::from_utf8_lossy(&seen.body).into_owned())
        .collect();
    assert!(
        asked[0].contains("refresh_token=refresh-token-0") && asked[1].contains("refresh_token=refresh-token-1"),
        "{asked:?}"
    );
    // And one whose issuer says no is said to need a new one.
    upstream.refuse_tokens();
    connect(&stack, "oauth", bearer("api.example.test"), secret).await;
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let (said, _) = stack
        .bash(
            &id,
            "curl -sS https://api.example.test/protected; sleep 1.1; curl -sS https://api.example.test/protected",
        )
        .await;
    assert!(said.contains("needs_reauth"), "{said}");
    let record = stack.raw("GET", "/v1/connections/oauth", &[], b"").await.json();
    assert_eq!(record["versions"][0]["state"], "needs_reauth", "{record}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_every_kind_are_asked_for_as_their_issuers_want() {
    let upstream = Upstream::start(&NAMES).await;
    let stack = stack(As::User, &upstream, &NAMES).await;
    let token_url = "https://other.example.test/oauth/token";
    let openssl = |arguments: &[&str]| {
        String::from_utf8(Command::new("openssl").args(arguments).output().unwrap().stdout).unwrap()
    };
    let rsa = openssl(&["genrsa", "-traditional", "2048"]);
    let p256 = openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]);
    for (name, secret) in [
        (
            "client",
            json!({"kind": "oauth2_client_credentials", "token_url": token_url, "client_id": "c", "client_secret": "s&=", "scope": "a b"}),
        ),
        (
            "assertion",
            json!({"kind": "oauth2_jwt_bearer", "token_url": token_url, "issuer": "me", "private_key": p256, "key_id": "k1"}),
        ),
        (
            "app",
            json!({"kind": "github_app", "app_id": "3", "installation_id": "7", "private_key": rsa, "api_url": "https://other.example.test", "repositories": ["r"]}),
        ),
    ] {
        connect(&stack, name, bearer("api.example.test"), secret).await;
        let id = stack.session_with(json!({"connections": [name]})).await.id;
        let (said, _) = stack.bash(&id, "curl -sS https://api.example.test/protected").await;
        assert_eq!(said, "protected", "{name}");
        assert_eq!(stack.raw("DELETE", &format!("/v1/sessions/{id}"), &[], b"").await.status, 204);
    }
    let asked: Vec<_> = upstream.seen().into_iter().filter(|seen| seen.host.starts_with("other")).collect();
    let body = |at: usize| String::from_utf8_lossy(&asked[at].body).into_owned();
    assert_eq!(body(0), "grant_type=client_credentials&client_id=c&client_secret=s%26%3D&scope=a%20b");
    assert!(
        body(1).starts_with("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion="),
        "{}",
        body(1)
    );
    assert_eq!(serde_json::from_str::<Value>(&body(2)).unwrap(), json!({"repositories": ["r"]}));
    let assertions = [
        body(1).split("assertion=").nth(1).unwrap().to_owned(),
        asked[2].headers["authorization"].to_str().unwrap().replace("Bearer ", ""),
    ];
    for (assertion, algorithm, issuer) in [(&assertions[0], "ES256", "me"), (&assertions[1], "RS256", "3")] {
        use base64::Engine;
        let part = |at: usize| -> Value {
            let text = assertion.split('.').nth(at).unwrap();
            serde_json::from_slice(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).unwrap()).unwrap()
        };
        assert_eq!((&part(0)["alg"], &part(1)["iss"]), (&json!(algorithm), &json!(issuer)));
        assert!(part(1)["exp"].as_u64() > part(1)["iat"].as_u64());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_begins_with_our_frame() {
    let upstream = Upstream::start(&NAMES).await;
    let stack = stack(As::User, &upstream, &NAMES).await;
    let connection = json!({"targets": [{"host": "api.example.test"}], "attach": {"kind": "websocket_frame", "template": "{\"auth\":\"{secret}\"}"}});
    connect(&stack, "socket", connection, json!({"kind": "static", "value": CANARY})).await;
    let id = stack.session_with(json!({"connections": ["socket"]})).await.id;
    let script = "import asyncio,aiohttp\nasync def f():\n async with aiohttp.ClientSession() as s:\n  async with s.ws_connect('https://api.example.test/socket') as w:\n   print((await w.receive()).data); print((await w.receive()).data); await w.send_str('mine'); print((await w.receive()).data)\nasyncio.run(f())";
    let (said, _) =
        stack.bash(&id, &format!("python3 -c \"$(printf '%b' \"{}\")\"", script.replace('\n', "\\n"))).await;
    // It is echoed, and covered on the way back.
    let covered = "*".repeat(CANARY.len());
    assert_eq!(said, format!("hello \n{{\"auth\":\"{covered}\"}}\nmine\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_and_credentials_change_within_a_second() {
    let upstream = Upstream::start(&NAMES).await;
    let stack = stack(As::User, &upstream, &NAMES).await;
    connect(&stack, "api", bearer("api.example.test"), json!({"kind": "static", "value": "first-value"})).await;
    let id = stack.session_with(json!({"connections": ["api"]})).await.id;
    let call =
        || async { stack.bash(&id, "curl -sS https://api.example.test/x -o /dev/null -w '%{http_code}'").await.0 };
    assert_eq!(call().await, "200");
    connect(&stack, "api", bearer("api.example.test"), json!({"kind": "static", "value": "second-value"})).await;
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    assert_eq!(call().await, "200");
    let values: Vec<String> =
        upstream.seen().iter().map(|seen| seen.headers["authorization"].to_str().unwrap().to_owned()).collect();
    assert_eq!(values, ["Bearer first-value", "Bearer second-value"]);
    assert_eq!(stack.raw("DELETE", "/v1/connections/api/secret", &[], b"").await.status, 204);
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    assert_eq!(call().await, "403");
    let record = stack.raw("GET", "/v1/connections/api", &[], b"").await;
    assert!(record.json()["versions"].as_array().unwrap().iter().all(|version| version["state"] == "revoked"));
    assert!(!record.text().contains("value\":\""), "{}", record.text());
    assert_eq!(stack.raw("DELETE", "/v1/connections/api", &[], b"").await.status, 204);
    assert_eq!(stack.raw("GET", "/v1/connections/api", &[], b"").await.status, 404);
    assert_eq!(upstream.seen().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_processes_fail_closed_and_are_back_at_once() {
    let upstream = Upstream::start(&NAMES).await;
    let stack = stack(As::User, &upstream, &NAMES).await;
    connect(&stack, "api", bearer("api.example.test"), json!({"kind": "static", "value": CANARY})).await;
    let id = stack.session_with(json!({"connections": ["api"]})).await.id;
    for which in ["vault", "egress"] {
        let pid = if which == "vault" { stack.processes().vault() } else { stack.processes().egress() };
        let loops = "for i in $(seq 60); do curl -sS -m 5 https://api.example.test/x -o /dev/null -w '%{http_code} '; sleep 0.05; done";
        let (session, client) = (id.clone(), &stack);
        let (said, ()) = tokio::join!(client.bash(&session, loops), async {
            tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
            cloister_testkit::kill(pid.unwrap());
        });
        let codes: Vec<&str> = said
            .0
            .split_whitespace()
            .filter(|word| word.len() == 3 && word.bytes().all(|byte| byte.is_ascii_digit()))
            .collect();
        assert!(codes.len() >= 50 && codes.ends_with(&["200", "200", "200"]), "{which}: {codes:?} {}", said.0);
        let failed = codes.iter().filter(|code| **code != "200").count();
        assert!(failed <= 20, "{which}: {failed} calls failed: {codes:?}");
    }
    for seen in upstream.seen() {
        assert_eq!(seen.headers["authorization"], format!("Bearer {CANARY}").as_str());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_session_was_lent_comes_back_in_no_answer_and_open_means_the_public() {
    let upstream = Upstream::start(&NAMES).await;
    let stack = stack(As::User, &upstream, &NAMES).await;
    let connection = json!({"targets": [{"host": "api.example.test", "paths": ["/v1"]}], "attach": {"kind": "query", "name": "key"}});
    connect(&stack, "api", connection.clone(), json!({"kind": "static", "value": CANARY})).await;
    let body = json!({"connections": ["api"], "egress": {"mode": "allow", "allow": ["plain.example.test", "api.example.test"]}});
    let id = stack.session_with(body).await.id;
    // The very form in which it was sent, echoed by another path and another host.
    let sent = "sk_canary%2B9f8e%2F7d6c%3D5b4a3210";
    let turned: String = sent.chars().rev().collect();
    let echo = format!(
        "curl -sS https://api.example.test/v1 -o /dev/null; for h in api plain; do curl -sS -d \"$(echo '{turned}' | rev)\" https://$h.example.test/echo; echo; done"
    );
    let (said, _) = stack.bash(&id, &echo).await;
    let covered = "*".repeat(sent.len());
    assert_eq!(said, format!("{covered}\n{covered}\n"));
    // Nor in pieces, that would not be known for what they are.
    let (said, _) = stack.bash(&id, "curl -sS -r 0-3 https://api.example.test/headers").await;
    assert!(said.contains("accept") && !said.contains("range"), "{said}");
    // Wider rules need the secret again; the agent's own parameter never goes.
    let (_, _) = stack.bash(&id, "curl -sS 'https://api.example.test/v1/own?KEY=mine&a=1'").await;
    assert!(
        upstream.seen().iter().any(|seen| seen.target == format!("/v1/own?a=1&key={sent}")),
        "{:?}",
        upstream.seen()
    );
    let wider = json!({"targets": [{"host": "other.example.test"}], "attach": {"kind": "query", "name": "key"}});
    let put = stack.raw("PUT", "/v1/connections/api", &[], wider.to_string().as_bytes()).await.json();
    assert_eq!(put["versions"][0]["state"], "revoked", "{put}");
    // Hosts that the operator has placed are for who names them.
    let open = stack.session_with(json!({"egress": {"mode": "open"}})).await.id;
    let (said, _) = stack.bash(&open, "curl -sS -m 5 https://plain.example.test/x").await;
    assert!(said.contains("Could not resolve host"), "{said}");
}

/// Freezes a process of the way out that calls go through, waits until another
/// has taken its place, and calls again.
async fn is_replaced_when_frozen(of: fn(&Processes) -> Option<u32>, meanwhile: impl AsyncFnOnce(&Stack)) {
    let upstream = Upstream::start(&NAMES).await;
    let stack = stack(As::User, &upstream, &NAMES).await;
    connect(&stack, "api", bearer("api.example.test"), json!({"kind": "static", "value": CANARY})).await;
    let id = stack.session_with(json!({"connections": ["api"]})).await.id;
    let (said, _) = stack.bash(&id, "curl -sS https://api.example.test/x").await;
    assert!(said.contains("/x over"), "{said}");
    let frozen = of(&stack.processes()).unwrap();
    cloister_testkit::freeze(frozen);
    meanwhile(&stack).await;
    // Twice it is asked in vain, five seconds each.
    for _ in 0..100 {
        if of(&stack.processes()).is_some_and(|pid| pid != frozen) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
    assert!(of(&stack.processes()).is_some_and(|pid| pid != frozen));
    let (said, _) = stack.bash(&id, "curl -sS -m 20 --retry 5 --retry-all-errors https://api.example.test/x").await;
    assert!(said.contains("/x over"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_that_does_not_answer_is_replaced_and_nothing_hangs_meanwhile() {
    is_replaced_when_frozen(Processes::vault, async |stack| {
        let answer = stack.raw("GET", "/v1/connections", &[], b"").await;
        assert_eq!(answer.status, 503, "{}", answer.text());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn egress_that_does_not_answer_is_replaced_and_sessions_come_and_go_meanwhile() {
    is_replaced_when_frozen(Processes::egress, async |stack| {
        for _ in 0..40 {
            let other = stack.session_with(json!({"connections": ["api"]})).await.id;
            stack.client.delete(&other).await.unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_wrongly_is_refused_with_the_reason() {
    let upstream = Upstream::start(&NAMES).await;
    let ceiling = "[egress.ceiling]\nmode = \"allow\"\nallow = [\"*.example.test\"]";
    let config = format!("region = \"eu\"\n{}\n{ceiling}\n", upstream.config(&NAMES));
    let stack = Stack::with(Options { config: Some(config), as_user: true, ..Options::default() }).await;
    for (body, status) in [
        (json!({"egress": {"mode": "open"}}), 403),
        (json!({"egress": {"mode": "allow", "allow": ["evil.test"]}}), 403),
        (json!({"egress": {"mode": "allow", "allow": ["plain.example.test"]}}), 201),
        (json!({"egress": {"mode": "some"}}), 400),
        (json!({"egress": {"mode": "allow", "allow": ["*.com"]}}), 400),
        (json!({"egress": {"mode": "allow", "allow": ["10.0.0.1"]}}), 400),
        (json!({"connections": ["nothing"]}), 400),
        (json!({"connections": ["No Name"]}), 400),
    ] {
        let answer = stack.post("/v1/sessions", &body).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text());
    }
    let put = |path: &'static str, body: Value| {
        let stack = &stack;
        async move { stack.raw("PUT", path, &[], body.to_string().as_bytes()).await }
    };
    for (path, body, status) in [
        ("/v1/connections/a", json!({"targets": [], "attach": {"kind": "header"}}), 400),
        ("/v1/connections/a", json!({"targets": [{"host": "*.co.uk"}], "attach": {"kind": "header"}}), 400),
        (
            "/v1/connections/a",
            json!({"targets": [{"host": "api.example.test", "region": "us"}], "attach": {"kind": "header"}}),
            400,
        ),
        ("/v1/connections/A", bearer("api.example.test"), 400),
        ("/v1/connections/a/secret", json!({"kind": "static", "value": "x"}), 404),
        ("/v1/connections/a", bearer("api.example.test"), 200),
        ("/v1/connections/a/secret", json!({"kind": "static", "value": "hunter2\r\nx: y"}), 400),
        ("/v1/connections/a/secret", json!({"kind": "static", "valeu": "hunter2"}), 400),
        ("/v1/connections/a/secret", json!({"kind": "static", "value": ["hunter2"]}), 400),
        ("/v1/connections/a/secret", json!({"kind": "aws", "access_key_id": "a", "secret_access_key": "hunter2"}), 400),
        ("/v1/connections/a/secret?grace=-1", json!({"kind": "static", "value": "hunter2"}), 400),
        ("/v1/connections/a/secret", json!({"kind": "static", "value": "hunter2"}), 201),
    ] {
        let answer = put(path, body.clone()).await;
        assert_eq!(answer.status, status, "{path} {body}: {}", answer.text());
        assert!(!answer.text().contains("hunter2"), "{}", answer.text());
    }
    let tried = stack.raw("POST", "/v1/connections/a/test", &[], b"").await.json();
    assert_eq!(
        (&tried["ok"], &tried["status"], &tried["reflected"]),
        (&json!(true), &json!(200), &json!(false)),
        "{tried}"
    );
    let reflecting =
        json!({"targets": [{"host": "api.example.test", "paths": ["/headers"]}], "attach": {"kind": "header"}});
    connect(&stack, "b", reflecting, json!({"kind": "static", "value": CANARY})).await;
    let tried = stack.raw("POST", "/v1/connections/b/test", &[], b"").await.json();
    assert_eq!((&tried["ok"], &tried["reflected"]), (&json!(true), &json!(true)), "{tried}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_audit_no_credential_is_given_out() {
    let upstream = Upstream::start(&NAMES).await;
    let stack = stack(As::User, &upstream, &NAMES).await;
    connect(&stack, "api", bearer("api.example.test"), json!({"kind": "static", "value": CANARY})).await;
    let id = stack.session_with(json!({"connections": ["api"]})).await.id;
    let (said, _) = stack.bash(&id, "curl -sS https://api.example.test/x").await;
    assert!(said.contains("/x over"), "{said}");
    // The table that the audit goes to is gone: nothing can be written.
    let rename = |from: &str, to: &str| {
        let script = "import sqlite3,sys; d=sqlite3.connect(sys.argv[1], timeout=10); d.execute('ALTER TABLE %s RENAME TO %s' % (sys.argv[2], sys.argv[3])); d.commit()";
        let status = Command::new("python3")
            .args(["-c", script])
            .arg(stack.folder().join("data/audit.db"))
            .args([from, to])
            .status();
        assert!(status.unwrap().success());
    };
    rename("record", "away");
    let put = || async {
        stack.raw("PUT", "/v1/connections/b", &[], bearer("api.example.test").to_string().as_bytes()).await.status
    };
    assert_eq!(put().await, 503);
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let seen = upstream.seen().len();
    let tried = stack.raw("POST", "/v1/connections/api/test", &[], b"").await.text();
    assert!(tried.contains("audit_unavailable"), "{tried}");
    assert_eq!(upstream.seen().len(), seen);
    // As soon as it can be written again, all goes on, and nothing was lost.
    rename("away", "record");
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert_eq!(put().await, 200);
    let (said, _) = stack.bash(&id, "curl -sS https://api.example.test/x").await;
    assert!(said.contains("/x over"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_ends_with_its_credential() {
    let upstream = Upstream::start(&NAMES).await;
    let stack = stack(As::User, &upstream, &NAMES).await;
    connect(&stack, "socket", bearer("api.example.test"), json!({"kind": "static", "value": CANARY})).await;
    let id = stack.session_with(json!({"connections": ["socket"]})).await.id;
    let script = "import asyncio,aiohttp,time\nasync def f():\n async with aiohttp.ClientSession() as s:\n  async with s.ws_connect('https://api.example.test/socket') as w:\n   await w.receive(); open('open','w').close(); t=time.time(); m=await w.receive(15); print(m.type.name, time.time()-t<10)\nasyncio.run(f())";
    let command = format!("python3 -c \"$(printf '%b' \"{}\")\"", script.replace('\n', "\\n"));
    let (said, ()) = tokio::join!(stack.bash(&id, &command), async {
        cloister_testkit::until("the socket is open", || stack.workspace().join("open").exists()).await;
        assert_eq!(stack.raw("DELETE", "/v1/connections/socket/secret", &[], b"").await.status, 204);
    });
    assert!(said.0.contains("CLOS") && said.0.contains("True"), "{}", said.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_beyond_the_limit_wait_and_refusals_cannot_fill_the_audit() {
    let upstream = Upstream::start(&NAMES).await;
    let config = upstream.config(&NAMES) + "[egress.limits]\nsession_requests_per_minute = 4\n";
    let stack = Stack::with(Options { config: Some(config), as_user: true, ..Options::default() }).await;
    connect(&stack, "api", bearer("api.example.test"), json!({"kind": "static", "value": CANARY})).await;
    let session = |name| stack.session_with(json!({"connections": [name]}));
    let (id, other) = (session("api").await.id, session("api").await.id);
    // One call is the model's.
    let command = "for i in 1 2 3 4 5; do curl -sS https://api.example.test/x -o said -w '%{http_code} ' -D head; done; cat said head";
    let lines = [json!({"tool": "bash", "input": {"command": command}})];
    let mut events = stack.client.message(&id, &cloister_testkit::script(&lines), None).await.unwrap();
    let said = loop {
        let event = events.next().await.unwrap().unwrap();
        if event.kind == Some(cloister_types::event::EventKind::ToolResult) {
            break event.data["content"].as_str().unwrap().to_owned();
        }
    };
    assert!(said.starts_with("200 200 200 429 429 "), "{said}");
    assert!(said.contains("egress_limit") && said.to_lowercase().contains("retry-after: "), "{said}");
    assert_eq!(stack.bash(&other, "curl -sS https://api.example.test/x").await.0, "/x over HTTP/2.0");
    // Names that nobody may know, one after another; the last one, after a pause,
    // tells how many were not written.
    let names = "import socket,time\nfor i in range(320):\n if i == 319: time.sleep(0.3)\n try: socket.getaddrinfo('n%d.test' % i, 443)\n except OSError: pass";
    stack
        .bash(&session("api").await.id, &format!("python3 -c \"$(printf '%b' \"{}\")\"", names.replace('\n', "\\n")))
        .await;
    let records: Vec<Value> = audit_all(&stack).await;
    let refused = records.iter().filter(|record| record["stream"] == "dns").count() as u64;
    let flags = records.iter().flat_map(|record| record["flags"].as_array().cloned().unwrap_or_default());
    let unwritten: u64 = flags.filter_map(|flag| flag.as_str()?.strip_prefix("unwritten:")?.parse::<u64>().ok()).sum();
    assert!((200..310).contains(&refused) && unwritten > 0, "{refused} {unwritten}");
}

async fn audit_all(stack: &Stack) -> Vec<Value> {
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let page = stack.raw("GET", &format!("/v1/egress?limit=1000&after={after}"), &[], b"").await.json();
        all.extend(page["data"].as_array().unwrap().clone());
        match page["next"].as_u64() {
            Some(next) => after = next,
            None => return all,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_that_dies_while_sessions_come_and_go_holds_nobody_up() {
    let stack = Stack::start().await;
    let pause = std::time::Duration::from_millis(12);
    for _ in 0..3 {
        let mut live = Vec::new();
        for _ in 0..30 {
            let session = stack.session().await;
            stack.bash(&session, "true").await;
            live.push(session);
        }
        cloister_testkit::kill(stack.processes().vault().unwrap());
        // A new one is told of every session that lives, while they end.
        let mut ends = tokio::task::JoinSet::new();
        for session in live {
            let client = stack.client.clone();
            ends.spawn(async move { client.delete(&session).await });
            tokio::time::sleep(pause).await;
        }
        let all = tokio::time::timeout(std::time::Duration::from_secs(20), ends.join_all()).await;
        assert!(all.expect("nobody waits for ever").into_iter().all(|ended| ended.is_ok()));
    }
    let session = stack.session().await;
    assert_eq!(stack.bash(&session, "echo on").await.0, "on\n");
}
