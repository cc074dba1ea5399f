//! `cloister serve`: TLS 1.2 and 1.3 alone, over HTTP/1.1 and h2.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use cloister_testkit::Stack;
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};

struct Served {
    child: Child,
    _folder: tempfile::TempDir,
    address: String,
    key: String,
    ca: Vec<u8>,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

fn model() -> &'static str {
    "[[model]]\nname = 'm'\nwire = 'openai-chat'\nbase_url = 'https://api.example.com/v1'\n"
}

async fn serve() -> Served {
    use std::io::{BufRead, BufReader};
    // A stack only for its executables.
    let stack = Stack::start().await;
    let folder = tempfile::tempdir().unwrap();
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(folder.path().join("cert.pem"), certified.cert.pem()).unwrap();
    std::fs::write(folder.path().join("key.pem"), certified.signing_key.serialize_pem()).unwrap();
    let config = format!(
        "tenant = 'acme'\ndata = 'data'\n[listen]\naddress = '127.0.0.1:0'\ntls_cert = 'cert.pem'\ntls_key = 'key.pem'\n{}",
        model()
    );
    let file = folder.path().join("config.toml");
    std::fs::write(&file, config).unwrap();
    let made = Command::new(stack.executable()).args(["key", "new", "--config"]).arg(&file).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let key = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    assert!(key.starts_with("pk_acme_"));
    let mut child =
        Command::new(stack.executable()).args(["serve", "--config"]).arg(&file).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().rsplit("https://").next().unwrap().to_owned();
    Served { child, _folder: folder, address, key, ca: certified.cert.der().to_vec() }
}

fn handshake(
    served: &Served,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Result<rustls::ProtocolVersion, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(served.ca.clone().into()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut connection =
        rustls::ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap();
    let mut socket = std::net::TcpStream::connect(&served.address).unwrap();
    while connection.is_handshaking() {
        connection.complete_io(&mut socket).map_err(|error| error.to_string())?;
    }
    Ok(connection.protocol_version().unwrap())
}

#[tokio::test]
async fn tls_12_and_13_over_both_http_versions_and_nothing_older() {
    use std::io::{Read, Write};
    let served = serve().await;
    assert_eq!(handshake(&served, &[&TLS13]), Ok(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(handshake(&served, &[&TLS12]), Ok(rustls::ProtocolVersion::TLSv1_2));
    // A TLS 1.1 hello, by hand: refused with an alert or a closed connection.
    let mut hello = vec![0x16, 3, 1, 0, 0x2f, 1, 0, 0, 0x2b, 3, 2];
    hello.extend([7; 32]);
    hello.extend([0, 0, 4, 0, 0x2f, 0, 0x35, 1, 0]);
    let mut socket = std::net::TcpStream::connect(&served.address).unwrap();
    socket.write_all(&hello).unwrap();
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer[0] == 0x15, "{answer:?}");
    // Plain text gets nothing that is HTTP.
    let mut socket = std::net::TcpStream::connect(&served.address).unwrap();
    socket.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");

    let port = served.address.rsplit(':').next().unwrap();
    let url = format!("https://localhost:{port}/v1/sessions");
    let certificate = reqwest::Certificate::from_der(&served.ca).unwrap();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let builder = || reqwest::Client::builder().tls_certs_only([certificate.clone()]).no_proxy();
    for (client, version) in [
        (builder().http1_only().build().unwrap(), reqwest::Version::HTTP_11),
        (builder().build().unwrap(), reqwest::Version::HTTP_2),
    ] {
        let answer = client.get(&url).bearer_auth(&served.key).send().await.unwrap();
        assert_eq!((answer.version(), answer.status().as_u16()), (version, 200));
        assert_eq!(client.get(&url).send().await.unwrap().status().as_u16(), 401);
    }
}

#[tokio::test]
async fn serve_refuses_what_is_unsafe() {
    let stack = Stack::start().await;
    let folder = tempfile::tempdir().unwrap();
    for (config, words) in [
        (format!("listen = '0.0.0.0:0'\ndata = 'd'\n{}", model()), "plain HTTP is for loopback alone"),
        ("listen = '127.0.0.1:0'\ndata = 'd'\n".to_owned(), "no model is configured"),
        (format!("data = 'd'\n{}", model().replace("'m'", "'scripted'")), "--allow-scripted"),
        (format!("datta = 'd'\n{}", model()), "datta"),
        (format!("data = 'd'\n[listen]\ntls_cert = 'none.pem'\ntls_key = 'none.pem'\n{}", model()), "none.pem"),
    ] {
        let file = folder.path().join("config.toml");
        std::fs::write(&file, config).unwrap();
        let output = Command::new(stack.executable()).args(["serve", "--config"]).arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(words), "{words}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_for_development_signs_servers_and_clients() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        Command::new(cloister_testkit::executable()).args(arguments).current_dir(folder.path()).output().unwrap()
    };
    let issue = |arguments: &[&str]| -> serde_json::Value {
        let output = run(&[&["dev-ca", "--dir", "ca"], arguments].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let server = issue(&["tenant.example.test", "127.0.0.1"]);
    let authority = std::fs::read(folder.path().join("ca/ca.pem")).unwrap();
    let client = issue(&["--client", "spiffe://example.test/ci", "ci@example.test"]);
    assert_eq!(server["ca"], client["ca"]);
    assert_eq!(std::fs::read(folder.path().join("ca/ca.pem")).unwrap(), authority, "it is made once");
    for file in ["ca/ca.key", client["key"].as_str().unwrap()] {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(folder.path().join(file)).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let text = |field: &serde_json::Value| field.as_str().unwrap().to_owned();
    let config = format!(
        "tenant = 'acme'\ndata = 'data'\n[listen]\naddress = '127.0.0.1:0'\ntls_cert = '{}'\ntls_key = '{}'\n\
         client_ca = '{}'\n[auth]\nrequire = [['mtls']]\n[[auth.mtls]]\nsan = 'spiffe://example.test/*'\nrole = 'viewer'\n{}",
        text(&server["certificate"]),
        text(&server["key"]),
        text(&server["ca"]),
        model()
    );
    std::fs::write(folder.path().join("config.toml"), config).unwrap();
    let mut serve = Command::new(cloister_testkit::executable());
    serve.args(["serve", "--config", "config.toml", "--ready-file", "ready.json"]).current_dir(folder.path());
    let _serve = cloister_testkit::Running(serve.stderr(Stdio::null()).spawn().unwrap());
    let ready = folder.path().join("ready.json");
    cloister_testkit::until("it serves", || ready.exists()).await;
    let ready: serde_json::Value = serde_json::from_slice(&std::fs::read(&ready).unwrap()).unwrap();
    let port = ready["url"].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
    let status = |host: &str, client: Option<&serde_json::Value>| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "-m", "10", "--cacert", &text(&server["ca"])]);
        curl.args(["--resolve", &format!("{host}:{port}:127.0.0.1")]).current_dir(folder.path());
        if let Some(client) = client {
            curl.args(["--cert", &text(&client["certificate"]), "--key", &text(&client["key"])]);
        }
        let output = curl.arg(format!("https://{host}:{port}/v1/me")).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for host in ["tenant.example.test", "127.0.0.1"] {
        assert_eq!(status(host, Some(&client)), "200", "{host}");
    }
    assert_eq!(status("other.example.test", Some(&client)), "000");
    assert_eq!(status("127.0.0.1", None), "000");
    assert_eq!(status("127.0.0.1", Some(&server)), "000", "a server's certificate is no client's");
    for bad in [&[""][..], &["../up"], &["ca"], &["a b"], &["good.example.test", "bad name"]] {
        let output = run(&[&["dev-ca", "--dir", "ca"], bad].concat());
        assert!(!output.status.success() && !String::from_utf8_lossy(&output.stderr).contains("panic"), "{bad:?}");
    }
}
