//! How a verb fails: with which exit code, and in which words.

use nanoinfer_launch::{LaunchError, output::OutputError};

/// Why the program ends with an error, and with which code: 2 for usage and models, 1 for everything else.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: anyhow::Error,
    pub(crate) exit_code: u8,
}

impl Failure {
    pub(crate) fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self { error: error.into(), exit_code: 2 }
    }
}

/// An error and its causes, with what to do about it last. A cause that stands in the words before it is not told again.
pub(crate) fn told(error: &anyhow::Error) -> String {
    let (mut told, mut hints) = (String::new(), String::new());
    for cause in error.chain().map(ToString::to_string) {
        let (what, hint) = cause.split_at(cause.find("\n  hint:").unwrap_or(cause.len()));
        if !told.contains(what) {
            told += if told.is_empty() { "" } else { ": " };
            told += what;
            hints += hint;
        }
    }
    told + &hints
}

impl From<OutputError> for Failure {
    fn from(error: OutputError) -> Self {
        anyhow::Error::from(error).into()
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        // Under whatever was being done: a model that is none is one there too.
        let exit_code = error.downcast_ref::<LaunchError>().map_or(1, LaunchError::exit_code);
        Self { error, exit_code }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use anyhow::Context;
    use nanoinfer_launch::model::ModelError;

    use super::*;

    #[test]
    fn an_error_is_told_once_and_what_to_do_comes_last() {
        let unreadable = ModelError::Read { path: "m".into(), source: io::Error::other("no luck") };
        assert_eq!(told(&unreadable.into()), "cannot read m: no luck");
        let hinted = anyhow::anyhow!("line 3").context("m is no JSON\n  hint: write some").context("cannot start");
        assert_eq!(told(&hinted), "cannot start: m is no JSON: line 3\n  hint: write some");
    }

    #[test]
    fn a_bad_model_is_one_in_every_verb() {
        let no_model = LaunchError::Model(ModelError::NoSuchPath { path: "m".into(), suggestion: None });
        let error = Err::<(), _>(no_model).context("cannot plan the cluster").unwrap_err();
        assert_eq!(Failure::from(error).exit_code, 2);
        assert_eq!(Failure::from(anyhow::anyhow!("rank 1 is gone")).exit_code, 1);
    }
}
