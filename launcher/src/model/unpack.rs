//! Files of this program's own, unpacked into a folder of the cache once.
//!
//! The folder appears under its final name complete or not at all. Owner, mode and content are compared on every start, so that
//! a damaged or foreign folder is never served, nor one that somebody else could still change.

use std::{
    fs::{self, Permissions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nanoinfer_checkpoint::TokenizerFiles;
use sha2::{Digest, Sha256};

use crate::private_folder;

/// Files that belong together.
pub(super) struct Bundle<'a> {
    /// Of the folder: others have other files.
    pub(super) name: &'a str,
    /// For whom it is, and that it needs a folder: for messages.
    pub(super) needs: &'static str,
    pub(super) files: &'a [(&'a str, &'a [u8])],
}

/// A folder with a configuration and a tokenizer that come as something else, as other models have them beside them.
pub(super) fn tokenizer(config: &str, tokenizer: &TokenizerFiles, roots: &[PathBuf]) -> Result<PathBuf, UnpackError> {
    let mut files = vec![
        ("config.json", config.as_bytes()),
        ("tokenizer.json", tokenizer.tokenizer.as_bytes()),
        ("tokenizer_config.json", tokenizer.config.as_bytes()),
    ];
    files.extend(tokenizer.generation.as_ref().map(|text| ("generation_config.json", text.as_bytes())));
    let mut digest = Sha256::new();
    for (name, text) in &files {
        digest.update(format!("{name} {}\n", text.len()));
        digest.update(text);
    }
    let digest: String = digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let needs = "the model's tokenizer needs a folder to be unpacked into";
    Bundle { name: &format!("tokenizer-{digest}"), needs, files: &files }.unpack(roots)
}

/// Why nothing could be unpacked: every folder that was tried, with what happened.
#[derive(Debug, thiserror::Error)]
#[error(
    "{needs}:{}\n  hint: set XDG_CACHE_HOME to a folder of yours that can be written",
    .tried.iter().map(|(folder, error)| format!("\n  {}: {error}", folder.display())).collect::<String>()
)]
pub struct UnpackError {
    needs: &'static str,
    tried: Vec<(PathBuf, io::Error)>,
}

impl Bundle<'_> {
    /// The folder with the files, under the first of `roots` where it is or can be made.
    pub(super) fn unpack(&self, roots: &[PathBuf]) -> Result<PathBuf, UnpackError> {
        let mut tried = Vec::new();
        for root in roots {
            match self.unpack_into(root) {
                Ok(folder) => return Ok(folder),
                Err(error) => tried.push((root.clone(), error)),
            }
        }
        Err(UnpackError { needs: self.needs, tried })
    }

    fn unpack_into(&self, root: &Path) -> io::Result<PathBuf> {
        // In a temporary folder that all users share, somebody else may have made ours first.
        private_folder::make(root)?;
        let folder = root.join(self.name);
        if self.is_intact(&folder) {
            return Ok(folder);
        }
        // Each goes again, with what is in it, unless it has another name by then.
        let scratch =
            || tempfile::Builder::new().prefix(".unpack-").permissions(Permissions::from_mode(0o700)).tempdir_in(root);
        let fresh = scratch()?;
        let placed = self.fill(fresh.path()).and_then(|()| {
            if fs::symlink_metadata(&folder).is_ok() && !self.is_intact(&folder) {
                // Damaged, and readers of it may still have its files mapped: move it away instead of writing into it.
                fs::rename(&folder, scratch()?.path().join("damaged"))?;
            }
            fs::rename(fresh.path(), &folder)
        });
        match placed {
            // Another process may have been faster.
            Err(error) if !self.is_intact(&folder) => Err(error),
            _ => Ok(folder),
        }
    }

    fn fill(&self, folder: &Path) -> io::Result<()> {
        self.files.iter().try_for_each(|(name, bytes)| {
            // Whatever the umask leaves to others.
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(folder.join(name))?;
            file.write_all(bytes)
        })
    }

    pub(super) fn is_intact(&self, folder: &Path) -> bool {
        let is_ours = |path: &Path, is_dir: bool| {
            fs::symlink_metadata(path).is_ok_and(|found| {
                (if is_dir { found.is_dir() } else { found.is_file() }) && private_folder::check(&found).is_ok()
            })
        };
        is_ours(folder, true)
            && self.files.iter().all(|(name, bytes)| {
                let path = folder.join(name);
                is_ours(&path, false) && fs::read(&path).is_ok_and(|found| found == *bytes)
            })
    }
}
