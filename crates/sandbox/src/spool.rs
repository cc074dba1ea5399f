//! A turn's spool: what its supervisor saw, in a file that any process's death
//! leaves as it is. The supervisor writes, the server reads; the log remembers
//! how far.
//!
//! A frame is a length and a CRC-32 (four big-endian bytes each), then JSON.
//! The checksum covers the frame's place in the file as well, so a frame that
//! is found elsewhere is none. What ends in the middle of a frame was cut by a
//! death and ends there; damage with a whole frame behind it is told apart.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use cloister_types::link::{Fact, MAX_FACT, Spooled};
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::extent::Extent;

const HEAD: usize = 8;
/// Longest frame: a largest fact of nothing but characters and numbers that
/// take several times their room when they are written again.
const MAX_FRAME: usize = MAX_FACT * 8;
/// Bytes read at once.
const PIECE: usize = 256 << 10;
/// Stored bytes are given back to the file system in pieces of this.
const GIVE_BACK: u64 = 1 << 20;

/// What is wrong with a spool.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// It was changed after it was written.
    #[error("the spool is damaged at byte {0}, with whole frames behind it")]
    Damaged(u64),
    /// It was cut, or deleted.
    #[error("the spool ends at byte {at}, and {written} bytes of it were on disk")]
    Short {
        /// Where it ends.
        at: u64,
        /// How long it has been.
        written: u64,
    },
    /// What is said of its length cannot be read.
    #[error("what is said of the spool's length is not what was written")]
    Length,
    /// The system's words.
    #[error("spool: {0}")]
    Io(#[from] std::io::Error),
}

impl From<Errno> for SpoolError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

fn checksum(offset: u64, payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&offset.to_be_bytes());
    crc.update(payload);
    crc.finalize()
}

/// Appends a frame as it will stand at `offset`.
fn encode(out: &mut Vec<u8>, offset: u64, spooled: &Spooled) -> std::io::Result<()> {
    let start = out.len();
    out.extend_from_slice(&[0; HEAD]);
    serde_json::to_writer(&mut *out, spooled)?;
    let length = out.len() - start - HEAD;
    if length > MAX_FRAME {
        return Err(std::io::Error::other("a fact of more bytes than a frame may have"));
    }
    let crc = checksum(offset, &out[start + HEAD..]);
    out[start..start + 4].copy_from_slice(&(length as u32).to_be_bytes());
    out[start + 4..start + HEAD].copy_from_slice(&crc.to_be_bytes());
    Ok(())
}

/// What stands at the beginning of some bytes.
enum Found {
    /// A whole frame, and its length.
    Frame(Box<Spooled>, usize),
    /// The beginning of one, perhaps; so many bytes would be needed.
    Partial(usize),
    /// No frame.
    Nothing,
}

fn look(bytes: &[u8], offset: u64) -> Found {
    let Some((head, rest)) = bytes.split_first_chunk::<HEAD>() else { return Found::Partial(HEAD) };
    let [a, b, c, d, e, f, g, h] = *head;
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if length == 0 || length > MAX_FRAME {
        return Found::Nothing;
    }
    let Some(payload) = rest.get(..length) else { return Found::Partial(HEAD + length) };
    if checksum(offset, payload) != u32::from_be_bytes([e, f, g, h]) {
        return Found::Nothing;
    }
    match serde_json::from_slice(payload) {
        Ok(spooled) => Found::Frame(Box::new(spooled), HEAD + length),
        Err(_) => Found::Nothing,
    }
}

/// The writing side.
pub(crate) struct Spool {
    file: OwnedFd,
    extent: Extent,
    offset: u64,
    stored: u64,
    given_back: u64,
}

impl Spool {
    /// Makes the file, anew.
    pub(crate) fn create(folder: impl AsFd, name: &str) -> std::io::Result<Self> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&folder, name, flags, Mode::from_raw_mode(0o600))?;
        let extent = Extent::create(folder, name)?;
        Ok(Self { file, extent, offset: 0, stored: 0, given_back: 0 })
    }

    /// Bytes written so far.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes that the log does not hold yet.
    pub(crate) fn unstored(&self) -> u64 {
        self.offset - self.stored
    }

    /// How far the log holds it.
    pub(crate) fn stored(&self) -> u64 {
        self.stored
    }

    /// Appends facts, all or none.
    pub(crate) fn append(&mut self, at_ms: u64, facts: Vec<Fact>) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        for fact in facts {
            let offset = self.offset + bytes.len() as u64;
            encode(&mut bytes, offset, &Spooled { at_ms, fact })?;
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match rustix::io::write(&self.file, rest) {
                Ok(written) => rest = &rest[written..],
                Err(Errno::INTR) => {}
                Err(errno) => {
                    // Half a frame must not stand in the way of the end.
                    let _ = rustix::fs::ftruncate(&self.file, self.offset);
                    return Err(errno.into());
                }
            }
        }
        self.offset += bytes.len() as u64;
        Ok(())
    }

    /// Waits until everything is on the disk, and says so beside it.
    pub(crate) fn sync(&self) -> std::io::Result<()> {
        rustix::fs::fdatasync(&self.file)?;
        // It may say less than is true; the spool itself is safe.
        let _ = self.extent.note(self.offset);
        Ok(())
    }

    /// The log holds it up to `offset`: the space before can go.
    pub(crate) fn note_stored(&mut self, offset: u64) {
        self.stored = self.stored.max(offset.min(self.offset));
        if self.stored - self.given_back >= GIVE_BACK {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // File systems that cannot do this keep the bytes until the end.
            let _ = rustix::fs::fallocate(&self.file, flags, self.given_back, self.stored - self.given_back);
            self.given_back = self.stored;
        }
    }
}

/// The reading side.
#[derive(Debug)]
pub struct Reader {
    file: File,
    offset: u64,
}

impl Reader {
    /// Reads a spool from `offset` on.
    pub(crate) fn new(file: File, offset: u64) -> Self {
        Self { file, offset }
    }

    /// Where the next frame begins.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next frames, as many as fit a piece of 256 KiB, at least one if one
    /// is there. None at the end: the present one, or for ever.
    ///
    /// # Errors
    /// [`SpoolError::Damaged`] if frames are behind what is none.
    pub fn next_facts(&mut self) -> Result<Vec<Spooled>, SpoolError> {
        let mut bytes = self.read(PIECE)?;
        let mut facts = Vec::new();
        let mut used = 0;
        loop {
            match look(&bytes[used..], self.offset) {
                Found::Frame(spooled, length) => {
                    facts.push(*spooled);
                    used += length;
                    self.offset += length as u64;
                }
                _ if !facts.is_empty() => return Ok(facts),
                Found::Partial(wanted) if wanted > bytes.len() && bytes.len() == PIECE => {
                    bytes = self.read(wanted)?;
                    if bytes.len() < wanted {
                        return self.end();
                    }
                }
                Found::Partial(_) | Found::Nothing => return self.end(),
            }
        }
    }

    fn read(&self, most: usize) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; most];
        let mut filled = 0;
        while filled < most {
            match self.file.read_at(&mut bytes[filled..], self.offset + filled as u64) {
                Ok(0) => break,
                Ok(got) => filled += got,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    /// No frame here: the end, unless one stands further on.
    fn end(&mut self) -> Result<Vec<Spooled>, SpoolError> {
        let length = self.file.metadata()?.len();
        let rest = self.read(usize::try_from(length.saturating_sub(self.offset)).unwrap_or(usize::MAX))?;
        if let Found::Frame(spooled, length) = look(&rest, self.offset) {
            // It was written while we looked.
            self.offset += length as u64;
            return Ok(vec![*spooled]);
        }
        // JSON holds no NUL, and the length of every frame begins with one.
        let starts = rest.iter().enumerate().skip(1).filter(|(_, byte)| **byte == 0).map(|(at, _)| at);
        for at in starts {
            if matches!(look(&rest[at..], self.offset + at as u64), Found::Frame(..)) {
                return Err(SpoolError::Damaged(self.offset));
            }
        }
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloister_types::event::EventKind;
    use cloister_types::link::Outcome;
    use cloister_types::transcript::Usage;

    fn folder() -> (tempfile::TempDir, OwnedFd) {
        let folder = tempfile::tempdir().unwrap();
        let fd = rustix::fs::open(folder.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        (folder, fd)
    }

    fn event(seq: u64, length: usize) -> Fact {
        // The text tries to look like frames.
        let text = "\u{0}\u{0}\u{1}".repeat(length);
        let data = serde_json::json!({ "content": text }).to_string();
        Fact::Event { seq, kind: EventKind::TextDelta, data }
    }

    fn read_all(bytes: &[u8]) -> Result<Vec<Spooled>, SpoolError> {
        let (folder, _) = folder();
        let path = folder.path().join("spool");
        std::fs::write(&path, bytes).unwrap();
        let mut reader = Reader::new(File::open(path).unwrap(), 0);
        let mut all = Vec::new();
        loop {
            match reader.next_facts()? {
                facts if facts.is_empty() => return Ok(all),
                facts => all.extend(facts),
            }
        }
    }

    fn written(facts: &[Fact]) -> Vec<u8> {
        let (folder, fd) = folder();
        let mut spool = Spool::create(&fd, "spool").unwrap();
        for fact in facts {
            spool.append(7, vec![fact.clone()]).unwrap();
        }
        std::fs::read(folder.path().join("spool")).unwrap()
    }

    #[test]
    fn frames_of_any_size_come_back_from_any_frame_on() {
        let (folder, fd) = folder();
        let mut spool = Spool::create(&fd, "spool").unwrap();
        let facts: Vec<Fact> = (0..40).map(|seq| event(seq, if seq % 10 == 3 { 60_000 } else { 5 })).collect();
        let mut starts = Vec::new();
        for fact in &facts {
            starts.push(spool.offset());
            spool.append(1, vec![fact.clone()]).unwrap();
        }
        for (index, start) in starts.into_iter().enumerate() {
            let mut reader = Reader::new(File::open(folder.path().join("spool")).unwrap(), start);
            let mut seen = Vec::new();
            loop {
                let facts = reader.next_facts().unwrap();
                if facts.is_empty() {
                    break;
                }
                seen.extend(facts.into_iter().map(|spooled| spooled.fact));
            }
            assert_eq!(seen, facts[index..]);
            assert_eq!(reader.offset(), spool.offset());
        }
    }

    #[test]
    fn a_reader_beside_the_writer_sees_every_frame_once() {
        let (folder, fd) = folder();
        let mut spool = Spool::create(&fd, "spool").unwrap();
        let mut reader = Reader::new(File::open(folder.path().join("spool")).unwrap(), 0);
        let writer = std::thread::spawn(move || {
            for seq in 0..3000 {
                spool.append(1, vec![event(seq, seq as usize % 700), Fact::Intent { calls: vec![] }]).unwrap();
            }
        });
        let mut seen = 0;
        while seen < 6000 {
            for spooled in reader.next_facts().unwrap() {
                if let Fact::Event { seq, .. } = spooled.fact {
                    assert_eq!(seq, seen / 2);
                }
                seen += 1;
            }
        }
        writer.join().unwrap();
        assert!(reader.next_facts().unwrap().is_empty());
    }

    #[test]
    fn cut_or_changed_at_any_byte_it_gives_a_prefix_or_an_alarm() {
        let end = Fact::Ended {
            seq: 3,
            kind: EventKind::MessageCancelled,
            data: "{}".into(),
            outcome: Outcome::Cancelled,
            usage: Usage::default(),
            output_text: "x".into(),
            sandbox_gone: false,
        };
        let facts = [event(1, 2), Fact::Intent { calls: vec!["a".into()] }, event(2, 9), end];
        let bytes = written(&facts);
        let last = bytes.len() - written(&facts[..3]).len();
        for cut in 0..bytes.len() {
            let seen = read_all(&bytes[..cut]).unwrap();
            assert!(seen.len() < facts.len() && seen.iter().zip(&facts).all(|(spooled, fact)| spooled.fact == *fact));
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                match read_all(&changed) {
                    // The last frame alone may be taken for one that was cut.
                    Ok(seen) => assert!(at >= bytes.len() - last && seen.len() == 3, "byte {at}"),
                    Err(error) => assert!(matches!(error, SpoolError::Damaged(_)) && at < bytes.len() - last),
                }
            }
        }
    }

    #[test]
    fn stored_bytes_go_back_to_the_file_system_and_the_rest_stays() {
        use std::os::unix::fs::MetadataExt;
        let (folder, fd) = folder();
        let mut spool = Spool::create(&fd, "spool").unwrap();
        for seq in 0..40 {
            spool.append(1, vec![event(seq, 10_000)]).unwrap();
        }
        let (middle, path) = (spool.offset(), folder.path().join("spool"));
        spool.append(1, vec![event(40, 3)]).unwrap();
        let before = std::fs::metadata(&path).unwrap().blocks();
        spool.note_stored(middle);
        assert_eq!(spool.unstored(), spool.offset() - middle);
        let after = std::fs::metadata(&path).unwrap();
        assert!(after.blocks() < before / 4 && after.len() == spool.offset(), "{before} {}", after.blocks());
        assert_eq!(Reader::new(File::open(path).unwrap(), middle).next_facts().unwrap()[0].fact, event(40, 3));
    }
}
