//! The door to the engine: submit requests, receive events, ask how it is.
//!
//! The engine itself runs on its own thread and owns every sequence; this handle is cheap to clone. Everything
//! between the two is a bounded queue or an atomic.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, ready},
};

use nanoinfer_shared::protocol::TokenId;
use tokio::sync::mpsc::{self, error::TrySendError};

pub use crate::engine::queue_room::QueuePlace;
use crate::engine::{
    config::EngineConfig,
    metrics::{EndMeter, Ending, SequenceMeter},
    orders::Orders,
    queue_room::{Place, Queue},
    request::{Client, Event, Request},
    status::Status,
    submission::{Command, Submission},
};

/// Submits requests to the engine.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    commands: mpsc::Sender<Command>,
    queue: Queue,
    door: Door,
    pub(crate) status: Arc<Status>,
    pub(crate) orders: Arc<Orders>,
}

/// What every request is held against before it enters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Door {
    /// Token ids are below this.
    pub(crate) vocab_size: usize,
    /// Most tokens of prompt and generation together.
    pub(crate) n_positions: usize,
    /// Most requests of which a sequence waits for its first step.
    pub(crate) max_queue: usize,
    /// Most tokens of the prompts of such sequences, unless one request alone has more.
    pub(crate) max_queue_tokens: usize,
}

/// The events of one sequence. Dropping it cancels the sequence within one step.
#[derive(Debug)]
pub struct Events {
    receiver: mpsc::Receiver<Event>,
    /// The last one was read: there is nothing to cancel.
    over: bool,
    /// Told how the sequence ended.
    end: EndMeter,
    orders: Arc<Orders>,
}

/// Why a request was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Try again later.
    #[error("the queue is full: {limit} requests are waiting")]
    QueueFull {
        /// `--max-queue`.
        limit: usize,
    },
    /// Try again later.
    #[error("the queue is full: with this request more than {limit} tokens of prompts would be waiting")]
    QueueTokensFull {
        /// `--max-queue-tokens`.
        limit: usize,
    },
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Stopping,
    /// A rank is gone.
    #[error("the engine has ended: {0}")]
    Ended(String),
    /// There is nothing to continue.
    #[error("the prompt has no tokens")]
    EmptyPrompt,
    /// A token of the prompt, or one with a bias, that the model does not have.
    #[error("token id {id} is not below the model's vocabulary size of {vocab_size}")]
    UnknownToken {
        /// The token.
        id: TokenId,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// The wall of learned positions.
    #[error(
        "{prompt} tokens of prompt and {max_tokens} to generate are more than the {n_positions} positions of the model"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Most tokens to generate.
        max_tokens: usize,
        /// Positions of the model.
        n_positions: usize,
    },
}

/// A handle and the engine's end of it.
pub(crate) fn channel(door: Door) -> (EngineHandle, mpsc::Receiver<Command>) {
    let queue = Queue::new(door.max_queue, door.max_queue_tokens);
    // Every submission holds a place, so there is always room for one wake-up among them.
    let (commands, receiver) = mpsc::channel(queue.free().0 + 1);
    (EngineHandle { commands, queue, door, status: Arc::default(), orders: Arc::default() }, receiver)
}

impl EngineHandle {
    /// Takes a place in the queue, so that nothing is done in vain for a request that gets none.
    ///
    /// # Errors
    /// When the queue is full, or the engine takes nothing more.
    pub fn enter(&self) -> Result<QueuePlace, SubmitError> {
        if self.is_stopping() {
            return Err(SubmitError::Stopping);
        }
        self.queue.enter().ok_or(SubmitError::QueueFull { limit: self.door.max_queue })
    }

    /// Queues one sequence.
    ///
    /// # Errors
    /// When the request cannot be served by this model, the queue is full, or the engine takes nothing more.
    pub fn submit(&self, request: Request) -> Result<Events, SubmitError> {
        let mut events = self.submit_all(vec![request])?;
        Ok(events.pop().expect("one sequence has one receiver"))
    }

    /// Queues the sequences of one request, as [`Self::submit_in`] does, where there was nothing to do before.
    ///
    /// # Errors
    /// As those.
    pub fn submit_all(&self, requests: Vec<Request>) -> Result<Vec<Events>, SubmitError> {
        self.submit_in(self.enter()?, Client::Local, requests)
    }

    /// Queues the sequences of one request of a `client`, which hold one `place` together: all of them are taken, or none.
    /// Nobody has to ask again for any of them, so a client that does not read keeps nobody out.
    ///
    /// # Errors
    /// When one of them cannot be served by this model, the queue has no room for its tokens, or the engine takes nothing more.
    pub fn submit_in(
        &self,
        place: QueuePlace,
        client: Client,
        requests: Vec<Request>,
    ) -> Result<Vec<Events>, SubmitError> {
        requests.iter().try_for_each(|request| self.door.check(request))?;
        if self.is_stopping() {
            return Err(SubmitError::Stopping);
        }
        let limit = self.door.max_queue_tokens;
        let places = self.queue.share(place, limit, &requests).ok_or(SubmitError::QueueTokensFull { limit })?;
        let enter = |(request, place): (Request, Place)| {
            // A prompt event, one event a token, and the end.
            let (events, receiver) = mpsc::channel(request.max_tokens + 2);
            let meter = SequenceMeter::new(self.status.metrics().clone(), request.prompt.len());
            let end = EndMeter::new(self.status.metrics().clone());
            let events_read = Events { receiver, over: false, end, orders: self.orders.clone() };
            (Submission { request, events, place, meter }, events_read)
        };
        let (sequences, mut events): (_, Vec<Events>) = requests.into_iter().zip(places).map(enter).unzip();
        let refused = match self.commands.try_send(Command::Submit { client, sequences }) {
            Ok(()) => return Ok(events),
            Err(TrySendError::Full(_)) => SubmitError::QueueFull { limit: self.door.max_queue },
            Err(TrySendError::Closed(_)) => {
                SubmitError::Ended(self.status.failure().unwrap_or("it was stopped").into())
            }
        };
        events.iter_mut().for_each(|events| events.end.ending = None);
        Err(refused)
    }

    /// The engine's state.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Whether it was told to take no new requests.
    pub fn is_stopping(&self) -> bool {
        self.orders.is_stopping()
    }

    /// Takes no new requests from now on; those under way finish.
    pub fn stop(&self) {
        self.orders.stop();
        // Where there is no room for it, the engine has something to read already.
        let _ = self.commands.try_send(Command::Wake);
    }

    /// Ends the engine after its current step: every sequence there still is fails, so that its client is told.
    pub fn cut_off(&self) {
        self.orders.cut_off();
        self.stop();
    }

    /// Waits until the engine's thread has ended, cleanly or not.
    pub async fn ended(&self) {
        self.commands.closed().await;
    }

    /// What wakes the engine's thread without keeping its queue open.
    pub(crate) fn waker(&self) -> impl Fn() + Send + Clone + use<> {
        let (commands, orders) = (self.commands.downgrade(), self.orders.clone());
        move || {
            if let Some(commands) = commands.upgrade()
                && orders.wake()
            {
                // Where there is no room for it, the engine has something to read already.
                let _ = commands.try_send(Command::Wake);
            }
        }
    }

    /// Places that are free in the queue: for requests, and for tokens.
    #[cfg(test)]
    pub(crate) fn room(&self) -> (usize, usize) {
        self.queue.free()
    }
}

impl Door {
    /// That of an engine so configured.
    pub(crate) fn of(config: &EngineConfig) -> Self {
        Self {
            vocab_size: config.shape.vocab_size,
            n_positions: config.shape.context,
            max_queue: config.max_queue,
            max_queue_tokens: config.max_queue_tokens,
        }
    }

    fn check(&self, request: &Request) -> Result<(), SubmitError> {
        let (prompt, max_tokens) = (request.prompt.len(), request.max_tokens);
        if prompt == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        if prompt.saturating_add(max_tokens) > self.n_positions {
            return Err(SubmitError::TooLong { prompt, max_tokens, n_positions: self.n_positions });
        }
        // Ascending: the others are below.
        let biased = request.sampling.logit_bias.last().map(|&(id, _)| id);
        let mut ids = request.prompt.iter().copied().chain(biased);
        match ids.find(|&id| id as usize >= self.vocab_size) {
            Some(id) => Err(SubmitError::UnknownToken { id, vocab_size: self.vocab_size }),
            None => Ok(()),
        }
    }
}

impl Events {
    /// The next event; `None` only after the last one.
    pub async fn next(&mut self) -> Option<Event> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// The same, without waiting for it.
    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        let event = ready!(self.receiver.poll_recv(context));
        Poll::Ready(self.note(event))
    }

    /// Ends the sequence, and says why that is.
    pub(crate) fn end(mut self, ending: Ending) {
        self.end.ending = Some(ending);
    }

    /// The next event if there is one already.
    #[cfg(test)]
    pub(crate) fn try_next(&mut self) -> Option<Event> {
        self.receiver.try_recv().ok().and_then(|event| self.note(Some(event)))
    }

    /// The same from a thread outside the runtime.
    #[cfg(test)]
    pub(crate) fn blocking_next(&mut self) -> Option<Event> {
        let event = self.receiver.blocking_recv();
        self.note(event)
    }

    fn note(&mut self, event: Option<Event>) -> Option<Event> {
        match &event {
            Some(Event::Finished(reason)) => self.end.ending = Some((*reason).into()),
            Some(Event::Stuck(_) | Event::Failed(_)) => self.end.ending = Some(Ending::Error),
            // The engine has gone.
            None if !self.over => self.end.ending = Some(Ending::Error),
            Some(Event::Prompt(_) | Event::Token { .. }) | None => {}
        }
        self.over |= matches!(event, Some(Event::Finished(_) | Event::Stuck(_) | Event::Failed(_)));
        event
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if !self.over {
            // Closed before it is counted: who sees the count finds it closed.
            self.receiver.close();
            self.orders.hang_up();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(prompt: &[TokenId], max_tokens: usize) -> Request {
        Request::greedy(prompt.to_vec(), max_tokens)
    }

    fn door(max_queue: usize, max_queue_tokens: usize) -> Door {
        Door { vocab_size: 10, n_positions: 8, max_queue, max_queue_tokens }
    }

    #[test]
    fn what_the_model_cannot_serve_is_refused_at_the_door() {
        let (handle, _engine) = channel(door(4, 100));
        let refused = |request| handle.submit(request).unwrap_err();
        assert_eq!(refused(request(&[], 1)), SubmitError::EmptyPrompt);
        assert_eq!(refused(request(&[3, 10], 1)), SubmitError::UnknownToken { id: 10, vocab_size: 10 });
        assert_eq!(refused(request(&[3; 5], 4)), SubmitError::TooLong { prompt: 5, max_tokens: 4, n_positions: 8 });
        assert!(matches!(refused(request(&[3], usize::MAX)), SubmitError::TooLong { .. }));
        let mut biased = request(&[3], 1);
        biased.sampling.logit_bias = [(3, 1.0), (11, 1.0)].into_iter().collect();
        assert_eq!(refused(biased), SubmitError::UnknownToken { id: 11, vocab_size: 10 });
        handle.submit(request(&[3; 5], 3)).unwrap();
    }

    #[test]
    fn who_goes_before_the_end_is_counted_and_who_read_it_is_not() {
        let (handle, mut engine) = channel(door(4, 100));
        let events = handle.submit_all(vec![request(&[1], 1); 3]).unwrap();
        let Ok(Command::Submit { sequences: submissions, .. }) = engine.try_recv() else { panic!("the request") };
        submissions[0].events.try_send(Event::Finished(crate::engine::request::FinishReason::Length)).unwrap();
        for (mut events, counted) in events.into_iter().zip([0, 1, 2]) {
            events.try_next();
            drop(events);
            assert_eq!(handle.orders.hang_ups(), counted);
        }
        assert!(submissions.iter().all(|submission| submission.events.is_closed()));
    }

    #[test]
    fn the_queue_is_full_until_a_place_is_given_back() {
        let (handle, mut engine) = channel(door(2, 100));
        let waiting: Vec<_> = (0..2).map(|_| handle.submit(request(&[1], 1)).unwrap()).collect();
        assert_eq!(handle.submit(request(&[1], 1)).unwrap_err(), SubmitError::QueueFull { limit: 2 });
        let taken = engine.try_recv().unwrap();
        assert_eq!(handle.submit(request(&[1], 1)).unwrap_err(), SubmitError::QueueFull { limit: 2 });
        drop(taken);
        handle.submit(request(&[1], 1)).unwrap();
        handle.stop();
        assert_eq!(handle.submit(request(&[1], 1)).unwrap_err(), SubmitError::Stopping);
        drop((waiting, engine));
    }

    #[test]
    fn a_place_is_taken_before_anything_is_done_for_a_request() {
        let (handle, _engine) = channel(door(1, 100));
        let place = handle.enter().unwrap();
        assert_eq!(handle.enter().unwrap_err(), SubmitError::QueueFull { limit: 1 });
        drop(place);
        let place = handle.enter().unwrap();
        let refused = handle.submit_in(place, Client::Local, vec![request(&[], 1)]).unwrap_err();
        assert_eq!(refused, SubmitError::EmptyPrompt);
        handle.enter().expect("a refused request has given its place back");
    }

    #[test]
    fn a_queue_without_a_bound_takes_what_comes() {
        let (handle, mut engine) = channel(door(usize::MAX, usize::MAX));
        let _events = handle.submit_all(vec![request(&[1; 5], 1); 3]).unwrap();
        assert!(matches!(engine.try_recv(), Ok(Command::Submit { sequences, .. }) if sequences.len() == 3));
    }

    #[test]
    fn the_sequences_of_a_request_take_one_place_until_the_last_has_run() {
        let (handle, mut engine) = channel(door(1, 100));
        let too_long = vec![request(&[1], 1), request(&[1], 8)];
        assert!(matches!(handle.submit_all(too_long), Err(SubmitError::TooLong { .. })));
        let _events = handle.submit_all(vec![request(&[1], 1); 5]).unwrap();
        let Ok(Command::Submit { mut sequences, .. }) = engine.try_recv() else { panic!("all of them at once") };
        assert_eq!(sequences.len(), 5);
        while sequences.pop().is_some() {
            assert_eq!(handle.submit(request(&[1], 1)).is_ok(), sequences.is_empty(), "{} left", sequences.len());
        }
    }

    #[test]
    fn the_queue_is_bounded_in_tokens_too_and_a_larger_request_waits_alone() {
        let (handle, mut engine) = channel(door(9, 10));
        let full = Some(SubmitError::QueueTokensFull { limit: 10 });
        let first = handle.submit_all(vec![request(&[1; 4], 1), request(&[1; 4], 1)]).unwrap();
        assert_eq!(handle.submit(request(&[1; 3], 1)).err(), full);
        let second = handle.submit(request(&[1; 2], 1)).unwrap();
        let Ok(Command::Submit { mut sequences, .. }) = engine.try_recv() else { panic!("the first request") };
        assert_eq!(handle.submit_all(vec![request(&[1; 5], 1); 3]).err(), full);
        sequences.pop();
        let third = handle.submit(request(&[1; 4], 1)).unwrap();
        assert_eq!(handle.submit(request(&[1], 1)).err(), full, "its sequences give back what is theirs");
        drop(sequences);
        drop((engine.try_recv().unwrap(), engine.try_recv().unwrap()));
        let large = handle.submit_all(vec![request(&[1; 5], 1); 3]).unwrap();
        assert_eq!(handle.submit(request(&[1], 1)).err(), full);
        let Ok(Command::Submit { mut sequences, .. }) = engine.try_recv() else { panic!("the large request") };
        while sequences.pop().is_some() {}
        handle.submit(request(&[1; 7], 1)).unwrap();
        drop((first, second, third, large));
    }
}
