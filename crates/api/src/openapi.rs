//! The OpenAPI document, built from the same route table that serves.

use utoipa::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Cloister",
        description = "Sessions of long-running agents in kernel-enforced workspaces. Errors have the body `{\"error\", \"message\", \"hint\"?}`; \
                       each code has a page under docs/errors.",
        license(name = "Apache-2.0 OR MIT")
    ),
    modifiers(&Bearer),
    security(("bearer" = []))
)]
pub(crate) struct Head;

struct Bearer;

impl utoipa::Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document.components.get_or_insert_default().add_security_scheme("bearer", scheme);
    }
}

/// The document as JSON text, two spaces deep, as it is committed and served.
///
/// # Panics
/// Never for the document that this build holds; a test builds it.
#[must_use]
pub fn document() -> String {
    let mut document = serde_json::to_value(crate::routes::described().1).unwrap_or_default();
    // The router's word for "the rest of the path" is not OpenAPI's.
    if let Some(paths) = document["paths"].as_object_mut() {
        let wild: Vec<String> = paths.keys().filter(|path| path.contains("{*")).cloned().collect();
        for path in wild {
            if let Some(item) = paths.remove(&path) {
                paths.insert(path.replace("{*", "{"), item);
            }
        }
    }
    // Whatever else there is to say is said in one form.
    let others = serde_json::json!({
        "description": "An error; docs/errors has a page for each code",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
    });
    for item in document["paths"].as_object_mut().into_iter().flat_map(|paths| paths.values_mut()) {
        for operation in item.as_object_mut().into_iter().flat_map(|item| item.values_mut()) {
            if let Some(responses) = operation["responses"].as_object_mut() {
                responses.insert("default".into(), others.clone());
            }
        }
    }
    let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
    text.push('\n');
    text
}
