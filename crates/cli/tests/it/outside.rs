//! What others have written to find faults: a fuzzer of OpenAPI documents, a
//! balancer before the tenant, and OpenSSL.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use cloister_testkit::{Ended, Options, Running, Stack, peers, until};

use crate::crash::Scripted;
use crate::front::Authority;

#[tokio::test(flavor = "multi_thread")]
async fn a_fuzzer_of_the_document_finds_no_way_past_a_key_and_nothing_that_breaks() {
    let stack = Stack::start().await;
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(peers().join("python/bin/st"))
        .args(["run", &format!("{}/openapi.json", stack.url), "-H"])
        .arg(format!("Authorization: Bearer {}", stack.key))
        .args(["--phases", "examples,fuzzing", "--max-examples", "12", "--seed", "1", "--continue-on-failure"])
        .args(["--checks", "not_a_server_error,ignored_auth,status_code_conformance,content_type_conformance"])
        .args(["--suppress-health-check", "all", "--no-color", "--warnings", "off", "--request-timeout", "20"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("API Operations:") && output.status.success(), "{said}");
    // It may have ended our key: it may do everything that an admin may.
    assert_eq!(stack.raw("GET", "/health", &[], b"").await.status, 200, "it still serves");
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn secure(authority: &Authority, more: &str) -> Stack {
    authority.sign("server", "tenant.example.test", |_| {});
    let files = ["server.pem", "server.key"].map(|file| authority.path(file));
    let listen = format!("[listen]\ntls_cert = {:?}\ntls_key = {:?}\n{more}", files[0], files[1]);
    let provider = Scripted::start().await;
    Stack::with(Options { serve: true, config: Some(provider.config(&listen)), ..Options::default() }).await
}

fn curl(authority: &Authority, port: &str, from: &str, key: &str) -> String {
    let mut command = Command::new("curl");
    command.args(["-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", "--interface", from, "--cacert"]);
    command.arg(authority.path("ca.pem")).args(["--resolve", &format!("tenant.example.test:{port}:127.0.0.1")]);
    command.args(["-H", &format!("authorization: Bearer {key}")]);
    let output = command.arg(format!("https://tenant.example.test:{port}/v1/me")).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_haproxy_each_client_is_known_by_its_own_address() {
    let authority = Authority::new();
    let stack =
        secure(&authority, "allow = ['127.0.0.7']\nproxy_protocol = 'required'\ntrusted_proxies = ['127.0.0.1']\n")
            .await;
    let (front, back) = (free_port(), stack.url.rsplit(':').next().unwrap());
    let config = format!(
        "global\n  maxconn 100\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n\
         frontend f\n  bind 127.0.0.1:{front}\n  default_backend b\n\
         backend b\n  source 127.0.0.1\n  server tenant 127.0.0.1:{back} send-proxy-v2\n"
    );
    let file = authority.path("haproxy.cfg");
    std::fs::write(&file, config).unwrap();
    let balancer = Command::new("/usr/sbin/haproxy").arg("-db").arg("-f").arg(&file).stderr(Stdio::null()).spawn();
    let _balancer = Running(balancer.unwrap());
    until("the balancer listens", || std::net::TcpStream::connect(("127.0.0.1", front)).is_ok()).await;
    let front = front.to_string();
    assert_eq!(curl(&authority, &front, "127.0.0.7", &stack.key), "200");
    assert_eq!(curl(&authority, &front, "127.0.0.8", &stack.key), "403", "by its own address");
    assert_eq!(curl(&authority, back, "127.0.0.7", &stack.key), "000", "past the balancer");
}

fn s_client(port: &str, ca: &Path, more: &[&str]) -> (bool, String) {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-servername", "tenant.example.test"]);
    command.args(["-verify_return_error", "-verify_hostname", "tenant.example.test", "-CAfile"]).arg(ca).args(more);
    let output = command.stdin(Stdio::null()).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_agrees_on_modern_tls_and_on_nothing_else() {
    let authority = Authority::new();
    let stack = secure(&authority, "").await;
    let (port, ca) = (stack.url.rsplit(':').next().unwrap(), authority.path("ca.pem"));
    for (what, arguments, expected) in [
        ("1.3", &["-tls1_3"][..], true),
        ("1.2", &["-tls1_2"], true),
        ("1.1", &["-tls1_1", "-cipher", "ALL@SECLEVEL=0"], false),
        ("1.0", &["-tls1", "-cipher", "ALL@SECLEVEL=0"], false),
        ("CBC", &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256:ECDHE-RSA-AES128-SHA256:AES128-SHA"], false),
        ("no forward secrecy", &["-tls1_2", "-cipher", "AES256-GCM-SHA384:AES128-GCM-SHA256"], false),
        ("a small curve", &["-tls1_3", "-groups", "P-521"], false),
        ("X25519", &["-tls1_3", "-groups", "X25519"], true),
    ] {
        let (agreed, said) = s_client(port, &ca, arguments);
        assert_eq!(agreed, expected, "{what}: {said}");
    }
    for (offered, agreed) in [("h2,http/1.1", "h2"), ("http/1.1", "http/1.1")] {
        let (_, said) = s_client(port, &ca, &["-alpn", offered]);
        assert!(said.contains(&format!("ALPN protocol: {agreed}")), "{said}");
    }
    let (_, said) = s_client(port, &ca, &["-tls1_2"]);
    assert!(said.contains("Secure Renegotiation IS supported") && said.contains("Compression: NONE"), "{said}");
    // Whoever takes too long with a handshake is not waited for.
    let mut silent = tokio::net::TcpStream::connect(format!("127.0.0.1:{port}")).await.unwrap();
    let began = std::time::Instant::now();
    let mut nothing = Vec::new();
    let ended = tokio::io::AsyncReadExt::read_to_end(&mut silent, &mut nothing);
    tokio::time::timeout(Duration::from_secs(25), ended).await.expect("it is cut off").unwrap();
    assert!(nothing.is_empty() && began.elapsed() > Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn testssl_finds_nothing_to_say_against_it() {
    let authority = Authority::new();
    let stack = secure(&authority, "").await;
    let folder = tempfile::tempdir().unwrap();
    let (port, report) = (stack.url.rsplit(':').next().unwrap(), folder.path().join("report.json"));
    // Protocols, ciphers, forward secrecy, known faults: all that is not about who signed.
    let output = Command::new("testssl")
        .args(["--ip", "127.0.0.1", "-p", "-s", "-f", "-U", "--quiet", "--color", "0", "--warnings", "off"])
        .arg("--jsonfile")
        .arg(&report)
        .arg(format!("tenant.example.test:{port}"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let found: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    let of = |id: &str| found.iter().find(|one| one["id"] == id).map(|one| one["severity"].clone());
    assert!(found.len() > 30 && of("TLS1_3") == Some("OK".into()) && of("heartbleed") == Some("OK".into()), "{said}");
    // What its own openssl lacks is said of this machine, not of the server.
    let about_us = found.iter().filter(|one| one["id"] != "engine_problem");
    let bad = about_us.filter(|one| !matches!(one["severity"].as_str(), Some("OK" | "INFO"))).collect::<Vec<_>>();
    assert!(bad.is_empty(), "{bad:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_written_ends_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let ready = folder.path().join("ready.json");
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut dev = Command::new(cloister_testkit::executable());
    dev.args(["dev", "--listen", "127.0.0.1:0", "--data"]).arg(folder.path().join("data"));
    dev.arg("--ready-file").arg(&ready).env("CLOISTER_LOG", "debug").stdout(Stdio::null()).stderr(full);
    let _dev = Ended(dev.spawn().unwrap());
    until("it is ready", || ready.exists()).await;
    let ready: serde_json::Value = serde_json::from_slice(&std::fs::read(&ready).unwrap()).unwrap();
    let client = cloister_client::Client::new(ready["url"].as_str().unwrap(), ready["key"].as_str().unwrap(), None);
    let client = client.unwrap();
    let session = client.create(&serde_json::from_str("{}").unwrap()).await.unwrap();
    let turn = client.message(&session.id, "tour", None).await.unwrap();
    assert_eq!(cloister_testkit::Turn::collect(turn).await.end(), cloister_types::event::EventKind::MessageCompleted);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_ask_nothing_leave_room_for_those_who_work() {
    let folder = tempfile::tempdir().unwrap();
    let ready = folder.path().join("ready.json");
    let mut dev = Command::new("sh");
    dev.args(["-c", "ulimit -n 400 && exec \"$0\" \"$@\""]).arg(cloister_testkit::executable());
    dev.args(["dev", "--listen", "127.0.0.1:0", "--data"]).arg(folder.path().join("data"));
    let dev = dev.arg("--ready-file").arg(&ready).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let dev = Ended(dev);
    until("it is ready", || ready.exists()).await;
    let ready: serde_json::Value = serde_json::from_slice(&std::fs::read(&ready).unwrap()).unwrap();
    let (url, key) = (ready["url"].as_str().unwrap(), ready["key"].as_str().unwrap());
    let client = reqwest::Client::new();
    let create = async || {
        let asked = client.post(format!("{url}/v1/sessions")).bearer_auth(key).json(&serde_json::json!({}));
        asked.send().await.map(|answer| answer.status().as_u16())
    };
    assert_eq!(create().await.unwrap(), 201);
    let address = url.strip_prefix("http://").unwrap();
    let mut idle = Vec::new();
    for _ in 0..500 {
        idle.push(tokio::net::TcpStream::connect(address).await.unwrap());
    }
    assert_eq!(create().await.unwrap(), 201, "on the connection that was there");
    drop(idle);
    let fresh = reqwest::Client::new();
    let asked = async || fresh.get(format!("{url}/health")).send().await.is_ok();
    for _ in 0..50 {
        if asked().await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(asked().await, "others come in again");
    drop(dev);
}

/// Starts a program as systemd does, with a socket that listens already.
const ACTIVATE: &str = "
import os, socket, sys
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(('127.0.0.1', int(sys.argv[1])))
listener.listen(64)
for program in range(2):
    if os.fork() == 0:
        os.dup2(os.dup(listener.fileno()), 3)
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')
        os.execv(sys.argv[2], sys.argv[2:])
    print('started', flush=True)
    os.wait()
print('ended', flush=True)
";

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_came_along_keeps_callers_waiting_while_servers_change() {
    use std::io::{BufRead, BufReader};
    let provider = Scripted::start().await;
    // A stack only for its executables.
    let stack = Stack::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (config, data, ready) =
        (folder.path().join("config.toml"), folder.path().join("data"), folder.path().join("ready.json"));
    std::fs::write(&config, provider.config("")).unwrap();
    let port = free_port().to_string();
    let mut parent = Command::new("python3");
    parent.args(["-c", ACTIVATE, &port]).arg(stack.executable()).arg("serve").arg("--allow-scripted");
    parent.arg("--config").arg(&config).arg("--data").arg(&data).arg("--ready-file").arg(&ready);
    let mut parent = Running(parent.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mut said = BufReader::new(parent.0.stdout.take().unwrap()).lines();
    assert_eq!(said.next().unwrap().unwrap(), "started");
    until("the first serves", || ready.exists()).await;
    let url = format!("http://127.0.0.1:{port}");
    let told: serde_json::Value = serde_json::from_slice(&std::fs::read(&ready).unwrap()).unwrap();
    assert_eq!(told["url"], url.as_str());
    // Whoever had just come in and not asked yet is sent away, and asks again as
    // clients of HTTP do.
    let health = || {
        let mut curl = Command::new("curl");
        curl.args([
            "-sS",
            "-m",
            "10",
            "--retry",
            "2",
            "--retry-all-errors",
            "--retry-delay",
            "0",
            "-w",
            "%{http_code}",
        ]);
        let output = curl.args(["-o", "/dev/null", &format!("{url}/health")]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let refused = || std::net::TcpStream::connect(url.trim_start_matches("http://")).is_err();
    assert_eq!(health(), "200");
    let server = cloister_testkit::children(parent.0.id())[0];
    Command::new("kill").arg(server.to_string()).status().unwrap();
    // Whoever calls in between is answered by the next.
    for _ in 0..10 {
        assert!(!refused());
        assert_eq!(health(), "200");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    assert_eq!(said.next().unwrap().unwrap(), "started");
    let next = cloister_testkit::children(parent.0.id());
    assert!(!next.contains(&server) && !next.is_empty());
    for pid in next {
        Command::new("kill").arg(pid.to_string()).status().unwrap();
    }
    assert_eq!(said.next().unwrap().unwrap(), "ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_without_end_are_refused() {
    let stack = Stack::start().await;
    let long = "x".repeat(60_000);
    let answer = cloister_testkit::raw(&stack.url, "GET", "/v1/me", &[("x-long", &long)], b"").await;
    assert_eq!(answer.status, 431);
    let many: Vec<(String, String)> = (0..300).map(|n| (format!("x-{n}"), "1".into())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(cloister_testkit::raw(&stack.url, "GET", "/v1/me", &many, b"").await.status, 431);
    let path = format!("/{long}");
    let status = cloister_testkit::raw(&stack.url, "GET", &path, &[], b"").await.status;
    assert!(matches!(status, 414 | 431), "{status}");
}
