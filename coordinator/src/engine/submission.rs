//! What crosses from the handle to the engine's thread.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::engine::{
    metrics::SequenceMeter,
    queue_room::Place,
    request::{Client, Event, Request},
};

/// What reaches the engine's thread.
#[derive(Debug)]
pub(crate) enum Command {
    /// One more request.
    Submit {
        /// Who asks.
        client: Client,
        /// In the order in which they are to run.
        sequences: Vec<Submission>,
    },
    /// Look at the status and at the ranks again; there is nothing to add.
    Wake,
}

/// Wakes the engine's thread, if it waits for a command.
pub(crate) type Wake = Arc<dyn Fn() + Send + Sync>;

/// A sequence on its way to the engine, with the way back.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) request: Request,
    /// Holds every event a sequence can have, so that the engine never waits for a slow reader.
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) place: Place,
    /// Runs from here on.
    pub(crate) meter: SequenceMeter,
}
