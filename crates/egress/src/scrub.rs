//! Taking credentials out of what comes back, as it streams. What is found is
//! covered by asterisks, as many as it had bytes: lengths stay true.
//!
//! Bytes are held back only while they could be the beginning of something
//! looked for; nothing looked for holds a line end, so an event is never
//! delayed.

use std::ops::Range;
use std::sync::Arc;

use aho_corasick::packed::{Config, MatchKind, Searcher};
use aho_corasick::{AhoCorasick, AhoCorasickKind};

const COVER: u8 = b'*';

/// What to look for. Made once for each credential.
pub struct Needles {
    needles: Vec<Vec<u8>>,
    /// Fast, and finds out whether anything is there at all.
    quick: Option<Searcher>,
    /// Finds everything, overlaps too.
    thorough: Option<AhoCorasick>,
    begins: [bool; 256],
    longest: usize,
}

impl Needles {
    /// For these texts, each in all its forms.
    #[must_use]
    pub fn new(needles: Vec<Vec<u8>>) -> Arc<Self> {
        let mut begins = [false; 256];
        needles.iter().filter_map(|needle| needle.first()).for_each(|first| begins[usize::from(*first)] = true);
        let longest = needles.iter().map(Vec::len).max().unwrap_or(0);
        let quick = Config::new().match_kind(MatchKind::LeftmostFirst).builder().extend(&needles).build();
        let thorough = AhoCorasick::builder().kind(Some(AhoCorasickKind::ContiguousNFA)).build(&needles).ok();
        Arc::new(Self { needles, quick, thorough, begins, longest })
    }

    /// Is there nothing to look for?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.needles.is_empty()
    }

    /// Covers everything in a whole text; true if there was something.
    pub fn cover(&self, text: &mut [u8]) -> bool {
        let spans = self.find(text);
        for span in &spans {
            text[span.clone()].fill(COVER);
        }
        !spans.is_empty()
    }

    /// Is something in there that is looked for?
    pub(crate) fn are_in(&self, text: &[u8]) -> bool {
        !self.find(text).is_empty()
    }

    /// Where something that is looked for stands; these may overlap.
    fn find(&self, text: &[u8]) -> Vec<Range<usize>> {
        if self.needles.is_empty() || self.quick.as_ref().is_some_and(|quick| quick.find(text).is_none()) {
            return Vec::new();
        }
        match &self.thorough {
            Some(thorough) => thorough.find_overlapping_iter(text).map(|found| found.range()).collect(),
            // Without the automaton nothing could be told from anything.
            None => std::iter::once(0..text.len()).collect(),
        }
    }

    /// Where the longest end of a text begins that may be the beginning of
    /// something looked for.
    fn hold_from(&self, text: &[u8]) -> usize {
        let first = text.len().saturating_sub(self.longest.saturating_sub(1));
        let may_begin = |at: &usize| {
            let tail = &text[*at..];
            self.begins[usize::from(text[*at])]
                && self.needles.iter().any(|needle| needle.len() > tail.len() && needle.starts_with(tail))
        };
        (first..text.len()).find(may_begin).unwrap_or(text.len())
    }
}

/// Scrubs one stream of bytes.
pub struct Scrubber {
    needles: Arc<Needles>,
    /// What is held back: as it came, to go on looking in, and as it will be
    /// passed on.
    came: Vec<u8>,
    shown: Vec<u8>,
    /// Something was found.
    pub found: bool,
}

impl Scrubber {
    /// Looks for these.
    #[must_use]
    pub fn new(needles: Arc<Needles>) -> Self {
        Self { needles, came: Vec::new(), shown: Vec::new(), found: false }
    }

    /// Takes bytes in; what can be passed on.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.came.extend_from_slice(bytes);
        self.shown.extend_from_slice(bytes);
        for span in self.needles.find(&self.came) {
            self.shown[span].fill(COVER);
            self.found = true;
        }
        let from = self.needles.hold_from(&self.came);
        self.came.drain(..from);
        let rest = self.shown.split_off(from);
        std::mem::replace(&mut self.shown, rest)
    }

    /// Is nothing held back?
    #[must_use]
    pub fn holds_nothing(&self) -> bool {
        self.came.is_empty()
    }

    /// The end: what was held back.
    pub fn finish(&mut self) -> Vec<u8> {
        self.came.clear();
        std::mem::take(&mut self.shown)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::needles::forms;

    fn scrub(needles: &Arc<Needles>, chunks: &[&[u8]]) -> Vec<u8> {
        let mut scrubber = Scrubber::new(needles.clone());
        let mut out: Vec<u8> = chunks.iter().flat_map(|chunk| scrubber.push(chunk)).collect();
        out.extend(scrubber.finish());
        out
    }

    #[test]
    fn a_secret_is_covered_wherever_it_is_cut() {
        let needles = Needles::new(forms(&["sk_live_abcdef"]));
        let text = b"before sk_live_abcdef after sk_live_abcde";
        let want = b"before ************** after sk_live_abcde";
        for at in 0..=text.len() {
            assert_eq!(scrub(&needles, &[&text[..at], &text[at..]]), want, "cut at {at}");
        }
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(scrub(&needles, &bytes), want);
    }

    #[test]
    fn a_whole_event_is_never_held() {
        let needles = Needles::new(forms(&["data: sk_live", "abc\"def-ghi"]));
        let mut scrubber = Scrubber::new(needles);
        assert_eq!(scrubber.push(b"data: sk_li\n\n"), b"data: sk_li\n\n");
        assert_eq!(scrubber.push(b"data: {}\n\n"), b"data: {}\n\n");
        assert_eq!(scrubber.push(b"data: sk_li"), b"");
    }

    proptest! {
        #[test]
        fn in_pieces_it_is_as_in_whole(
            secrets in proptest::collection::vec("[ab]{2,6}", 1..4),
            text in "[abc]{0,60}",
            cuts in proptest::collection::vec(0usize..61, 0..6),
        ) {
            let needles = Needles::new(secrets.iter().map(|secret| secret.as_bytes().to_vec()).collect());
            let mut whole = text.clone().into_bytes();
            let found = needles.cover(&mut whole);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|ends| &text.as_bytes()[ends[0]..ends[1]]).collect();
            prop_assert_eq!(scrub(&needles, &chunks), whole.clone());
            let shown = String::from_utf8(whole).unwrap();
            prop_assert!(secrets.iter().all(|secret| !shown.contains(secret.as_str())));
            prop_assert_eq!(found, shown != text);
        }
    }
}
