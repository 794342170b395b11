//! What comes next in a sequence beside what is drawn: tokens that are forced, several in one step, and which may be drawn at all.
//!
//! ```text
//! appended    drawn   drawn   drawn   forced  forced  forced   drawn
//! Next::after   []      []    [f f f]    []      []      []      []
//! computed     decode  decode  ├──── a chunk, as of a prompt ─┤ and drawn from its last row
//! Next::mask    ▲       ▲       ▲                             ▲   while the ranks compute the row that it is for
//! ```
//! A forced token is a token of the answer as any other: it counts, is penalised, hashed and computed again after a preemption,
//! but nothing is asked of the ranks for it. Knows tokens; what they stand for is known to who implements it.
//! Invariant: what is forced and what may come depends on the tokens appended before and on nothing else, so that batch, chunks,
//! preemption and the loss of a rank change no token. It runs on the engine's thread between two steps: bounded work, and no waiting. Masks
//! may take longer.

use std::fmt;

use nanoinfer_shared::protocol::{TokenId, TokenMask};

/// Follows the answer of one sequence from its first token on.
pub trait Next: fmt::Debug + Send {
    /// `id` was appended: drawn, or forced as one of those that an earlier call returned. What this returns comes next, in its order and
    /// behind what is still to be forced. The answer ends where it would if they were drawn: at the end of text, and at `max_tokens`.
    fn after(&mut self, id: TokenId) -> Vec<TokenId>;

    /// Whether only some tokens may be drawn now.
    fn is_masking(&self) -> bool {
        false
    }

    /// Which, where it is masking; the same until the next token is appended, and there at once when it is asked for again. The engine has it
    /// computed on another thread, and lets the sequence sit out for as long as that takes.
    ///
    /// # Errors
    /// Says why the answer cannot go on.
    fn mask(&mut self) -> Result<TokenMask, String> {
        Err("nothing is masked".into())
    }

    /// Whether the answer is whole, and nothing can follow.
    fn is_over(&self) -> bool {
        false
    }

    /// One in the same state, for another choice.
    fn boxed(&self) -> Box<dyn Next>;
}

impl Clone for Box<dyn Next> {
    fn clone(&self) -> Self {
        (**self).boxed()
    }
}
