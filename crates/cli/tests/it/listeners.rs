//! Several places to come in at, each with a policy of its own; and connections that
//! are idle, or open when the server ends.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cloister_testkit::{Ended, Issuer, Options, Stack, executable, freeze, script, thaw, until};
use serde_json::{Value, json};

use crate::crash::Scripted;
use crate::front::{Authority, call_at, me_at, proxied, say};

/// A server with its provider, and the addresses of all listeners.
async fn serve(config: &str) -> (Stack, Scripted, Vec<SocketAddr>) {
    let provider = Scripted::start().await;
    let options = Options { serve: true, config: Some(provider.config(config)), ..Options::default() };
    let stack = Stack::with(options).await;
    let addresses = stack.urls().iter().map(|url| url.rsplit('/').next().unwrap().parse().unwrap()).collect();
    (stack, provider, addresses)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_listener_has_a_policy_of_its_own() {
    let (issuer, servers) = (Issuer::start().await, Authority::new());
    servers.sign("server", "tenant.example.test", |_| {});
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (stack, _provider, at) = serve(&format!(
        "[listen]\naddress = '127.0.0.1:0'\nallow = ['192.0.2.0/24']\nproxy_protocol = 'optional'\ntrusted_proxies = ['127.0.0.1']\n\
         [[listener]]\naddress = '{free}'\nproxy_protocol = 'required'\ntrusted_proxies = ['127.0.0.1']\n\
         endpoint_ids = ['vpce-1']\nrequire = [['bearer', 'sso']]\n\
         [[listener]]\naddress = '127.0.0.1:0'\nrequire = [['sso']]\n\
         [auth]\nrequire = [['bearer']]\n[auth.oidc]\nissuer = '{}'\naudience = 'cloister'\n[auth.oidc.roles]\nstaff = 'developer'\n",
        issuer.url
    ))
    .await;
    assert_eq!(at.len(), 3);
    let token = issuer.token("cloister", json!({"sub": "ada", "groups": ["staff"]}));
    let key = stack.key.clone();
    let headers = |bearer: &str, token: Option<&str>| {
        let token = token.map(|token| format!("x-sso-token: {token}\r\n")).unwrap_or_default();
        format!("authorization: Bearer {bearer}\r\n{token}")
    };
    let (by_key, by_token, both) = (headers(&key, None), headers(&token, None), headers(&key, Some(&token)));
    let (inside, link) = (proxied("192.0.2.9", &[]), proxied("198.51.100.1", &[(0xea, b"\x01vpce-1")]));
    let other_link = proxied("198.51.100.1", &[(0xea, b"\x01vpce-2")]);
    for (what, listener, before, headers, expected) in [
        ("the public one, by key", 0, &inside[..], &by_key, 200),
        ("the public one, by token", 0, &inside, &by_token, 401),
        ("the public one, from elsewhere", 0, b"", &by_key, 403),
        ("the link, by key alone", 1, &link, &by_key, 401),
        ("the link, by token alone", 1, &link, &by_token, 401),
        ("the link, by both", 1, &link, &both, 200),
        ("another's link", 1, &other_link, &both, 0),
        ("no link", 1, b"", &both, 0),
        ("the one for people, by key", 2, b"", &by_key, 401),
        ("the one for people, by token", 2, b"", &by_token, 200),
    ] {
        assert_eq!(call_at(at[listener], before, "/v1/me", headers).await, expected, "{what}");
    }
    // What is said of why, is what was done.
    let explain = async |body: Value| {
        let bearer = format!("authorization: Bearer {key}\r\ncontent-type: application/json\r\n");
        let body = body.to_string();
        let call = format!(
            "POST /v1/auth/explain HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n{bearer}\r\n{body}",
            body.len()
        );
        let said = say(at[0], &[&inside, call.as_bytes()].concat()).await;
        let text: Value = serde_json::from_str(said.split_once("\r\n\r\n").unwrap().1).unwrap();
        let rules: Vec<String> =
            text["steps"].as_array().unwrap().iter().map(|step| step["rule"].as_str().unwrap().to_owned()).collect();
        (text["admitted"].as_bool().unwrap(), rules.join(" "), text.to_string())
    };
    for (body, admitted, rules) in [
        (json!({"bearer": key, "address": "192.0.2.9"}), true, "allow bearer require"),
        (json!({"bearer": key, "address": "192.0.3.9"}), false, "allow bearer require"),
        (
            json!({"listener": free, "endpoint": "vpce-1", "bearer": key, "token": token}),
            true,
            "endpoint bearer sso require",
        ),
        (
            json!({"listener": free, "endpoint": "vpce-2", "bearer": key, "token": token}),
            false,
            "endpoint bearer sso require",
        ),
        (json!({"listener": free, "bearer": key, "token": token}), false, "endpoint bearer sso require"),
        (json!({"listener": free, "endpoint": "vpce-1", "bearer": key}), false, "endpoint bearer sso require"),
        (json!({"listener": "127.0.0.1:0", "bearer": key, "cookie": "nonsense"}), true, "bearer require"),
    ] {
        let said = explain(body.clone()).await;
        assert_eq!((said.0, said.1.as_str()), (admitted, rules), "{body}: {}", said.2);
        assert!(!said.2.contains(&token) && !said.2.contains(&key), "{}", said.2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_that_cannot_be_meant_are_refused() {
    let stack = Stack::start().await;
    let folder = tempfile::tempdir().unwrap();
    let model = "[[model]]\nname = 'm'\nwire = 'openai-chat'\nbase_url = 'https://api.example.com/v1'\n";
    for (config, words) in [
        ("[[listener]]\naddress = '0.0.0.0:0'\n", "plain HTTP is for loopback alone"),
        ("[listen]\naddress = '127.0.0.1:1'\n[[listener]]\naddress = '127.0.0.1:1'\n", "two listeners"),
        ("[[listener]]\naddress = '127.0.0.1:0'\nrequire = [['mtls']]\n", "listener 1: auth.require has mtls"),
        ("[[listener]]\naddress = '127.0.0.1:0'\nrequire = [[]]\n", "at least one scheme"),
        ("[[listener]]\naddress = '127.0.0.1:0'\nrequire = [['sso']]\n", "auth.oidc"),
        ("[[listener]]\naddress = '127.0.0.1:0'\nendpoint_ids = ['x']\n", "listener 1: listen.endpoint_ids"),
        ("[[listener]]\naddress = '127.0.0.1:0'\ntls_key = 'x'\n", "go together"),
        // Two authorities by one set of rules, though neither is that of `[listen]`.
        (
            "[listen]\ntls_cert = 'a'\ntls_key = 'b'\n[[listener]]\naddress = '127.0.0.1:0'\nclient_ca = 'c'\n\
             [[listener]]\naddress = '127.0.0.1:0'\nclient_ca = 'd'\n",
            "say whose its certificates are",
        ),
        (
            "[listen]\ntls_cert = 'a'\ntls_key = 'b'\nclient_ca = 'c'\n[[listener]]\naddress = '127.0.0.1:0'\nclient_ca = 'd'\n",
            "say whose its certificates are",
        ),
    ] {
        let file = folder.path().join("config.toml");
        std::fs::write(&file, format!("data = 'd'\n{config}{model}")).unwrap();
        let output = Command::new(stack.executable()).args(["serve", "--config"]).arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(words), "{config}: {said}");
    }
}

/// Two listeners with authorities of their own: what one may sign, the other may not.
#[tokio::test(flavor = "multi_thread")]
async fn an_authority_speaks_for_its_own_listener_alone() {
    let (servers, ours, partners) = (Authority::new(), Authority::new(), Authority::new());
    servers.sign("server", "tenant.example.test", |_| {});
    for (authority, serial) in [(&ours, 7_u64), (&partners, 8)] {
        authority.sign("ops", "ops.example.test", |params| params.serial_number = Some(serial.into()));
        authority.sign("spare", "spare.example.test", |params| params.serial_number = Some(9_u64.into()));
    }
    ours.revoke(9, 2044);
    let (stack, _provider, at) = serve(&format!(
        "[listen]\naddress = '127.0.0.1:0'\ntls_cert = {:?}\ntls_key = {:?}\nclient_ca = {:?}\nclient_crl = {:?}\n\
         [[listener]]\naddress = '127.0.0.1:0'\nclient_ca = {:?}\n\
         [[listener.mtls]]\nsan = 'ops.example.test'\nrole = 'viewer'\ncaller = 'partner'\n\
         [[listener]]\naddress = '127.0.0.1:0'\n\
         [auth]\nrequire = [['mtls'], ['bearer']]\n\
         [[auth.mtls]]\nsan = '*.example.test'\nrole = 'admin'\ncaller = 'ops'\n",
        servers.path("server.pem"),
        servers.path("server.key"),
        ours.path("ca.pem"),
        ours.path("crl.pem"),
        partners.path("ca.pem"),
    ))
    .await;
    let who = |listener: usize, authority: &Authority, name: &str| {
        let port = at[listener].port().to_string();
        let (status, known) =
            me_at("tenant.example.test", &port, &servers.path("ca.pem"), Some((authority, name)), None);
        (status, known["caller"].as_str().unwrap_or_default().to_owned())
    };
    let nobody = (0, String::new());
    assert_eq!((who(0, &ours, "ops"), who(0, &partners, "ops")), ((200, "ops".into()), nobody.clone()));
    assert_eq!((who(1, &partners, "ops"), who(1, &ours, "ops")), ((200, "partner".into()), nobody.clone()));
    assert_eq!(who(1, &partners, "spare").0, 401, "rules of the other listener are not this one's");
    // One that says nothing has all of it from the first: also who was revoked.
    assert_eq!((who(2, &ours, "ops"), who(2, &ours, "spare")), ((200, "ops".into()), nobody.clone()));
    assert_eq!((who(0, &ours, "spare"), who(2, &partners, "ops")), (nobody.clone(), nobody));
    drop(stack);
}

/// Speaks HTTP/2 by hand: says what the server announces, then follows one request, or
/// none, until the connection ends.
const FRAMES: &str = r#"
import socket, ssl, struct, sys, time
address, ca, path, bearer, more = sys.argv[1:]
host, port = address.rsplit(':', 1)
context = ssl.create_default_context(cafile=ca)
context.set_alpn_protocols(['h2'])
s = context.wrap_socket(socket.create_connection((host, int(port))), server_hostname='tenant.example.test')
assert s.selected_alpn_protocol() == 'h2'
s.settimeout(150)
began = time.time()
def frame(kind, flags, stream, body=b''):
    s.sendall(struct.pack('>I', len(body))[1:] + bytes([kind, flags]) + struct.pack('>I', stream) + body)
def text(value):
    value = value.encode()
    length, rest = len(value), b''
    if length < 127:
        return bytes([length]) + value
    length -= 127
    while length >= 128:
        rest, length = rest + bytes([length % 128 + 128]), length // 128
    return bytes([127]) + rest + bytes([length]) + value
s.sendall(b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n')
frame(4, 0, 0)
if path:
    head = b'\x82\x87' + b'\x04' + text(path) + b'\x01' + text('tenant.example.test')
    if bearer:
        head += b'\x00' + text('authorization') + text('Bearer ' + bearer)
    if int(more):
        head += b'\x00' + text('x-more') + text('a' * int(more))
    first, rest = head[:16000], head[16000:]
    frame(1, 1 if rest else 5, 1, first)
    while rest:
        part, rest = rest[:16000], rest[16000:]
        frame(9, 0 if rest else 4, 1, part)
print('open', flush=True)
buffer = b''
while True:
    while len(buffer) < 9 or len(buffer) < 9 + int.from_bytes(buffer[:3], 'big'):
        piece = s.recv(65536)
        if not piece:
            print('end %.1f' % (time.time() - began), flush=True)
            sys.exit()
        buffer += piece
    length, kind, flags = int.from_bytes(buffer[:3], 'big'), buffer[3], buffer[4]
    body, buffer = buffer[9:9 + length], buffer[9 + length:]
    if kind == 4 and not flags & 1:
        settings = {struct.unpack('>HI', body[i:i + 6]) for i in range(0, length, 6)}
        print('settings', sorted(settings), flush=True)
        frame(4, 1, 0)
    elif kind == 6 and not flags & 1:
        frame(6, 1, 0, body)
    elif kind == 1:
        print('head %02x%s' % (body[0], ' whole' if flags & 1 else ''), flush=True)
    elif kind == 0:
        if b'event: ' in body:
            print('event', flush=True)
        if flags & 1:
            print('whole', flush=True)
    elif kind == 3:
        print('reset', flush=True)
    elif kind == 7:
        print('goaway', flush=True)
"#;

struct Framed(std::process::Child);

impl Framed {
    fn start(address: SocketAddr, servers: &Authority, path: &str, bearer: &str, more: usize) -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", FRAMES, &address.to_string()]).arg(servers.path("ca.pem"));
        command.args([path, bearer, &more.to_string()]);
        Self(command.stdout(Stdio::piped()).spawn().unwrap())
    }

    fn lines(self) -> Vec<String> {
        let output = self.0.wait_with_output().unwrap();
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    }
}

async fn secure() -> (Stack, Scripted, Authority, SocketAddr) {
    let servers = Authority::new();
    servers.sign("server", "tenant.example.test", |_| {});
    let (stack, provider, at) = serve(&format!(
        "[listen]\naddress = '127.0.0.1:0'\ntls_cert = {:?}\ntls_key = {:?}\n",
        servers.path("server.pem"),
        servers.path("server.key")
    ))
    .await;
    (stack, provider, servers, at[0])
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_has_limits_and_ends_when_nothing_is_asked() {
    let (stack, _provider, servers, at) = secure().await;
    let start = |path: &str, more| Framed::start(at, &servers, path, &stack.key, more);
    // Over a minute: all of them at once.
    let (silent, idle, large) = (start("", 0), start("/v1/me", 0), start("/v1/me", 40_000));
    let lines = tokio::task::spawn_blocking(|| [silent.lines(), idle.lines(), large.lines()]).await.unwrap();
    let [silent, idle, large] = lines;
    for lines in [&silent, &idle] {
        let settings = lines.iter().find(|line| line.starts_with("settings")).unwrap();
        // Streams at once, and bytes of a list of headers (RFC 9113, 6.5.2).
        assert!(settings.contains("(3, 1000)") && settings.contains("(6, 16384)"), "{settings}");
        let took: f64 = lines.last().unwrap().strip_prefix("end ").unwrap().parse().unwrap();
        // After 75 s in which nothing was done, as is found out every 15.
        assert!((70.0..115.0).contains(&took), "{lines:?}");
        assert!(lines.contains(&"goaway".to_owned()), "{lines:?}");
    }
    // `:status: 200`, indexed; and whole.
    assert!(idle.contains(&"head 88".to_owned()) && idle.contains(&"whole".to_owned()), "{idle:?}");
    assert!(!large.contains(&"head 88".to_owned()), "{large:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_over_http2_is_sent_away_and_its_turn_goes_on() {
    let (mut stack, _provider, servers, at) = secure().await;
    let key = stack.key.clone();
    let post = |path: &str, body: &str| {
        let mut curl = Command::new("curl");
        // Whoever has sent a message goes away.
        curl.args(["-sS", "-m", "2", "-D", "-", "-H", &format!("authorization: Bearer {key}"), "--cacert"]);
        curl.arg(servers.path("ca.pem")).args(["-H", "content-type: application/json", "-d", body]);
        curl.args(["--resolve", &format!("tenant.example.test:{}:127.0.0.1", at.port())]);
        let output = curl.arg(format!("https://tenant.example.test:{}{path}", at.port())).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let made = post("/v1/sessions", "{}");
    let session: Value = serde_json::from_str(made.lines().last().unwrap()).unwrap();
    let session = session["id"].as_str().unwrap();
    let work = script(&[json!({"tool": "bash", "input": {"command": "sleep 8; echo late > late"}})]);
    let sent = post(&format!("/v1/sessions/{session}/messages"), &json!({"message": work}).to_string());
    let turn = sent.lines().find_map(|line| line.strip_prefix("x-response-id: ")).unwrap_or_else(|| panic!("{sent}"));
    let path = format!("/v1/sessions/{session}/responses/{turn}/events");
    let mut follower = Framed::start(at, &servers, &path, &key, 0);
    // Somebody who is connected and has asked nothing.
    let mut silent = std::net::TcpStream::connect(at).unwrap();
    silent.write_all(b"\x16\x03\x01").unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(follower.0.try_wait().unwrap().is_none());
    let began = Instant::now();
    assert_eq!(stack.terminate().await.code(), Some(0));
    let stack = stack.restart().await;
    assert!(began.elapsed() < Duration::from_secs(30));
    let lines = tokio::task::spawn_blocking(|| follower.lines()).await.unwrap();
    for line in ["event", "whole", "goaway"] {
        assert!(lines.contains(&line.to_owned()), "{line}: {lines:?}");
    }
    until("its turn has gone on", || stack.workspace().join("late").exists()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_that_came_along_go_to_the_listeners_they_are_for() {
    let folder = tempfile::tempdir().unwrap();
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (first, second, stranger) = (free(), free(), free());
    let model = "[[model]]\nname = 'm'\nwire = 'openai-chat'\nbase_url = 'https://api.example.com/v1'\n";
    let config = format!("data = 'data'\n[listen]\naddress = '{first}'\n[[listener]]\naddress = '{second}'\n{model}");
    std::fs::write(folder.path().join("config.toml"), config).unwrap();
    let start = |sockets: &[SocketAddr]| {
        let mut command = Command::new("systemd-socket-activate");
        command.args(sockets.iter().flat_map(|socket| ["-l".to_owned(), socket.to_string()]));
        command.arg(executable()).args(["serve", "--config", "config.toml", "--ready-file", "ready.json"]);
        command.current_dir(folder.path()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    // It starts with the first connection. The order in which they come says nothing.
    let server = Ended(start(&[second, first]));
    let health = async |at| call_at(at, b"", "/health", "").await;
    until("the sockets are there", || std::net::TcpStream::connect(first).is_ok()).await;
    assert_eq!((health(first).await, health(second).await), (200, 200));
    drop(server);
    let mut other = Ended(start(&[first, stranger]));
    until("the stranger's socket is there", || std::net::TcpStream::connect(stranger).is_ok()).await;
    until("it ends", || matches!(other.0.try_wait(), Ok(Some(_)))).await;
    let mut said = String::new();
    std::io::Read::read_to_string(&mut other.0.stderr.take().unwrap(), &mut said).unwrap();
    assert!(said.contains("the configuration has no listener"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_in_line_when_the_server_ends_is_answered() {
    let (mut stack, _provider, at) = serve("").await;
    let at = at[0];
    for _ in 0..5 {
        freeze(stack.pid());
        let mut asking = Vec::new();
        for _ in 0..40 {
            let mut socket = std::net::TcpStream::connect(at).unwrap();
            socket.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
            asking.push(socket);
        }
        let _ = Command::new("kill").arg(stack.pid().to_string()).status();
        thaw(stack.pid());
        for mut one in asking {
            let mut said = String::new();
            let _ = one.read_to_string(&mut said);
            assert!(said.starts_with("HTTP/1.1 200 "), "{said:?}");
        }
        assert_eq!(stack.terminate().await.code(), Some(0));
        stack = stack.restart().await;
    }
}
