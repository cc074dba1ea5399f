//! Callers that an identity provider vouches for: tokens, good and bad; what is
//! exchanged for them; and why each is taken or not.

use std::time::Duration;

use cloister_testkit::{Issuer, Options, Stack, unix_now};
use serde_json::{Value, json};

const AUDIENCE: &str = "https://cloister.example";

fn config(issuer: &Issuer) -> String {
    format!(
        "[auth]\nrequire = [['bearer'], ['sso']]\n[auth.oidc]\nissuer = '{}'\naudience = '{AUDIENCE}'\ngroups_claim = 'groups'\n\
         [auth.oidc.roles]\n'staff' = 'developer'\n'security-team' = 'security'\n'watchers' = 'viewer'\n",
        issuer.url
    )
}

async fn stack(config: String) -> Stack {
    Stack::with(Options { config: Some(config), ..Options::default() }).await
}

async fn with(stack: &Stack, token: &str, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let answer = cloister_testkit::raw(&stack.url, method, path, &headers, body.as_bytes()).await;
    (answer.status, answer.json())
}

async fn me(stack: &Stack, token: &str) -> (u16, Value) {
    with(stack, token, "GET", "/v1/me", &Value::Null).await
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_decide_what_a_person_may() {
    let issuer = Issuer::start().await;
    let stack = stack(config(&issuer)).await;
    let token = |groups: Value| issuer.token(AUDIENCE, json!({"sub": "ada|1", "groups": groups}));
    let (status, known) = me(&stack, &token(json!(["staff", "others"]))).await;
    assert_eq!((status, &known["caller"], &known["scheme"]), (200, &json!("ada|1"), &json!("sso")));
    assert_eq!(known["roles"], json!(["developer"]));
    let several = me(&stack, &token(json!(["watchers", "security-team"]))).await.1;
    assert_eq!(several["roles"], json!(["viewer", "security"]), "each adds to the others");
    assert_eq!(me(&stack, &token(json!("watchers"))).await.1["roles"], json!(["viewer"]));
    for (groups, path, method, expected) in [
        (json!(["staff"]), "/v1/sessions", "POST", 201),
        (json!(["watchers"]), "/v1/sessions", "POST", 403),
        (json!(["watchers"]), "/v1/sessions", "GET", 200),
        (json!(["watchers"]), "/v1/keys", "GET", 403),
        (json!(["security-team"]), "/v1/keys", "GET", 200),
        (json!(["security-team"]), "/v1/sessions", "GET", 403),
        (json!(["others"]), "/v1/sessions", "GET", 403),
        (json!([]), "/v1/sessions", "GET", 403),
        (Value::Null, "/v1/sessions", "GET", 403),
    ] {
        let (status, said) = with(&stack, &token(groups.clone()), method, path, &Value::Null).await;
        assert_eq!(status, expected, "{groups} {method} {path}: {said}");
    }
    // Keys work beside it.
    assert_eq!(me(&stack, &stack.key).await.1["scheme"], "bearer");
    assert_eq!(issuer.asked(), 1, "its keys are kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_token_is_nobodys() {
    let (issuer, other) = (Issuer::start().await, Issuer::start().await);
    let stack = stack(config(&issuer)).await;
    let now = unix_now();
    let claims = |changes: Value| {
        let mut claims =
            json!({"iss": issuer.url, "aud": AUDIENCE, "sub": "u", "groups": ["staff"], "exp": now + 300.0});
        for (name, value) in changes.as_object().unwrap() {
            claims[name] = value.clone();
        }
        claims
    };
    let good = claims(json!({}));
    for algorithm in ["RS256", "PS256", "ES256", "EdDSA"] {
        assert_eq!(me(&stack, &issuer.sign(algorithm, json!({}), &good)).await.0, 200, "{algorithm}");
    }
    let signed = issuer.sign("RS256", json!({}), &good);
    let (message, signature) = signed.rsplit_once('.').unwrap();
    let (head, body) = message.split_once('.').unwrap();
    let another = issuer.sign("RS256", json!({}), &claims(json!({"groups": ["security-team"]})));
    let bad = [
        ("no signature", issuer.sign("none", json!({}), &good)),
        ("no signature, and no dot", message.to_owned()),
        ("called none with a signature", issuer.sign("RS256", json!({"alg": "none"}), &good)),
        ("a public key as a shared secret", issuer.sign("HS256", json!({}), &good)),
        ("the shared key that is published", issuer.sign("HS256", json!({"kid": "shared-1"}), &good)),
        ("another kind of key", issuer.sign("ES256", json!({"kid": "rsa-1"}), &good)),
        ("another algorithm than it says", issuer.sign("RS256", json!({"alg": "PS256"}), &good)),
        ("an algorithm that is not pinned", issuer.sign("RS256", json!({"alg": "RS512"}), &good)),
        ("a key that nobody has", issuer.sign("RS256", json!({"kid": "rsa-9"}), &good)),
        ("critical extensions", issuer.sign("RS256", json!({"crit": ["exp"]}), &good)),
        ("for another end", issuer.sign("RS256", json!({"typ": "logout+jwt"}), &good)),
        ("another's signature", other.sign("RS256", json!({}), &good)),
        ("another's token", other.sign("RS256", json!({}), &claims(json!({"iss": other.url})))),
        (
            "its key in the header",
            other.sign("RS256", json!({"kid": null, "jwk": {"kty": "RSA"}, "jku": other.url}), &good),
        ),
        ("other claims", format!("{head}.{}.{signature}", another.split('.').nth(1).unwrap())),
        ("a piece more", format!("{signed}.x")),
        ("a piece of the signature", format!("{head}.{body}.{}", &signature[..40])),
        ("another audience", issuer.sign("RS256", json!({}), &claims(json!({"aud": "https://other.example"})))),
        ("no audience", issuer.sign("RS256", json!({}), &claims(json!({"aud": null})))),
        (
            "an issuer with a slash",
            issuer.sign("RS256", json!({}), &claims(json!({"iss": format!("{}/", issuer.url)}))),
        ),
        ("over", issuer.sign("RS256", json!({}), &claims(json!({"exp": now - 1.0})))),
        ("over for long", issuer.sign("RS256", json!({}), &claims(json!({"exp": 1})))),
        ("no end", issuer.sign("RS256", json!({}), &claims(json!({"exp": null})))),
        ("an end in words", issuer.sign("RS256", json!({}), &claims(json!({"exp": "2100-01-01"})))),
        ("not begun", issuer.sign("RS256", json!({}), &claims(json!({"nbf": now + 60.0})))),
        ("made tomorrow", issuer.sign("RS256", json!({}), &claims(json!({"iat": now + 86_400.0})))),
        ("nobody's", issuer.sign("RS256", json!({}), &claims(json!({"sub": null})))),
        ("bound to a key", issuer.sign("RS256", json!({}), &claims(json!({"cnf": {"jkt": "x"}})))),
        ("no token", "a.b.c".to_owned()),
        ("nothing", String::new()),
    ];
    for (what, token) in &bad {
        let (status, said) = me(&stack, token).await;
        assert_eq!((status, &said["error"]), (401, &json!("unauthorized")), "{what}: {said}");
        assert!(!said.to_string().contains("issuer"), "nobody is told why: {said}");
    }
    assert_eq!(other.asked(), 0, "nobody has another issuer asked");
    assert!(issuer.asked() <= 2, "{}", issuer.asked());
    // Whoever may, is told why.
    for (what, word) in [
        ("no signature", "not a signed token"),
        ("called none with a signature", "algorithm"),
        ("another audience", "audience"),
        ("over", "ended"),
        ("not begun", "valid from"),
        ("another's signature", "signature"),
        ("an issuer with a slash", "issuer"),
    ] {
        let token = &bad.iter().find(|(name, _)| *name == what).unwrap().1;
        let (status, why) = with(&stack, &stack.key, "POST", "/v1/auth/explain", &json!({"bearer": token})).await;
        assert_eq!((status, &why["admitted"]), (200, &json!(false)), "{what}: {why}");
        let steps = why["steps"].as_array().unwrap();
        let sso = steps.iter().find(|step| step["rule"] == "sso").unwrap();
        assert!(sso["outcome"].as_str().unwrap().contains(word), "{what}: {sso}");
    }
    let (_, why) = with(&stack, &stack.key, "POST", "/v1/auth/explain", &json!({"bearer": signed})).await;
    assert_eq!((&why["admitted"], &why["caller"], &why["roles"]), (&json!(true), &json!("u"), &json!(["developer"])));
    assert!(why["steps"].as_array().unwrap().iter().any(|step| step["outcome"] == "list 2 suffices: sso"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuers_new_keys_are_found_and_made_up_ones_cost_it_nothing() {
    let issuer = Issuer::start().await;
    let stack = stack(config(&issuer)).await;
    let token = || issuer.token(AUDIENCE, json!({"groups": ["staff"]}));
    let old = token();
    assert_eq!(me(&stack, &old).await.0, 200);
    for n in 0..50 {
        let made_up = issuer.sign("RS256", json!({"kid": format!("k{n}")}), &json!({"iss": issuer.url}));
        assert_eq!(me(&stack, &made_up).await.0, 401);
    }
    assert!(issuer.asked() <= 2, "{} questions for 50 names", issuer.asked());
    issuer.rotate();
    let began = std::time::Instant::now();
    while me(&stack, &token()).await.0 != 200 {
        assert!(began.elapsed() < Duration::from_secs(15), "the new key is not found");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(me(&stack, &old).await.0, 401, "the key is gone");
    // While it is away, what is known of it goes on.
    issuer.set_down(true);
    assert_eq!(me(&stack, &token()).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_issuer_nobody_new_comes_in_and_keys_still_do() {
    let issuer = Issuer::start().await;
    issuer.set_down(true);
    let stack = stack(config(&issuer)).await;
    let (status, said) = me(&stack, &issuer.token(AUDIENCE, json!({"groups": ["staff"]}))).await;
    assert_eq!((status, &said["error"]), (503, &json!("unavailable")), "{said}");
    assert_eq!(me(&stack, &stack.key).await.0, 200);
    assert_eq!(me(&stack, "nonsense").await.0, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_and_a_token_together_are_less_than_each() {
    let issuer = Issuer::start().await;
    let stack = stack(config(&issuer).replace("[['bearer'], ['sso']]", "[['bearer', 'sso']]")).await;
    let staff = issuer.token(AUDIENCE, json!({"groups": ["staff", "security-team"]}));
    assert_eq!(me(&stack, &stack.key).await.0, 401, "a key is not enough");
    assert_eq!(me(&stack, &staff).await.0, 401, "nor is a token");
    let both = async |method: &str, path: &str| {
        let bearer = format!("Bearer {}", stack.key);
        let headers = [("authorization", bearer.as_str()), ("x-sso-token", staff.as_str())];
        cloister_testkit::raw(&stack.url, method, path, &headers, b"").await
    };
    let known = both("GET", "/v1/me").await;
    assert_eq!((known.status, known.json()["scheme"].as_str()), (200, Some("bearer+sso")));
    assert_eq!(both("GET", "/v1/keys").await.status, 200);
    // The admin's key alone could; the person cannot.
    assert_eq!(both("GET", "/v1/egress").await.status, 200);
    assert_eq!(both("PUT", "/v1/connections/x").await.status, 400, "the body is looked at");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_programs_token_is_exchanged_for_a_short_one() {
    let (people, platform) = (Issuer::start().await, Issuer::start().await);
    let more = format!(
        "[[auth.workload]]\nissuer = '{}'\naudience = ['cloister']\nsubject = 'repo:acme/app:ref:refs/heads/*'\n\
         claims = {{ environment = 'production' }}\nrole = 'developer'\ncaller = 'ci'\nseconds = 60\n",
        platform.url
    );
    let stack = stack(config(&people) + &more).await;
    let exchange = async |form: &str| {
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        let answer = cloister_testkit::raw(&stack.url, "POST", "/v1/token", &headers, form.as_bytes()).await;
        (answer.status, answer.json())
    };
    let form = |token: &str| {
        format!(
            "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange&subject_token={token}\
             &subject_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Ajwt"
        )
    };
    let job = |changes: Value| {
        let mut claims = json!({"sub": "repo:acme/app:ref:refs/heads/main", "environment": "production"});
        claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        platform.token("cloister", claims)
    };
    let (status, made) = exchange(&form(&job(json!({})))).await;
    assert_eq!((status, &made["token_type"], &made["expires_in"]), (200, &json!("Bearer"), &json!(60)), "{made}");
    let token = made["access_token"].as_str().unwrap();
    let (_, known) = me(&stack, token).await;
    assert_eq!((&known["caller"], &known["roles"]), (&json!("ci"), &json!(["developer"])));
    assert_eq!(with(&stack, token, "POST", "/v1/sessions", &json!({})).await.0, 201);
    assert_eq!(with(&stack, token, "GET", "/v1/keys", &Value::Null).await.0, 403);
    for (what, bad) in [
        ("another repository", job(json!({"sub": "repo:evil/app:ref:refs/heads/main"}))),
        ("a pull request", job(json!({"sub": "repo:acme/app:pull_request"}))),
        ("another environment", job(json!({"environment": "staging"}))),
        ("no environment", job(json!({"environment": null}))),
        ("over", job(json!({"exp": 1}))),
        ("another audience", platform.token("other", json!({"sub": "repo:acme/app:ref:refs/heads/main"}))),
        ("a person's", people.token(AUDIENCE, json!({"groups": ["staff"]}))),
        ("one of ours", token.to_owned()),
    ] {
        let (status, said) = exchange(&form(&bad)).await;
        assert_eq!((status, &said["error"]), (401, &json!("unauthorized")), "{what}: {said}");
        assert_eq!(me(&stack, &job(json!({}))).await.0, 401, "the platform's token itself opens nothing");
    }
    for bad in
        ["", "grant_type=password", "grant_type=client_credentials&subject_token=x", &form("x").replace("jwt", "saml2")]
    {
        assert_eq!(exchange(bad).await.0, 400, "{bad}");
    }
    let audit = stack.raw("GET", "/v1/egress?limit=1000", &[], b"").await.text();
    assert!(audit.contains("token_exchanged") && audit.contains("not_exchanged") && !audit.contains(token));
    let (_, why) =
        with(&stack, &stack.key, "POST", "/v1/auth/explain", &json!({"bearer": job(json!({"environment": "x"}))}))
            .await;
    assert!(why.to_string().contains("or another that auth.workload asks for"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_one_session_reaches_it_alone_and_ends_with_its_maker() {
    let stack = stack("[auth]\nbrowser_origins = ['https://app.example']\n".into()).await;
    let make_key = async |body: Value| with(&stack, &stack.key, "POST", "/v1/keys", &body).await.1;
    let maker = make_key(json!({"caller": "app", "role": "developer"})).await;
    let maker_key = maker["key"].as_str().unwrap();
    let (session, other) = (stack.session().await, stack.session().await);
    let turn = stack.play(&session, &[json!({"say": "hello"})]).await.id;
    let tokens = format!("/v1/sessions/{session}/tokens");
    let (status, made) = with(&stack, maker_key, "POST", &tokens, &Value::Null).await;
    assert_eq!((status, &made["role"], &made["parent"]), (201, &json!("viewer"), &maker["id"]), "{made}");
    let left = made["expires_at"].as_f64().unwrap() - unix_now();
    assert!((800.0..=901.0).contains(&left), "{left}");
    let token = made["key"].as_str().unwrap();
    let events = |session: &cloister_types::SessionId| format!("/v1/sessions/{session}/responses/{turn}/events");
    assert_eq!(with(&stack, token, "GET", &format!("/v1/sessions/{session}"), &Value::Null).await.0, 200);
    for (path, expected) in [
        (format!("/v1/sessions/{other}"), 404),
        (events(&other), 404),
        ("/v1/sessions".into(), 403),
        ("/v1/keys".into(), 403),
    ] {
        assert_eq!(with(&stack, token, "GET", &path, &Value::Null).await.0, expected, "{path}");
    }
    assert_eq!(with(&stack, token, "POST", &format!("/v1/sessions/{session}/messages"), &json!({})).await.0, 403);
    assert_eq!(with(&stack, token, "POST", &tokens, &Value::Null).await.0, 403, "a token makes no other");
    // A browser's EventSource has only a URL.
    let bare = async |path: String, headers: &[(&str, &str)]| {
        cloister_testkit::raw(&stack.url, "GET", &path, headers, b"").await
    };
    let page = [("origin", "https://app.example")];
    let stream = bare(format!("{}?token={token}", events(&session)), &page).await;
    assert_eq!(stream.status, 200);
    assert!(stream.text().contains("hello"), "{}", stream.text());
    assert_eq!(stream.headers.get("access-control-allow-origin").map(String::as_str), Some("https://app.example"));
    assert!(!stream.headers.contains_key("access-control-allow-credentials"));
    let stranger = bare(format!("{}?token={token}", events(&session)), &[("origin", "https://evil.test")]).await;
    assert!(!stranger.headers.contains_key("access-control-allow-origin"));
    for (what, path) in [
        ("a key", format!("{}?token={maker_key}", events(&session))),
        ("another path", format!("/v1/sessions/{session}?token={token}")),
        ("another session", format!("{}?token={token}", events(&other))),
    ] {
        let status = bare(path, &[]).await.status;
        assert!(matches!(status, 401 | 404), "{what}: {status}");
    }
    let asked = [
        ("origin", "https://app.example"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization"),
    ];
    let preflight = cloister_testkit::raw(&stack.url, "OPTIONS", &tokens, &asked, b"").await;
    assert_eq!(preflight.status, 200);
    assert!(preflight.headers["access-control-allow-headers"].contains("authorization"));
    for bad in [json!({"role": "admin"}), json!({"expires_in": 0}), json!({"expires_in": 86_401}), json!({"x": 1})] {
        assert_eq!(with(&stack, maker_key, "POST", &tokens, &bad).await.0, 400, "{bad}");
    }
    let viewer = make_key(json!({"caller": "v", "role": "viewer", "expires_in": 60})).await;
    let viewer_key = viewer["key"].as_str().unwrap();
    assert_eq!(with(&stack, viewer_key, "POST", &tokens, &json!({"role": "developer"})).await.0, 403);
    let (_, short) = with(&stack, viewer_key, "POST", &tokens, &Value::Null).await;
    assert!(short["expires_at"].as_f64() <= viewer["expires_at"].as_f64(), "it does not outlive its maker");
    // Whoever follows a turn with it is cut off with it.
    let session_two = stack.session().await;
    let wait = cloister_testkit::script(&[json!({"tool": "bash", "input": {"command": "sleep 20"}})]);
    let running = stack.client.message(&session_two, &wait, None).await.unwrap().turn().clone();
    let tokens_two = format!("/v1/sessions/{session_two}/tokens");
    let follow = async |token: &str| {
        let path = format!("/v1/sessions/{session_two}/responses/{running}/events?token={token}");
        let began = std::time::Instant::now();
        let answer = cloister_testkit::raw(&stack.url, "GET", &path, &[], b"").await;
        (answer.status, began.elapsed())
    };
    let (_, brief) = with(&stack, maker_key, "POST", &tokens_two, &json!({"expires_in": 1})).await;
    let (status, took) = follow(brief["key"].as_str().unwrap()).await;
    assert!(status == 200 && took < Duration::from_secs(3), "{status} {took:?}");
    let (_, long) = with(&stack, maker_key, "POST", &tokens_two, &Value::Null).await;
    let rotate = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let path = format!("/v1/keys/{}/rotate", maker["id"].as_str().unwrap());
        with(&stack, &stack.key, "POST", &path, &json!({"grace": 0.5})).await.1
    };
    let ((status, took), rotated) = tokio::join!(follow(long["key"].as_str().unwrap()), rotate);
    assert!(status == 200 && took < Duration::from_secs(4), "a token goes with the key before: {status} {took:?}");
    assert_eq!(me(&stack, token).await.0, 401);
    let maker_key = rotated["key"].as_str().unwrap();
    let (_, made) = with(&stack, maker_key, "POST", &tokens, &Value::Null).await;
    let token = made["key"].as_str().unwrap();
    assert_eq!(me(&stack, token).await.0, 200);
    // Nobody has it ended by another name.
    let id = maker["id"].as_str().unwrap();
    assert_eq!(with(&stack, &stack.key, "DELETE", &format!("/v1/sign-ins/{id}"), &Value::Null).await.0, 404);
    assert_eq!(me(&stack, token).await.0, 200);
    // What made it ends, and it with that.
    let ended = format!("/v1/keys/{}", maker["id"].as_str().unwrap());
    assert_eq!(with(&stack, &stack.key, "DELETE", &ended, &Value::Null).await.0, 204);
    assert_eq!(me(&stack, token).await.0, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_with_a_ceiling_makes_and_sees_nothing_above_it() {
    let stack = Stack::start().await;
    let ceiling = json!({
        "caller": "team", "role": "developer",
        "file_access": {"read": ["team"], "write": ["team/out"]},
        "egress": {"mode": "allow", "allow": ["*.example.com"]}
    });
    let (status, made) = with(&stack, &stack.key, "POST", "/v1/keys", &ceiling).await;
    assert_eq!((status, &made["file_access"], &made["egress"]), (201, &ceiling["file_access"], &ceiling["egress"]));
    let key = made["key"].as_str().unwrap();
    std::fs::create_dir_all(stack.workspace().join("team/out")).unwrap();
    std::fs::write(stack.workspace().join("secret"), "s").unwrap();
    let create = async |body: Value| with(&stack, key, "POST", "/v1/sessions", &body).await;
    let (status, own) = create(json!({})).await;
    assert_eq!(
        (status, &own["file_access"]["write"], &own["egress"]["mode"]),
        (201, &json!(["team/out"]), &json!("offline")),
        "what is not said is the tenant's default, not the ceiling"
    );
    let own = own["id"].as_str().unwrap().to_owned();
    assert_eq!(create(json!({"file_access": {"read": ["team/out"]}, "egress": {"mode": "offline"}})).await.0, 201);
    for above in [
        json!({"file_access": {"read": [""]}}),
        json!({"file_access": {"write": ["team"]}}),
        json!({"file_access": {"read": ["team", "secret"]}}),
        json!({"egress": {"mode": "open"}}),
        json!({"connections": ["github"]}),
        json!({"egress": {"mode": "allow", "allow": ["example.org"]}}),
    ] {
        let (status, said) = create(above.clone()).await;
        assert_eq!((status, &said["error"]), (403, &json!("forbidden")), "{above}: {said}");
    }
    let wide = stack.session().await;
    for (path, expected) in [
        (format!("/v1/sessions/{wide}"), 404),
        (format!("/v1/sessions/{wide}/files/secret"), 404),
        (format!("/v1/sessions/{own}"), 200),
        (format!("/v1/sessions/{own}/files/secret"), 404),
        ("/v1/egress".into(), 403),
        ("/v1/connections".into(), 403),
    ] {
        assert_eq!(with(&stack, key, "GET", &path, &Value::Null).await.0, expected, "{path}");
    }
    let (_, listed) = with(&stack, key, "GET", "/v1/sessions", &Value::Null).await;
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");
    assert_eq!(with(&stack, key, "DELETE", "/v1/sessions?idle=true", &Value::Null).await.0, 403);
    assert_eq!(with(&stack, key, "DELETE", &format!("/v1/sessions/{wide}"), &Value::Null).await.0, 404);
    for bad in [
        json!({"caller": "c", "role": "admin", "file_access": {"read": ["a"]}}),
        json!({"caller": "c", "role": "viewer", "file_access": {"read": ["../a"]}}),
    ] {
        assert_eq!(with(&stack, &stack.key, "POST", "/v1/keys", &bad).await.0, 400, "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_held_back_does_not_outlive_its_key() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let stack = Stack::start().await;
    let session = stack.session().await;
    for (path, body) in [
        ("/v1/keys".to_owned(), json!({"caller": "thief", "role": "admin"}).to_string()),
        (format!("/v1/sessions/{session}/tokens"), "{}".to_owned()),
        (format!("/v1/sessions/{session}/messages"), json!({"message": "hello"}).to_string()),
    ] {
        let (_, stolen) =
            with(&stack, &stack.key, "POST", "/v1/keys", &json!({"caller": "owner", "role": "admin"})).await;
        let mut socket = tokio::net::TcpStream::connect(stack.url.trim_start_matches("http://")).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n{}",
            stolen["key"].as_str().unwrap(),
            body.len(),
            &body[..1]
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let ended = format!("/v1/keys/{}", stolen["id"].as_str().unwrap());
        assert_eq!(with(&stack, &stack.key, "DELETE", &ended, &Value::Null).await.0, 204);
        socket.write_all(&body.as_bytes()[1..]).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 401"), "{path}: {answer}");
    }
    let (_, keys) = with(&stack, &stack.key, "GET", "/v1/keys", &Value::Null).await;
    assert!(!keys.to_string().contains("thief"), "{keys}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_key_alone_is_not_enough_nobody_gets_a_token_that_is() {
    let issuer = Issuer::start().await;
    let stack = stack(config(&issuer).replace("[['bearer'], ['sso']]", "[['bearer', 'sso']]")).await;
    let staff = issuer.token(AUDIENCE, json!({"groups": ["staff"]}));
    let bearer = format!("Bearer {}", stack.key);
    let headers = [("authorization", bearer.as_str()), ("x-sso-token", staff.as_str())];
    let made = cloister_testkit::raw(&stack.url, "POST", "/v1/sessions", &headers, b"").await.json();
    let path = format!("/v1/sessions/{}/tokens", made["id"].as_str().unwrap());
    let answer = cloister_testkit::raw(&stack.url, "POST", &path, &headers, b"").await;
    assert_eq!(answer.status, 403, "{}", answer.text());
}
