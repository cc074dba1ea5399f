//! Acts of those who are at the host itself, in the same kind of chain as all others,
//! written down before they are done: what concerns one tenant in its own, what is done
//! to tenants in one beside them, which outlives them.

use std::path::{Path, PathBuf};

use cloister_types::access::is_caller;
use cloister_types::egress::{Audit, AuditEntry, AuditHead, Decision};
use cloister_vault::audit::{self, Verified};

use crate::ServerError;

/// Where the chain of a folder is: of a tenant's data, or of a host's tenants.
pub(crate) fn chain(folder: &Path) -> PathBuf {
    folder.join("audit.db")
}

/// Writes an act down.
pub(crate) fn act(folder: &Path, region: &str, rule: &str, what: String) -> Result<(), ServerError> {
    let entry = AuditEntry {
        stream: "access".into(),
        decision: Some(Decision::Vault),
        rule: rule.into(),
        caller: Some(caller()),
        flags: vec![what],
        ..AuditEntry::default()
    };
    audit::note(&chain(folder), region, entry)
        .map_err(|error| ServerError::Start(format!("the audit cannot be written, so nothing is changed: {error}")))
}

/// Who is at the host: as sudo says, else by number.
fn caller() -> String {
    let name = std::env::var("SUDO_USER").ok().filter(|name| is_caller(name));
    format!("host:{}", name.unwrap_or_else(|| rustix::process::getuid().as_raw().to_string()))
}

/// A page of what was done to the tenants of a folder, after a place.
///
/// # Errors
/// Nothing was yet, or it cannot be read.
pub fn acts(root: &Path, after: u64) -> Result<Audit, ServerError> {
    let path = chain(root);
    audit::read(&path, after).map_err(|error| ServerError::Start(format!("{}: {error}", path.display())))
}

/// Verifies a chain.
///
/// # Errors
/// The first fault.
pub fn verify_audit(
    path: &Path,
    tenant: &str,
    head: Option<&AuditHead>,
    key: Option<&str>,
) -> Result<Verified, String> {
    audit::verify(path, tenant, head, key)
}
