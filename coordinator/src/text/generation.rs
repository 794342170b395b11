//! An answer under way, as a stream.
//!
//! Merges the pieces of all prompts and choices into one stream of [`Chunk`]s. Invariant: dropping a [`Generation`] drops
//! the events of every sequence, which cancels them; so does its deadline, whether anybody reads or not.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream::SelectAll};
use tokio::{sync::oneshot, task::AbortHandle, time::Sleep};

use super::{GenerateError, choice::Choice, chunk::Chunk, prompt::PreparedPrompt};
use crate::engine::metrics::Ending;

/// An answer under way: a stream of [`Chunk`]s, which ends after the last choice has finished or after an error.
pub struct Generation {
    prompts: Vec<PreparedPrompt>,
    choices: Arc<Choices>,
    deadline: Option<Deadline>,
}

/// Those that go on. Locked by whoever reads them, and once by the deadline, which ends them where nobody reads.
type Choices = Mutex<SelectAll<Choice>>;

/// What ends all choices at a time.
#[derive(Debug)]
struct Deadline {
    timeout: Duration,
    timer: AbortHandle,
    /// Told when the choices were ended.
    reached: oneshot::Receiver<()>,
}

impl Generation {
    pub(super) fn new(
        prompts: Vec<PreparedPrompt>,
        choices: impl IntoIterator<Item = Choice>,
        deadline: Option<(Pin<Box<Sleep>>, Duration)>,
    ) -> Self {
        let choices: Arc<Choices> = Arc::new(Mutex::new(choices.into_iter().collect()));
        let deadline = deadline.map(|(sleep, timeout)| Deadline::start(sleep, timeout, Arc::downgrade(&choices)));
        Self { prompts, choices, deadline }
    }

    /// The prompts as they were encoded, in the order of the request.
    pub fn prompts(&self) -> &[PreparedPrompt] {
        &self.prompts
    }

    /// Waits for the end: one chunk per choice, in order, with all that came; each piece is `seen` as it comes.
    ///
    /// # Errors
    /// The first that any choice had.
    pub async fn whole(mut self, mut seen: impl FnMut(&Chunk)) -> Result<Vec<Chunk>, GenerateError> {
        let mut wholes: Vec<Chunk> = Vec::new();
        while let Some(chunk) = self.next().await {
            let chunk = chunk?;
            seen(&chunk);
            if wholes.len() <= chunk.index {
                wholes.resize_with(chunk.index + 1, Chunk::default);
            }
            let whole = &mut wholes[chunk.index];
            whole.index = chunk.index;
            whole.text += &chunk.text;
            whole.thinking += &chunk.thinking;
            whole.calculations.extend(chunk.calculations);
            whole.calls.extend(chunk.calls);
            whole.tokens.extend(chunk.tokens);
            whole.prompt_logprobs = whole.prompt_logprobs.take().or(chunk.prompt_logprobs);
            whole.finish = whole.finish.or(chunk.finish);
        }
        Ok(wholes)
    }

    /// What was changed to make the prompts fit, in words for the reply.
    pub fn warnings(&self) -> Vec<String> {
        self.prompts.iter().flat_map(|prompt| prompt.warnings.iter().cloned()).collect()
    }
}

impl Deadline {
    fn start(sleep: Pin<Box<Sleep>>, timeout: Duration, choices: Weak<Choices>) -> Self {
        let (tell, reached) = oneshot::channel();
        let timer = tokio::spawn(async move {
            sleep.await;
            if let Some(choices) = choices.upgrade() {
                let mut choices = lock(&choices);
                choices.iter_mut().for_each(|choice| choice.end_sequence(Ending::Timeout));
                choices.clear();
            }
            // Nobody waits for it where nobody reads.
            let _ = tell.send(());
        });
        Self { timeout, timer: timer.abort_handle(), reached }
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.timer.abort();
    }
}

fn lock(choices: &Choices) -> MutexGuard<'_, SelectAll<Choice>> {
    choices.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stream for Generation {
    type Item = Result<Chunk, GenerateError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if let Some(deadline) = &mut this.deadline
            && Pin::new(&mut deadline.reached).poll(context) == Poll::Ready(Ok(()))
        {
            let timeout = deadline.timeout;
            this.deadline = None;
            return Poll::Ready(Some(Err(GenerateError::Deadline { timeout })));
        }
        let mut choices = lock(&this.choices);
        let polled = choices.poll_next_unpin(context);
        if let Poll::Ready(Some(Err(_))) = polled {
            // Cancels the other choices, and ends the stream.
            choices.clear();
        }
        if choices.is_empty() {
            this.deadline = None;
        }
        polled
    }
}

impl std::fmt::Debug for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generation")
            .field("prompts", &self.prompts.len())
            .field("choices", &lock(&self.choices).len())
            .finish()
    }
}
