//! Connections to the outside, kept apart by credential: what was opened with
//! one is never used with another, or without.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cloister_dial::{Connector, Dialer, Reach, Roots, TlsError, client_config};
use cloister_types::SessionId;
use cloister_vault::wire::With;
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;
use rustls::client::ResolvesClientCert;

use crate::body::Body;

/// How long a connection is kept that nobody uses.
const IDLE: Duration = Duration::from_secs(60);
/// Connections that are kept to one host.
const PER_HOST: usize = 32;
/// Sessions' credentials whose connections are kept.
const CREDENTIALS: usize = 1024;

/// Whose connections they are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// The credential and its version; `None`: without one.
    pub(crate) credential: Option<(With, u64)>,
    /// The session: what one holds up, holds up no other.
    pub(crate) session: SessionId,
    /// The host, where the handshake itself is made with the credential.
    pub(crate) host: Option<String>,
    /// Which addresses may be connected to.
    pub(crate) reach: Reach,
}

pub(crate) type Client = legacy::Client<Connector, Body>;

pub(crate) struct Pool {
    dialer: Arc<Dialer>,
    roots: Roots,
    tls: Arc<ClientConfig>,
    tls_h1: Arc<ClientConfig>,
    clients: Mutex<HashMap<Key, Client>>,
}

impl Pool {
    pub(crate) fn new(dialer: Dialer, roots: Roots) -> Result<Self, TlsError> {
        let (tls, tls_h1) = (client_config(&roots, None, true)?, client_config(&roots, None, false)?);
        Ok(Self { dialer: Arc::new(dialer), roots, tls, tls_h1, clients: Mutex::default() })
    }

    /// The client whose connections are those of a key.
    pub(crate) fn client(&self, key: Key, identity: Option<Arc<dyn ResolvesClientCert>>) -> Result<Client, TlsError> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let tls = match identity {
            Some(identity) => client_config(&self.roots, Some(identity), true)?,
            None => self.tls.clone(),
        };
        let connector = Connector { dialer: self.dialer.clone(), reach: key.reach, tls };
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(PER_HOST)
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .http1_max_headers(200)
            .http2_max_header_list_size(64 << 10)
            .http2_max_send_buf_size(64 << 10)
            .build(connector);
        // An older version of the same credential is of no use any more.
        if let Some((with, _)) = &key.credential {
            clients.retain(|other, _| {
                other.credential.as_ref().is_none_or(|(of, _)| of != with)
                    || other.reach != key.reach
                    || other.session != key.session
            });
        }
        if clients.len() >= CREDENTIALS {
            clients.clear();
        }
        clients.insert(key, client.clone());
        Ok(client)
    }

    /// Gives the connections of a session up.
    pub(crate) fn forget(&self, session: &SessionId) {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| key.session != *session);
    }

    /// A way to connect for one connection alone, with HTTP/1.1.
    pub(crate) fn connector(
        &self,
        reach: Reach,
        identity: Option<Arc<dyn ResolvesClientCert>>,
    ) -> Result<Connector, TlsError> {
        let tls = match identity {
            Some(identity) => client_config(&self.roots, Some(identity), false)?,
            None => self.tls_h1.clone(),
        };
        Ok(Connector { dialer: self.dialer.clone(), reach, tls })
    }
}
