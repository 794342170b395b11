//! The demo model that is part of the program: unpacked into a folder once, so that every rank can map its weights.

use std::path::PathBuf;

use super::unpack::{Bundle, UnpackError};

/// Every file of the model. Its golden data and training scripts stay in the repository.
const DEMO: Bundle<'static> = Bundle {
    name: concat!("nano-chat-", env!("NANOINFER_DEMO_DIGEST")),
    needs: "the built-in model needs a folder to unpack 12 MB into",
    files: &[
        ("config.json", include_bytes!("../../demo/nano-chat/config.json")),
        ("generation_config.json", include_bytes!("../../demo/nano-chat/generation_config.json")),
        ("merges.txt", include_bytes!("../../demo/nano-chat/merges.txt")),
        ("model.safetensors", include_bytes!("../../demo/nano-chat/model.safetensors")),
        ("tokenizer.json", include_bytes!("../../demo/nano-chat/tokenizer.json")),
        ("tokenizer_config.json", include_bytes!("../../demo/nano-chat/tokenizer_config.json")),
        ("vocab.json", include_bytes!("../../demo/nano-chat/vocab.json")),
        ("NOTICE.wordnet", include_bytes!("../../demo/nano-chat/NOTICE.wordnet")),
        ("README.md", include_bytes!("../../demo/nano-chat/README.md")),
    ],
};

/// The folder with the demo model, under the first of `roots` where it is or can be made.
pub(super) fn extract(roots: &[PathBuf]) -> Result<PathBuf, UnpackError> {
    DEMO.unpack(roots)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    };

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
            assert!(inode() != before && DEMO.is_intact(&folder), "{}", path.display());
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
        assert!(DEMO.is_intact(&folder));
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
        assert!(folders.iter().all(|folder| folder == &folders[0]) && DEMO.is_intact(&folders[0]));
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
