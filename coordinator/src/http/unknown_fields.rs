//! Names of fields that no route knows: in the log once each, within bounds.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

/// Most names to remember; further ones are not logged.
pub(super) const MAX_NAMES: usize = 256;

/// Longest name in the log, in characters.
const MAX_NAME_CHARS: usize = 64;

/// Names that were logged already.
#[derive(Debug, Default)]
pub(super) struct UnknownFields {
    /// Locked for a look-up, and only when a request has an unknown field.
    names: Mutex<HashSet<String>>,
}

impl UnknownFields {
    #[cfg(test)]
    pub(super) fn names(&self) -> Vec<String> {
        self.names.lock().unwrap().iter().cloned().collect()
    }

    pub(super) fn report(&self, path: &str) {
        let name: String = path.chars().take(MAX_NAME_CHARS).collect();
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() < MAX_NAMES && names.insert(name.clone()) {
            tracing::warn!(field = ?name, "unknown field in a request: ignored, and not mentioned again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_remembered_within_bounds() {
        let unknown = UnknownFields::default();
        for i in 0..1000 {
            unknown.report(&format!("{i}").repeat(100));
        }
        let names = unknown.names();
        assert_eq!(names.len(), MAX_NAMES);
        assert!(names.iter().all(|name| name.chars().count() <= MAX_NAME_CHARS));
    }
}
