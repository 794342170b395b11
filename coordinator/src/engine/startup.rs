//! From links to an engine that runs on a thread of its own.
//!
//! Does not know what a turn of it does.

use std::{sync::Arc, thread};

use nanoinfer_shared::{
    link::ControlLink,
    protocol::{FromRank, ToRank},
};

use super::{
    Engine,
    config::EngineConfig,
    handle::{self, Door, EngineHandle},
    masker::Masker,
    ranks::{LinkedRanks, RankSource, RanksError},
};

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The ranks did not come up.
    #[error(transparent)]
    Ranks(#[from] RanksError),
    /// A limit that lets nothing run.
    #[error("{name} must be at least 1")]
    Zero {
        /// The option.
        name: &'static str,
    },
    /// The operating system gave no thread.
    #[error("no thread for the engine: {0}")]
    Thread(std::io::Error),
}

/// Brings up the ranks behind `links`, in rank order, and the engine above them. Blocks until they are ready. Where there is a
/// `source` of others, the engine survives the loss of a rank.
///
/// # Errors
/// When a rank fails to load, the KV pool cannot hold one sequence of full length, or a limit is 0.
pub fn start(
    links: Vec<ControlLink<ToRank, FromRank>>,
    source: Option<Box<dyn RankSource>>,
    config: EngineConfig,
) -> Result<EngineHandle, StartError> {
    for (name, limit) in [
        ("--max-seqs", config.load.max_seqs),
        ("--max-batched-tokens", config.load.max_batched_tokens),
        ("--max-queue", config.max_queue),
        ("--max-queue-tokens", config.max_queue_tokens),
    ] {
        if limit == 0 {
            return Err(StartError::Zero { name });
        }
    }
    let (handle, commands) = handle::channel(Door::of(&config));
    let (orders, wake) = (handle.orders.clone(), Arc::new(handle.waker()));
    let given_up = Box::new(move || orders.is_cutting_off());
    let (ranks, kv_blocks) = LinkedRanks::start(links, source, &config, handle.status.clone(), wake.clone(), given_up)?;
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let masker = Masker::start(threads, wake, handle.status.metrics().clone()).map_err(StartError::Thread)?;
    let engine = Engine::new(config, kv_blocks, ranks, masker, commands, &handle);
    thread::Builder::new().name("engine".into()).spawn(move || engine.run()).map_err(StartError::Thread)?;
    Ok(handle)
}
