//! What stands for ACME in a build without it.

use std::path::Path;

use super::Answers;
use crate::ServerError;
use crate::config::Config;

/// There are none.
pub(crate) enum Orders {}

impl Orders {
    pub(crate) fn of(config: &mut Config, _data: &Path) -> Result<Option<Self>, ServerError> {
        match config.listen.acme {
            None => Ok(None),
            Some(_) => Err(ServerError::Config(
                "listen.acme: this build cannot get certificates; build it with the feature `acme`".into(),
            )),
        }
    }

    pub(crate) fn answers(&self) -> Answers {
        match *self {}
    }

    pub(crate) async fn keep(self) {
        match self {}
    }
}
