//! What each operation needs. An operation without a row is refused to
//! everybody, and a test finds it.

use axum::http::Method;
use cloister_types::access::Right;

/// What an operation needs of whoever calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Nothing, not even to be known.
    Nothing,
    /// To be known.
    Caller,
    /// A right.
    Right(Right),
}

/// What an operation needs, by method and path as the router writes it.
pub(crate) fn needs(method: &Method, path: &str) -> Option<Needs> {
    use Needs::{Caller, Nothing, Right as R};
    use Right::{Audit, Credentials, End, Keys, View, ViewConnections, Work};
    let method = if method == Method::HEAD { "GET" } else { method.as_str() };
    Some(match (method, path) {
        ("GET", "/health" | "/auth/sign-in" | "/auth/callback") => Nothing,
        ("GET", "/.well-known/oauth-protected-resource") | ("POST", "/v1/token") => Nothing,
        ("POST", "/auth/sign-out") => Caller,
        ("GET", "/openapi.json" | "/v1/me") => Caller,
        ("GET", "/v1/sessions" | "/v1/sessions/{id}" | "/v1/sessions/{id}/sandbox") => R(View),
        ("POST", "/v1/sessions") => R(Work),
        ("DELETE", "/v1/sessions" | "/v1/sessions/{id}") => R(End),
        ("POST", "/v1/sessions/{id}/messages") => R(Work),
        ("GET", "/v1/sessions/{id}/messages" | "/v1/sessions/{id}/responses") => R(View),
        ("GET", "/v1/sessions/{id}/responses/{rid}" | "/v1/sessions/{id}/responses/{rid}/events") => R(View),
        ("POST", "/v1/sessions/{id}/responses/{rid}/cancel") => R(End),
        ("GET", "/v1/sessions/{id}/files" | "/v1/sessions/{id}/files/" | "/v1/sessions/{id}/files/{*path}") => R(View),
        ("PUT" | "DELETE", "/v1/sessions/{id}/files/{*path}") => R(Work),
        ("GET", "/v1/connections" | "/v1/connections/{name}") => R(ViewConnections),
        ("PUT" | "DELETE", "/v1/connections/{name}" | "/v1/connections/{name}/secret") => R(Credentials),
        ("DELETE", "/v1/connections/{name}/versions/{version}") => R(Credentials),
        ("POST", "/v1/connections/{name}/test") => R(Credentials),
        ("GET", "/v1/egress") => R(Audit),
        ("GET" | "POST", "/v1/keys") | ("GET" | "DELETE", "/v1/keys/{id}") => R(Keys),
        ("POST", "/v1/keys/{id}/rotate" | "/v1/auth/explain") => R(Keys),
        ("GET", "/v1/sign-ins") | ("DELETE", "/v1/sign-ins/{id}") => R(Keys),
        ("POST", "/v1/sessions/{id}/tokens") => R(View),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_of_the_document_has_a_row() {
        let document: serde_json::Value = serde_json::from_str(&crate::document()).unwrap();
        for (path, item) in document["paths"].as_object().unwrap() {
            // OpenAPI has no word for "the rest of the path".
            let path = path.replace("{path}", "{*path}");
            for method in item.as_object().unwrap().keys() {
                let Ok(method) = method.to_uppercase().parse() else { continue };
                assert!(needs(&method, &path).is_some(), "{method} {path}");
            }
        }
        assert_eq!(needs(&Method::GET, "/v1/other"), None);
    }
}
