//! Liveness and description.

use axum::http::header;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use cloister_types::wire::{Health, Me};

use crate::principal::Principal;

/// Liveness. The one path that needs no key.
#[utoipa::path(get, path = "/health", tag = "system", security(()), responses((status = 200, body = Health)))]
pub(super) async fn health() -> Json<Health> {
    Json(Health { status: "ok".into(), version: env!("CARGO_PKG_VERSION").into() })
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "system", responses((status = 200, description = "OpenAPI 3.1", body = Object)))]
pub(super) async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], crate::openapi::document())
}

/// Who the caller is to this tenant.
#[utoipa::path(get, path = "/v1/me", tag = "system", responses((status = 200, body = Me)))]
pub(super) async fn me(Extension(principal): Extension<Principal>) -> Json<Me> {
    let roles = principal.all_roles();
    let Principal { caller, reach, scheme, csrf, .. } = principal;
    Json(Me { caller, roles, session: reach.session, scheme, csrf_token: csrf })
}
