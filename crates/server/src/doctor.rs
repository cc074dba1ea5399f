//! What this machine offers, for people: the same list that session creation
//! relies on.

pub use cloister_session::doctor::{Finding, Verdict};

use crate::ServerError;
use crate::tenant::Executables;

/// Probes the machine.
///
/// # Errors
/// The sandbox executable is missing or does not answer.
pub fn examine() -> Result<Vec<Finding>, ServerError> {
    let executables = Executables::find()?;
    cloister_session::doctor::probe(&executables.sandbox).map_err(ServerError::start("run the probe"))
}
