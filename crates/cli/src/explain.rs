//! The pages of `docs/errors`, carried in the program.

/// Code and page, in the order of the list of codes.
pub(crate) const PAGES: &[(&str, &str)] = &[
    ("invalid_request", include_str!("../../../docs/errors/invalid_request.md")),
    ("is_directory", include_str!("../../../docs/errors/is_directory.md")),
    ("unauthorized", include_str!("../../../docs/errors/unauthorized.md")),
    ("invalid_path", include_str!("../../../docs/errors/invalid_path.md")),
    ("forbidden", include_str!("../../../docs/errors/forbidden.md")),
    ("read_only_path", include_str!("../../../docs/errors/read_only_path.md")),
    ("not_found", include_str!("../../../docs/errors/not_found.md")),
    ("method_not_allowed", include_str!("../../../docs/errors/method_not_allowed.md")),
    ("session_busy", include_str!("../../../docs/errors/session_busy.md")),
    ("conflict", include_str!("../../../docs/errors/conflict.md")),
    ("precondition_failed", include_str!("../../../docs/errors/precondition_failed.md")),
    ("payload_too_large", include_str!("../../../docs/errors/payload_too_large.md")),
    ("quota_exceeded", include_str!("../../../docs/errors/quota_exceeded.md")),
    ("range_not_satisfiable", include_str!("../../../docs/errors/range_not_satisfiable.md")),
    ("idempotency_mismatch", include_str!("../../../docs/errors/idempotency_mismatch.md")),
    ("queue_full", include_str!("../../../docs/errors/queue_full.md")),
    ("session_limit", include_str!("../../../docs/errors/session_limit.md")),
    ("sandbox_unavailable", include_str!("../../../docs/errors/sandbox_unavailable.md")),
    ("unavailable", include_str!("../../../docs/errors/unavailable.md")),
    ("storage_full", include_str!("../../../docs/errors/storage_full.md")),
    ("log_damaged", include_str!("../../../docs/errors/log_damaged.md")),
    ("internal", include_str!("../../../docs/errors/internal.md")),
    ("step_limit", include_str!("../../../docs/errors/step_limit.md")),
    ("time_limit", include_str!("../../../docs/errors/time_limit.md")),
    ("token_limit", include_str!("../../../docs/errors/token_limit.md")),
    ("rate_limited", include_str!("../../../docs/errors/rate_limited.md")),
    ("spend_limit", include_str!("../../../docs/errors/spend_limit.md")),
    ("model_rejected", include_str!("../../../docs/errors/model_rejected.md")),
    ("model_unavailable", include_str!("../../../docs/errors/model_unavailable.md")),
    ("model_refusal", include_str!("../../../docs/errors/model_refusal.md")),
    ("agent_died", include_str!("../../../docs/errors/agent_died.md")),
    ("interrupted", include_str!("../../../docs/errors/interrupted.md")),
];

#[cfg(test)]
mod tests {
    use super::*;
    use cloister_types::ErrorCode;

    #[test]
    fn every_code_has_its_page_and_every_page_its_code() {
        let codes: Vec<&str> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        let mut pages: Vec<&str> = PAGES.iter().map(|(code, _)| *code).collect();
        assert!(PAGES.iter().all(|(code, page)| page.contains(&format!("`{code}`"))));
        let mut sorted = codes.clone();
        sorted.sort_unstable();
        pages.sort_unstable();
        assert_eq!(pages, sorted);
    }
}
