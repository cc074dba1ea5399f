//! Where the vault's key comes from, and what becomes of it: a key service, a
//! systemd credential, a recovery key.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use cloister_testkit::{Ended, Options, Stack, TRANSIT_TOKEN, Upstream, children, freeze, is_gone, thaw, until};
use serde_json::{Value, json};

use crate::egress::{bearer, connect, verify_aws};

const NAMES: [&str; 2] = ["127.0.0.1", "api.example.test"];
const CANARY: &str = "sk_canary+9f8e/7d6c=5b4a3210";

/// The credential arrives at the other side.
async fn is_attached(stack: &Stack, upstream: &Upstream) {
    let session = stack.session_with(json!({"connections": ["api"]})).await.id;
    let (said, failed) = stack.bash(&session, "curl -sS -m 10 https://api.example.test/attached").await;
    assert!(!failed, "{said}");
    let seen = upstream.seen().into_iter().rfind(|seen| seen.target == "/attached").unwrap();
    assert_eq!(seen.headers["authorization"], format!("Bearer {CANARY}").as_str());
}

/// A `cloister` command on the stack's data.
fn run(stack: &Stack, arguments: &[&str]) -> Output {
    let mut command = Command::new(stack.executable());
    command.args(["--data", "data"]).args(arguments).current_dir(stack.folder()).env_clear().output().unwrap()
}

/// A server that does not start, and why.
fn refusal(stack: &Stack) -> String {
    let output = run(stack, &["dev", "--listen", "127.0.0.1:0", "--config", "config.toml"]);
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn rewrite(path: &Path, change: impl FnOnce(String) -> String) {
    std::fs::write(path, change(std::fs::read_to_string(path).unwrap())).unwrap();
}

async fn with_credential(upstream: &Upstream, vault: &str, options: Options) -> Stack {
    let config = format!("tenant = 'acme'\nregion = 'eu'\n{vault}\n{}", upstream.config(&NAMES[1..]));
    let stack = Stack::with(Options { config: Some(config), ..options }).await;
    connect(&stack, "api", bearer("api.example.test"), json!({"kind": "static", "value": CANARY})).await;
    is_attached(&stack, upstream).await;
    stack
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_service_opens_the_key_for_this_tenant_in_this_region() {
    let upstream = Upstream::start(&NAMES).await;
    let secrets = tempfile::tempdir().unwrap();
    let (token, aws) = (secrets.path().join("token"), secrets.path().join("aws"));
    std::fs::write(&token, format!("{TRANSIT_TOKEN}\n")).unwrap();
    std::fs::write(&aws, format!("[default]\naws_access_key_id = AKID\naws_secret_access_key = {CANARY}\n")).unwrap();
    let address = format!("https://{}", upstream.address());
    for kms in [
        format!("kind = 'transit'\naddress = '{address}'\nkey = 'cloister'\ntoken_file = {token:?}"),
        format!(
            "kind = 'aws'\nkey = 'alias/cloister'\nregion = 'eu-central-1'\ncredentials_file = {aws:?}\nendpoint = '{address}'"
        ),
    ] {
        let key = secrets.path().join("vault.key");
        let vault = format!("[vault]\nkey_file = {key:?}\n[vault.kms]\n{kms}");
        let stack = with_credential(&upstream, &vault, Options::default()).await;
        let text = std::fs::read_to_string(&key).unwrap();
        assert!(text.starts_with("kms:"), "{text}");
        assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        let mut stack = stack.kill_and_restart().await;
        is_attached(&stack, &upstream).await;
        if let Some(call) = upstream.seen().iter().find(|seen| seen.headers.contains_key("x-amz-target")) {
            verify_aws(call, CANARY, ("eu-central-1", "kms"));
        }
        stack.terminate().await;
        // What was closed for a tenant in its region opens nowhere else.
        let config = stack.folder().join("config.toml");
        rewrite(&config, |text| text.replace("region = 'eu'\n", "region = 'us'\n"));
        let why = refusal(&stack);
        assert!(why.contains("the key service at") && !why.contains(CANARY), "{why}");
        rewrite(&config, |text| text.replace("region = 'us'\n", "region = 'eu'\n").replace("[vault.kms]", "[other]"));
        assert!(!run(&stack, &["dev", "--listen", "127.0.0.1:0", "--config", "config.toml"]).status.success());
        std::fs::remove_file(&key).unwrap();
        let _ = std::fs::remove_file(secrets.path().join("vault.key.guard"));
    }
    // A service that says no is quoted.
    std::fs::write(&token, "wrong").unwrap();
    let mut stack = Stack::start().await;
    stack.terminate().await;
    std::fs::remove_dir_all(stack.folder().join("data")).unwrap();
    let config = format!(
        "[vault.kms]\nkind = 'transit'\naddress = '{address}'\nkey = 'cloister'\ntoken_file = {token:?}\n[egress]\nextra_ca = {:?}\n",
        upstream.ca()
    );
    std::fs::write(stack.folder().join("config.toml"), config).unwrap();
    let why = refusal(&stack);
    assert!(why.contains("403") && why.contains("permission denied"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_key_is_recovered_with_one_that_was_kept_offline() {
    let upstream = Upstream::start(&NAMES).await;
    let spare = Stack::start().await;
    let make =
        || -> Value { serde_json::from_slice(&run(&spare, &["--json", "vault", "recovery-key"]).stdout).unwrap() };
    let (ours, another) = (make(), make());
    let vault = format!("[vault]\nrecovery = [{}]", ours["public"]);
    let mut stack = with_credential(&upstream, &vault, Options::default()).await;
    stack.terminate().await;
    // The recovery key holds for the root key of the time after a rotation, too.
    let rotated = run(&stack, &["vault", "rotate", "--config", "config.toml"]);
    assert!(rotated.status.success(), "{}", String::from_utf8_lossy(&rotated.stderr));
    std::fs::remove_file(stack.folder().join("data/vault.key")).unwrap();
    std::fs::remove_file(stack.folder().join("data/vault.key.guard")).unwrap();
    let why = refusal(&stack);
    assert!(why.contains("vault.key"), "{why}");
    let recover = |key: &Value| {
        std::fs::write(stack.folder().join("recovery"), key["private"].as_str().unwrap()).unwrap();
        run(&stack, &["vault", "recover", "--config", "config.toml", "--recovery-key", "recovery"])
    };
    assert!(!recover(&another).status.success());
    let recovered = recover(&ours);
    assert!(recovered.status.success(), "{}", String::from_utf8_lossy(&recovered.stderr));
    let mut stack = stack.restart().await;
    is_attached(&stack, &upstream).await;
    // Whoever is taken out of the list opens nothing any more.
    stack.terminate().await;
    rewrite(&stack.folder().join("config.toml"), |text| {
        text.replace(ours["public"].as_str().unwrap(), another["public"].as_str().unwrap())
    });
    let mut stack = stack.restart().await;
    stack.terminate().await;
    std::fs::write(stack.folder().join("recovery"), ours["private"].as_str().unwrap()).unwrap();
    let refused = run(&stack, &["vault", "recover", "--config", "config.toml", "--recovery-key", "recovery"]);
    assert!(!refused.status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_systemd_credential_is_the_key() {
    let upstream = Upstream::start(&NAMES).await;
    let credentials = tempfile::tempdir().unwrap();
    std::fs::write(credentials.path().join("cloister-vault-key"), "5a".repeat(32)).unwrap();
    let environment = vec![("CREDENTIALS_DIRECTORY".into(), credentials.path().display().to_string())];
    let guard = credentials.path().join("guard");
    let vault = format!("[vault]\nguard_file = {guard:?}");
    let stack = with_credential(&upstream, &vault, Options { environment, ..Options::default() }).await;
    assert!(guard.exists() && !stack.folder().join("data/vault.key").exists());
    let mut stack = stack.kill_and_restart().await;
    is_attached(&stack, &upstream).await;
    stack.terminate().await;
    // Without it, nothing of the data opens.
    let why = refusal(&stack);
    assert!(why.contains("vault.key"), "{why}");
    // Nor does a key of its own take its place if the unit brings others only.
    std::fs::remove_file(credentials.path().join("cloister-vault-key")).unwrap();
    let mut command = Command::new(stack.executable());
    command.args(["dev", "--listen", "127.0.0.1:0", "--config", "config.toml", "--data", "other"]);
    command.current_dir(stack.folder()).env("CREDENTIALS_DIRECTORY", credentials.path());
    let why = String::from_utf8(command.output().unwrap().stderr).unwrap();
    assert!(why.contains("LoadCredential="), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_that_opens_slowly_is_waited_for_and_the_server_can_be_ended_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let model = "[[model]]\nname = 'm'\nwire = 'openai-chat'\nbase_url = 'https://api.example.com/v1'\n";
    let (config, ready) = (folder.path().join("config.toml"), folder.path().join("ready.json"));
    std::fs::write(&config, format!("data = 'data'\nlisten = '127.0.0.1:0'\n{model}")).unwrap();
    // A server whose vault is stopped before it has answered, and that.
    let start = || loop {
        let mut serve = Command::new(cloister_testkit::executable());
        serve.args(["serve", "--config"]).arg(&config).arg("--ready-file").arg(&ready);
        let serve = Ended(serve.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let is_vault = |pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == b"vault-process")
        };
        let vault = loop {
            if let Some(vault) = children(serve.0.id()).into_iter().find(is_vault) {
                break vault;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        freeze(vault);
        std::thread::sleep(Duration::from_millis(500));
        if !ready.exists() {
            return (serve, vault);
        }
        // It was faster.
        thaw(vault);
        drop(serve);
        std::fs::remove_file(&ready).unwrap();
    };
    let (server, vault) = start();
    // Longer than one that has opened may be silent.
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert!(!ready.exists() && !is_gone(vault));
    thaw(vault);
    until("it serves", || ready.exists()).await;
    drop(server);
    std::fs::remove_file(&ready).unwrap();
    let (mut server, vault) = start();
    let _ = Command::new("kill").arg(server.0.id().to_string()).status();
    until("it ends", || matches!(server.0.try_wait(), Ok(Some(_)))).await;
    assert_eq!(server.0.wait().unwrap().code(), Some(0));
    thaw(vault);
    until("and its vault with it", || is_gone(vault)).await;
}
