//! The outer door: which addresses are heard, who is believed about them, and
//! what client certificates are worth.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cloister_testkit::Stack;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::crash::Scripted;

pub(crate) async fn serve(more: &str) -> Stack {
    let provider = Scripted::start().await;
    let options = cloister_testkit::Options {
        serve: true,
        config: Some(provider.config(more)),
        ..cloister_testkit::Options::default()
    };
    Stack::with(options).await
}

/// A PROXY header, by hand.
pub(crate) fn proxied(source: &str, tlvs: &[(u8, &[u8])]) -> Vec<u8> {
    let source: std::net::IpAddr = source.parse().unwrap();
    let mut body = match source {
        std::net::IpAddr::V4(source) => [&source.octets()[..], &[127, 0, 0, 1, 0, 9, 1, 187]].concat(),
        std::net::IpAddr::V6(source) => [&source.octets()[..], &[0; 15], &[1, 0, 9, 1, 187]].concat(),
    };
    for (kind, value) in tlvs {
        body.push(*kind);
        body.extend((value.len() as u16).to_be_bytes());
        body.extend(*value);
    }
    let family = if source.is_ipv4() { 0x11 } else { 0x21 };
    [b"\r\n\r\n\0\r\nQUIT\n", &[0x21, family][..], &(body.len() as u16).to_be_bytes(), &body].concat()
}

/// Sends bytes; all that is said to them.
pub(crate) async fn say(address: SocketAddr, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let _ = socket.write_all(bytes).await;
    let mut said = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(5), socket.read_to_end(&mut said)).await;
    String::from_utf8_lossy(&said).into_owned()
}

/// Sends bytes before a call with these header lines; the status, or 0 if nobody answers.
pub(crate) async fn call_at(address: SocketAddr, before: &[u8], path: &str, headers: &str) -> u16 {
    let call = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
    let said = say(address, &[before, call.as_bytes()].concat()).await;
    said.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

async fn call(stack: &Stack, before: &[u8], path: &str, key: Option<&str>) -> u16 {
    let bearer = key.map(|key| format!("authorization: Bearer {key}\r\n")).unwrap_or_default();
    call_at(stack.url.rsplit('/').next().unwrap().parse().unwrap(), before, path, &bearer).await
}

#[tokio::test(flavor = "multi_thread")]
async fn only_networks_that_may_call_are_heard() {
    let stack = serve(
        "[listen]\nallow = ['10.0.0.0/8', '2001:db8::/32']\nproxy_protocol = 'optional'\ntrusted_proxies = ['127.0.0.1']\n",
    )
    .await;
    let key = Some(stack.key.as_str());
    for (source, status) in [
        (None, 403),
        (Some("192.0.2.1"), 403),
        (Some("10.1.2.3"), 200),
        (Some("::ffff:10.1.2.3"), 200),
        (Some("2001:db8::7"), 200),
        (Some("2001:db9::7"), 403),
        (Some("127.0.0.1"), 403),
    ] {
        let before = source.map(|source| proxied(source, &[])).unwrap_or_default();
        assert_eq!(call(&stack, &before, "/v1/me", key).await, status, "{source:?}");
        // Before anything else is asked: whether there is a key, or what the path is.
        let without = if status == 200 { 401 } else { 403 };
        assert_eq!(call(&stack, &before, "/v1/nothing", None).await, without, "{source:?}");
        assert_eq!(call(&stack, &before, "/health", None).await, if status == 200 { 200 } else { 403 });
    }
    let inside = proxied("10.1.2.3", &[]);
    assert_eq!(call(&stack, &inside, "/v1/egress", key).await, 200);
}

/// A header of version 1.
const LINE: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 1 443\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_header_is_believed_from_those_who_may_send_one() {
    let required = |proxies: &str| format!("[listen]\nproxy_protocol = 'required'\ntrusted_proxies = ['{proxies}']\n");
    let stack = serve(&required("127.0.0.0/8")).await;
    assert_eq!(call(&stack, b"", "/health", None).await, 0, "without a header nobody answers");
    assert_eq!(call(&stack, LINE, "/health", None).await, 200);
    assert_eq!(call(&stack, b"PROXY TCP4 192.0.2.7 1 443\r\n", "/health", None).await, 0);
    assert_eq!(call(&stack, &proxied("192.0.2.7", &[]), "/health", None).await, 200);
    let stack = serve(&required("192.0.2.0/24")).await;
    for header in [LINE, &proxied("192.0.2.7", &[])] {
        assert_eq!(call(&stack, header, "/health", None).await, 0, "a header that anybody could send");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_private_link_only_its_own_endpoints_are_heard() {
    let stack = serve(
        "[listen]\nproxy_protocol = 'required'\ntrusted_proxies = ['127.0.0.1']\nendpoint_ids = ['vpce-08d2bf15fac5001c9', '305419896', '77']\n",
    )
    .await;
    let (aws, azure, google) =
        (&b"\x01vpce-08d2bf15fac5001c9"[..], &[1, 0x78, 0x56, 0x34, 0x12][..], 77_u64.to_be_bytes());
    for (tlvs, status) in [
        (vec![], 0),
        (vec![(0xea, &b"\x01vpce-08d2bf15fac5001c8"[..])], 0),
        (vec![(0xea, &b"\x02vpce-08d2bf15fac5001c9"[..])], 0),
        (vec![(0xee, &[1, 0x12, 0x34, 0x56, 0x78][..])], 0),
        (vec![(0xea, aws), (0xea, &b"\x01vpce-1"[..])], 0),
        (vec![(0xea, aws)], 200),
        (vec![(0x01, &b"h2"[..]), (0xee, azure)], 200),
        (vec![(0xe0, &google[..])], 200),
    ] {
        assert_eq!(call(&stack, &proxied("192.0.2.7", &tlvs), "/health", None).await, status, "{tlvs:?}");
    }
    assert_eq!(call(&stack, LINE, "/health", None).await, 0, "version 1 names no endpoint");
}

/// An authority, and what it signs, in files.
pub(crate) struct Authority {
    folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

/// With one name for all, a certificate would look like its own authority's.
pub(crate) fn named(name: &str) -> rcgen::DistinguishedName {
    let mut names = rcgen::DistinguishedName::new();
    names.push(rcgen::DnType::CommonName, name);
    names
}

impl Authority {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = named("authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(folder.path().join("ca.pem"), certificate.pem()).unwrap();
        std::fs::write(folder.path().join("ca.key"), key.serialize_pem()).unwrap();
        Self { folder, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Signs a certificate; `file`.pem and `file`.key.
    pub(crate) fn sign(&self, file: &str, name: &str, more: impl FnOnce(&mut CertificateParams)) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name = named(file);
        more(&mut params);
        std::fs::write(self.path(&format!("{file}.pem")), params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        std::fs::write(self.path(&format!("{file}.key")), key.serialize_pem()).unwrap();
    }

    pub(crate) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    /// Lists a certificate as revoked, in `crl.pem`, until a year begins.
    pub(crate) fn revoke(&self, serial: u64, until: i32) {
        let (this_update, next_update) = (rcgen::date_time_ymd(2024, 1, 1), rcgen::date_time_ymd(until, 1, 1));
        let revoked = rcgen::RevokedCertParams {
            serial_number: serial.into(),
            revocation_time: this_update,
            reason_code: None,
            invalidity_date: None,
        };
        let list = rcgen::CertificateRevocationListParams {
            this_update,
            next_update,
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        std::fs::write(self.path("crl.pem"), list.signed_by(&self.issuer).unwrap().pem().unwrap()).unwrap();
    }
}

/// Who a caller is, with curl: status (0 if there is no connection), and answer.
pub(crate) fn me(
    stack: &Stack,
    server_ca: &Path,
    client: Option<(&Authority, &str)>,
    key: Option<&str>,
) -> (u64, Value) {
    me_at("tenant.example.test", stack.url.rsplit(':').next().unwrap(), server_ca, client, key)
}

pub(crate) fn me_at(
    host: &str,
    port: &str,
    server_ca: &Path,
    client: Option<(&Authority, &str)>,
    key: Option<&str>,
) -> (u64, Value) {
    let mut command = Command::new("curl");
    command.args(["-sS", "-m", "10", "-w", "\n%{http_code}", "--cacert"]).arg(server_ca);
    command.args(["--resolve", &format!("{host}:{port}:127.0.0.1")]);
    if let Some((authority, name)) = client {
        command.arg("--cert").arg(authority.path(&format!("{name}.pem")));
        command.arg("--key").arg(authority.path(&format!("{name}.key")));
    }
    if let Some(key) = key {
        command.args(["-H", &format!("authorization: Bearer {key}")]);
    }
    let output = command.arg(format!("https://{host}:{port}/v1/me")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), serde_json::from_str(body).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn client_certificates_are_worth_what_the_rules_say() {
    let (servers, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    servers.sign("server", "tenant.example.test", |_| {});
    clients.sign("ci", "ci.example.test", |_| {});
    clients.sign("pinned", "pinned.example.test", |_| {});
    clients.sign("nobody", "nobody.example.test", |_| {});
    clients.sign("expired", "ci.example.test", |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    clients.sign("revoked", "ci.example.test", |params| params.serial_number = Some(7_u64.into()));
    clients.revoke(7, 2044);
    strangers.sign("ci", "ci.example.test", |_| {});
    let config = |require: &str| {
        format!(
            "[listen]\ntls_cert = {:?}\ntls_key = {:?}\nclient_ca = {:?}\nclient_crl = {:?}\n[auth]\nrequire = {require}\n\
             [[auth.mtls]]\nsan = 'ci.example.test'\nrole = 'viewer'\ncaller = 'ci'\n\
             [[auth.mtls]]\nsan = '*.example.test'\nrole = 'admin'\nspki = '{}'\n",
            servers.path("server.pem"),
            servers.path("server.key"),
            clients.path("ca.pem"),
            clients.path("crl.pem"),
            "0".repeat(64),
        )
    };
    let ca = servers.path("ca.pem");
    // Alone: without one that is good, there is no connection.
    let stack = serve(&config("[['mtls']]")).await;
    let (status, known) = me(&stack, &ca, Some((&clients, "ci")), None);
    assert_eq!(
        (status, &known["caller"], &known["roles"], &known["scheme"]),
        (200, &json!("ci"), &json!(["viewer"]), &json!("mtls"))
    );
    // A browser has the certificate along whoever asks: pages of others change
    // nothing.
    let port = stack.url.rsplit(':').next().unwrap();
    for (site, expected) in [("cross-site", true), ("same-site", true), ("same-origin", false), ("none", false)] {
        let mut command = Command::new("curl");
        command.args(["-sS", "-m", "10", "-X", "POST", "--cacert"]).arg(&ca);
        command.arg("--cert").arg(clients.path("ci.pem")).arg("--key").arg(clients.path("ci.key"));
        command.args(["--resolve", &format!("tenant.example.test:{port}:127.0.0.1")]);
        command.args(["-H", &format!("sec-fetch-site: {site}")]);
        let output = command.arg(format!("https://tenant.example.test:{port}/v1/sessions")).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(said.contains("a page of another site"), expected, "{site}: {said}");
        assert!(said.contains("forbidden"), "{said}");
    }
    assert_eq!(me(&stack, &ca, Some((&clients, "nobody")), None).0, 401);
    assert_eq!(me(&stack, &ca, Some((&clients, "pinned")), None).0, 401, "another key than the rule's");
    for (who, name) in [(Some(&clients), "expired"), (Some(&clients), "revoked"), (Some(&strangers), "ci"), (None, "")]
    {
        assert_eq!(me(&stack, &ca, who.map(|who| (who, name)), Some(&stack.key)).0, 0, "{name}");
    }
    // Together: each must be there, and allow.
    let stack = serve(&config("[['bearer', 'mtls']]")).await;
    assert_eq!(me(&stack, &ca, Some((&clients, "ci")), None).0, 401);
    assert_eq!(me(&stack, &ca, None, Some(&stack.key)).0, 0, "where all need one, the handshake asks");
    let (status, known) = me(&stack, &ca, Some((&clients, "ci")), Some(&stack.key));
    assert_eq!((status, &known["roles"], &known["scheme"]), (200, &json!(["viewer", "admin"]), &json!("bearer+mtls")));
    // Either.
    let stack = serve(&config("[['bearer'], ['mtls']]")).await;
    assert_eq!(me(&stack, &ca, Some((&clients, "ci")), None).0, 200);
    assert_eq!(me(&stack, &ca, None, Some(&stack.key)).0, 200);
    assert_eq!(me(&stack, &ca, None, None).0, 401);
    assert_eq!(me(&stack, &ca, Some((&strangers, "ci")), Some(&stack.key)).0, 0);
}

/// Asks twice on one connection, with a pause between.
const TWICE: &str = "
import http.client, socket, ssl, sys, time
ca, certificate, key, port, pause = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
context.load_cert_chain(certificate, key)
connection = http.client.HTTPConnection('tenant.example.test')
connection.sock = context.wrap_socket(socket.create_connection(('127.0.0.1', int(port))), server_hostname='tenant.example.test')
for wait in (float(pause), 0):
    connection.request('GET', '/v1/me')
    answer = connection.getresponse()
    answer.read()
    print(answer.status)
    time.sleep(wait)
";

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_ends_is_worth_nothing_on_a_connection_that_goes_on() {
    let (servers, clients) = (Authority::new(), Authority::new());
    servers.sign("server", "tenant.example.test", |_| {});
    let stack = serve(&format!(
        "[listen]\ntls_cert = {:?}\ntls_key = {:?}\nclient_ca = {:?}\n[auth]\nrequire = [['mtls']]\n\
         [[auth.mtls]]\nsan = 'ci.example.test'\nrole = 'viewer'\n",
        servers.path("server.pem"),
        servers.path("server.key"),
        clients.path("ca.pem"),
    ))
    .await;
    let ends = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap() + Duration::from_secs(8);
    clients.sign("ci", "ci.example.test", |params| params.not_after = rcgen::date_time_ymd(1970, 1, 1) + ends);
    let mut twice = Command::new("python3");
    twice.args(["-c", TWICE]).arg(servers.path("ca.pem")).arg(clients.path("ci.pem")).arg(clients.path("ci.key"));
    let output = twice.arg(stack.url.rsplit(':').next().unwrap()).arg("9").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "200\n401\n", "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_may_change_while_calls_go_on() {
    let (old, new) = (Authority::new(), Authority::new());
    old.sign("server", "tenant.example.test", |_| {});
    new.sign("server", "tenant.example.test", |_| {});
    let (certificate, key) = (old.path("server.pem"), old.path("server.key"));
    let stack = serve(&format!("[listen]\ntls_cert = {certificate:?}\ntls_key = {key:?}\n")).await;
    assert_eq!(me(&stack, &old.path("ca.pem"), None, Some(&stack.key)).0, 200);
    // Half of a change, or nonsense, is not used.
    std::fs::copy(new.path("server.pem"), &certificate).unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(me(&stack, &old.path("ca.pem"), None, Some(&stack.key)).0, 200);
    std::fs::write(&key, "nonsense").unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(me(&stack, &old.path("ca.pem"), None, Some(&stack.key)).0, 200);
    std::fs::copy(new.path("server.key"), &key).unwrap();
    let mut status = 0;
    for _ in 0..30 {
        status = me(&stack, &new.path("ca.pem"), None, Some(&stack.key)).0;
        if status == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(status, 200);
    assert_eq!(me(&stack, &old.path("ca.pem"), None, Some(&stack.key)).0, 0);
}
