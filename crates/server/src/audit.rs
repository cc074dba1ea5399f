//! Acts of those who are at the host itself, in the same kind of chain as all others,
//! written down before they are done: what concerns one tenant in its own, what is done
//! to tenants in one beside them, which outlives them.

use std::path::Path;

use cloister_types::access::is_caller;
use cloister_types::egress::{Audit, AuditEntry, AuditHead, Decision};
use cloister_vault::audit::{self, Verified};

use crate::ServerError;
use crate::files::make_own;

/// A folder's chain: of a tenant's data, or of a host's tenants.
const CHAIN: &str = "audit.db";

/// Writes an act down.
pub(crate) fn act(folder: &Path, region: &str, rule: &str, what: String) -> Result<(), ServerError> {
    // By number, as the kernel says; a name is what the environment says.
    let sudo = std::env::var("SUDO_USER").ok().filter(|name| is_caller(name));
    let entry = AuditEntry {
        stream: "host".into(),
        decision: Some(Decision::Vault),
        rule: rule.into(),
        caller: Some(format!("uid:{}", rustix::process::getuid().as_raw())),
        flags: std::iter::once(what).chain(sudo.map(|name| format!("sudo:{name}"))).collect(),
        ..AuditEntry::default()
    };
    let failed = |error: &dyn std::fmt::Display| ServerError::Start(format!("the audit cannot be written: {error}"));
    make_own(folder, CHAIN).map_err(|error| failed(&error))?;
    audit::note(&folder.join(CHAIN), region, entry).map_err(|error| failed(&error))
}

/// A page of what was done to the tenants of a folder, after a place.
///
/// # Errors
/// Nothing was yet, or it cannot be read.
pub fn acts(root: &Path, after: u64) -> Result<Audit, ServerError> {
    let path = root.join(CHAIN);
    audit::read(&path, after).map_err(|error| ServerError::Start(format!("{}: {error}", path.display())))
}

/// Verifies a folder's chain.
///
/// # Errors
/// The first fault.
pub fn verify_audit(
    folder: &Path,
    tenant: &str,
    head: Option<&AuditHead>,
    key: Option<&str>,
) -> Result<Verified, String> {
    audit::verify(&folder.join(CHAIN), tenant, head, key)
}
