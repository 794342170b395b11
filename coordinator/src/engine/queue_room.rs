//! The room in front of the engine: places for requests, and for the tokens of their prompts.
//!
//! Does not know what is asked of the engine, or who asks. Invariant: a place is given back when it is dropped, wherever that is.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::engine::request::Request;

/// The room there is for requests of which a sequence waits for its first step.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    /// One place for each request.
    requests: Arc<Semaphore>,
    /// One place for each token of its prompts.
    tokens: Arc<Semaphore>,
}

/// A request's place in the queue, taken before anything is done for it. Dropping it gives it back.
#[derive(Debug)]
pub struct QueuePlace {
    _permit: OwnedSemaphorePermit,
}

/// A sequence's share of the queue. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Place {
    /// That of the request that it is part of, given back with its last sequence.
    _request: Arc<QueuePlace>,
    /// Those of its own prompt.
    _tokens: Option<OwnedSemaphorePermit>,
}

impl Queue {
    /// Room for so many requests, and tokens of their prompts.
    pub(crate) fn new(requests: usize, tokens: usize) -> Self {
        // More than any machine holds; the library has no room for the largest numbers.
        let places = |most: usize| Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS - 1)));
        Self { requests: places(requests), tokens: places(tokens) }
    }

    /// A place for one more request, if there is any.
    pub(crate) fn enter(&self) -> Option<QueuePlace> {
        self.requests.clone().try_acquire_owned().ok().map(|_permit| QueuePlace { _permit })
    }

    /// Places that are free: for requests, and for tokens.
    pub(crate) fn free(&self) -> (usize, usize) {
        (self.requests.available_permits(), self.tokens.available_permits())
    }

    /// The `place` of a request, shared by its sequences, with places for their tokens. One with more tokens than the queue may
    /// hold gets in when no other waits.
    /// `None` where there is no room for them.
    pub(crate) fn share(&self, place: QueuePlace, limit: usize, requests: &[Request]) -> Option<Vec<Place>> {
        let request = Arc::new(place);
        let all: usize = requests.iter().map(|request| request.prompt.len()).sum();
        let all = u32::try_from(all.min(limit)).unwrap_or(u32::MAX);
        let mut tokens = self.tokens.clone().try_acquire_many_owned(all).ok()?;
        let place = |one: &Request| {
            let own = one.prompt.len().min(tokens.num_permits());
            Place { _request: request.clone(), _tokens: tokens.split(own) }
        };
        Some(requests.iter().map(place).collect())
    }
}
