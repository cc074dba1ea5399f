//! The committed description of the API is the one that this code serves.
#![allow(missing_docs, clippy::unwrap_used)]

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi/v1.json");

#[test]
fn openapi_is_committed_as_it_is_served() {
    let served = cloister_api::document();
    if std::env::var_os("CLOISTER_WRITE_OPENAPI").is_some() {
        std::fs::write(PATH, &served).unwrap();
    }
    let committed = std::fs::read_to_string(PATH).unwrap_or_default();
    assert!(served == committed, "openapi/v1.json has drifted from the code; write it again with: cargo xtask openapi");
    assert!(served.contains("\"openapi\": \"3.1"));
}

#[test]
fn openapi_names_every_path_of_the_contract_so_far() {
    let document: serde_json::Value = serde_json::from_str(&cloister_api::document()).unwrap();
    for (path, methods) in [
        ("/health", &["get"][..]),
        ("/openapi.json", &["get"]),
        ("/v1/sessions", &["get", "post", "delete"]),
        ("/v1/sessions/{id}", &["get", "delete"]),
        ("/v1/sessions/{id}/messages", &["post"]),
        ("/v1/sessions/{id}/responses/{rid}/events", &["get"]),
        ("/v1/sessions/{id}/responses/{rid}/cancel", &["post"]),
        ("/v1/sessions/{id}/files", &["get"]),
        ("/v1/sessions/{id}/files/{path}", &["get", "put", "delete"]),
    ] {
        for method in methods {
            assert!(document["paths"][path][method].is_object(), "{method} {path}");
        }
    }
}
