//! Room for one upload, for as long as it takes.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Amount, Full, Meter};

/// Bytes that are asked for at a time if nobody says how many will come.
const PIECE: u64 = 8 << 20;

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum NoRoom {
    /// The workspace, or its disk, is full.
    #[error(transparent)]
    Full(#[from] Full),
    /// The meter does not answer; the next upload finds another.
    #[error("the workspace's meter does not answer: {0}")]
    Gone(#[from] std::io::Error),
}

/// The server's socket of a meter; one question at a time, or answers would be
/// mixed up, and none after one that was not answered in time.
#[derive(Debug)]
pub(crate) struct Asker {
    meter: Mutex<Option<Meter>>,
}

impl Asker {
    pub(crate) fn new(meter: Meter) -> Self {
        Self { meter: Mutex::new(Some(meter)) }
    }

    /// Does it still answer?
    pub(crate) fn is_well(&self) -> bool {
        self.meter.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn reserve(&self, more: Amount) -> Result<(), NoRoom> {
        let mut meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = meter.as_ref().map(|meter| meter.reserve(more));
        match asked.unwrap_or_else(|| Err(std::io::ErrorKind::NotConnected.into())) {
            Ok(answer) => Ok(answer?),
            Err(error) => {
                *meter = None;
                Err(error.into())
            }
        }
    }

    fn settle(&self, granted: Amount, kept: bool) {
        let meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
        // A meter that is gone has forgotten the grant.
        let _ = meter.as_ref().map(|meter| meter.settle(granted, kept));
    }
}

/// Room for one upload; given back when it is dropped.
#[derive(Debug)]
pub struct Grant {
    asker: Arc<Asker>,
    granted: Amount,
    kept: bool,
}

impl Grant {
    /// Room for a file of so many bytes.
    pub(crate) fn ask(asker: Arc<Asker>, bytes: u64) -> Result<Self, NoRoom> {
        let granted = Amount { bytes, files: 1 };
        asker.reserve(granted)?;
        Ok(Self { asker, granted, kept: false })
    }

    /// Makes sure that there is room for a file of so many bytes.
    ///
    /// # Errors
    /// There is none.
    pub fn cover(&mut self, bytes: u64) -> Result<(), NoRoom> {
        let Some(more) = bytes.checked_sub(self.granted.bytes).filter(|more| *more > 0) else { return Ok(()) };
        let amount = |bytes| Amount { bytes, files: 0 };
        // In pieces, so that not each chunk asks; exactly, if it is tight.
        let piece = amount(more.max(PIECE));
        let got = match self.asker.reserve(piece) {
            Err(NoRoom::Full(_)) if more < PIECE => self.asker.reserve(amount(more)).map(|()| amount(more)),
            other => other.map(|()| piece),
        }?;
        self.granted = self.granted.plus(got);
        Ok(())
    }

    /// The file is in place.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.asker.settle(self.granted, self.kept);
    }
}
