//! The audit of what left.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use cloister_types::egress::Audit;
use cloister_types::wire::ErrorBody;
use cloister_vault::wire::{Reply, Request};
use serde::Deserialize;

use super::connections::ask;
use super::sessions::session_id;
use crate::Api;
use crate::body::query;
use crate::error::{Answer, ApiError};

/// Records of a page: if nothing is said, and at most.
const LIMIT: usize = 100;
const MOST: usize = 1000;

#[derive(Deserialize)]
pub(super) struct Which {
    session: Option<String>,
    after: Option<String>,
    limit: Option<String>,
}

/// The audit: every call that left or was refused, every act on a credential,
/// as a chain of hashes with a signed head. It stays when a session is deleted.
#[utoipa::path(
    get, path = "/v1/egress", tag = "egress",
    params(
        ("session" = Option<String>, Query, description = "Records of this session alone"),
        ("after" = Option<u64>, Query, description = "Records after this one"),
        ("limit" = Option<u32>, Query, description = "1 to 1000; 100 if left out"),
    ),
    responses((status = 200, body = Audit), (status = 400, body = ErrorBody))
)]
pub(super) async fn audit(
    State(api): State<Arc<Api>>,
    which: Result<Query<Which>, QueryRejection>,
) -> Answer<Json<Audit>> {
    let Which { session, after, limit } = query(which)?;
    let session = session.as_deref().map(session_id).transpose()?;
    let number = |text: Option<String>, name: &str| {
        let parsed = text.map(|text| text.parse::<u64>()).transpose();
        parsed.map_err(|_| ApiError::invalid(format!("{name} is a number")))
    };
    let after = number(after, "after")?.filter(|after| i64::try_from(*after).is_ok()).unwrap_or(0);
    let limit = match number(limit, "limit")?.map(usize::try_from) {
        None => LIMIT,
        Some(Ok(limit)) if (1..=MOST).contains(&limit) => limit,
        Some(_) => return Err(ApiError::invalid(format!("limit is 1 to {MOST}"))),
    };
    match ask(&api, &Request::Audit { session, after, limit }).await? {
        Reply::Audit(audit) => Ok(Json(*audit)),
        _ => Err(ApiError::new(cloister_types::ErrorCode::Internal, "the audit cannot be read")),
    }
}
