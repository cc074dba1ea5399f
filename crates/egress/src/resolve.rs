//! Name resolution that drops private addresses. The client connects to the
//! very addresses that were checked here.

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::rules::is_public;

pub(crate) struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<_> = found.filter(|address| is_public(address.ip())).collect();
            if public.is_empty() {
                return Err(
                    format!("{} has no public address (allow_private would let it through)", name.as_str()).into()
                );
            }
            let addresses: Addrs = Box::new(public.into_iter());
            Ok(addresses)
        })
    }
}
