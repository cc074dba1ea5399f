//! A stream that a boxed body may hold.

use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

/// hyper's boxed body wants `Sync`, and a lock that is never contended gives it.
pub(crate) struct SyncStream<S>(Mutex<Pin<Box<S>>>);

impl<S: futures_util::Stream> SyncStream<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self(Mutex::new(Box::pin(stream)))
    }
}

impl<S: futures_util::Stream> futures_util::Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let stream = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        stream.as_mut().poll_next(context)
    }
}
