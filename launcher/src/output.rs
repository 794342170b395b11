//! Standard output and standard error, as all our programs write them.
//!
//! Standard output is data: what cannot be written there is an error, unless its reader has left (a broken pipe), who has seen
//! enough. Standard error is for people: where nobody reads it, nothing is lost. `println!` and `eprintln!` panic in both
//! cases, so lints deny them. Does not know what is said.

use std::{
    fmt::Display,
    io::{self, ErrorKind, Write},
    process::ExitCode,
};

pub use nanoinfer_shared::say;

/// Whether somebody reads what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// As far as can be known.
    Reads,
    /// Whatever else is written is lost, and no error.
    Left,
}

/// Standard output takes nothing, for another reason than that nobody reads it: a full disk, say.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output: {0}")]
pub struct OutputError(#[from] io::Error);

/// Writes to standard output, at once.
///
/// # Errors
/// When it cannot be written, unless its reader has left.
pub fn write(text: impl Display) -> Result<Reader, OutputError> {
    write_to(&mut io::stdout().lock(), text)
}

fn write_to(out: &mut impl Write, text: impl Display) -> Result<Reader, OutputError> {
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(Reader::Reads),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Reader::Left),
        Err(error) => Err(error.into()),
    }
}

/// Writes what a parser of arguments has to say, help and version included, and returns the exit code for it.
pub fn parser_said(error: &clap::Error) -> ExitCode {
    match error.print().and_then(|()| io::stdout().flush()) {
        Err(unwritten) if !error.use_stderr() && unwritten.kind() != ErrorKind::BrokenPipe => {
            say(format_args!("error: {}", OutputError(unwritten)));
            ExitCode::FAILURE
        }
        _ => ExitCode::from(error.exit_code() as u8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes nothing, for a reason.
    struct Refuses(ErrorKind);

    impl Write for Refuses {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_left_is_no_error_and_all_else_is() {
        let mut out = Vec::new();
        assert_eq!(write_to(&mut out, format_args!("{} lines\n", 2)).unwrap(), Reader::Reads);
        assert_eq!(out, b"2 lines\n");
        assert_eq!(write_to(&mut Refuses(ErrorKind::BrokenPipe), "x").unwrap(), Reader::Left);
        let error = write_to(&mut Refuses(ErrorKind::StorageFull), "x").unwrap_err().to_string();
        assert!(error.starts_with("cannot write to standard output: "), "{error}");
    }
}
