//! API keys. Each is shown once, when it is made.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use cloister_session::SessionError;
use cloister_store::Maker;
use cloister_types::ErrorCode;
use cloister_types::access::{KeyList, KeyRecord, MadeKey, NewKey, Role, Rotation};
use cloister_types::egress::{AuditEntry, Decision};
use cloister_types::key::ApiKey;
use cloister_types::wire::ErrorBody;
use cloister_vault::wire::{Reply, Request};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::connections::ask;
use crate::Api;
use crate::auth::unix_now;
use crate::body::json;
use crate::error::{Answer, ApiError};
use crate::principal::Principal;
use crate::standing::{Standing, ended};

/// Thirty days.
const LONGEST_GRACE: f64 = 2_592_000.0;

fn absent() -> ApiError {
    ApiError::new(ErrorCode::NotFound, "no such key")
}

pub(super) fn parse<T: DeserializeOwned>(body: Value) -> Answer<T> {
    let body = if body.is_null() { Value::Object(serde_json::Map::new()) } else { body };
    serde_path_to_error::deserialize(body).map_err(|error| ApiError::invalid(error.to_string()))
}

/// Writes an act down before it is done.
pub(super) async fn act(api: &Api, rule: &str, what: String, caller: &str) -> Answer<()> {
    let entry = AuditEntry {
        stream: "access".into(),
        decision: Some(Decision::Vault),
        rule: rule.into(),
        caller: Some(caller.to_owned()),
        flags: vec![what],
        ..AuditEntry::default()
    };
    match ask(api, &Request::Note(Box::new(entry))).await? {
        Reply::Done => Ok(()),
        _ => Err(ApiError::new(ErrorCode::Unavailable, "the audit cannot be written, so nothing is changed")),
    }
}

/// A new key in clear, and an id.
pub(super) fn fresh(api: &Api) -> Answer<(String, ApiKey)> {
    Ok(api.sessions.fresh_key(&api.tenant)?)
}

/// Only an admin makes an admin; whoever manages keys makes all others.
fn may_make(principal: &Principal, role: Role) -> Answer<()> {
    if role == Role::Admin && !principal.is_admin() {
        return Err(ApiError::new(ErrorCode::Forbidden, "an admin's key is made, rotated and ended by an admin"));
    }
    Ok(())
}

async fn find(api: &Api, id: &str) -> Answer<KeyRecord> {
    let found = api.sessions.store().key(id, unix_now()).await.map_err(SessionError::from)?;
    found.ok_or_else(absent)
}

/// Make a key. The answer is the only place where it is ever shown.
#[utoipa::path(
    post, path = "/v1/keys", tag = "keys", request_body = NewKey,
    responses((status = 201, body = MadeKey), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody))
)]
pub(super) async fn create(
    State(api): State<Arc<Api>>,
    Extension(principal): Extension<Principal>,
    body: Body,
) -> Answer<(StatusCode, Json<MadeKey>)> {
    let new: NewKey = parse(json(body).await?)?;
    new.check().map_err(ApiError::invalid)?;
    may_make(&principal, new.role)?;
    let (id, key) = fresh(&api)?;
    act(&api, "key_made", format!("key:{id}"), &principal.caller).await?;
    let record = add(&api, (&id, &key), new, principal.maker(false)).await?;
    Ok((StatusCode::CREATED, Json(MadeKey { key: key.reveal().to_owned(), record })))
}

/// Adds a key, unless its maker has ended meanwhile.
pub(super) async fn add(api: &Api, (id, key): (&str, &ApiKey), new: NewKey, maker: Maker) -> Answer<KeyRecord> {
    let added = api.sessions.store().add_key(id, key, new, maker, unix_now()).await.map_err(SessionError::from)?;
    added.ok_or_else(ended)
}

/// List keys, ended ones included.
#[utoipa::path(get, path = "/v1/keys", tag = "keys", responses((status = 200, body = KeyList)))]
pub(super) async fn list(State(api): State<Arc<Api>>) -> Answer<Json<KeyList>> {
    let data = api.sessions.store().keys(unix_now()).await.map_err(SessionError::from)?;
    Ok(Json(KeyList { data }))
}

/// Read what is known of a key.
#[utoipa::path(
    get, path = "/v1/keys/{id}", tag = "keys", params(("id" = String, Path)),
    responses((status = 200, body = KeyRecord), (status = 404, body = ErrorBody))
)]
pub(super) async fn get(State(api): State<Arc<Api>>, Path(id): Path<String>) -> Answer<Json<KeyRecord>> {
    Ok(Json(find(&api, &id).await?))
}

/// Replace a key. The one before works for `grace` seconds more; who still calls
/// with it is counted.
#[utoipa::path(
    post, path = "/v1/keys/{id}/rotate", tag = "keys", params(("id" = String, Path)), request_body = Rotation,
    responses((status = 200, body = MadeKey), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody))
)]
pub(super) async fn rotate(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    Extension(principal): Extension<Principal>,
    body: Body,
) -> Answer<Json<MadeKey>> {
    let Rotation { grace } = parse(json(body).await?)?;
    if !(0.0..=LONGEST_GRACE).contains(&grace) {
        return Err(ApiError::invalid("grace is 0 to 2592000 seconds"));
    }
    may_make(&principal, find(&api, &id).await?.role)?;
    let (_, key) = fresh(&api)?;
    act(&api, "key_rotated", format!("key:{id}"), &principal.caller).await?;
    Standing::of(&principal, api.sessions.store()).check().await?;
    let rotated = api.sessions.store().rotate_key(&id, &key, grace, unix_now()).await.map_err(SessionError::from)?;
    let ended = || ApiError::new(ErrorCode::Conflict, "the key has ended; make a new one");
    Ok(Json(MadeKey { key: key.reveal().to_owned(), record: rotated.ok_or_else(ended)? }))
}

/// End a key, and with it those that it replaced.
#[utoipa::path(
    delete, path = "/v1/keys/{id}", tag = "keys", params(("id" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody))
)]
pub(super) async fn revoke(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    Extension(principal): Extension<Principal>,
) -> Answer<StatusCode> {
    may_make(&principal, find(&api, &id).await?.role)?;
    // What ends a key is done even if it cannot be written down.
    let written = act(&api, "key_revoked", format!("key:{id}"), &principal.caller).await;
    let ended = api.sessions.store().revoke_key(&id, unix_now()).await.map_err(SessionError::from)?;
    if let Err(error) = written {
        tracing::error!(?error, id, "a key was ended without a record");
    }
    if ended { Ok(StatusCode::NO_CONTENT) } else { Err(absent()) }
}
