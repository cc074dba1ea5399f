//! Client certificates at their edges: which are taken for whose, and what changes
//! while the server is at work.

use std::process::Command;
use std::time::Duration;

use cloister_testkit::{Stack, until};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use crate::front::{Authority, me, named, serve};

fn config(servers: &Authority, listen: &str, rules: &str) -> String {
    format!(
        "[listen]\ntls_cert = {:?}\ntls_key = {:?}\n{listen}\n[auth]\nrequire = [['bearer'], ['mtls']]\n{rules}",
        servers.path("server.pem"),
        servers.path("server.key")
    )
}

fn servers() -> Authority {
    let servers = Authority::new();
    servers.sign("server", "tenant.example.test", |_| {});
    servers
}

/// The SHA-256 of a certificate's public key, as people find it out.
fn spki(certificate: &std::path::Path) -> String {
    let pipe = "openssl x509 -in \"$0\" -pubkey -noout | openssl pkey -pubin -outform der | sha256sum";
    let output = Command::new("sh").args(["-c", pipe]).arg(certificate).output().unwrap();
    String::from_utf8_lossy(&output.stdout)[..64].to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_a_common_name_and_a_chain_are_worth_what_they_say() {
    let (servers, clients) = (servers(), Authority::new());
    clients.sign("pinned", "pinned.example.test", |_| {});
    clients.sign("copy", "pinned.example.test", |_| {});
    // The file's name is the common name. It counts where there is no other name alone.
    let nameless = |params: &mut CertificateParams| params.subject_alt_names.clear();
    clients.sign("ci-runner", "none.example.test", nameless);
    clients.sign("sneaky", "other.example.test", |params| params.distinguished_name = named("ci-runner"));
    clients.sign("early", "ci.example.test", |params| params.not_before = rcgen::date_time_ymd(2090, 1, 1));
    clients.sign("ci", "ci.example.test", |_| {});
    // One of their own making, with the same names; and one of an authority below theirs.
    let (own_key, mut own) =
        (KeyPair::generate().unwrap(), CertificateParams::new(vec!["ci.example.test".into()]).unwrap());
    own.distinguished_name = named("authority");
    std::fs::write(clients.path("own.pem"), own.self_signed(&own_key).unwrap().pem()).unwrap();
    std::fs::write(clients.path("own.key"), own_key.serialize_pem()).unwrap();
    let below = |is_ca: IsCa, file: &str| {
        let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
        params.distinguished_name = named("below");
        params.is_ca = is_ca;
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.signed_by(&key, clients.issuer()).unwrap();
        let (below, leaf_key) = (Issuer::new(params, key), KeyPair::generate().unwrap());
        let leaf = CertificateParams::new(vec!["ci.example.test".into()]).unwrap();
        let leaf = leaf.signed_by(&leaf_key, &below).unwrap();
        std::fs::write(clients.path(&format!("{file}.pem")), leaf.pem() + &certificate.pem()).unwrap();
        std::fs::write(clients.path(&format!("{file}-alone.pem")), leaf.pem()).unwrap();
        for name in [format!("{file}.key"), format!("{file}-alone.key")] {
            std::fs::write(clients.path(&name), leaf_key.serialize_pem()).unwrap();
        }
    };
    below(IsCa::Ca(BasicConstraints::Constrained(0)), "chained");
    below(IsCa::ExplicitNoCa, "forged");
    let rules = format!(
        "[[auth.mtls]]\nsan = 'pinned.example.test'\nrole = 'admin'\ncaller = 'pinned'\nspki = '{}'\n\
         [[auth.mtls]]\nsan = 'ci-runner'\nrole = 'viewer'\ncaller = 'by-common-name'\n\
         [[auth.mtls]]\nsan = 'ci.example.test'\nrole = 'operator'\ncaller = 'ci'\n",
        spki(&clients.path("pinned.pem")).to_uppercase()
    );
    let stack = serve(&config(&servers, &format!("client_ca = {:?}", clients.path("ca.pem")), &rules)).await;
    let ca = servers.path("ca.pem");
    for (file, expected) in [
        ("pinned", (200, Some("pinned"))),
        ("copy", (401, None)),
        ("ci-runner", (200, Some("by-common-name"))),
        ("sneaky", (401, None)),
        ("ci", (200, Some("ci"))),
        ("early", (0, None)),
        ("own", (0, None)),
        ("chained", (200, Some("ci"))),
        ("chained-alone", (0, None)),
        ("forged", (0, None)),
    ] {
        let (status, known) = me(&stack, &ca, Some((&clients, file)), None);
        assert_eq!((status, known["caller"].as_str()), expected, "{file}: {known}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn authorities_and_lists_of_the_revoked_may_change_while_calls_go_on() {
    let (servers, clients, others) = (servers(), Authority::new(), Authority::new());
    clients.sign("ci", "ci.example.test", |params| params.serial_number = Some(7_u64.into()));
    others.sign("ci", "ci.example.test", |_| {});
    clients.revoke(8, 2044);
    let (bundle, list) = (servers.path("clients.pem"), servers.path("list.pem"));
    let copy = |from: &Authority, file: &str, to| std::fs::copy(from.path(file), to).map(drop).unwrap();
    copy(&clients, "ca.pem", &bundle);
    copy(&clients, "crl.pem", &list);
    let rules = "[[auth.mtls]]\nsan = 'ci.example.test'\nrole = 'viewer'\n\
                 [[listener]]\naddress = '127.0.0.1:0'\nrequire = [['bearer']]\n";
    let stack = serve(&config(&servers, &format!("client_ca = {bundle:?}\nclient_crl = {list:?}"), rules)).await;
    let ca = servers.path("ca.pem");
    let status = |who: &Authority| me(&stack, &ca, Some((who, "ci")), None).0;
    assert_eq!((status(&clients), status(&others)), (200, 0));
    clients.revoke(7, 2044);
    copy(&clients, "crl.pem", &list);
    until("a certificate that was revoked is refused", || status(&clients) == 0).await;
    clients.revoke(8, 2044);
    copy(&clients, "crl.pem", &list);
    until("with a new list it is heard again", || status(&clients) == 200).await;
    // A file without a list, or with two of one authority, is not used: nobody would be revoked.
    let good = std::fs::read_to_string(&list).unwrap();
    for bad in ["", "nonsense", &format!("{good}{good}")] {
        std::fs::write(&list, bad).unwrap();
        let said = stack.log().matches("are not used").count();
        until("it is not used", || stack.log().matches("are not used").count() > said).await;
        assert_eq!(status(&clients), 200, "{bad}");
    }
    // A list that should have been replaced does not say who was revoked since.
    clients.revoke(8, 2025);
    copy(&clients, "crl.pem", &list);
    until("certificates are refused then", || status(&clients) == 0).await;
    until("that is said", || stack.log().contains("past its nextUpdate")).await;
    clients.revoke(8, 2044);
    copy(&clients, "crl.pem", &list);
    until("with a new list it is heard again", || status(&clients) == 200).await;
    // Nobody goes on with an earlier handshake, as they could where no list counts.
    let goes_on = |at: usize| {
        let (kept, url) = (servers.path(&format!("kept-{at}")), stack.urls()[at].clone());
        let shake = |how: &str| {
            let mut client = Command::new("openssl");
            client.args(["s_client", "-tls1_2", "-connect", url.rsplit('/').next().unwrap(), how]).arg(&kept);
            client.arg("-cert").arg(clients.path("ci.pem")).arg("-key").arg(clients.path("ci.key"));
            let output = client.stdin(std::process::Stdio::null()).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        assert!(shake("-sess_out").contains("New, TLSv1.2"));
        kept.exists() && shake("-sess_in").contains("Reused, TLSv1.2")
    };
    assert_eq!((goes_on(0), goes_on(1)), (false, true));
    // Whoever has no certificate is not concerned by any of that.
    assert_eq!(me(&stack, &ca, None, Some(&stack.key)).0, 200);
    // Another authority in its place.
    others.revoke(1, 2044);
    copy(&others, "crl.pem", &list);
    copy(&others, "ca.pem", &bundle);
    until("the new authority's are taken, the old one's are not", || (status(&others), status(&clients)) == (200, 0))
        .await;
    // Nonsense is not used.
    std::fs::write(&bundle, "nonsense").unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(status(&others), 200);
    drop::<Stack>(stack);
}
