//! Two clocks. What people read is wall time. What decides how long something
//! lives is a clock of the tenant's own, which goes on over restarts and which
//! nobody moves by setting the machine's: within a boot it follows the kernel's
//! time since the boot, and only from one boot to the next the wall.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cloister_store::Store;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::SessionError;

/// Name of the note in the store.
const NOTE: &str = "clock";
/// A wall clock that has moved by more than this, beside the kernel's, was set.
const SET: f64 = 2.0;

/// Unix seconds with a fraction, for people.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// A moment on all the clocks there are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Moment {
    /// Seconds on the clock of lives.
    life: f64,
    boot_id: String,
    /// Seconds since the boot, sleep included.
    since_boot: f64,
    wall: f64,
}

impl Moment {
    /// What the machine's clocks show, at that time on the clock of lives.
    fn read(life: f64) -> Self {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self { life, boot_id: boot_id.trim().to_owned(), since_boot: since_boot(), wall: now() }
    }

    /// The clock of lives at another moment, `later`.
    fn life_at(&self, later: &Self) -> f64 {
        let passed = if self.boot_id == later.boot_id {
            later.since_boot - self.since_boot
        } else {
            // Between two boots there is nothing else to go by; it is not
            // believed to run backwards.
            later.wall - self.wall
        };
        self.life + passed.max(0.0)
    }
}

fn since_boot() -> f64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The clock of lives.
#[derive(Debug)]
pub(crate) struct LifeClock {
    start: Moment,
}

impl LifeClock {
    /// Goes on from what the last server noted. A new tenant's clock begins
    /// with the wall's time, so that older data directories fit.
    pub(crate) async fn open(store: &Store) -> Result<Self, SessionError> {
        let noted = store.noted(NOTE).await?.and_then(|text| serde_json::from_str::<Moment>(&text).ok());
        let mut start = Moment::read(now());
        if let Some(noted) = noted {
            start.life = noted.life_at(&start);
        }
        let clock = Self { start };
        if let Err(error) = clock.note(store).await {
            // A full disk keeps nobody out; the last note stands.
            tracing::warn!(%error, "clock not noted");
        }
        Ok(clock)
    }

    /// Seconds; never backwards.
    pub(crate) fn now(&self) -> f64 {
        self.start.life + (since_boot() - self.start.since_boot).max(0.0)
    }

    /// Notes where the clocks stand, for the next boot to go on from.
    async fn note(&self, store: &Store) -> Result<(), SessionError> {
        let moment = serde_json::to_string(&Moment::read(self.now())).unwrap_or_default();
        Ok(store.note(NOTE, moment).await?)
    }

    /// Runs until dropped: notes the clocks again whenever the wall's was set.
    pub(crate) async fn watch(&self, store: &Store) {
        let difference = || now() - since_boot();
        let mut noted = difference();
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if (difference() - noted).abs() > SET {
                noted = difference();
                if let Err(error) = self.note(store).await {
                    tracing::warn!(%error, "clock not noted");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(life: f64, boot_id: &str, since_boot: f64, wall: f64) -> Moment {
        Moment { life, boot_id: boot_id.into(), since_boot, wall }
    }

    #[test]
    fn setting_the_wall_clock_moves_no_life_within_a_boot() {
        let before = moment(1000.0, "a", 50.0, 5000.0);
        assert_eq!(before.life_at(&moment(0.0, "a", 60.0, 99_000.0)), 1010.0);
        assert_eq!(before.life_at(&moment(0.0, "a", 60.0, 10.0)), 1010.0);
    }

    #[test]
    fn from_boot_to_boot_it_follows_the_wall_and_never_runs_backwards() {
        let before = moment(1000.0, "a", 50.0, 5000.0);
        assert_eq!(before.life_at(&moment(0.0, "b", 3.0, 5600.0)), 1600.0);
        assert_eq!(before.life_at(&moment(0.0, "b", 3.0, 10.0)), 1000.0);
    }
}
