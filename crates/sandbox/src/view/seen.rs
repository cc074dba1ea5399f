//! Views of scopes that were seen before: the common part is kept and cloned,
//! which costs a tenth of building it.

use std::os::fd::OwnedFd;

use super::ViewError;
use super::workspace::{Built, Template, make_writable, private_folder, restore_modes};
use crate::identity::Identity;
use crate::plan::Plan;

/// Most mounts that are kept; a mount namespace holds 100,000
/// (`fs.mount-max`).
const MOUNTS: usize = 20_000;
/// Most scopes.
const SCOPES: usize = 64;

/// The scopes that were seen, the last one last.
#[derive(Default)]
pub(crate) struct Seen {
    kept: Vec<(Plan, Template)>,
}

impl Seen {
    /// Builds the view that `plan` describes from the workspace folder.
    pub(crate) fn view(&mut self, workspace: &OwnedFd, plan: &Plan, identity: Identity) -> Result<Built, ViewError> {
        restore_modes(workspace);
        let at = self.kept.iter().position(|(seen, _)| seen.root == plan.root && seen.binds == plan.binds);
        let known = at.map(|at| self.kept.remove(at).1).filter(|template| template.is_fresh(workspace));
        let template = match known {
            Some(template) => template,
            None => {
                make_writable(workspace, plan, identity);
                Template::build(workspace, plan, identity)?
            }
        };
        let built = private_folder(workspace, plan, identity).and_then(|own| template.view(&plan.own, own));
        if template.may_be_kept() {
            self.kept.push((plan.clone(), template));
        }
        while self.kept.len() > SCOPES
            || self.kept.iter().map(|(_, template)| template.mounts()).sum::<usize>() > MOUNTS
        {
            self.kept.remove(0);
        }
        built
    }
}
