//! Connections and their credentials. What is sent in here is sealed for the
//! vault at once; there is no way to read it again.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, Request as HttpRequest, StatusCode, header};
use axum::{Extension, Json};
use cloister_types::egress::{Connection, ConnectionName, ConnectionRecord, Secret, TestResult, VersionRecord};
use cloister_types::wire::ErrorBody;
use cloister_types::{ErrorCode, SessionId};
use cloister_vault::about_secret;
use cloister_vault::wire::{Refusal, Reply, Request};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::Value;
use zeroize::Zeroizing;

use crate::Api;
use crate::body::{json, query};
use crate::error::{Answer, ApiError};
use crate::principal::Principal;

/// Seconds for which the version before stays known, if nothing is said.
const GRACE: f64 = 600.0;
/// And at most.
const LONGEST_GRACE: f64 = 30.0 * 24.0 * 3600.0;
/// How long a test may take.
const PATIENCE: Duration = Duration::from_secs(30);

fn name(text: &str) -> Answer<ConnectionName> {
    text.parse().map_err(|error: &str| ApiError::invalid(error))
}

fn absent() -> ApiError {
    ApiError::new(ErrorCode::NotFound, "no such connection")
}

/// What the vault says, where it is no answer to the question.
fn otherwise(reply: Reply) -> ApiError {
    match reply {
        Reply::Absent => absent(),
        Reply::Invalid(why) => ApiError::invalid(why),
        Reply::Refused(Refusal::AuditUnavailable) => {
            ApiError::new(ErrorCode::Unavailable, "the audit cannot be written, so nothing is changed")
        }
        _ => ApiError::new(ErrorCode::Internal, "the vault failed"),
    }
}

pub(super) async fn ask(api: &Api, request: &Request) -> Answer<Reply> {
    let reply = api.vault.ask(request).await;
    reply.map_err(|_| ApiError::new(ErrorCode::Unavailable, "the vault is not there; try again"))
}

fn parse<T: serde::de::DeserializeOwned>(body: Value) -> Answer<T> {
    if body.is_null() {
        return Err(ApiError::invalid("a body is needed"));
    }
    // The message names fields and never holds a value of theirs.
    serde_path_to_error::deserialize(body).map_err(|error| {
        let path = error.path().to_string();
        let said = error.into_inner().to_string();
        let said = said.split(": ").next().unwrap_or_default();
        ApiError::invalid(format!(
            "{path}: {}",
            if said.starts_with("invalid type") { "it is of another type" } else { said }
        ))
    })
}

/// List connections.
#[utoipa::path(get, path = "/v1/connections", tag = "connections", responses((status = 200, body = Vec<ConnectionRecord>)))]
pub(super) async fn list(State(api): State<Arc<Api>>) -> Answer<Json<Vec<ConnectionRecord>>> {
    match ask(&api, &Request::List).await? {
        Reply::Connections(connections) => Ok(Json(connections)),
        other => Err(otherwise(other)),
    }
}

async fn find(api: &Api, name: ConnectionName) -> Answer<ConnectionRecord> {
    match ask(api, &Request::Get(name)).await? {
        Reply::Connection(connection) => Ok(*connection),
        other => Err(otherwise(other)),
    }
}

/// Read a connection: everything but its credential.
#[utoipa::path(
    get, path = "/v1/connections/{name}", tag = "connections",
    params(("name" = String, Path)),
    responses((status = 200, body = ConnectionRecord), (status = 404, body = ErrorBody))
)]
pub(super) async fn get(State(api): State<Arc<Api>>, Path(text): Path<String>) -> Answer<Json<ConnectionRecord>> {
    Ok(Json(find(&api, name(&text)?).await?))
}

/// Set a connection: where a credential may go, and how it is attached. It holds
/// for the next request of every session that has it.
#[utoipa::path(
    put, path = "/v1/connections/{name}", tag = "connections",
    params(("name" = String, Path, description = "1 to 64 of `a-z`, `0-9`, `-` and `_`, a letter first")),
    request_body = Connection,
    responses((status = 200, body = ConnectionRecord), (status = 400, body = ErrorBody))
)]
pub(super) async fn put(
    State(api): State<Arc<Api>>,
    Path(text): Path<String>,
    Extension(principal): Extension<Principal>,
    body: Body,
) -> Answer<Json<ConnectionRecord>> {
    let name = name(&text)?;
    let connection: Connection = parse(json(body).await?)?;
    connection.check().map_err(ApiError::invalid)?;
    let elsewhere = |region: &&String| api.region.as_ref().is_some_and(|own| own != *region);
    if let Some(region) = connection.targets.iter().filter_map(|target| target.region.as_ref()).find(elsewhere) {
        return Err(ApiError::invalid(format!("a target lies in region {region:?}, and the tenant does not")));
    }
    let request = Request::Put { name: name.clone(), connection, caller: principal.caller };
    match ask(&api, &request).await? {
        Reply::Done => Ok(Json(find(&api, name).await?)),
        other => Err(otherwise(other)),
    }
}

/// Remove a connection and its credentials.
#[utoipa::path(
    delete, path = "/v1/connections/{name}", tag = "connections",
    params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody))
)]
pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    Path(text): Path<String>,
    Extension(principal): Extension<Principal>,
) -> Answer<StatusCode> {
    done(ask(&api, &Request::Remove { name: name(&text)?, caller: principal.caller }).await?)
}

fn done(reply: Reply) -> Answer<StatusCode> {
    match reply {
        Reply::Done => Ok(StatusCode::NO_CONTENT),
        other => Err(otherwise(other)),
    }
}

#[derive(Deserialize)]
pub(super) struct Rotation {
    grace: Option<String>,
}

/// Set a connection's credential. A new version is used from the next request
/// on; the one before stays known, so that calls under way can end.
#[utoipa::path(
    put, path = "/v1/connections/{name}/secret", tag = "connections",
    params(
        ("name" = String, Path),
        ("grace" = Option<f64>, Query, description = "Seconds for which the version before stays known; 600 if left out"),
    ),
    request_body = Secret,
    responses(
        (status = 201, description = "What is known of the new version; never its value", body = VersionRecord),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
    )
)]
pub(super) async fn put_secret(
    State(api): State<Arc<Api>>,
    Path(text): Path<String>,
    Extension(principal): Extension<Principal>,
    rotation: Result<Query<Rotation>, QueryRejection>,
    body: Body,
) -> Answer<(StatusCode, Json<VersionRecord>)> {
    let name = name(&text)?;
    let grace = match query(rotation)?.grace.as_deref().map(str::parse::<f64>) {
        None => GRACE,
        Some(Ok(grace)) if (0.0..=LONGEST_GRACE).contains(&grace) => grace,
        Some(_) => return Err(ApiError::invalid("grace is a number of seconds, at most 30 days")),
    };
    let secret: Secret = parse(json(body).await?)?;
    secret.check().map_err(ApiError::invalid)?;
    let text = Zeroizing::new(
        serde_json::to_vec(&secret).map_err(|_| ApiError::invalid("the secret is not of a known form"))?,
    );
    let sealed = api.sealing.seal(&about_secret(&api.tenant, &name), &text);
    let sealed = sealed.map_err(|_| ApiError::new(ErrorCode::Internal, "the secret cannot be sealed"))?;
    match ask(&api, &Request::SetSecret { name, sealed, grace, caller: principal.caller }).await? {
        Reply::Version(version) => Ok((StatusCode::CREATED, Json(version))),
        other => Err(otherwise(other)),
    }
}

/// Revoke all versions of a connection's credential.
#[utoipa::path(
    delete, path = "/v1/connections/{name}/secret", tag = "connections",
    params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody))
)]
pub(super) async fn revoke(
    State(api): State<Arc<Api>>,
    Path(text): Path<String>,
    Extension(principal): Extension<Principal>,
) -> Answer<StatusCode> {
    done(ask(&api, &Request::Revoke { name: name(&text)?, version: None, caller: principal.caller }).await?)
}

/// Revoke one version of a connection's credential.
#[utoipa::path(
    delete, path = "/v1/connections/{name}/versions/{version}", tag = "connections",
    params(("name" = String, Path), ("version" = u64, Path)),
    responses((status = 204), (status = 404, body = ErrorBody))
)]
pub(super) async fn revoke_version(
    State(api): State<Arc<Api>>,
    Path((text, version)): Path<(String, String)>,
    Extension(principal): Extension<Principal>,
) -> Answer<StatusCode> {
    let version = Some(version.parse().map_err(|_| absent())?);
    done(ask(&api, &Request::Revoke { name: name(&text)?, version, caller: principal.caller }).await?)
}

/// Try a connection: one GET of its first target, with the credential attached
/// as for any session.
#[utoipa::path(
    post, path = "/v1/connections/{name}/test", tag = "connections",
    params(("name" = String, Path)),
    responses((status = 200, body = TestResult), (status = 404, body = ErrorBody))
)]
pub(super) async fn test(State(api): State<Arc<Api>>, Path(text): Path<String>) -> Answer<Json<TestResult>> {
    let record = find(&api, name(&text)?).await?;
    let mut id = [0; 6];
    getrandom::fill(&mut id).map_err(|_| ApiError::new(ErrorCode::Internal, "no randomness"))?;
    let session = SessionId::from_random(id);
    let permit =
        |connections| Request::Permit { session: session.clone(), connections, models: Vec::new(), strict: true };
    match ask(&api, &permit(vec![record.name.clone()])).await? {
        Reply::Done => {}
        other => return Err(otherwise(other)),
    }
    let tried = tokio::time::timeout(PATIENCE, attempt(&api, &session, &record)).await;
    ask(&api, &permit(Vec::new())).await?;
    Ok(Json(tried.unwrap_or_else(|_| failed("the target does not answer"))))
}

fn failed(message: &str) -> TestResult {
    TestResult { ok: false, status: None, reflected: false, message: message.to_owned() }
}

async fn attempt(api: &Api, session: &SessionId, record: &ConnectionRecord) -> TestResult {
    let target = record.connection.targets.iter().find_map(|target| Some((target.host.host()?, target)));
    let Some((host, target)) = target else {
        return failed("none of its targets is a single host: there is nothing to try");
    };
    if !target.methods.is_empty() && !target.methods.iter().any(|method| method == "GET") {
        return failed("its first target takes no GET: there is nothing harmless to try");
    }
    let path = target.paths.first().map_or("/", String::as_str);
    match call(api, session, host.as_str(), path).await {
        Ok((status, refused, body)) => {
            let reflected = body.windows(8).any(|window| window == b"********");
            let ok = refused.is_none() && !matches!(status, 401 | 403) && status < 500;
            let message = match &refused {
                Some(word) => format!("it was not called: {word}"),
                None if reflected => "the target sends the credential back; it was covered".to_owned(),
                None => format!("the target answers with {status}"),
            };
            TestResult { ok, status: refused.is_none().then_some(status), reflected, message }
        }
        Err(_) => failed("egress is not there; try again"),
    }
}

/// One GET on a link of the server's own: status, why it was refused if it
/// was, and the beginning of the body.
async fn call(
    api: &Api,
    session: &SessionId,
    host: &str,
    path: &str,
) -> Result<(u16, Option<String>, Vec<u8>), Box<dyn std::error::Error + Send + Sync>> {
    let link = api.outside.try_link(session)?;
    link.set_nonblocking(true)?;
    let stream = TokioIo::new(tokio::net::UnixStream::from_std(link)?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    tokio::spawn(connection);
    let request = HttpRequest::get(path).header(header::HOST, host).body(Empty::<bytes::Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    let status = answer.status().as_u16();
    let word = |value: &HeaderValue| value.to_str().unwrap_or_default().to_owned();
    let refused = answer.headers().get("x-cloister-refused").map(word);
    let mut shown: Vec<u8> = answer.headers().values().flat_map(|value| value.as_bytes().to_vec()).collect();
    let mut body = answer.into_body();
    while let Some(Ok(frame)) = body.frame().await {
        if let Some(data) = frame.data_ref() {
            shown.extend_from_slice(data);
        }
        if shown.len() > 1 << 20 {
            break;
        }
    }
    Ok((status, refused, shown))
}
