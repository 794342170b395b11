//! The secret of a cluster across hosts: the content of a file or of an environment variable, never on a command line.

use std::{fmt, fs, os::unix::fs::MetadataExt, path::Path};

use crate::error::LaunchError;

/// Fewer bytes can be guessed.
const MIN_BYTES: usize = 16;
/// A file over this is something else.
const MAX_BYTES: usize = 4096;
const MAKE_ONE: &str =
    "make one with `head -c 32 /dev/urandom | base64 > FILE; chmod 600 FILE`, the same on every host";

/// What all processes of one cluster know.
pub(crate) struct Secret(Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    /// Reads a file; white space at its ends and a byte-order mark do not count.
    ///
    /// # Errors
    /// When it cannot be read, or is too short or too long to be a secret.
    pub(crate) fn read(path: &Path) -> Result<Self, LaunchError> {
        let wrong = |problem: String| LaunchError::Secret {
            place: format!("secret file {}", path.display()),
            problem,
            hint: MAKE_ONE,
        };
        let metadata = fs::metadata(path).map_err(|e| wrong(e.to_string()))?;
        if metadata.len() > MAX_BYTES as u64 {
            return Err(wrong(format!("{} bytes are too many", metadata.len())));
        }
        if metadata.mode() & 0o077 != 0 {
            tracing::warn!("{} can be read by others; `chmod 600` it", path.display());
        }
        let bytes = fs::read(path).map_err(|e| wrong(e.to_string()))?;
        // It may be any bytes, but one host's editor must not make another secret of it.
        let key = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes).trim_ascii().to_vec();
        if key.len() < MIN_BYTES {
            return Err(wrong(format!("{} bytes are too few; {MIN_BYTES} is the least", key.len())));
        }
        Ok(Self(key))
    }

    /// The value of an environment variable, which other users do not see, unlike arguments.
    ///
    /// # Errors
    /// When it is too short.
    pub(crate) fn from_variable(name: &str, value: &str) -> Result<Self, LaunchError> {
        let key = value.trim().as_bytes().to_vec();
        if key.len() < MIN_BYTES {
            let problem = format!("{} bytes are too few; {MIN_BYTES} is the least", key.len());
            return Err(LaunchError::Secret { place: format!("${name}"), problem, hint: MAKE_ONE });
        }
        Ok(Self(key))
    }

    /// A key that was just made.
    pub(crate) fn of_this_life(key: &[u8]) -> Self {
        Self(key.to_vec())
    }

    /// For the handshake.
    pub(crate) fn key(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_does_not_count_and_short_ones_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, "0123456789abcdef\n").unwrap();
        assert_eq!(Secret::read(&path).unwrap().key(), b"0123456789abcdef");
        fs::write(&path, "\u{feff}0123456789abcdef\r\n").unwrap();
        assert_eq!(Secret::read(&path).unwrap().key(), b"0123456789abcdef");
        fs::write(&path, "0123456789abcde\n").unwrap();
        let message = Secret::read(&path).unwrap_err().to_string();
        assert!(message.contains("15 bytes") && message.contains("urandom"), "{message}");
        assert!(Secret::read(&folder.path().join("none")).is_err());
    }
}
