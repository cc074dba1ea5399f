//! People who sign in: an identity provider and a browser that others have
//! written, and the command line.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cloister_testkit::{Options, Stack, peers};
use serde_json::{Value, json};

use crate::crash::Scripted;
use crate::front::Authority;
use crate::peers::{Server, script};

/// A provider, and a tenant whose people it vouches for.
struct House {
    servers: Authority,
    provider: Server,
    stack: Stack,
    _scripted: Scripted,
}

impl House {
    async fn start() -> Self {
        let servers = Authority::new();
        servers.sign("server", "127.0.0.1", |_| {});
        // The provider has to know where people are sent back to before there is
        // anything there.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (address, url) = (format!("127.0.0.1:{port}"), format!("https://127.0.0.1:{port}"));
        let (pem, key) = (servers.path("server.pem"), servers.path("server.key"));
        let mut node = Command::new("node");
        node.arg(script("sign_in.mjs")).arg(peers()).arg(&pem).arg(&key).arg(&url);
        let provider = Server::start(&mut node);
        let told: Value = serde_json::from_str(&provider.1).unwrap();
        let issuer = told["issuer"].as_str().unwrap().to_owned();
        std::fs::write(servers.path("secret"), "client-secret-canary-0123456789\n").unwrap();
        let config = format!(
            "[listen]\ntls_cert = {pem:?}\ntls_key = {key:?}\n[egress]\nextra_ca = {ca:?}\n[auth]\nrequire = [['bearer'], ['sso']]\n\
             [auth.oidc]\nissuer = '{issuer}'\naudience = '{url}'\nclient_id = 'cloister'\nclient_secret_file = {secret:?}\n\
             cli_client_id = 'command-line'\npublic_url = '{url}'\n[auth.oidc.roles]\nstaff = 'admin'\n",
            ca = servers.path("ca.pem"),
            secret = servers.path("secret"),
        );
        let scripted = Scripted::start().await;
        let options = Options {
            serve: true,
            config: Some(scripted.config(&config)),
            address: Some(address),
            ..Options::default()
        };
        let stack = Stack::with(options).await;
        Self { servers, provider, stack, _scripted: scripted }
    }

    /// Opens a place, signs in there as somebody, and runs a script on the last
    /// page. What the browser says.
    fn browse(&self, account: &str, place: &str, code: &str, run: &str) -> Value {
        let public = Command::new("sh")
            .args([
                "-c",
                "openssl x509 -pubkey -noout | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary",
            ])
            .stdin(Stdio::from(std::fs::File::open(self.servers.path("server.pem")).unwrap()))
            .output()
            .unwrap();
        assert!(public.status.success());
        let output = Command::new("node")
            .arg(script("browser.mjs"))
            .arg(peers())
            .arg(STANDARD.encode(public.stdout))
            .args([account, place, code, run])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}\n{}", String::from_utf8_lossy(&output.stderr)))
    }

    fn cloister(&self, home: &Path) -> Command {
        let mut command = Command::new(self.stack.executable());
        command.env_clear().env("HOME", home).env("PATH", "/usr/bin:/bin");
        command.args(["--url", &self.stack.url, "--ca"]).arg(self.servers.path("ca.pem"));
        command
    }

    /// One call with curl, with these headers: status and answer.
    fn curl(&self, method: &str, path: &str, headers: &[&str]) -> (u16, String) {
        let mut command = Command::new("curl");
        command.args(["-sS", "-m", "10", "-w", "\n%{http_code}", "-X", method, "--cacert"]);
        command.arg(self.servers.path("ca.pem"));
        for header in headers {
            command.args(["-H", header]);
        }
        let output = command.arg(format!("{}{path}", self.stack.url)).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), body.to_owned())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_signs_in_with_a_browser_works_and_signs_out() {
    let house = House::start().await;
    let run = "
        const call = async (method, path, headers = {}, body) => {
            const answer = await fetch(path, { method, headers, body });
            return { status: answer.status, said: await answer.text() };
        };
        const me = JSON.parse((await call('GET', '/v1/me')).said);
        const token = { 'x-csrf-token': me.csrf_token };
        const made = await call('POST', '/v1/sessions', token);
        const listed = JSON.parse((await call('GET', '/v1/sign-ins')).said).data;
        return {
            me,
            made: made.status,
            bare: (await call('POST', '/v1/sessions')).status,
            wrong: (await call('POST', '/v1/sessions', { 'x-csrf-token': '0'.repeat(64) })).status,
            listed,
            out: (await call('POST', '/auth/sign-out', token)).status,
            after: (await call('GET', '/v1/me')).status,
        };";
    let place = format!("{}/auth/sign-in?return_to=/v1/me", house.stack.url);
    let said = house.browse("ada", &place, "", run);
    assert_eq!(said["url"], format!("{}/v1/me", house.stack.url), "{said}");
    let ran = &said["ran"];
    assert_eq!((&ran["me"]["caller"], &ran["me"]["roles"]), (&json!("ada"), &json!(["admin"])), "{said}");
    assert_eq!((&ran["made"], &ran["bare"], &ran["wrong"]), (&json!(201), &json!(403), &json!(403)), "{said}");
    assert_eq!((&ran["out"], &ran["after"]), (&json!(204), &json!(401)), "{said}");
    assert_eq!(ran["listed"].as_array().unwrap().len(), 1, "{said}");
    assert_eq!(said["seen"], "", "no page reads it");
    let cookies = said["cookies"].as_array().unwrap();
    let ours: Vec<&Value> =
        cookies.iter().filter(|cookie| cookie["name"].as_str().unwrap().starts_with("__Host-")).collect();
    assert_eq!(
        ours,
        [&json!({"name": "__Host-cloister", "httpOnly": true, "secure": true, "sameSite": "Lax", "path": "/"})]
    );
    // Somebody else, with a key, ends a sign-in: in the browser it is over with the next call.
    let bearer = format!("authorization: Bearer {}", house.stack.key);
    let run = format!(
        "const ask = async (path, more) => await fetch(path, more);
        const headers = {{ authorization: 'Bearer {}' }};
        const before = (await ask('/v1/me')).status;
        const id = (await (await ask('/v1/sign-ins', {{ headers }})).json()).data[0].id;
        const end = () => ask('/v1/sign-ins/' + id, {{ method: 'DELETE', headers }});
        return [before, (await end()).status, (await ask('/v1/me')).status, (await end()).status];",
        house.stack.key
    );
    let said = house.browse("ada", &place, "", &run);
    assert_eq!(said["ran"], json!([200, 204, 401, 404]), "{said}");
    // Somebody in no group that has a role is known and gets nothing.
    let eve = house.browse("eve", &place, "", "");
    assert!(eve["text"].as_str().unwrap().contains("in no group that has a role here"), "{eve}");
    assert!(!eve["cookies"].to_string().contains("__Host-cloister\""), "{eve}");
    let (_, audit) = house.curl("GET", "/v1/egress?limit=1000", &[&bearer]);
    for rule in ["signed_in", "signed_out", "not_signed_in"] {
        assert!(audit.contains(rule), "{rule}: {audit}");
    }
    assert!(!audit.contains("client-secret-canary"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_that_was_begun_elsewhere_ends_nowhere() {
    let house = House::start().await;
    let begin = Command::new("curl")
        .args(["-sS", "-D", "-", "-o", "/dev/null", "--cacert"])
        .arg(house.servers.path("ca.pem"))
        .arg(format!("{}/auth/sign-in", house.stack.url))
        .output()
        .unwrap();
    let head = String::from_utf8_lossy(&begin.stdout).into_owned();
    let place = head.lines().find_map(|line| line.strip_prefix("location: ")).unwrap();
    assert!(place.contains("code_challenge_method=S256") && place.contains("nonce="), "{place}");
    let state = place.split("state=").nth(1).unwrap().split('&').next().unwrap();
    let cookie = head.split("__Host-cloister-flow=").nth(1).unwrap().split(';').next().unwrap();
    let with = |cookie: &str| format!("cookie: __Host-cloister-flow={cookie}");
    let changed = format!("{}{}", if cookie.starts_with('a') { 'b' } else { 'a' }, &cookie[1..]);
    for (what, headers, state) in [
        ("no cookie", vec![], state),
        ("a changed cookie", vec![with(&changed)], state),
        ("no seal", vec![with(cookie.split('.').next().unwrap())], state),
        ("nonsense", vec![with("x.y")], state),
        ("another state", vec![with(cookie)], "other"),
        ("two cookies", vec![format!("{}; __Host-cloister-flow={changed}", with(cookie))], state),
        ("a code that is none", vec![with(cookie)], state),
    ] {
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        let (status, said) = house.curl("GET", &format!("/auth/callback?code=made-up&state={state}"), &headers);
        assert_eq!(status, 401, "{what}: {said}");
    }
    let (status, said) =
        house.curl("GET", &format!("/auth/callback?error=access_denied&state={state}"), &[&with(cookie)]);
    assert_eq!(status, 401, "{said}");
    let path = format!("/auth/callback?code=x&iss=https://evil.test&state={state}");
    assert!(house.curl("GET", &path, &[&with(cookie)]).1.contains("another identity provider"));
    for bad in ["//evil.test", "https://evil.test", "/%5Cevil.test"] {
        assert_eq!(house.curl("GET", &format!("/auth/sign-in?return_to={bad}"), &[]).0, 400, "{bad}");
    }
    // A made-up cookie is nobody's.
    assert_eq!(house.curl("GET", "/v1/me", &["cookie: __Host-cloister=0123456789abcdef"]).0, 401);
    // What is needed to sign in is said to everybody, and whoever is refused is
    // told where.
    let (status, about) = house.curl("GET", "/.well-known/oauth-protected-resource", &[]);
    let about: Value = serde_json::from_str(&about).unwrap();
    assert_eq!((status, &about["resource"]), (200, &json!(house.stack.url)));
    assert!(house.provider.1.contains(about["authorization_servers"][0].as_str().unwrap()));
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Starts a sign-in on the command line; what it says up to the line that fits,
/// and the rest of it once it has ended.
fn login(
    house: &House,
    home: &Path,
    more: &[&str],
    wanted: fn(&str) -> bool,
) -> (String, impl FnOnce() -> String + use<>) {
    let mut child =
        house.cloister(home).arg("login").args(more).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let said = lines.by_ref().map_while(Result::ok).find(|line| wanted(line)).expect("it says where");
    let rest = move || {
        let errors: Vec<String> = lines.map_while(Result::ok).collect();
        let output = child.wait_with_output().unwrap();
        format!("{}\n{}", String::from_utf8_lossy(&output.stdout), errors.join("\n"))
    };
    (said, rest)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_signs_in_by_a_browser_or_by_a_code() {
    let house = House::start().await;
    let home = tempfile::tempdir().unwrap();
    let before = house.cloister(home.path()).args(["session", "ls"]).output().unwrap();
    assert!(!before.status.success() && text(&before).contains("cloister login"), "{}", text(&before));
    let (place, rest) = login(&house, home.path(), &[], |line| line.starts_with("https://"));
    let said = house.browse("ada", &place, "", "");
    assert!(said["text"].as_str().unwrap().contains("You may close this window"), "{said}");
    let rest = rest();
    assert!(rest.contains("ada  admin  by sso"), "{rest}");
    let after = house.cloister(home.path()).args(["--json", "session", "new"]).output().unwrap();
    assert!(after.status.success(), "{}", text(&after));
    let kept = home.path().join(".config/cloister/logins.json");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&kept).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    // Tokens live for 34 s here, and are renewed 30 s before their end.
    let token = || {
        let all: Value = serde_json::from_str(&std::fs::read_to_string(&kept).unwrap()).unwrap();
        all[&house.stack.url]["signed_in"]["token"].clone()
    };
    let first = token();
    // Whoever follows a turn for longer than one lives goes on with the next.
    let lines = [json!({"tool": "bash", "input": {"command": "sleep 38"}}), json!({"say": "after all"})];
    let mut long = house.cloister(home.path());
    long.args(["run", &cloister_testkit::script(&lines)]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let long = long.spawn().unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    let renewed = house.cloister(home.path()).args(["auth", "me"]).output().unwrap();
    assert!(renewed.status.success() && token() != first, "{}", text(&renewed));
    let explained = house.cloister(home.path()).args(["auth", "explain", "--address", "192.0.2.1"]).output().unwrap();
    assert!(text(&explained).contains("every address may call") && text(&explained).contains("refused"));
    let long = long.wait_with_output().unwrap();
    assert!(long.status.success() && text(&long).contains("after all"), "{}", text(&long));
    let out = house.cloister(home.path()).arg("logout").output().unwrap();
    assert!(text(&out).contains("Signed out"), "{}", text(&out));
    assert!(!house.cloister(home.path()).args(["auth", "me"]).output().unwrap().status.success());
    // On a machine without a browser.
    let elsewhere = tempfile::tempdir().unwrap();
    let (line, rest) = login(&house, elsewhere.path(), &["--device"], |line| line.contains("type in"));
    let (place, code) = line.strip_prefix("Open ").unwrap().split_once(" and type in: ").unwrap();
    house.browse("ada", place, code, "");
    let rest = rest();
    assert!(rest.contains("ada  admin  by sso"), "{rest}");
}
