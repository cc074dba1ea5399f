//! What is decided by where a connection comes from, between hosts of their own;
//! and certificates from an authority that comes to look.

use std::path::Path;
use std::process::{Command, Stdio};

use cloister_testkit::{Ended, Network, Running, executable, peers, until};

use crate::front::Authority;

const HOST: &str = "tenant.example.test";
const MODEL: &str = "[[model]]\nname = 'm'\nwire = 'openai-chat'\nbase_url = 'https://api.example.com/v1'\n";

/// A tenant of a folder's, and its key.
fn create(folder: &Path) -> String {
    let mut command = Command::new(executable());
    command.args(["tenant", "create", "acme", "--region", "eu", "--root", "tenants"]).current_dir(folder);
    let made = command.output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    serde_json::from_slice::<serde_json::Value>(&made.stdout).unwrap()["key"].as_str().unwrap().to_owned()
}

/// A role on a host. What it says goes to a file.
async fn start(network: &Network, folder: &Path, name: &str, arguments: &[&str]) -> Running {
    let (ready, log) = (folder.join(format!("{name}.json")), folder.join(format!("{name}.log")));
    let _ = std::fs::remove_file(&ready);
    let log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
    let mut command = network.command(executable());
    command.args(arguments).arg("--ready-file").arg(&ready).current_dir(folder);
    let started = Running(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
    until("it is ready", || ready.exists()).await;
    started
}

/// Asks who one is, from a host: the status, 0 if there is no connection.
fn curl(network: &Network, ca: &Path, at: &str, key: Option<&str>, more: &[&str]) -> u32 {
    let (address, port) = at.split_once(':').unwrap();
    let mut command = network.command("curl");
    command.args(["-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", "--cacert"]).arg(ca).args(more);
    command.args(["--resolve", &format!("{HOST}:{port}:{address}")]);
    command.args(key.iter().flat_map(|key| ["-H".to_owned(), format!("authorization: Bearer {key}")]));
    let output = command.arg(format!("https://{HOST}:{port}/v1/me")).output().unwrap();
    // Shown where the test fails.
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_are_told_apart_behind_both_balancers_and_without_one() {
    let (server, balancer, inside, outside) = (Network::new(), Network::new(), Network::new(), Network::new());
    server.join("10.9.0.1/24", &balancer, "10.9.0.2/24");
    balancer.join("10.9.1.1/24", &inside, "10.9.1.2/24");
    balancer.join("10.9.2.1/24", &outside, "10.9.2.2/24");
    server.join("10.9.3.1/24", &inside, "10.9.3.2/24");
    server.join("10.9.4.1/24", &outside, "10.9.4.2/24");
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    authority.sign("server", HOST, |_| {});
    let key = create(folder.path());
    let config = |name: &str, port: u16, more: &str| {
        let text = format!(
            "[listen]\naddress = '0.0.0.0:{port}'\ntls_cert = {:?}\ntls_key = {:?}\nallow = ['10.9.1.0/24', '10.9.3.2']\n\
             trusted_proxies = ['10.9.0.2']\n{more}\n{MODEL}",
            authority.path("server.pem"),
            authority.path("server.key")
        );
        std::fs::write(folder.path().join(name), text).unwrap();
    };
    config("optional.toml", 8443, "proxy_protocol = 'optional'");
    config("required.toml", 8443, "proxy_protocol = 'required'");
    std::fs::write(
        folder.path().join("haproxy.cfg"),
        "global\n  maxconn 100\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n\
         frontend f\n  bind 0.0.0.0:443\n  default_backend b\nbackend b\n  server t 10.9.0.1:8443 send-proxy-v2\n",
    )
    .unwrap();
    let nginx = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\npid {0}/nginx.pid;\nerror_log stderr;\n\
         events {{}}\nstream {{ server {{ listen 444; proxy_pass 10.9.0.1:8443; proxy_protocol on; }} }}\n",
        folder.path().display()
    );
    std::fs::write(folder.path().join("nginx.conf"), nginx).unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let mut command = balancer.command(program);
        command.args(arguments).current_dir(folder.path()).stdout(Stdio::null()).stderr(Stdio::null());
        Running(command.spawn().unwrap())
    };
    let _haproxy = run("/usr/sbin/haproxy", &["-db", "-f", "haproxy.cfg"]);
    let conf = folder.path().join("nginx.conf");
    let _nginx = run("/usr/sbin/nginx", &["-p", "/", "-c", conf.to_str().unwrap()]);
    let ca = authority.path("ca.pem");
    let serve = async |config: &str| {
        let arguments = ["serve", "--data", "tenants/acme", "--config", config];
        start(&server, folder.path(), "serve", &arguments).await
    };
    let ask = |host: &Network, at: &str, more: &[&str]| curl(host, &ca, at, Some(&key), more);

    let optional = serve("optional.toml").await;
    // haproxy speaks version 2, nginx version 1.
    for port in [443, 444] {
        let up = || curl(&inside, &ca, &format!("10.9.1.1:{port}"), None, &[]) == 401;
        until("the balancer passes on, and an address alone is no key", up).await;
        assert_eq!(ask(&inside, &format!("10.9.1.1:{port}"), &[]), 200, "{port}");
        assert_eq!(ask(&outside, &format!("10.9.2.1:{port}"), &[]), 403, "{port}: by its own address");
    }
    // Without a balancer, by the address that the connection has; nobody is believed who says another.
    assert_eq!((ask(&inside, "10.9.3.1:8443", &[]), ask(&outside, "10.9.4.1:8443", &[])), (200, 403));
    assert_eq!(ask(&inside, "10.9.3.1:8443", &["--haproxy-protocol"]), 0, "a header of its own");
    drop(optional);
    let _required = serve("required.toml").await;
    assert_eq!(ask(&inside, "10.9.1.1:443", &[]), 200);
    assert_eq!((ask(&inside, "10.9.3.1:8443", &[]), ask(&inside, "10.9.3.1:8443", &["--haproxy-protocol"])), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_the_regions_door_hosts_are_told_apart_all_the_same() {
    let (server, inside, outside) = (Network::new(), Network::new(), Network::new());
    server.join("10.9.1.1/24", &inside, "10.9.1.2/24");
    server.join("10.9.2.1/24", &outside, "10.9.2.2/24");
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    authority.sign("server", HOST, |_| {});
    let key = create(folder.path());
    let files = ["server.pem", "server.key"].map(|file| authority.path(file));
    // By itself it hears nobody from elsewhere, and believes no balancer.
    let config = format!(
        "[listen]\naddress = '127.0.0.1:8443'\ntls_cert = {:?}\ntls_key = {:?}\nallow = ['10.9.1.0/24']\n{MODEL}",
        files[0], files[1]
    );
    std::fs::write(folder.path().join("serve.toml"), config).unwrap();
    let region = format!(
        "[region]\nname = 'eu'\naddress = '0.0.0.0:443'\n[[region.tenant]]\nhost = '{HOST}'\ndata = 'tenants/acme'\n"
    );
    std::fs::write(folder.path().join("region.toml"), region).unwrap();
    let serve = ["serve", "--data", "tenants/acme", "--config", "serve.toml"];
    let _tenant = start(&server, folder.path(), "serve", &serve).await;
    let door = start(&server, folder.path(), "region", &["region", "--config", "region.toml"]).await;
    let ca = authority.path("ca.pem");
    let ask = |host: &Network, at: &str, more: &[&str]| curl(host, &ca, at, Some(&key), more);
    assert_eq!((ask(&inside, "10.9.1.1:443", &[]), ask(&outside, "10.9.2.1:443", &[])), (200, 403));
    // The door's word counts, and nobody's before it: a header of theirs is no handshake.
    assert_eq!(ask(&outside, "10.9.2.1:443", &["--haproxy-protocol"]), 0);
    let audit = server
        .command("curl")
        .args(["-sS", "--cacert"])
        .arg(&ca)
        .args(["--resolve", &format!("{HOST}:443:10.9.1.1"), "--interface", "10.9.1.1"])
        .args(["-H", &format!("authorization: Bearer {key}"), &format!("https://{HOST}:443/v1/egress?limit=1000")])
        .output()
        .unwrap();
    let audit = String::from_utf8_lossy(&audit.stdout).into_owned();
    assert!(audit.contains("address_not_allowed") && audit.contains("10.9.2.2"), "{audit}");
    // A door that is closed lets what was asked end.
    let slow = "import socket, ssl, sys, time\n\
        c = ssl.create_default_context(cafile=sys.argv[1])\n\
        s = c.wrap_socket(socket.create_connection(('10.9.1.1', 443)), server_hostname=sys.argv[2])\n\
        s.sendall(b'GET /health HTTP/1.1\\r\\nhost: x\\r\\n')\n\
        print('open', flush=True)\n\
        time.sleep(0.5)\n\
        s.sendall(b'connection: close\\r\\n\\r\\n')\n\
        sys.exit(s.recv(64)[9:12] != b'200')\n";
    let mut asking = inside.command("python3");
    asking.args(["-c", slow]).arg(&ca).arg(HOST);
    let mut asking = Running::until_said(&mut asking, "open");
    let _ = Command::new("kill").arg(door.0.id().to_string()).status();
    until("the door lets nobody in", || ask(&inside, "10.9.1.1:443", &[]) == 0).await;
    assert!(asking.0.wait().unwrap().success(), "it was not answered");
}

/// Opens connections, and keeps them until its input ends.
const FLOOD: &str = "
import socket, sys
kept = []
for _ in range(int(sys.argv[3])):
    try:
        kept.append(socket.create_connection((sys.argv[1], int(sys.argv[2])), 5))
    except OSError:
        pass
print('open', flush=True)
sys.stdin.read()
";

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_opens_ever_more_connections_leaves_some_to_others() {
    let (server, greedy, other) = (Network::new(), Network::new(), Network::new());
    server.join("10.9.0.1/24", &greedy, "10.9.0.2/24");
    server.join("10.9.1.1/24", &other, "10.9.1.2/24");
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    authority.sign("server", HOST, |_| {});
    let key = create(folder.path());
    let files = ["server.pem", "server.key"].map(|file| authority.path(file));
    let config =
        format!("[listen]\naddress = '0.0.0.0:8443'\ntls_cert = {:?}\ntls_key = {:?}\n{MODEL}", files[0], files[1]);
    std::fs::write(folder.path().join("serve.toml"), config).unwrap();
    let ready = folder.path().join("ready.json");
    let mut serve = server.command("sh");
    serve.args(["-c", "ulimit -n 400 && exec \"$0\" \"$@\""]).arg(executable());
    serve.args(["serve", "--data", "tenants/acme", "--config", "serve.toml", "--ready-file", "ready.json"]);
    serve.current_dir(folder.path()).stdout(Stdio::null()).stderr(Stdio::null());
    let _server = Running(serve.spawn().unwrap());
    until("it is ready", || ready.exists()).await;
    let ca = authority.path("ca.pem");
    let ask = |from: &Network, at: &str| curl(from, &ca, at, Some(&key), &[]);
    assert_eq!((ask(&greedy, "10.9.0.1:8443"), ask(&other, "10.9.1.1:8443")), (200, 200));
    let mut flood = greedy.command("python3");
    flood.args(["-c", FLOOD, "10.9.0.1", "8443", "350"]).stdin(Stdio::piped());
    let flood = Running::until_said(&mut flood, "open");
    assert_eq!((ask(&greedy, "10.9.0.1:8443"), ask(&other, "10.9.1.1:8443")), (0, 200));
    drop(flood);
    until("it is heard again", || ask(&greedy, "10.9.0.1:8443") == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_come_from_an_authority_that_looks_through_the_door() {
    let (network, folder, authority) = (Network::new(), tempfile::tempdir().unwrap(), Authority::new());
    authority.sign("acme", "acme.example.test", |_| {});
    authority.sign("client", "ci.example.test", |_| {});
    // What signs for it is made as its own kind expects: by OpenSSL.
    let issuing = authority.path("issuing");
    std::fs::create_dir(&issuing).unwrap();
    let mut request = Command::new("openssl");
    request.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]);
    request.args(["-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=issuing"]).current_dir(&issuing);
    assert!(request.stderr(Stdio::null()).status().unwrap().success());
    for file in ["acme.pem", "acme.key"] {
        std::fs::copy(authority.path(file), issuing.join(file)).unwrap();
    }
    let mut peer = network.command(peers().join("acme/bin/python"));
    peer.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/acme.py")).arg(&issuing);
    let _authority = Running::until_said(peer.stderr(Stdio::null()), "ready");
    create(folder.path());
    let ca = authority.path("ca.pem");
    let roots = [&ca, &issuing.join("ca.pem")].map(|file| std::fs::read_to_string(file).unwrap()).concat();
    std::fs::write(authority.path("roots.pem"), roots).unwrap();
    let roots = authority.path("roots.pem");
    // Nobody comes in without a certificate but the authority, which has none.
    let config = |hosts: &str| {
        let text = format!(
            "[listen]\naddress = '127.0.0.1:8443'\nclient_ca = {ca:?}\n\
             [listen.acme]\nhosts = {hosts}\ncontact = ['mailto:ops@example.test']\n\
             directory = 'https://acme.example.test:14000/directory'\nextra_ca = {ca:?}\n\
             [auth]\nrequire = [['mtls']]\n[[auth.mtls]]\nsan = 'ci.example.test'\nrole = 'admin'\n\
             [egress.hosts]\n'acme.example.test' = '127.0.0.1:14000'\n{MODEL}"
        );
        std::fs::write(folder.path().join("serve.toml"), text).unwrap();
    };
    let region = format!(
        "[region]\nname = 'eu'\naddress = '127.0.0.1:443'\n[[region.tenant]]\nhost = '{HOST}'\ndata = 'tenants/acme'\n"
    );
    std::fs::write(folder.path().join("region.toml"), region).unwrap();
    let arguments = ["serve", "--data", "tenants/acme", "--config", "serve.toml"];
    let serve = || start(&network, folder.path(), "serve", &arguments);
    let (certificate, key) = (authority.path("client.pem"), authority.path("client.key"));
    let client = ["--cert", certificate.to_str().unwrap(), "--key", key.to_str().unwrap()];
    let ask = |more: &[&str]| curl(&network, &roots, "127.0.0.1:443", None, more);
    let log = || std::fs::read_to_string(folder.path().join("serve.log")).unwrap();

    // The name leads to somebody else: that is said, and the server serves nobody.
    config(&format!("['{HOST}']"));
    let mut other = network.command("openssl");
    other
        .args(["s_server", "-accept", "127.0.0.1:443", "-alpn", "acme-tls/1", "-cert"])
        .arg(authority.path("acme.pem"));
    other.arg("-key").arg(authority.path("acme.key"));
    // It ends with its input.
    let other = other.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let other = Running(other.unwrap());
    let server = serve().await;
    until("the authority's refusal is said", || log().contains("no new certificate: ")).await;
    assert!(log().contains(HOST) && log().contains("asked again in 60 s"), "{}", log());
    assert_eq!(curl(&network, &roots, "127.0.0.1:8443", None, &client), 0, "there is no certificate yet");
    drop((server, other));

    let _door = start(&network, folder.path(), "region", &["region", "--config", "region.toml"]).await;
    let server = serve().await;
    until("there is a certificate", || ask(&client) == 200).await;
    assert_eq!(ask(&[]), 0, "others still need one of their own");
    let kept = folder.path().join("tenants/acme/acme");
    let first = std::fs::read_to_string(kept.join("certificate.pem")).unwrap();
    for (file, mode) in [("certificate.pem", 0o600), ("account.json", 0o600), ("", 0o700)] {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(kept.join(file)).unwrap().permissions().mode() & 0o777, mode, "{file}");
    }
    // Whoever asks for a proof when none is due is shown nothing.
    let mut probe = network.command("openssl");
    probe.args(["s_client", "-connect", "127.0.0.1:443", "-servername", HOST, "-alpn", "acme-tls/1"]);
    let shown = probe.stdin(Stdio::null()).output().unwrap();
    assert!(!String::from_utf8_lossy(&shown.stdout).contains("ALPN protocol: acme-tls/1"));
    drop(server);

    // The next server takes what there is, and gets no other.
    let server = serve().await;
    until("the next serves", || ask(&client) == 200).await;
    assert_eq!(std::fs::read_to_string(kept.join("certificate.pem")).unwrap(), first);
    drop(server);

    // One of whose time two thirds are over is replaced, by the same account, while it serves.
    let account = std::fs::read(kept.join("account.json")).unwrap();
    authority.sign("old", HOST, |params| {
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(1950, 1, 1), rcgen::date_time_ymd(2049, 1, 1));
    });
    let mark = first.lines().next().unwrap();
    assert!(mark.starts_with("# https://acme.example.test"));
    let old = ["old.pem", "old.key"].map(|file| std::fs::read_to_string(authority.path(file)).unwrap()).concat();
    let old = format!("{mark}\n{old}");
    std::fs::write(kept.join("certificate.pem"), &old).unwrap();
    let server = serve().await;
    assert_eq!(ask(&client), 200);
    until("it is replaced", || std::fs::read_to_string(kept.join("certificate.pem")).unwrap() != old).await;
    assert_eq!(std::fs::read(kept.join("account.json")).unwrap(), account);
    let serving = || {
        let mut probe = network.command("openssl");
        probe.args(["s_client", "-connect", "127.0.0.1:443", "-servername", HOST]).stdin(Stdio::null());
        String::from_utf8_lossy(&probe.output().unwrap().stdout).into_owned()
    };
    let (there, now) = (std::fs::read_to_string(kept.join("certificate.pem")).unwrap(), serving);
    let leaf = there.split("BEGIN CERTIFICATE-----").nth(1).unwrap().lines().nth(1).unwrap().to_owned();
    until("the new one is served, without a restart", || now().contains(&leaf)).await;
    drop(server);

    // What cannot be used is no reason not to start, but to get another.
    std::fs::write(kept.join("certificate.pem"), format!("{mark}\nnonsense")).unwrap();
    let _server = serve().await;
    until("there is a certificate again", || ask(&client) == 200).await;
}

/// A site: answers everybody over TLS, and says so.
const SITE: &str = "
import http.server, ssl, sys
class Site(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print('asked', file=open(sys.argv[3], 'a'), flush=True)
        self.send_response(200)
        self.send_header('content-length', '6')
        self.end_headers()
        self.wfile.write(b'public')
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(('0.0.0.0', 443), Site)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
server.socket = context.wrap_socket(server.socket, server_side=True)
print('ready', flush=True)
server.serve_forever()
";

#[tokio::test(flavor = "multi_thread")]
async fn an_open_session_reaches_public_hosts_and_no_others() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let names = [
        ("site", "198.41.0.10"),
        ("inside", "10.9.0.2"),
        ("metadata", "169.254.169.254"),
        ("own", "198.41.0.1"),
        ("loopback", "127.0.0.1"),
        ("mixed", "198.41.0.10"),
        ("mixed", "10.9.0.2"),
    ];
    let hosts = names.map(|(name, address)| format!("{address} {name}.public.test\n")).concat();
    std::fs::write(folder.path().join("hosts"), format!("127.0.0.1 localhost\n{hosts}")).unwrap();
    let (server, public) = (Network::with_hosts(&folder.path().join("hosts")), Network::new());
    // The same host has a public address and a private one; the site answers at both.
    server.join("198.41.0.1/24", &public, "198.41.0.10/24");
    server.join("10.9.0.1/24", &public, "10.9.0.2/24");
    server.join("169.254.169.253/24", &public, "169.254.169.254/24");
    authority.sign("site", "*.public.test", |_| {});
    let asked = folder.path().join("asked");
    let site = |network: &Network| {
        let mut site = network.command("python3");
        site.args(["-c", SITE]).arg(authority.path("site.pem")).arg(authority.path("site.key")).arg(&asked);
        Running::until_said(&mut site, "ready")
    };
    let (_public, _own) = (site(&public), site(&server));
    let config = folder.path().join("dev.toml");
    std::fs::write(&config, format!("[egress]\nextra_ca = {:?}\n", authority.path("ca.pem"))).unwrap();
    let (data, ready) = (folder.path().join("data"), folder.path().join("ready.json"));
    let mut dev = server.command(executable());
    dev.args(["dev", "--listen", "127.0.0.1:0", "--config"]).arg(&config).arg("--data").arg(&data);
    let dev = dev.arg("--ready-file").arg(&ready).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let _dev = Ended(dev);
    until("it is ready", || ready.exists()).await;
    let work = "for name in site inside metadata own loopback mixed; do \
                curl -s -m 10 -o /dev/null -w \"$name=%{http_code} \" https://$name.public.test/; done";
    let script = serde_json::json!({"tool": "bash", "input": {"command": work}}).to_string();
    let ask = |how: &[&str]| {
        let mut run = server.command(executable());
        run.args(["run", &format!("```script\n{script}\n```")]).args(how).arg("--data").arg(&data);
        let output = run.output().unwrap();
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat()
    };
    let said = ask(&["--open"]);
    let refused = ["inside=200", "metadata=200", "own=200", "loopback=200", "mixed=200"];
    assert!(said.contains("site=200") && said.contains("mixed="), "{said}");
    assert!(refused.iter().all(|one| !said.contains(one)), "{said}");
    assert_eq!(std::fs::read_to_string(&asked).unwrap(), "asked\n", "one request has arrived, in all");
    // Without a word about it, nothing is reached.
    let said = ask(&[]);
    assert!(said.contains("mixed=") && !said.contains("=200"), "{said}");
    assert_eq!(std::fs::read_to_string(&asked).unwrap(), "asked\n");
}
