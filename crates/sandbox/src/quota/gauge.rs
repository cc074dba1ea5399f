//! When to count, and what to make of it: pure.
//!
//! Counting walks the whole workspace, so it is done when it may matter: what
//! was counted last and what the disk has lost since cannot be less than what
//! is there now, unless others free space on the same disk meanwhile. For
//! their sake it is counted now and then anyway.

use std::time::{Duration, Instant};

use super::{Allowance, Amount, Full};

/// Longest time between two counts while programs are at work.
const BACKSTOP: Duration = Duration::from_secs(10);
/// Counting may take one part in so many of the time.
const SHARE: u32 = 20;
/// Growth beyond the limit that is worth a word.
const STEP: Amount = Amount { bytes: 1 << 20, files: 256 };

/// What was counted, and when.
struct Count {
    used: Amount,
    /// What the disk had free at the time.
    free: Amount,
    ended: Instant,
    took: Duration,
}

pub(super) struct Gauge {
    allowance: Allowance,
    counted: Option<Count>,
    /// Granted since the last count.
    granted: Amount,
    /// What there was when the busy were last told, if it is full.
    told: Option<Amount>,
}

impl Gauge {
    pub(super) fn new(allowance: Allowance) -> Self {
        Self { allowance, counted: None, granted: Amount::default(), told: None }
    }

    /// Takes a count.
    pub(super) fn counted(&mut self, used: Amount, free: Amount, ended: Instant, took: Duration) {
        self.counted = Some(Count { used, free, ended, took });
        self.granted = Amount::default();
    }

    /// The most that can be there by what is known, with the disk as it is.
    fn most(&self, free: Amount) -> Option<Amount> {
        let Count { used, free: then, .. } = self.counted.as_ref()?;
        let (bytes, files) = (then.bytes.saturating_sub(free.bytes), then.files.saturating_sub(free.files));
        Some(Amount {
            bytes: used.bytes.saturating_add(bytes.max(self.granted.bytes)),
            files: used.files.saturating_add(files.max(self.granted.files)),
        })
    }

    /// Is it time to count, with programs at work?
    pub(super) fn is_due(&self, free: Amount, now: Instant) -> bool {
        let (Some(count), Some(most)) = (&self.counted, self.most(free)) else { return true };
        let since = now.saturating_duration_since(count.ended);
        if since < count.took * SHARE && most != count.used {
            // Even now: a full disk cannot wait for a slow count.
            return self.over(most).is_some() && since >= count.took;
        }
        since >= BACKSTOP.max(count.took * SHARE) || (self.over(most).is_some() && most != count.used)
    }

    fn over(&self, used: Amount) -> Option<Full> {
        let Allowance { bytes, files, .. } = self.allowance;
        if used.bytes > bytes {
            return Some(Full::Bytes { used: used.bytes, limit: bytes });
        }
        (used.files > files).then_some(Full::Files { used: used.files, limit: files })
    }

    /// Does the disk have less left than is kept?
    pub(super) fn disk(&self, free: u64, size: u64) -> Option<Full> {
        let kept = self.allowance.free_bytes.min(size / 20);
        (free < kept).then_some(Full::Disk { free, kept })
    }

    /// Does one more file of so many bytes fit, as far as is known? `None`:
    /// only a count can tell.
    pub(super) fn fits(&self, bytes: u64, free: Amount) -> Option<bool> {
        let most = self.most(free)?;
        let then = Amount { bytes: most.bytes.saturating_add(bytes), files: most.files.saturating_add(1) };
        match self.over(then) {
            None => Some(true),
            Some(_) if self.counted.as_ref().is_some_and(|count| count.used == most) => Some(false),
            Some(_) => None,
        }
    }

    /// Notes that so much was granted.
    pub(super) fn grant(&mut self, bytes: u64) {
        self.granted.bytes = self.granted.bytes.saturating_add(bytes);
        self.granted.files = self.granted.files.saturating_add(1);
    }

    /// Why a file of so many bytes does not fit.
    pub(super) fn refusal(&self, bytes: u64) -> Option<Full> {
        let used = self.counted.as_ref()?.used;
        let then = Amount { bytes: used.bytes.saturating_add(bytes), files: used.files.saturating_add(1) };
        Some(match self.over(then)? {
            Full::Bytes { limit, .. } => Full::Bytes { used: used.bytes, limit },
            Full::Files { limit, .. } => Full::Files { used: used.files, limit },
            disk @ Full::Disk { .. } => disk,
        })
    }

    /// What the busy must be told now, if anything: that it is full, and
    /// whether it has grown although they were told.
    pub(super) fn news(&mut self, disk: Option<Full>, free: u64) -> Option<(Full, bool)> {
        let used = self.counted.as_ref()?.used;
        let Some(why) = disk.or_else(|| self.over(used)) else {
            self.told = None;
            return None;
        };
        // On a full disk it does not matter whose bytes they are.
        let now = match why {
            Full::Disk { .. } => Amount { bytes: u64::MAX - free, files: used.files },
            _ => used,
        };
        let grown =
            |then: Amount| now.bytes >= then.bytes.saturating_add(STEP.bytes) || now.files >= then.files + STEP.files;
        match self.told {
            Some(then) if !grown(then) => None,
            told => {
                self.told = Some(now);
                Some((why, told.is_some()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;
    const ALLOWED: Allowance = Allowance { bytes: 100 * MB, files: 1000, free_bytes: 10 * MB };

    fn amount(megabytes: u64, files: u64) -> Amount {
        Amount { bytes: megabytes * MB, files }
    }

    fn gauge(used: Amount, free: Amount, at: Instant) -> Gauge {
        let mut gauge = Gauge::new(ALLOWED);
        gauge.counted(used, free, at, Duration::from_millis(1));
        gauge
    }

    #[test]
    fn it_is_counted_when_the_disk_has_lost_what_there_was_room_for_and_not_before() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        assert!(Gauge::new(ALLOWED).is_due(amount(500, 5000), now), "never counted");
        let gauge = gauge(amount(60, 10), amount(500, 5000), now);
        assert!(!gauge.is_due(amount(500, 5000), later));
        assert!(!gauge.is_due(amount(460, 5000), later));
        assert!(gauge.is_due(amount(459, 5000), later));
        assert!(gauge.is_due(amount(500, 4000), later), "files count, too");
        assert!(gauge.is_due(amount(900, 9000), now + BACKSTOP), "others may have freed what was taken");
    }

    #[test]
    fn a_slow_count_is_not_repeated_all_the_time() {
        let now = Instant::now();
        let mut gauge = Gauge::new(ALLOWED);
        gauge.counted(amount(60, 10), amount(500, 5000), now, Duration::from_secs(2));
        assert!(!gauge.is_due(amount(500, 5000), now + BACKSTOP));
        assert!(gauge.is_due(amount(500, 5000), now + Duration::from_secs(40)));
        assert!(gauge.is_due(amount(400, 5000), now + Duration::from_secs(3)), "it may be full");
    }

    #[test]
    fn uploads_are_granted_by_what_is_known_and_refused_only_by_a_count() {
        let now = Instant::now();
        let mut gauge = gauge(amount(60, 10), amount(500, 5000), now);
        assert_eq!(gauge.fits(40 * MB, amount(500, 5000)), Some(true));
        assert_eq!(gauge.fits(41 * MB, amount(500, 5000)), Some(false));
        gauge.grant(30 * MB);
        assert_eq!(gauge.fits(20 * MB, amount(470, 5000)), None);
        gauge.counted(amount(90, 11), amount(470, 5000), now, Duration::ZERO);
        assert_eq!(gauge.fits(20 * MB, amount(470, 5000)), Some(false));
        assert_eq!(gauge.refusal(20 * MB), Some(Full::Bytes { used: 90 * MB, limit: 100 * MB }));
        gauge.counted(amount(1, 1000), amount(470, 5000), now, Duration::ZERO);
        assert_eq!(gauge.refusal(1), Some(Full::Files { used: 1000, limit: 1000 }));
    }

    #[test]
    fn the_busy_are_told_once_and_again_for_each_step_beyond() {
        let now = Instant::now();
        let free = 500 * MB;
        let mut gauge = gauge(amount(100, 10), amount(500, 5000), now);
        assert_eq!(gauge.news(None, free), None);
        let mut count = |megabytes| {
            gauge.counted(amount(megabytes, 10), amount(500, 5000), now, Duration::ZERO);
            gauge.news(None, free).map(|(_, again)| again)
        };
        assert_eq!(count(101), Some(false));
        assert_eq!(count(101), None);
        assert_eq!(count(102), Some(true));
        assert_eq!(count(101), None);
        assert_eq!(count(90), None);
        assert_eq!(count(120), Some(false), "below in between, so it begins anew");
    }

    #[test]
    fn a_disk_that_runs_full_counts_whoever_fills_it() {
        let mut gauge = gauge(amount(1, 1), amount(500, 5000), Instant::now());
        assert_eq!(gauge.disk(11 * MB, 1000 * MB), None);
        let full = gauge.disk(9 * MB, 1000 * MB);
        assert_eq!(full, Some(Full::Disk { free: 9 * MB, kept: 10 * MB }));
        assert_eq!(gauge.news(full, 9 * MB), Some((full.unwrap(), false)));
        assert_eq!(gauge.news(full, 9 * MB), None);
        assert_eq!(gauge.news(full, 7 * MB), Some((full.unwrap(), true)));
        // Of a small disk, a twentieth.
        assert_eq!(gauge.disk(9 * MB, 100 * MB), None);
    }
}
