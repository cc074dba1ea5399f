//! The audit on a thread of its own: all that arrives within a moment is one
//! commit. What cannot be written is kept and tried again, and meanwhile no
//! credential is given out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use cloister_types::egress::{Audit, AuditEntry, AuditHead};
use cloister_types::transcript::Metered;
use tokio::sync::oneshot;

use crate::VaultError;
use crate::audit::{Chain, Noted};
use crate::desk::Desk;

/// Records that may wait.
const LINE: usize = 16 << 10;
/// How long the first record of a group waits for others.
const GROUP: Duration = Duration::from_millis(5);
/// Most records of a group.
const MOST: usize = 256;
/// Between tries to write what could not be written.
const PAUSE: Duration = Duration::from_millis(100);
/// Between signed heads.
const HEADS: Duration = Duration::from_secs(60);

enum Word {
    Note(Noted, Option<oneshot::Sender<()>>),
    Used { session: String, answer: oneshot::Sender<Result<(Metered, u64, u64), VaultError>> },
    Page { session: Option<String>, after: u64, limit: usize, answer: oneshot::Sender<Result<Audit, VaultError>> },
    Sign(oneshot::Sender<Result<Option<AuditHead>, VaultError>>),
}

#[derive(Clone)]
pub(crate) struct Scribe {
    line: mpsc::SyncSender<Word>,
    healthy: Arc<AtomicBool>,
    /// Records that there was no room for, and that are not yet spoken of.
    lost: Arc<AtomicU64>,
}

/// Unix seconds.
pub(crate) fn now() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

impl Scribe {
    pub(crate) fn start(chain: Chain, desk: Desk) -> std::io::Result<Self> {
        let (line, receiver) = mpsc::sync_channel(LINE);
        let healthy = Arc::new(AtomicBool::new(true));
        let lost = Arc::new(AtomicU64::new(0));
        let (state, missed) = (healthy.clone(), lost.clone());
        let runtime = tokio::runtime::Handle::current();
        std::thread::Builder::new().name("vault-audit".into()).spawn(move || {
            write(chain, &receiver, (&state, &missed), &|| {
                // The end of the chain is noted outside the data as well.
                let desk = desk.clone();
                runtime.spawn(async move {
                    let marked = desk.run(|records| {
                        records.mark();
                        Ok(())
                    });
                    if let Err(error) = marked.await {
                        tracing::error!(%error, "how far the audit has come cannot be noted");
                    }
                });
            });
        })?;
        Ok(Self { line, healthy, lost })
    }

    /// May credentials be given out?
    pub(crate) fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Acquire)
    }

    /// Takes a record; it is written in a moment.
    pub(crate) fn note(&self, entry: AuditEntry) {
        if self.line.try_send(Word::Note(noted(vec![entry], None), None)).is_err() {
            self.lost.fetch_add(1, Ordering::AcqRel);
            self.healthy.store(false, Ordering::Release);
            tracing::error!("the audit cannot keep up: credentials are withheld");
        }
    }

    /// Takes a record and waits until it is on disk; false if that fails.
    pub(crate) async fn write(&self, entry: AuditEntry) -> bool {
        self.take(noted(vec![entry], None)).await
    }

    /// Takes records that another process counts, and waits until they are on
    /// disk; false if that fails, and they are to come again.
    pub(crate) async fn write_for(&self, source: String, first: u64, entries: Vec<AuditEntry>) -> bool {
        self.take(noted(entries, Some((source, first)))).await
    }

    async fn take(&self, noted: Noted) -> bool {
        let (written, heard) = oneshot::channel();
        self.line.try_send(Word::Note(noted, Some(written))).is_ok() && heard.await.is_ok()
    }

    /// What model calls have used: a session's, what that cost, and what all have
    /// cost today.
    pub(crate) async fn used(&self, session: String) -> Result<(Metered, u64, u64), VaultError> {
        let (answer, heard) = oneshot::channel();
        self.ask(Word::Used { session, answer }, heard).await
    }

    pub(crate) async fn page(&self, session: Option<String>, after: u64, limit: usize) -> Result<Audit, VaultError> {
        let (answer, heard) = oneshot::channel();
        self.ask(Word::Page { session, after, limit, answer }, heard).await
    }

    /// Signs the end of the chain.
    pub(crate) async fn sign(&self) -> Result<Option<AuditHead>, VaultError> {
        let (answer, heard) = oneshot::channel();
        self.ask(Word::Sign(answer), heard).await
    }

    async fn ask<T>(&self, word: Word, heard: oneshot::Receiver<Result<T, VaultError>>) -> Result<T, VaultError> {
        let busy = || VaultError::Io(std::io::Error::other("the audit is busy"));
        self.line.try_send(word).map_err(|_| busy())?;
        heard.await.map_err(|_| busy())?
    }
}

fn noted(entries: Vec<AuditEntry>, source: Option<(String, u64)>) -> Noted {
    Noted { time: now(), entries, source }
}

fn write(mut chain: Chain, line: &mpsc::Receiver<Word>, (healthy, lost): (&AtomicBool, &AtomicU64), mark: &dyn Fn()) {
    let (mut group, mut waiting) = (Vec::new(), Vec::new());
    let mut signed = Instant::now();
    loop {
        let until = Instant::now() + GROUP;
        let mut questions = Vec::new();
        let first = line.recv_timeout(if group.is_empty() { HEADS } else { PAUSE });
        let mut next = first;
        loop {
            match next {
                Ok(Word::Note(noted, written)) => {
                    group.push(noted);
                    waiting.extend(written);
                }
                Ok(question) => {
                    questions.push(question);
                    break;
                }
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => {
                    let _ = chain.append(&group).and_then(|()| chain.sign(now()));
                    return;
                }
            }
            if group.len() >= MOST || !waiting.is_empty() {
                break;
            }
            next = line.recv_timeout(until.saturating_duration_since(Instant::now()));
        }
        let missed = lost.swap(0, Ordering::AcqRel);
        if missed > 0 {
            let flags = vec![format!("lost:{missed}")];
            let entry =
                AuditEntry { stream: "vault".into(), rule: "records_lost".into(), flags, ..AuditEntry::default() };
            group.push(noted(vec![entry], None));
        }
        if !group.is_empty() {
            match chain.append(&group) {
                Ok(()) => {
                    group.clear();
                    for written in waiting.drain(..) {
                        let _: Result<(), ()> = written.send(());
                    }
                    healthy.store(true, Ordering::Release);
                }
                Err(error) => {
                    if healthy.swap(false, Ordering::AcqRel) {
                        tracing::error!(%error, "the audit cannot be written: credentials are withheld");
                    }
                    // Whoever waits is told that it was not written.
                    waiting.clear();
                    std::thread::sleep(PAUSE);
                }
            }
        }
        if signed.elapsed() >= HEADS {
            signed = Instant::now();
            match chain.sign(now()) {
                Ok(_) => mark(),
                Err(error) => tracing::error!(%error, "the audit cannot be signed"),
            }
        }
        for question in questions {
            match question {
                Word::Page { session, after, limit, answer } => {
                    let page = chain.sign(now()).and_then(|_| chain.page(session.as_deref(), after, limit));
                    let _ = answer.send(page);
                }
                Word::Sign(answer) => {
                    let _ = answer.send(chain.sign(now()));
                    mark();
                }
                Word::Used { session, answer } => _ = answer.send(chain.used(&session, now())),
                Word::Note(..) => {}
            }
        }
    }
}
