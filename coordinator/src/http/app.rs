//! What every route can reach.

use std::sync::Arc;

use super::{body::Bodies, unknown_fields::UnknownFields};
use crate::text::TextEngine;

/// The state of the router.
#[derive(Clone, Debug)]
pub(super) struct App {
    pub(super) engine: TextEngine,
    pub(super) unknown_fields: Arc<UnknownFields>,
    pub(super) bodies: Bodies,
    pub(super) max_request_memory: usize,
}
