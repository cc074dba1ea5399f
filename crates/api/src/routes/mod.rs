//! Every route, on one screen.

mod connections;
mod egress;
mod files;
mod history;
mod keys;
mod messages;
mod sessions;
mod sign_in;
mod system;
mod tokens;

use std::sync::{Arc, OnceLock};

use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderName, HeaderValue, Method};
use axum::{Router, middleware};
use cloister_types::ErrorCode;
use tower_http::cors::{AllowOrigin, CorsLayer};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::ApiError;
use crate::openapi::Head;
use crate::{Api, auth};

/// The routes and their description, from one table.
pub(crate) fn described() -> (Router<Arc<Api>>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(Head::openapi())
        .routes(routes!(system::health))
        .routes(routes!(system::openapi))
        .routes(routes!(sessions::create, sessions::list, sessions::delete_matching))
        .routes(routes!(sessions::get, sessions::delete))
        .routes(routes!(sessions::sandbox))
        .routes(routes!(messages::send, history::transcript))
        .routes(routes!(history::list))
        .routes(routes!(history::get))
        .routes(routes!(messages::events))
        .routes(routes!(messages::cancel))
        .routes(routes!(files::list))
        .routes(routes!(files::get, files::put, files::delete))
        .routes(routes!(connections::list))
        .routes(routes!(connections::get, connections::put, connections::delete))
        .routes(routes!(connections::put_secret, connections::revoke))
        .routes(routes!(connections::revoke_version))
        .routes(routes!(connections::test))
        .routes(routes!(egress::audit))
        .routes(routes!(keys::create, keys::list))
        .routes(routes!(keys::get, keys::revoke))
        .routes(routes!(keys::rotate))
        .routes(routes!(system::me))
        .routes(routes!(tokens::for_session))
        .routes(routes!(tokens::exchange))
        .routes(routes!(tokens::explain))
        .routes(routes!(sign_in::metadata))
        .routes(routes!(sign_in::begin))
        .routes(routes!(sign_in::callback))
        .routes(routes!(sign_in::end_own))
        .routes(routes!(sign_in::list))
        .routes(routes!(sign_in::end))
        .split_for_parts()
}

/// Is this operation one of the surface's?
pub(crate) fn serves(method: &Method, path: &str) -> bool {
    static DESCRIBED: OnceLock<utoipa::openapi::OpenApi> = OnceLock::new();
    let described = DESCRIBED.get_or_init(|| described().1);
    described.paths.paths.get(path).is_some_and(|item| {
        let operation = match method.as_str() {
            "GET" | "HEAD" => &item.get,
            "POST" => &item.post,
            "PUT" => &item.put,
            "DELETE" => &item.delete,
            _ => &None,
        };
        operation.is_some()
    })
}

/// Pages of other sites that may read answers: with a token that they were given,
/// never with a cookie.
fn pages_of(origins: &[HeaderValue]) -> CorsLayer {
    let named = |names: &[&'static str]| names.iter().map(|name| HeaderName::from_static(name)).collect::<Vec<_>>();
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins.iter().cloned()))
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(named(&["authorization", "content-type", "idempotency-key", "last-event-id"]))
        .expose_headers(named(&[
            "ratelimit-limit",
            "ratelimit-remaining",
            "ratelimit-reset",
            "retry-after",
            "x-response-id",
        ]))
        .max_age(std::time::Duration::from_secs(600))
}

/// The whole surface, ready to serve.
pub fn router(api: Arc<Api>) -> Router {
    let (router, _) = described();
    let router = router
        // The same as without the slash; OpenAPI has no word for it.
        .route("/v1/sessions/{id}/files/", axum::routing::get(files::list))
        .fallback(|| async { ApiError::new(ErrorCode::NotFound, "there is nothing at this path") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(ErrorCode::MethodNotAllowed, "this path takes other methods")
        })
        // Handlers that read a body bound it themselves.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(api.clone(), auth::guard));
    let router = if api.browser_origins.is_empty() { router } else { router.layer(pages_of(&api.browser_origins)) };
    router.layer(middleware::from_fn_with_state(api.clone(), auth::network)).with_state(api)
}
