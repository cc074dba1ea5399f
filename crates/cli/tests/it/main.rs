//! The whole product, as people use it: real processes, real namespaces, real
//! sockets. Only the model's side of the network is played.
#![allow(missing_docs, clippy::unwrap_used)]

mod alone;
mod backup;
mod busy;
mod cancel;
mod clock;
mod commands;
mod crash;
mod damage;
mod data;
mod differ;
mod disk;
mod egress;
mod files;
mod full;
mod history;
mod hostile;
mod idempotency;
mod images;
mod leftovers;
mod lifecycle;
mod limits;
mod model;
mod power;
mod probes;
mod providers;
mod quota;
mod restart;
mod scope;
mod sessions;
mod stream;
mod tls;
mod toolchains;
mod tools;
mod users;
