//! Connections are shared: whoever opens ever more leaves half of them to others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use cloister_types::address::network_of;

/// Who has how many.
pub(crate) struct Shares {
    most: usize,
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection of somebody's, until it is dropped.
pub(crate) struct Share {
    shares: Arc<Shares>,
    whose: IpAddr,
}

impl Shares {
    /// With so many for each.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, taken: Mutex::default() })
    }

    /// One more for an address; none if it has its share.
    pub(crate) fn take(self: &Arc<Self>, address: IpAddr) -> Option<Share> {
        let whose = network_of(address);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(whose).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Share { shares: self.clone(), whose })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.shares.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.whose) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.whose);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_share_and_gives_it_back() {
        let shares = Shares::new(2);
        let take = |address: &str| shares.take(address.parse().unwrap());
        let (one, _two) = (take("192.0.2.1").unwrap(), take("::ffff:192.0.2.1").unwrap());
        assert!(take("192.0.2.1").is_none() && take("192.0.2.2").is_some());
        drop(one);
        assert!(take("192.0.2.1").is_some());
        let _six = (take("2001:db8::1"), take("2001:db8::ffff:2"));
        assert!(take("2001:db8::3").is_none() && take("2001:db8:0:1::1").is_some());
        drop((_two, _six));
        assert!(shares.taken.lock().unwrap().is_empty());
    }
}
