//! The supervisor's side of limits: who filled the workspace is stopped, and a
//! tool that failed because of a limit is told which.

use cloister_types::ErrorCode;
use cloister_types::link::ToAgent;

use super::{Over, Supervisor};
use crate::init;
use crate::quota::{Full, Said};

/// Times that the tools of one turn may be ended for filling the workspace
/// before the turn is.
const PATIENCE: u32 = 8;

/// How often the workspace may grow on without anybody being seen to write,
/// before all tools are ended.
const LAST_STAGE: u32 = 3;

impl Supervisor {
    /// Says whether there is work, if that has changed.
    pub(super) fn tell_meter(&mut self) {
        let busy = self.work.is_some();
        if let Some(meter) = self.meter.as_ref().filter(|_| busy != self.told_busy) {
            self.told_busy = busy;
            if meter.busy(busy).is_err() {
                self.meter = None;
            }
        }
    }

    pub(super) fn hear_meter(&mut self) {
        match self.meter.as_ref().map(crate::quota::Meter::hear) {
            Some(Ok(Said::Full { why, stage })) => {
                let Some(work) = self.work.as_mut().filter(|work| work.ending.is_none()) else {
                    let _ = self.meter.as_ref().map(|meter| meter.found(false));
                    return;
                };
                // Room can be taken without writing, and so can names.
                let all = stage >= LAST_STAGE;
                if init::quell(&self.control, all).is_ok() {
                    work.quelling = Some(why);
                }
            }
            Some(Ok(Said::Granted)) | None => {}
            // This turn goes on; the next has a meter again.
            Some(Err(_)) => self.meter = None,
        }
    }

    /// Init has ended so many tools, some of which it saw writing, or none.
    pub(super) fn quelled(&mut self, count: u32, wrote: bool) -> Result<(), Over> {
        // A meter that is gone is noticed where it is heard.
        let _ = self.meter.as_ref().map(|meter| meter.found(wrote));
        let Some((work, why)) = self.work.as_mut().and_then(|work| work.quelling.take().map(|why| (work, why))) else {
            return Ok(());
        };
        if count > 0 {
            work.met.push(why.to_string());
            // Only those who were seen to write have it held against them.
            work.quelled += u32::from(wrote);
            if work.quelled >= PATIENCE {
                let code = match why {
                    Full::Disk { .. } => ErrorCode::StorageFull,
                    Full::Bytes { .. } | Full::Files { .. } => ErrorCode::QuotaExceeded,
                };
                return self.fail(code, why.to_string());
            }
        }
        self.answer_limits();
        Ok(())
    }

    /// Tells an agent that has asked which limits were met since it last did.
    pub(super) fn answer_limits(&mut self) {
        let Some(work) = self.work.as_mut().filter(|work| work.asks_limits && work.quelling.is_none()) else { return };
        work.asks_limits = false;
        let now = self.groups.met();
        let mut met = std::mem::take(&mut work.met);
        met.extend(now.since(work.groups_met));
        work.groups_met = now;
        // One that hung up is noticed where it is read from.
        let _ = work.agent.send(&ToAgent::Limits { met });
    }
}
