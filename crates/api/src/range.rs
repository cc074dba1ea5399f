//! The `Range` header.

/// What part of a file is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it: no range, or one that we need not honour.
    Whole,
    /// These bytes, both ends inclusive.
    Bytes {
        /// The first.
        first: u64,
        /// The last.
        last: u64,
    },
    /// A range outside the file.
    Unsatisfiable,
}

/// Reads a header against a file of `size` bytes. Units other than bytes and
/// malformed ranges are ignored, as the standard says; of several ranges the
/// whole file is served.
pub(crate) fn parse(header: Option<&str>, size: u64) -> Part {
    let Some(spec) = header.and_then(|text| text.trim().strip_prefix("bytes=")) else { return Part::Whole };
    let Some((from, to)) = spec.split_once('-').filter(|_| !spec.contains(',')) else { return Part::Whole };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    match (number(from.trim()), number(to.trim())) {
        (None, Some(0)) if from.trim().is_empty() => Part::Unsatisfiable,
        (None, Some(_)) if from.trim().is_empty() && size == 0 => Part::Unsatisfiable,
        (None, Some(tail)) if from.trim().is_empty() => {
            Part::Bytes { first: size.saturating_sub(tail), last: size - 1 }
        }
        (Some(first), _)
            if first >= size && (to.trim().is_empty() || number(to.trim()).is_some_and(|last| last >= first)) =>
        {
            Part::Unsatisfiable
        }
        (Some(first), None) if to.trim().is_empty() => Part::Bytes { first, last: size - 1 },
        (Some(first), Some(last)) if last >= first => Part::Bytes { first, last: last.min(size - 1) },
        _ => Part::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_forms_of_the_header() {
        for (header, want) in [
            ("bytes=0-3", Part::Bytes { first: 0, last: 3 }),
            ("bytes=2-", Part::Bytes { first: 2, last: 9 }),
            ("bytes=-3", Part::Bytes { first: 7, last: 9 }),
            ("bytes=-30", Part::Bytes { first: 0, last: 9 }),
            ("bytes=5-99999999999999999999", Part::Bytes { first: 5, last: 9 }),
            ("bytes=10-", Part::Unsatisfiable),
            ("bytes=10-12", Part::Unsatisfiable),
            ("bytes=-0", Part::Unsatisfiable),
            ("bytes=5-2", Part::Whole),
            ("bytes=0-1,3-4", Part::Whole),
            ("bytes=a-b", Part::Whole),
            ("bytes=", Part::Whole),
            ("items=0-1", Part::Whole),
        ] {
            assert_eq!(parse(Some(header), 10), want, "{header}");
        }
        assert_eq!(parse(None, 10), Part::Whole);
        assert_eq!(parse(Some("bytes=0-"), 0), Part::Unsatisfiable);
    }

    proptest! {
        #[test]
        fn a_part_lies_within_the_file(header in "bytes=[0-9,-]{0,12}", size in 0u64..50) {
            if let Part::Bytes { first, last } = parse(Some(&header), size) {
                prop_assert!(first <= last && last < size);
            }
        }
    }
}
