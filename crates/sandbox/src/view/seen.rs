//! Views of scopes that were seen before: the common part is kept and cloned,
//! which costs a tenth of building it.

use std::os::fd::OwnedFd;

use cloister_types::SessionId;
use cloister_types::scope::{FileAccess, Scope};

use super::ViewError;
use super::places::Places;
use super::private::Private;
use super::site::Site;
use super::workspace::{Built, Template, make_writable, restore_modes};
use crate::identity::Identity;
use crate::plan::{self, Plan};

/// Most mounts that are kept; a mount namespace holds 100,000
/// (`fs.mount-max`).
const MOUNTS: usize = 20_000;
/// Most scopes.
const SCOPES: usize = 64;

/// A scope that was seen: as it was declared, how it is shown, and that.
struct Kept {
    declared: FileAccess,
    plan: Plan,
    template: Template,
}

/// The scopes that were seen, the last one last.
#[derive(Default)]
pub(crate) struct Seen {
    kept: Vec<Kept>,
    places: Places,
    private: Private,
}

impl Seen {
    /// Would something made in advance shorten the next view?
    pub(crate) fn wants(&self) -> bool {
        self.private.wants()
    }

    /// Makes a part of a view that is still to come.
    pub(crate) fn make_ahead(&mut self, workspace: &OwnedFd, identity: Identity) {
        self.private.make_ahead(workspace, identity);
    }

    /// Builds a session's view of the workspace folder.
    pub(crate) fn view(
        &mut self,
        site: &Site,
        workspace: &OwnedFd,
        declared: &FileAccess,
        session: &SessionId,
        identity: Identity,
    ) -> Result<Built, ViewError> {
        restore_modes(workspace);
        let (plan, known) = match self.kept.iter().position(|kept| kept.declared == *declared) {
            Some(at) => {
                let Kept { plan, template, .. } = self.kept.remove(at);
                (Plan { own: plan::private(session), ..plan }, Some(template))
            }
            None => {
                let scope = Scope::parse(declared).map_err(|error| ViewError::Scope(error.to_string()))?;
                let plan = plan::plan(&scope, session);
                // It may have been declared in other words.
                let same = |kept: &Kept| kept.plan.root == plan.root && kept.plan.binds == plan.binds;
                let at = self.kept.iter().position(same);
                (plan, at.map(|at| self.kept.remove(at).template))
            }
        };
        let template = match known.filter(|template| template.is_fresh(workspace)) {
            Some(template) => template,
            None => {
                make_writable(workspace, &plan, identity);
                Template::build(site, workspace, &plan, identity)?
            }
        };
        let own = self.private.take(workspace, &plan.own, identity);
        let built = own.and_then(|own| template.view(site, &plan.own, own, &mut self.places));
        if template.may_be_kept() {
            self.kept.push(Kept { declared: declared.clone(), plan, template });
        }
        while self.kept.len() > SCOPES || self.kept.iter().map(|kept| kept.template.mounts()).sum::<usize>() > MOUNTS {
            self.kept.remove(0);
        }
        built
    }
}
