//! A repository in the cache that all Hugging Face tools share.
//!
//! ```text
//! .locks/models--org--name/<blob>.lock
//! models--org--name/refs/<revision>                  the commit that it is
//!                   snapshots/<commit>/<file>        → ../../blobs/<blob>, or the file itself
//!                   blobs/<blob>                     called by what it holds; <blob>.incomplete until then
//!                   .no_exist/<commit>/<file>        the repository does not have it
//!                   trees/<commit>.json              all that it has (huggingface_hub 2)
//! ```
//! Knows where things are and who may write them; does not know the hub. A name appears when what it stands for is whole.
//! Links are made and replaced, never written through.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::io::Errno;

use super::{error::HubError, listing::is_commit};
use crate::model::{
    files::{self, CONFIG, names_below},
    gguf, nanochat,
    tokenizer_files::{TOKENIZER, has_tokenizer},
};

/// Files that a model may have, and that say how to talk to it.
pub(super) const OPTIONAL: [&str; 5] = [
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
];

/// The folder of a repository.
#[derive(Debug)]
pub(super) struct RepoCache {
    cache: PathBuf,
    /// `models--org--name`.
    name: String,
}

/// What the cache has of a commit.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) commit: String,
    pub(super) folder: PathBuf,
    /// The GGUF, or the checkpoint of nanochat, that is meant or is all there is: a model by itself.
    pub(super) file: Option<PathBuf>,
    /// Of what a model cannot do without.
    pub(super) lacks: Vec<&'static str>,
    /// Files that are not there, although the repository may have them: another tool took what it needed itself.
    pub(super) unsure: Vec<&'static str>,
}

impl RepoCache {
    pub(super) fn new(cache: &Path, id: &str) -> Self {
        Self { cache: cache.into(), name: format!("models--{}", id.replace('/', "--")) }
    }

    fn below(&self, folder: &str) -> PathBuf {
        self.cache.join(&self.name).join(folder)
    }

    /// What there is of a branch, a tag, or a commit; of its GGUF models, or folders of nanochat's checkpoints, the `wanted` one.
    pub(super) fn snapshot(&self, revision: &str, wanted: Option<&str>, step: Option<u64>) -> Option<Snapshot> {
        let named = fs::read_to_string(self.below("refs").join(revision)).ok();
        let commit = named.as_deref().map_or(revision, str::trim);
        let folder = self.folder(commit);
        if !is_commit(commit) || !folder.is_dir() {
            return None;
        }
        let has = |file: &str| folder.join(file).exists();
        let is_file = |weights: &[PathBuf]| {
            weights[0].extension() == Some("gguf".as_ref()) || nanochat::is_checkpoint(&weights[0])
        };
        if wanted.is_some() || step.is_some() || files::in_folder(&folder, None).is_ok_and(|weights| is_file(&weights))
        {
            let names = names_below(&folder);
            if let Ok(Some(model)) = nanochat::chosen(names.clone(), wanted, step) {
                return Some(self.nanochat(commit, folder, model, step));
            }
            let gguf = gguf::chosen(names.into_iter(), wanted).ok().flatten();
            let gguf = gguf.filter(|first| step.is_none() && gguf::parts(first).iter().all(|part| has(part)));
            let file = gguf.map(|name| folder.join(name));
            let lacks = if file.is_some() { Vec::new() } else { vec!["weights"] };
            return Some(Snapshot { commit: commit.into(), folder, file, lacks, unsure: Vec::new() });
        }
        let needs = [
            (CONFIG, has(CONFIG)),
            ("tokenizer", has_tokenizer(&folder)),
            ("weights", files::in_folder(&folder, None).is_ok()),
        ];
        let lacks = needs.into_iter().filter(|(_, there)| !there).map(|(what, _)| what).collect();
        let known = self.tree(commit);
        let absent = |file: &str| {
            self.no_exist(commit, file).exists() || known.as_ref().is_some_and(|files| files.get(file).is_none())
        };
        let unsure = OPTIONAL.into_iter().chain([TOKENIZER]).filter(|file| !has(file) && !absent(file)).collect();
        Some(Snapshot { commit: commit.into(), folder, file: None, lacks, unsure })
    }

    /// What there is of a checkpoint of nanochat, by its name below the folder. Where no step is asked for it is the last that is here.
    fn nanochat(&self, commit: &str, folder: PathBuf, model: String, step: Option<u64>) -> Snapshot {
        let has = |file: &str| folder.join(file).exists();
        let needs = [
            (nanochat::META, has(&nanochat::meta_of(&model))),
            ("tokenizer", nanochat::tokenizer_in(&model, has).is_some()),
        ];
        let lacks = needs.into_iter().filter(|(_, there)| !there).map(|(what, _)| what).collect();
        let is_last = step.is_some() || self.no_exist(commit, &nanochat::later(&model)).exists();
        let unsure = if is_last { Vec::new() } else { vec!["later step"] };
        Snapshot { commit: commit.into(), file: Some(folder.join(model)), folder, lacks, unsure }
    }

    /// All files of a commit, where another tool has written them down.
    fn tree(&self, commit: &str) -> Option<serde_json::Value> {
        let text = fs::read(self.below("trees").join(format!("{commit}.json"))).ok()?;
        let mut tree: serde_json::Value = serde_json::from_slice(&text).ok()?;
        (tree["format_version"] == 1 && tree["files"].is_object()).then(|| tree["files"].take())
    }

    fn no_exist(&self, commit: &str, file: &str) -> PathBuf {
        self.below(".no_exist").join(commit).join(file)
    }

    pub(super) fn folder(&self, commit: &str) -> PathBuf {
        self.below("snapshots").join(commit)
    }

    pub(super) fn file(&self, commit: &str, file: &str) -> PathBuf {
        self.folder(commit).join(file)
    }

    pub(super) fn blob(&self, name: &str) -> PathBuf {
        self.below("blobs").join(name)
    }

    /// Opens what there is of a blob that is not whole.
    pub(super) fn open_incomplete(&self, name: &str) -> io::Result<(PathBuf, File)> {
        let path = self.blob(&format!("{name}.incomplete"));
        fs::create_dir_all(self.below("blobs"))?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
        let file = match options.open(&path) {
            // No download of ours: a link, which would lead the content elsewhere.
            Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
                fs::remove_file(&path)?;
                options.open(&path)
            }
            other => other,
        };
        Ok((path, file?))
    }

    /// Waits until nobody else downloads the blob; says so with `waiting`. The lock ends with the file.
    pub(super) fn lock(&self, name: &str, waiting: impl FnOnce()) -> io::Result<File> {
        let folder = self.cache.join(".locks").join(&self.name);
        fs::create_dir_all(&folder)?;
        let mut options = OpenOptions::new();
        // Users who share a cache wait for each other.
        options.write(true).create(true).truncate(false).mode(0o664);
        let file = options.open(folder.join(format!("{name}.lock")))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => {
                waiting();
                file.lock().map(|()| file)
            }
            // File systems without locks: two downloads then write the same bytes to the same places.
            Err(TryLockError::Error(error)) if is_unsupported(&error) => Ok(file),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Makes `file` of the snapshot stand for a blob: by `symlink`, else by a copy where the file system has no links.
    pub(super) fn place(
        &self,
        commit: &str,
        file: &str,
        blob: &str,
        symlink: fn(&Path, &Path) -> io::Result<()>,
    ) -> io::Result<PathBuf> {
        let path = self.file(commit, file);
        let folder = path.parent().expect("a file lies in a folder");
        // The blobs are beside the folder of snapshots: two up from a commit, and one more for each folder in it.
        let target = PathBuf::from("../".repeat(Path::new(file).components().count() + 1)).join("blobs").join(blob);
        fs::create_dir_all(folder)?;
        let link = |fresh: &Path| match symlink(&target, fresh) {
            Err(error) if is_unsupported(&error) => fs::hard_link(self.blob(blob), fresh)
                .or_else(|_| fs::copy(self.blob(blob), fresh).map(drop))
                // Of a copy that a full disk has cut short nothing is left.
                .inspect_err(|_| drop(fs::remove_file(fresh))),
            other => other,
        };
        // Goes again unless it has its name by then.
        let fresh = tempfile::Builder::new().prefix(".").make_in(folder, link)?;
        fresh.into_temp_path().persist(&path)?;
        Ok(path)
    }

    /// Writes down that the repository does not have `file`. That it cannot be written costs a question next time.
    pub(super) fn note_absent(&self, commit: &str, file: &str) {
        let path = self.no_exist(commit, file);
        if !path.exists() {
            let folder = path.parent().expect("a file lies in a folder");
            let _ = fs::create_dir_all(folder).and_then(|()| fs::write(&path, ""));
        }
    }

    /// Writes down which commit a revision is.
    pub(super) fn remember(&self, revision: &str, commit: &str) -> io::Result<()> {
        let path = self.below("refs").join(revision);
        if revision == commit || fs::read_to_string(&path).is_ok_and(|known| known.trim() == commit) {
            return Ok(());
        }
        fs::create_dir_all(path.parent().expect("a file lies in a folder"))?;
        // Whole at once: others read it meanwhile.
        let fresh = path.with_extension(format!("{}.tmp", std::process::id()));
        fs::write(&fresh, commit).and_then(|()| fs::rename(&fresh, &path))
    }

    pub(super) fn failed(&self, source: io::Error) -> HubError {
        HubError::Cache { cache: self.cache.clone(), source }
    }
}

/// Whether `path` leads to a file of this many bytes, where the number is known.
pub(super) fn is_whole(path: &Path, size: Option<u64>) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && size.is_none_or(|size| size == file.len()))
}

fn is_unsupported(error: &io::Error) -> bool {
    let errors = [Errno::PERM, Errno::OPNOTSUPP, Errno::NOSYS, Errno::NOLCK];
    error.raw_os_error().is_some_and(|code| errors.iter().any(|errno| errno.raw_os_error() == code))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn files_are_links_of_the_right_depth_and_copies_where_there_are_no_links() {
        let root = tempfile::tempdir().unwrap();
        let repo = RepoCache::new(root.path(), "org/name");
        fs::create_dir_all(repo.below("blobs")).unwrap();
        fs::write(repo.blob("abc"), "text").unwrap();
        for (file, target) in [("a.json", "../../blobs/abc"), ("sub/dir/b.json", "../../../../blobs/abc")] {
            let path = repo.place(COMMIT, file, "abc", |from, to| std::os::unix::fs::symlink(from, to)).unwrap();
            assert_eq!(fs::read_link(&path).unwrap(), Path::new(target));
            assert_eq!(fs::read_to_string(&path).unwrap(), "text");
        }
        let path = repo.place(COMMIT, "a.json", "abc", |_, _| Err(Errno::PERM.into())).unwrap();
        assert!(fs::symlink_metadata(&path).unwrap().is_file(), "the link was replaced");
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 2, "nothing else is left");
    }

    #[test]
    fn what_a_commit_does_not_have_is_known_from_marks_and_from_trees() {
        let root = tempfile::tempdir().unwrap();
        let repo = RepoCache::new(root.path(), "org/name");
        let folder = repo.below("snapshots").join(COMMIT);
        fs::create_dir_all(&folder).unwrap();
        for file in [CONFIG, TOKENIZER, "model.safetensors", "tokenizer_config.json"] {
            fs::write(folder.join(file), "").unwrap();
        }
        repo.remember("refs/pr/1", COMMIT).unwrap();
        let unsure = || repo.snapshot("refs/pr/1", None, None).unwrap().unsure;
        assert_eq!(
            unsure(),
            ["generation_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"]
        );
        repo.note_absent(COMMIT, "added_tokens.json");
        assert_eq!(unsure(), ["generation_config.json", "special_tokens_map.json", "chat_template.jinja"]);
        fs::create_dir(repo.below("trees")).unwrap();
        let tree = repo.below("trees").join(format!("{COMMIT}.json"));
        fs::write(&tree, r#"{"format_version": 1, "files": {"chat_template.jinja": {"size": 1}}}"#).unwrap();
        assert_eq!(unsure(), ["chat_template.jinja"], "listed, but not taken");
        fs::write(&tree, r#"{"format_version": 2, "files": {}}"#).unwrap();
        assert_eq!(unsure().len(), 3, "of an unknown form");
        fs::remove_file(folder.join("model.safetensors")).unwrap();
        assert_eq!(repo.snapshot(COMMIT, None, None).unwrap().lacks, ["weights"]);
        // Not a commit, wherever it comes from.
        fs::write(repo.below("refs").join("main"), "../../../../etc").unwrap();
        assert!(repo.snapshot("main", None, None).is_none() && repo.snapshot("..", None, None).is_none());
    }
}
