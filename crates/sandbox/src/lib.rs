//! The session boundary, and the only crate with `unsafe`.
//!
//! ```text
//! scope --plan--> steps --view--> detached mount tree --+--> files   (the file API opens through it)
//!                                                       +--> launch  (a clone of it becomes the workspace of a sandbox)
//! ```
//!
//! Three processes live here, all from the one small executable
//! `cloister-sandbox`: the *spawner* (single-threaded, owns the mount rights),
//! one *supervisor* a live session (outside the sandbox, parent of init), and
//! *init* (PID 1 inside). The server talks to them through [`host`].

pub mod confine;
pub mod doctor;
pub mod files;
pub mod host;
pub mod identity;
pub mod plan;
pub mod protocol;
pub mod quota;
pub mod run;
pub mod spawner;
pub mod spool;
pub mod view;

mod cgroup;
mod extent;
mod grounds;
mod init;
mod launch;
mod leaving;
mod measure;
pub mod network;
mod setup;
mod slots;
mod spare;
mod supervisor;
mod survive;
mod sys;

/// Where the workspace is inside a sandbox, without the leading slash.
pub const WORKSPACE: &str = "opt/sandbox/workspace";
/// Where the agent's executable is inside a sandbox.
pub const AGENT: &str = "/opt/sandbox/bin/cloister-agent";
/// Where model calls go: an address of the sandbox's own loopback.
pub const MODEL_LISTENER: ([u8; 4], u16) = (cloister_types::link::RESOLVER, 80);
/// User and group of the agent inside.
pub const INSIDE_ID: u32 = 1000;
