//! What the operator decides about sessions.

use std::time::Duration;

use cloister_types::egress::Policy;
use cloister_types::link::TurnLimits;
use cloister_types::model::ModelSpec;

/// What a session gets that did not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defaults {
    /// Lives on when idle.
    pub persistent: bool,
    /// Longest life in seconds.
    pub ttl: Option<u64>,
}

/// A model of the catalogue.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// As told to the agent.
    pub spec: ModelSpec,
    /// Played by a script; every event of its turns says so.
    pub scripted: bool,
}

/// Everything that this crate can be told.
#[derive(Debug, Clone)]
pub struct Config {
    /// The catalogue.
    pub models: Vec<Model>,
    /// Name of the model for sessions that name none.
    pub default_model: String,
    /// For sessions that did not say.
    pub defaults: Defaults,
    /// Ceilings of a turn.
    pub turn: TurnLimits,
    /// Most sandboxes alive at once; idle ones make room.
    pub live_sessions: usize,
    /// How long an idle sandbox stays.
    pub sandbox_idle: Duration,
    /// How long a session that is not persistent stays after its last answer.
    pub session_idle: Duration,
    /// Most messages that may wait for a session.
    pub queued_messages: u32,
    /// Tell agents about their memory.
    pub memory_hint: bool,
    /// Where sessions may go that do not say.
    pub egress: Policy,
    /// How far any may.
    pub egress_ceiling: Policy,
}

impl Config {
    pub(crate) fn model(&self, name: &str) -> Option<&Model> {
        self.models.iter().find(|model| model.spec.name == name)
    }
}
