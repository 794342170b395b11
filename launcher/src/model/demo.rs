//! The demo model that is part of the program: unpacked into a folder once, so that every rank can map its weights.
//!
//! The folder appears under its final name complete or not at all. Owner, mode and content are compared on every start, so that
//! a damaged or foreign folder is never served, nor one that somebody else could still change.

use std::{
    fs::{self, Permissions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::private_folder;

/// Every file of the model. Its golden data and training scripts stay in the repository.
const FILES: [(&str, &[u8]); 9] = [
    ("config.json", include_bytes!("../../demo/nano-chat/config.json")),
    ("generation_config.json", include_bytes!("../../demo/nano-chat/generation_config.json")),
    ("merges.txt", include_bytes!("../../demo/nano-chat/merges.txt")),
    ("model.safetensors", include_bytes!("../../demo/nano-chat/model.safetensors")),
    ("tokenizer.json", include_bytes!("../../demo/nano-chat/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../demo/nano-chat/tokenizer_config.json")),
    ("vocab.json", include_bytes!("../../demo/nano-chat/vocab.json")),
    ("NOTICE.wordnet", include_bytes!("../../demo/nano-chat/NOTICE.wordnet")),
    ("README.md", include_bytes!("../../demo/nano-chat/README.md")),
];

/// Why the demo model could not be unpacked: every folder that was tried, with what happened.
#[derive(Debug, thiserror::Error)]
#[error(
    "the built-in model needs a folder to unpack 12 MB into:{}\n  hint: set XDG_CACHE_HOME to a folder of yours that can be written",
    .0.iter().map(|(folder, error)| format!("\n  {}: {error}", folder.display())).collect::<String>()
)]
pub struct DemoError(Vec<(PathBuf, io::Error)>);

/// The folder with the demo model, under the first of `roots` where it is or can be made.
pub(super) fn extract(roots: &[PathBuf]) -> Result<PathBuf, DemoError> {
    let mut tried = Vec::new();
    for root in roots {
        match extract_into(root) {
            Ok(folder) => return Ok(folder),
            Err(error) => tried.push((root.clone(), error)),
        }
    }
    Err(DemoError(tried))
}

fn extract_into(root: &Path) -> io::Result<PathBuf> {
    // In a temporary folder that all users share, somebody else may have made ours first.
    private_folder::make(root)?;
    let folder = root.join(concat!("nano-chat-", env!("NANOINFER_DEMO_DIGEST")));
    if is_intact(&folder) {
        return Ok(folder);
    }
    // Each goes again, with what is in it, unless it has another name by then.
    let scratch =
        || tempfile::Builder::new().prefix(".nano-chat-").permissions(Permissions::from_mode(0o700)).tempdir_in(root);
    let fresh = scratch()?;
    let placed = fill(fresh.path()).and_then(|()| {
        if fs::symlink_metadata(&folder).is_ok() && !is_intact(&folder) {
            // Damaged, and readers of it may still have its files mapped: move it away instead of writing into it.
            fs::rename(&folder, scratch()?.path().join("damaged"))?;
        }
        fs::rename(fresh.path(), &folder)
    });
    match placed {
        // Another process may have been faster.
        Err(error) if !is_intact(&folder) => Err(error),
        _ => Ok(folder),
    }
}

fn fill(folder: &Path) -> io::Result<()> {
    FILES.iter().try_for_each(|(name, bytes)| {
        // Whatever the umask leaves to others.
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(folder.join(name))?;
        file.write_all(bytes)
    })
}

fn is_intact(folder: &Path) -> bool {
    let is_ours = |path: &Path, is_dir: bool| {
        fs::symlink_metadata(path).is_ok_and(|found| {
            (if is_dir { found.is_dir() } else { found.is_file() }) && private_folder::check(&found).is_ok()
        })
    };
    is_ours(folder, true)
        && FILES.iter().all(|(name, bytes)| {
            let path = folder.join(name);
            is_ours(&path, false) && fs::read(&path).is_ok_and(|found| found == *bytes)
        })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, chown, symlink};

    use super::*;

    #[test]
    fn what_somebody_else_could_change_is_unpacked_anew() {
        let root = tempfile::tempdir().unwrap();
        let roots = [root.path().to_path_buf()];
        let folder = extract(&roots).unwrap();
        let weights = folder.join("model.safetensors");
        let inode = || fs::metadata(&weights).unwrap().ino();
        for (path, mode) in [(&weights, 0o666), (&folder, 0o770)] {
            let before = inode();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(extract(&roots).unwrap(), folder);
            assert!(inode() != before && is_intact(&folder), "{}", path.display());
        }
        let elsewhere = root.path().join("elsewhere");
        fs::rename(&weights, &elsewhere).unwrap();
        symlink(&elsewhere, &weights).unwrap();
        extract(&roots).unwrap();
        assert!(fs::symlink_metadata(&weights).unwrap().is_file());
        if rustix::process::geteuid().is_root() {
            chown(&weights, Some(65534), None).unwrap();
            extract(&roots).unwrap();
            assert_eq!(fs::metadata(&weights).unwrap().uid(), 0);
            // And a whole folder of somebody else's is neither served nor written into.
            chown(root.path(), Some(65534), None).unwrap();
            let before = inode();
            let error = extract(&roots).unwrap_err().to_string();
            assert!(error.contains("it belongs to user 65534") && error.contains("XDG_CACHE_HOME"), "{error}");
            assert_eq!(inode(), before);
        }
    }

    #[test]
    fn it_is_unpacked_once_and_repaired_when_damaged() {
        let root = tempfile::tempdir().unwrap();
        let roots = [root.path().join("cache")];
        let folder = extract(&roots).unwrap();
        let made = fs::metadata(&folder).unwrap().ino();
        assert_eq!(extract(&roots).unwrap(), folder);
        assert_eq!(fs::metadata(&folder).unwrap().ino(), made, "an intact folder is left alone");
        fs::write(folder.join("config.json"), "{}").unwrap();
        assert_eq!(extract(&roots).unwrap(), folder);
        assert!(is_intact(&folder));
        assert_eq!(fs::read_dir(&roots[0]).unwrap().count(), 1, "nothing else is left behind");
    }

    #[test]
    fn many_at_once_end_with_one_folder() {
        let root = tempfile::tempdir().unwrap();
        let roots = [root.path().to_path_buf()];
        let folders: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| extract(&roots).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(folders.iter().all(|folder| folder == &folders[0]) && is_intact(&folders[0]));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_unusable_cache_falls_back_to_the_next_and_names_all() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        let good = root.path().join("good");
        let folder = extract(&[file.join("below"), good.clone()]).unwrap();
        assert!(folder.starts_with(&good));
        let error = extract(&[file.join("below")]).unwrap_err().to_string();
        assert!(error.contains("below") && error.contains("XDG_CACHE_HOME"), "{error}");
    }
}
