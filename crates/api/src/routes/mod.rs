//! Every route, on one screen.

mod connections;
mod egress;
mod files;
mod history;
mod messages;
mod sessions;
mod system;

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::{Router, middleware};
use cloister_types::ErrorCode;
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
        .split_for_parts()
}

/// The whole surface, ready to serve.
pub fn router(api: Arc<Api>) -> Router {
    let (router, _) = described();
    router
        // The same as without the slash; OpenAPI has no word for it.
        .route("/v1/sessions/{id}/files/", axum::routing::get(files::list))
        .fallback(|| async { ApiError::new(ErrorCode::NotFound, "there is nothing at this path") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(ErrorCode::MethodNotAllowed, "this path takes other methods")
        })
        // Handlers that read a body bound it themselves.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(api.clone(), auth::require_key))
        .with_state(api)
}
