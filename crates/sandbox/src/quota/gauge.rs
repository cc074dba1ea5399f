//! When to count, and what to make of it: pure.
//!
//! Counting walks the whole workspace, so it is done when it may matter: what
//! was counted last and what the disk has lost since cannot be less than what
//! is there now, unless others free space on the same disk meanwhile. For
//! their sake it is counted now and then anyway.

use std::mem::Discriminant;
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

/// What the busy were told.
#[derive(Clone, Copy)]
struct Told {
    /// By what it was full, in words that only tell kinds apart.
    kind: Discriminant<Full>,
    /// How much there was, in the terms of that kind.
    level: Amount,
    /// How often in a row nobody was seen to write when they were told.
    stage: u32,
    /// Somebody was, since.
    found: bool,
}

pub(super) struct Gauge {
    allowance: Allowance,
    counted: Option<Count>,
    /// Granted to uploads that are under way: it has no name yet, so no count
    /// finds it.
    live: Amount,
    /// Uploads that have come to their end since the last count.
    settled: Amount,
    /// If it is full.
    told: Option<Told>,
}

impl Gauge {
    pub(super) fn new(allowance: Allowance) -> Self {
        let (live, settled) = (Amount::default(), Amount::default());
        Self { allowance, counted: None, live, settled, told: None }
    }

    /// Takes a count.
    pub(super) fn counted(&mut self, used: Amount, free: Amount, ended: Instant, took: Duration) {
        self.counted = Some(Count { used, free, ended, took });
        self.settled = Amount::default();
    }

    /// The most that can be there by what is known, with the disk as it is.
    fn most(&self, free: Amount) -> Option<Amount> {
        let Count { used, free: then, .. } = self.counted.as_ref()?;
        let (bytes, files) = (then.bytes.saturating_sub(free.bytes), then.files.saturating_sub(free.files));
        let granted = self.settled.plus(self.live);
        Some(used.plus(Amount { bytes: bytes.max(granted.bytes), files: files.max(granted.files) }))
    }

    /// Is it time to count, with programs at work?
    pub(super) fn is_due(&self, free: Amount, now: Instant) -> bool {
        let (Some(count), Some(most)) = (&self.counted, self.most(free)) else { return true };
        let since = now.saturating_duration_since(count.ended);
        let rested = count.took * SHARE;
        // What was full is looked at again when it has grown: that it is full
        // is no reason by itself.
        let may_be_full = self.over(most).is_some();
        let news = if self.over(count.used).is_some() { most.exceeds(count.used.plus(STEP)) } else { may_be_full };
        // A disk that fills up cannot wait for a slow count to have rested.
        (news && since >= count.took) || since >= BACKSTOP.max(rested)
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

    /// Does so much more fit, as far as is known? `None`: only a count can tell.
    pub(super) fn fits(&self, more: Amount, free: Amount) -> Option<bool> {
        let most = self.most(free)?;
        let sure = self.counted.as_ref()?.used.plus(self.live);
        match self.over(most.plus(more)) {
            None => Some(true),
            Some(_) if self.over(sure.plus(more)).is_some() && self.settled == Amount::default() => Some(false),
            Some(_) => None,
        }
    }

    /// Grants so much to an upload.
    pub(super) fn grant(&mut self, more: Amount) {
        self.live = self.live.plus(more);
    }

    /// An upload has come to its end, kept or not.
    pub(super) fn settle(&mut self, granted: Amount, kept: bool) {
        self.live = self.live.minus(granted);
        if kept {
            self.settled = self.settled.plus(granted);
        }
    }

    /// Why so much more does not fit: what there is, uploads under way included.
    pub(super) fn refusal(&self, more: Amount) -> Option<Full> {
        let used = self.counted.as_ref()?.used.plus(self.live);
        let Allowance { bytes, files, .. } = self.allowance;
        match self.over(used.plus(more))? {
            Full::Files { .. } => Some(Full::Files { used: used.files, limit: files }),
            _ => Some(Full::Bytes { used: used.bytes, limit: bytes }),
        }
    }

    /// Among those who were told, somebody was seen to write, or not.
    pub(super) fn found(&mut self, wrote: bool) {
        if let Some(told) = &mut self.told {
            told.found |= wrote;
        }
    }

    /// What the busy must be told now, if anything: that it is full, and how
    /// often in a row nobody was seen to write and it has grown all the same.
    /// `answered`: all who were told have said whether they saw somebody; until
    /// then it is not known that nobody was seen.
    pub(super) fn news(&mut self, disk: Option<Full>, free: u64, answered: bool) -> Option<(Full, u32)> {
        let used = self.counted.as_ref()?.used;
        let Some(why) = disk.or_else(|| self.over(used)) else {
            self.told = None;
            return None;
        };
        let kind = std::mem::discriminant(&why);
        // On a full disk it does not matter whose bytes they are.
        let level = match why {
            Full::Disk { .. } => Amount { bytes: u64::MAX - free, files: 0 },
            Full::Bytes { .. } | Full::Files { .. } => used,
        };
        let stage = match self.told.filter(|told| told.kind == kind) {
            Some(told) if !level.exceeds(told.level.plus(STEP)) => return None,
            Some(told) if told.found => 0,
            Some(told) => told.stage + u32::from(answered),
            None => 0,
        };
        self.told = Some(Told { kind, level, stage, found: false });
        Some((why, stage))
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
        // Whoever keeps it full does not keep it counting.
        gauge.counted(amount(120, 10), amount(500, 5000), now, Duration::from_secs(2));
        let a_little = Amount { bytes: 500 * MB - 4096, files: 5000 };
        assert!(!gauge.is_due(a_little, now + Duration::from_secs(3)));
        assert!(gauge.is_due(amount(497, 5000), now + Duration::from_secs(3)), "it has grown");
    }

    #[test]
    fn uploads_are_granted_by_what_is_known_and_refused_only_by_a_count() {
        let now = Instant::now();
        let free = amount(500, 5000);
        let file = |megabytes| amount(megabytes, 1);
        let mut gauge = gauge(amount(60, 10), free, now);
        assert_eq!(gauge.fits(file(40), free), Some(true));
        assert_eq!(gauge.fits(file(41), free), Some(false));
        // While an upload is under way no count takes its grant back.
        gauge.grant(file(30));
        gauge.counted(amount(60, 10), free, now, Duration::ZERO);
        assert_eq!(gauge.fits(file(20), free), Some(false));
        assert_eq!(gauge.refusal(file(20)), Some(Full::Bytes { used: 90 * MB, limit: 100 * MB }));
        // One that was given up makes room; one that was kept takes it.
        gauge.settle(file(30), false);
        assert_eq!(gauge.fits(file(40), free), Some(true));
        gauge.grant(file(30));
        gauge.settle(file(30), true);
        assert_eq!(gauge.fits(file(20), free), None, "it may have replaced something");
        gauge.counted(amount(65, 10), free, now, Duration::ZERO);
        assert_eq!(gauge.fits(file(20), free), Some(true));
        gauge.counted(amount(1, 1000), free, now, Duration::ZERO);
        assert_eq!(gauge.refusal(file(0)), Some(Full::Files { used: 1000, limit: 1000 }));
    }

    #[test]
    fn the_busy_are_told_once_and_again_for_each_step_beyond() {
        let now = Instant::now();
        let free = 500 * MB;
        let mut gauge = gauge(amount(100, 10), amount(500, 5000), now);
        assert_eq!(gauge.news(None, free, true), None);
        let mut count = |megabytes| {
            gauge.counted(amount(megabytes, 10), amount(500, 5000), now, Duration::ZERO);
            gauge.news(None, free, true).map(|(_, stage)| stage)
        };
        assert_eq!(count(101), Some(0));
        assert_eq!(count(101), None);
        assert_eq!(count(103), Some(1));
        assert_eq!(count(102), None);
        assert_eq!(count(104), Some(2));
        assert_eq!(count(90), None);
        assert_eq!(count(120), Some(0), "below in between, so it begins anew");
    }

    #[test]
    fn while_writers_are_found_nobody_else_is_suspected() {
        let now = Instant::now();
        let mut gauge = gauge(amount(101, 10), amount(500, 5000), now);
        assert!(matches!(gauge.news(None, 0, true), Some((_, 0))));
        for megabytes in [110, 120, 130, 140] {
            gauge.found(megabytes < 130);
            gauge.counted(amount(megabytes, 10), amount(500, 5000), now, Duration::ZERO);
            let stage = gauge.news(None, 0, true).unwrap().1;
            assert_eq!(stage, [0, 0, 1, 2][(megabytes as usize - 110) / 10]);
        }
    }

    #[test]
    fn a_disk_that_runs_full_counts_whoever_fills_it() {
        let mut gauge = gauge(amount(1, 1), amount(500, 5000), Instant::now());
        assert_eq!(gauge.disk(11 * MB, 1000 * MB), None);
        let full = gauge.disk(9 * MB, 1000 * MB);
        assert_eq!(full, Some(Full::Disk { free: 9 * MB, kept: 10 * MB }));
        assert_eq!(gauge.news(full, 9 * MB, true), Some((full.unwrap(), 0)));
        assert_eq!(gauge.news(full, 9 * MB, true), None);
        assert_eq!(gauge.news(full, 7 * MB, true), Some((full.unwrap(), 1)));
        // Of a small disk, a twentieth.
        assert_eq!(gauge.disk(9 * MB, 100 * MB), None);
    }

    #[test]
    fn a_full_disk_does_not_make_the_limit_forgotten() {
        let now = Instant::now();
        let mut gauge = gauge(amount(120, 1), amount(500, 5000), now);
        let full = gauge.disk(9 * MB, 1000 * MB);
        assert!(gauge.news(full, 9 * MB, true).is_some());
        assert!(matches!(gauge.news(None, 500 * MB, true), Some((Full::Bytes { .. }, 0))));
        gauge.counted(amount(200, 1), amount(400, 5000), now, Duration::ZERO);
        assert!(matches!(gauge.news(None, 400 * MB, true), Some((Full::Bytes { .. }, 1))));
    }
}
