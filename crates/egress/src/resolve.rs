//! Name resolution that drops addresses which may not be connected to. The
//! client connects to the very addresses that were checked here.

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::rules::is_public;

/// Which addresses a client may connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Only {
    /// Public ones: the operator allowed nothing else.
    Public,
    /// Private ones: what goes there goes in the clear.
    Private,
}

impl Resolve for Only {
    fn resolve(&self, name: Name) -> Resolving {
        let public = *self == Self::Public;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<_> = found.filter(|address| is_public(address.ip()) == public).collect();
            if allowed.is_empty() {
                let kind = if public { "public" } else { "private" };
                return Err(format!("{} has no {kind} address", name.as_str()).into());
            }
            let addresses: Addrs = Box::new(allowed.into_iter());
            Ok(addresses)
        })
    }
}
