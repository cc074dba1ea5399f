//! Tenants of one host, and the region's door before them: each boundary with its
//! neighbour broken on purpose.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use cloister_testkit::{Stack, until};
use serde_json::Value;

use crate::front::{Authority, me_at};

/// A server, ended when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = Command::new("kill").arg(self.0.id().to_string()).status();
            let _ = self.0.wait();
        }
    }
}

struct House {
    stack: Stack,
    root: tempfile::TempDir,
}

impl House {
    async fn new() -> Self {
        // A stack only for its executables.
        Self { stack: Stack::start().await, root: tempfile::tempdir().unwrap() }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(self.stack.executable()).args(arguments).current_dir(self.root.path()).output().unwrap()
    }

    fn create(&self, name: &str, region: &str) -> Value {
        let made = self.run(&["tenant", "create", name, "--region", region, "--root", "tenants"]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        serde_json::from_slice(&made.stdout).unwrap()
    }

    fn config(&self, name: &str, authority: &Authority, more: &str) -> PathBuf {
        let host = format!("{name}.example.test");
        authority.sign(name, &host, |_| {});
        let text = format!(
            "{more}\n[listen]\naddress = '127.0.0.1:0'\ntls_cert = {:?}\ntls_key = {:?}\n\
             [[model]]\nname = 'm'\nwire = 'openai-chat'\nbase_url = 'https://api.example.com/v1'\n",
            authority.path(&format!("{name}.pem")),
            authority.path(&format!("{name}.key")),
        );
        let path = self.root.path().join(format!("{name}.toml"));
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Starts a role and waits until it says that it is there.
    async fn start(&self, ready: &str, arguments: &[&str]) -> (Running, Value) {
        let ready = self.root.path().join(ready);
        let _ = std::fs::remove_file(&ready);
        let mut command = Command::new(self.stack.executable());
        command.args(arguments).arg("--ready-file").arg(&ready).current_dir(self.root.path());
        let child = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        until("it is ready", || ready.exists()).await;
        (child, serde_json::from_str(&std::fs::read_to_string(&ready).unwrap()).unwrap())
    }

    fn data(&self, name: &str) -> PathBuf {
        self.root.path().join("tenants").join(name)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_door_leads_to_each_tenant_and_to_nobody_else() {
    let (house, authority) = (House::new().await, Authority::new());
    let (acme, other) = (house.create("acme", "eu"), house.create("other", "eu"));
    let key = |made: &Value| made["key"].as_str().unwrap().to_owned();
    assert_eq!((acme["tenant"].as_str(), acme["region"].as_str()), (Some("acme"), Some("eu")));
    let mut running = Vec::new();
    for name in ["acme", "other"] {
        let config = house.config(name, &authority, "");
        let data = house.data(name);
        let arguments = ["serve", "--data", data.to_str().unwrap(), "--config", config.to_str().unwrap()];
        running.push(house.start(&format!("{name}.json"), &arguments).await.0);
    }
    let door = "[region]\nname = 'eu'\naddress = '127.0.0.1:0'\n\
                [[region.tenant]]\nhost = 'acme.example.test'\ndata = 'tenants/acme'\n\
                [[region.tenant]]\nhost = 'other.example.test'\ndata = 'tenants/other'\n";
    std::fs::write(house.root.path().join("region.toml"), door).unwrap();
    let (_door, said) = house.start("region.json", &["region", "--config", "region.toml"]).await;
    let port = said["address"].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
    let ca = authority.path("ca.pem");
    let call = |host: &str, key: &str| me_at(host, &port, &ca, None, Some(key)).0;
    assert_eq!(call("acme.example.test", &key(&acme)), 200);
    assert_eq!(call("other.example.test", &key(&other)), 200);
    // A key of one is nothing at the other; a name of nobody's is nothing at all.
    assert_eq!(call("other.example.test", &key(&acme)), 401);
    assert_eq!(call("unknown.example.test", &key(&acme)), 0);
    // Plain text, nonsense and half a handshake learn nothing.
    for sent in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x16\x03\x01\x00\x05hello", b"\r\n\r\n\0\r\nQUIT\n"] {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut socket = tokio::net::TcpStream::connect(format!("127.0.0.1:{port}")).await.unwrap();
        socket.write_all(sent).await.unwrap();
        socket.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(5), socket.read_to_end(&mut answer)).await.unwrap();
        assert!(answer.is_empty(), "{answer:?}");
    }
    // What the file says of tenants, the door hears while it is open; not nonsense.
    let table = house.root.path().join("region.toml");
    let (shorter, _) = door.split_at(door.rfind("[[").unwrap());
    // What a tenant does to its own files meanwhile holds up nobody.
    let (stamp, busy) = (house.data("acme").join("tenant.json"), std::sync::Arc::new(()));
    let going = std::sync::Arc::downgrade(&busy);
    let toucher = std::thread::spawn(move || {
        while going.strong_count() > 0 {
            std::fs::File::options()
                .append(true)
                .open(&stamp)
                .unwrap()
                .set_modified(std::time::SystemTime::now())
                .unwrap();
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    std::fs::write(&table, shorter).unwrap();
    until("it leads there no more", || call("other.example.test", &key(&other)) == 0).await;
    std::fs::write(&table, "nonsense").unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(call("acme.example.test", &key(&acme)), 200);
    std::fs::write(&table, door).unwrap();
    until("it leads there again", || call("other.example.test", &key(&other)) == 200).await;
    drop(busy);
    toucher.join().unwrap();
    // Suspended, it is reachable neither by the door nor by its own address.
    let suspended = house.run(&["tenant", "suspend", "acme", "--root", "tenants"]);
    assert!(suspended.status.success(), "{}", String::from_utf8_lossy(&suspended.stderr));
    assert_eq!(call("acme.example.test", &key(&acme)), 0);
    assert_eq!(call("other.example.test", &key(&other)), 200);
    assert!(running[0].0.try_wait().unwrap().is_some());
    assert!(!serve_says(&house, "acme").is_empty());
    // Resumed, it is as it was, and ends again with the next suspension.
    assert!(house.run(&["tenant", "resume", "acme", "--root", "tenants"]).status.success());
    let (data, config) = (house.data("acme"), house.root.path().join("acme.toml"));
    let arguments = ["serve", "--data", data.to_str().unwrap(), "--config", config.to_str().unwrap()];
    let (resumed, _) = house.start("acme.json", &arguments).await;
    assert_eq!(call("acme.example.test", &key(&acme)), 200);
    // While one server is replaced by the next, callers wait at the door.
    drop(resumed);
    let (port, ca, own) = (port.clone(), ca.clone(), key(&acme));
    let waiting = std::thread::spawn(move || me_at("acme.example.test", &port, &ca, None, Some(&own)).0);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!waiting.is_finished());
    let (_next, _) = house.start("acme.json", &arguments).await;
    assert_eq!(waiting.join().unwrap(), 200);
    assert!(house.run(&["tenant", "suspend", "acme", "--root", "tenants"]).status.success());
    let spared = ["vault.key", "tenant.db-pepper"].map(|name| {
        let spared = house.root.path().join(name);
        std::fs::hard_link(house.data("acme").join(name), &spared).unwrap();
        assert!(std::fs::read(&spared).unwrap().iter().any(|byte| *byte != 0));
        spared
    });
    // Removed, nothing of it can be read. The door opens without it, for the others.
    assert!(house.run(&["tenant", "rm", "acme", "--root", "tenants"]).status.success());
    assert!(!house.data("acme").exists());
    for spared in spared {
        assert!(std::fs::read(&spared).unwrap().iter().all(|byte| *byte == 0), "{}", spared.display());
    }
    assert!(!house.run(&["tenant", "rm", "other", "--root", "tenants"]).status.success(), "one that serves");
    let (_again, said) = house.start("again.json", &["region", "--config", "region.toml"]).await;
    let port = said["address"].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
    let call = |host: &str| me_at(host, &port, &authority.path("ca.pem"), None, Some(&key(&other))).0;
    assert_eq!((call("other.example.test"), call("acme.example.test")), (200, 0));
    // All that was done is written down, where it outlives the tenant.
    let log = house.run(&["--json", "tenant", "log", "--root", "tenants"]);
    let acts: Vec<Value> =
        String::from_utf8_lossy(&log.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |tenant: &str| -> Vec<&str> {
        let concerned = |act: &&Value| act["flags"][0] == format!("tenant:{tenant}").as_str();
        acts.iter().filter(concerned).map(|act| act["rule"].as_str().unwrap()).collect()
    };
    let all = ["tenant_made", "tenant_suspended", "tenant_resumed", "tenant_suspended", "tenant_removed"];
    assert_eq!((of("acme"), of("other")), (all.to_vec(), vec!["tenant_made"]));
    let by = |act: &Value| (act["caller"].as_str().unwrap().to_owned(), act["stream"].as_str().unwrap().to_owned());
    let us = format!("uid:{}", rustix::process::getuid().as_raw());
    assert!(acts.iter().all(|act| by(act) == (us.clone(), "host".into()) && act["region"] == "eu"), "{acts:?}");
    assert_eq!(acts[1]["previous"], acts[0]["hash"]);
    let verified = house.run(&["--data", "tenants", "audit", "verify"]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    use std::os::unix::fs::PermissionsExt;
    let chain = house.root.path().join("tenants/audit.db");
    assert_eq!(std::fs::metadata(&chain).unwrap().permissions().mode() & 0o777, 0o600);
    // What concerns one tenant, it sees itself: who has made keys at the host.
    let data = house.data("other");
    let made = house.run(&["--data", data.to_str().unwrap(), "key", "new", "--config", "other.toml"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let audit = Command::new("curl")
        .args(["-sS", "-m", "10", "--cacert"])
        .arg(authority.path("ca.pem"))
        .args(["--resolve", &format!("other.example.test:{port}:127.0.0.1")])
        .args(["-H", &format!("authorization: Bearer {}", key(&other))])
        .arg(format!("https://other.example.test:{port}/v1/egress?limit=1000"))
        .output()
        .unwrap();
    let audit: Value = serde_json::from_slice(&audit.stdout).unwrap();
    let made = audit["data"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|record| record["rule"] == "key_made" && record["stream"] == "host");
    assert_eq!(made.count(), 2, "{audit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_written_down_opens_nothing_and_is_closed_all_the_same() {
    let house = House::new().await;
    house.create("acme", "eu");
    let chain = house.root.path().join("tenants/audit.db");
    std::fs::rename(&chain, house.root.path().join("kept.db")).unwrap();
    std::fs::create_dir(&chain).unwrap();
    let tenant = |verb: &[&str]| {
        let output = house.run(&[&["tenant"], verb, &["--root", "tenants"]].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("the audit cannot be written"), "{verb:?}: {said}");
    };
    let suspended = || house.root.path().join("tenants/acme.suspended").exists();
    tenant(&["create", "other", "--region", "eu"]);
    assert!(!house.data("other").exists());
    tenant(&["suspend", "acme"]);
    assert!(suspended());
    tenant(&["resume", "acme"]);
    assert!(suspended());
    tenant(&["rm", "acme"]);
    assert!(!house.data("acme").exists());
    // Moved aside, a new one begins.
    std::fs::remove_dir(&chain).unwrap();
    house.create("other", "eu");
}

/// What a tenant's user may do to its own data, root's commands do not follow.
#[tokio::test(flavor = "multi_thread")]
async fn root_is_not_led_astray_by_what_a_tenant_has_put_in_its_folder() {
    use std::os::unix::fs::{MetadataExt, symlink};
    if !rustix::process::geteuid().is_root() {
        return;
    }
    const USER: u32 = 54_333;
    let (house, authority) = (House::new().await, Authority::new());
    std::fs::set_permissions(house.root.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let create = || {
        let user = USER.to_string();
        let made = house.run(&["tenant", "create", "acme", "--region", "eu", "--root", "tenants", "--user", &user]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    };
    let tenant = |verb: &str| house.run(&["tenant", verb, "acme", "--root", "tenants"]).status.success();
    create();
    // Suspended before it has ever served, it can serve afterwards.
    assert!(tenant("suspend") && tenant("resume"));
    let (data, config) = (house.data("acme"), house.config("acme", &authority, ""));
    assert_eq!(std::fs::metadata(data.join("lock")).unwrap().uid(), USER);
    // Whose it is, is not what its user has written.
    let stamp = data.join("tenant.json");
    let written = std::fs::read_to_string(&stamp).unwrap();
    let new_key = || house.run(&["--data", data.to_str().unwrap(), "key", "new", "--config", config.to_str().unwrap()]);
    // What root alone can read shows who reads it.
    let may_read =
        |mode| std::fs::set_permissions(&config, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    may_read(0o600);
    for claim in ["{\"tenant\":\"acme\",\"region\":\"eu\"}", "nonsense", &written.replace("54333", "54334")] {
        std::fs::write(&stamp, claim).unwrap();
        assert!(!new_key().status.success(), "{claim}");
        for entry in std::fs::read_dir(&data).unwrap().flatten().filter(|entry| entry.path() != stamp) {
            assert_eq!(entry.metadata().unwrap().uid(), USER, "{claim}: {}", entry.path().display());
        }
    }
    may_read(0o644);
    std::fs::write(&stamp, &written).unwrap();
    std::os::unix::fs::chown(&stamp, Some(USER), Some(USER)).unwrap();
    assert!(new_key().status.success());
    // Links, and what would make whoever opens it wait.
    let precious = house.root.path().join("precious");
    std::fs::write(&precious, "precious").unwrap();
    let planted = ["lock", "vault.lock", "vault.key", "tenant.db-pepper", "suspended"];
    let mut missing = Vec::new();
    for name in planted {
        let _ = std::fs::remove_file(data.join(name));
        let target = house.root.path().join(format!("made-{name}"));
        symlink(if name == "lock" { &target } else { &precious }, data.join(name)).unwrap();
        missing.push(target);
    }
    // What it has made of its stamp keeps nobody from suspending it, or from listing the others.
    let other = house.run(&["tenant", "create", "other", "--region", "eu", "--root", "tenants"]);
    assert!(other.status.success());
    for spoil in ["rm -f {}", "rm -f {}; mkfifo {}", "rm -rf {}; ln -s /dev/zero {}", "rm -f {}; mkdir {}"] {
        let spoil = spoil.replace("{}", stamp.to_str().unwrap());
        assert!(Command::new("sh").args(["-c", &spoil]).status().unwrap().success());
        std::fs::rename(data.join("lock"), house.root.path().join("lock")).unwrap();
        let listed = || {
            let listed = house.run(&["--json", "tenant", "ls", "--root", "tenants"]);
            let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
            let of = |at: usize, field: &str| listed[at][field].as_str().unwrap_or_default().to_owned();
            assert_eq!((of(0, "tenant"), of(1, "tenant")), ("acme".into(), "other".into()), "{listed}");
            (of(0, "state"), of(1, "state"))
        };
        assert_eq!(listed(), ("spoilt".into(), "active".into()), "{spoil}");
        assert!(tenant("suspend"), "{spoil}");
        assert_eq!(listed(), ("suspended".into(), "active".into()), "{spoil}");
        assert!(tenant("resume"));
        std::fs::rename(house.root.path().join("lock"), data.join("lock")).unwrap();
    }
    std::fs::remove_dir(&stamp).unwrap();
    // What was never made here is no tenant.
    std::fs::create_dir(house.root.path().join("tenants/backups")).unwrap();
    assert!(!house.run(&["tenant", "suspend", "backups", "--root", "tenants"]).status.success());
    std::fs::remove_dir(house.root.path().join("tenants/backups")).unwrap();
    // Nor does it put words into root's log.
    let forged = "{\"tenant\":\"acme\",\"region\":\"eu\\n9  tenant_resumed\"}";
    std::fs::write(&stamp, forged).unwrap();
    assert!(!tenant("suspend"), "a lock that is none");
    let log = house.run(&["tenant", "log", "--root", "tenants"]);
    assert!(!String::from_utf8_lossy(&log.stdout).contains("9  tenant_resumed"));
    std::fs::write(&stamp, &written).unwrap();
    std::fs::remove_file(data.join("lock")).unwrap();
    assert!(tenant("suspend"));
    // It is not the tenant that takes its suspension away.
    let mut lift = Command::new("rm");
    lift.args(["-f", "tenants/acme.suspended"]).current_dir(house.root.path()).stderr(Stdio::null());
    assert!(!std::os::unix::process::CommandExt::uid(&mut lift, USER).status().unwrap().success());
    assert!(tenant("rm") && !data.exists());
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
    assert!(missing.iter().all(|path| !path.exists()));
    // One of the same name begins afresh.
    create();
    let listed = house.run(&["--json", "tenant", "ls", "--root", "tenants"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!((listed.as_array().unwrap().len(), listed[0]["state"].as_str()), (2, Some("active")));
    assert_eq!(listed[0]["user"]["uid"], USER);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_with_a_user_of_its_own_runs_as_that_user_alone() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::process::CommandExt;
    if !rustix::process::geteuid().is_root() {
        return;
    }
    const USERS: [(&str, u32); 2] = [("acme", 54_331), ("other", 54_332)];
    let (house, authority) = (House::new().await, Authority::new());
    let open = |path: &Path| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    open(house.root.path());
    open(authority.path("").as_path());
    let mut running = Vec::new();
    for (name, uid) in USERS {
        let user = uid.to_string();
        let made = house.run(&["tenant", "create", name, "--region", "eu", "--root", "tenants", "--user", &user]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let config = house.config(name, &authority, "");
        std::os::unix::fs::chown(authority.path(&format!("{name}.key")), Some(uid), Some(uid)).unwrap();
        let data = house.data(name);
        let (data, config) = (data.to_str().unwrap(), config.to_str().unwrap());
        // Root's own commands leave nothing of root's behind.
        let key = house.run(&["--data", data, "key", "new", "--config", config]);
        assert!(key.status.success(), "{}", String::from_utf8_lossy(&key.stderr));
        let ready = house.root.path().join(format!("{name}.ready"));
        std::fs::create_dir(&ready).unwrap();
        std::os::unix::fs::chown(&ready, Some(uid), Some(uid)).unwrap();
        let arguments = ["serve", "--data", data, "--config", config];
        let (server, said) = house.start(&format!("{name}.ready/ready.json"), &arguments).await;
        let port = said["url"].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
        let key = String::from_utf8(key.stdout).unwrap();
        let host = format!("{name}.example.test");
        assert_eq!(me_at(&host, &port, &authority.path("ca.pem"), None, Some(key.trim())).0, 200);
        running.push((server, uid));
    }
    for (server, uid) in &running {
        let mut all = cloister_testkit::descendants(server.0.id());
        all.push(server.0.id());
        assert!(all.len() >= 4, "server, spawner, vault, egress: {all:?}");
        for pid in all {
            let Ok(about) = std::fs::metadata(format!("/proc/{pid}")) else { continue };
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let ids = status.lines().find(|line| line.starts_with("Uid:")).unwrap_or_default().to_owned();
            assert!(ids.split_whitespace().skip(1).all(|id| id == uid.to_string()), "{pid}: {ids} {}", about.uid());
        }
    }
    for (name, uid) in USERS {
        for entry in std::fs::read_dir(house.data(name)).unwrap().flatten() {
            assert_eq!(entry.metadata().unwrap().uid(), uid, "{}", entry.path().display());
        }
        let other = USERS.iter().find(|(_, id)| *id != uid).unwrap().0;
        let as_user = |program: &str, arguments: &[&str]| {
            Command::new(program).args(arguments).uid(uid).gid(uid).current_dir("/").output().unwrap().status.success()
        };
        let (own, others) = (house.data(name), house.data(other));
        assert!(as_user("ls", &[own.to_str().unwrap()]));
        for path in ["", "tenant.db", "vault.key", "door"] {
            assert!(!as_user("ls", &[others.join(path).to_str().unwrap()]), "{name} sees {path} of {other}");
        }
        assert!(!as_user("ls", &[house.root.path().join("tenants").to_str().unwrap()]), "nor who else there is");
        let config = house.root.path().join(format!("{other}.toml"));
        let arguments = ["serve", "--data", others.to_str().unwrap(), "--config", config.to_str().unwrap()];
        assert!(!as_user(house.stack.executable().to_str().unwrap(), &arguments));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_made_whole_or_not_at_all() {
    let house = House::new().await;
    house.create("acme", "eu");
    // Whoever was killed in the middle has left something half made.
    let making = house.root.path().join("tenants/.making");
    std::fs::create_dir(&making).unwrap();
    std::fs::copy(house.data("acme").join("tenant.json"), making.join("tenant.json")).unwrap();
    let listed = house.run(&["--json", "tenant", "ls", "--root", "tenants"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    house.create("other", "eu");
    assert!(!making.exists());
    assert!(!house.run(&["tenant", "create", "acme", "--region", "us", "--root", "tenants"]).status.success());
    // At once, each once.
    let both: Vec<Child> = (0..4)
        .map(|_| {
            let mut command = Command::new(house.stack.executable());
            command.args(["tenant", "create", "third", "--region", "eu", "--root", "tenants"]);
            command.current_dir(house.root.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    let made = both.into_iter().filter_map(|child| child.wait_with_output().ok()).filter(|o| o.status.success());
    assert_eq!(made.count(), 1);
}

/// Why a tenant's server does not start; empty if it does.
fn serve_says(house: &House, name: &str) -> String {
    let (data, config) = (house.data(name), house.root.path().join(format!("{name}.toml")));
    let output = house.run(&["serve", "--data", data.to_str().unwrap(), "--config", config.to_str().unwrap()]);
    if output.status.success() { String::new() } else { String::from_utf8_lossy(&output.stderr).into_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_is_for_good() {
    let (house, authority) = (House::new().await, Authority::new());
    house.create("acme", "eu");
    assert!(!house.run(&["tenant", "create", "acme", "--region", "us", "--root", "tenants"]).status.success());
    house.config("acme", &authority, "region = 'us'");
    let why = serve_says(&house, "acme");
    assert!(why.contains("region"), "{why}");
    house.config("acme", &authority, "tenant = 'other'");
    assert!(serve_says(&house, "acme").contains("tenant"));
    let config = house.config("acme", &authority, "");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text + "region = 'us'\n").unwrap();
    let why = serve_says(&house, "acme");
    assert!(why.contains("model \"m\" lies in region \"us\""), "{why}");
    std::fs::write(
        house.root.path().join("region.toml"),
        "[region]\nname = 'us'\naddress = '127.0.0.1:0'\n[[region.tenant]]\nhost = 'acme.example.test'\ndata = 'tenants/acme'\n",
    )
    .unwrap();
    let refused = house.run(&["region", "--config", "region.toml"]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("eu"));
    for bad in ["../acme", "Acme", "", "a/b"] {
        assert!(
            !house.run(&["tenant", "create", bad, "--region", "eu", "--root", "tenants"]).status.success(),
            "{bad}"
        );
    }
    let listed = house.run(&["--json", "tenant", "ls", "--root", "tenants"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!((listed[0]["tenant"].as_str(), listed[0]["region"].as_str()), (Some("acme"), Some("eu")));
    assert!(Path::new(listed[0]["data"].as_str().unwrap()).is_absolute());
    // Whose the data is, the vault's commands find in it as the server does.
    house.config("acme", &authority, "");
    let arguments = ["serve", "--data", "tenants/acme", "--config", "acme.toml"];
    drop(house.start("acme.json", &arguments).await);
    let rotate = || house.run(&["--data", "tenants/acme", "vault", "rotate", "--config", "acme.toml"]);
    until("the vault is rotated", || rotate().status.success()).await;
    drop(house.start("acme.json", &arguments).await);
    house.config("acme", &authority, "tenant = 'other'");
    assert!(!rotate().status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_door_lets_go_of_clients_whose_tenant_has_closed() {
    use std::io::Read;
    let (house, authority) = (House::new().await, Authority::new());
    house.create("acme", "eu");
    let (config, data) = (house.config("acme", &authority, ""), house.data("acme"));
    let arguments = ["serve", "--data", data.to_str().unwrap(), "--config", config.to_str().unwrap()];
    let (tenant, _) = house.start("acme.json", &arguments).await;
    let region = "[region]\nname = 'eu'\naddress = '127.0.0.1:0'\n\
                  [[region.tenant]]\nhost = 'acme.example.test'\ndata = 'tenants/acme'\n";
    std::fs::write(house.root.path().join("region.toml"), region).unwrap();
    let (door, said) = house.start("region.json", &["region", "--config", "region.toml"]).await;
    let open = || std::fs::read_dir(format!("/proc/{}/fd", door.0.id())).unwrap().count();
    let before = open();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let config = std::sync::Arc::new(config);
    // They say whom they want, and then nothing; nor do they close.
    let silent = (0..20).map(|_| {
        let mut socket = std::net::TcpStream::connect(said["address"].as_str().unwrap()).unwrap();
        let name = "acme.example.test".try_into().unwrap();
        rustls::ClientConnection::new(config.clone(), name).unwrap().write_tls(&mut socket).unwrap();
        socket.read_exact(&mut [0; 5]).unwrap();
        socket
    });
    let silent = silent.collect::<Vec<_>>();
    assert!(open() >= before + 40, "both sides of each");
    drop(tenant);
    let began = std::time::Instant::now();
    while open() > before {
        assert!(began.elapsed() < Duration::from_secs(40), "{} of {before} are open", open());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    drop(silent);
}
