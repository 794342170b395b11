//! Models of the Hugging Face hub: from the shared cache, else downloaded into it.
//!
//! A download is pinned to the commit that the hub names first, weights come last, and the reference of the revision is
//! written at the end. A snapshot that another tool has filled may lack what that tool did without: the hub is asked about
//! it once. Which files a model needs is decided here; [`listing`] checks what the hub says, [`client`] talks to it,
//! [`download`] brings one file, [`cache`] knows where it belongs.

mod cache;
mod client;
mod download;
mod error;
mod listing;

use std::{fs, path::PathBuf};

use self::{
    cache::{OPTIONAL, RepoCache, Snapshot, TOKENIZER},
    client::Client,
};
pub use self::{error::HubError, error::Refusal};
use super::{
    access::{Freshness, HubAccess},
    files::{self, CONFIG},
    gguf,
};
use crate::say;

/// The folder that holds the files of `id` at `revision`, and in it the GGUF that is meant, where it is one: by name or quantisation, or
/// as the only one of a repository without other weights.
pub(super) fn fetch(
    id: &str,
    gguf: Option<&str>,
    revision: &str,
    access: &HubAccess,
    freshness: Freshness,
) -> Result<(PathBuf, Option<PathBuf>), HubError> {
    if !listing::stays_below(revision) {
        return Err(HubError::Revision(revision.into()));
    }
    let cache = RepoCache::new(&access.cache, id);
    let snapshot = cache.snapshot(revision, gguf);
    let usable = snapshot.as_ref().filter(|snapshot| snapshot.lacks.is_empty());
    let go_on = |Snapshot { folder, gguf, unsure, .. }: &Snapshot, why: &str| {
        if !unsure.is_empty() {
            let files = unsure.join(", ");
            say(format_args!(
                "warning: the cache has no {files} of {id}, and the hub cannot be asked whether there is one: {why}\n  \
                 hint: `nanoinfer pull {id}` with a network completes it"
            ));
        }
        Ok((folder.clone(), gguf.clone()))
    };
    match usable {
        Some(usable) if access.offline => return go_on(usable, "HF_HUB_OFFLINE is set"),
        Some(usable) if freshness == Freshness::Cached && usable.unsure.is_empty() => {
            return Ok((usable.folder.clone(), usable.gguf.clone()));
        }
        None if access.offline => {
            let lacks = snapshot.map(|snapshot| snapshot.lacks).unwrap_or_default();
            return Err(HubError::Offline { id: id.into(), lacks, cache: access.cache.clone() });
        }
        _ => {}
    }
    // What is in use is completed as it is: a newer commit is for who asks for it.
    let usable = usable.filter(|_| freshness == Freshness::Cached);
    let wanted = usable.map_or(revision, |usable| &usable.commit);
    match download(id, gguf, wanted, access, &cache) {
        Ok((commit, file)) => {
            if let Err(error) = cache.remember(revision, &commit) {
                say(format_args!("warning: the cache cannot note that {revision} of {id} is {commit}: {error}"));
            }
            let folder = cache.folder(&commit);
            let gguf = file.map(|file| folder.join(file));
            Ok((folder, gguf))
        }
        Err(error) => match usable {
            Some(usable) => go_on(usable, error.to_string().lines().next().unwrap_or_default()),
            None => Err(error),
        },
    }
}

/// Brings what a model needs; the commit that it is of, and its GGUF.
fn download(
    id: &str,
    gguf: Option<&str>,
    revision: &str,
    access: &HubAccess,
    cache: &RepoCache,
) -> Result<(String, Option<String>), HubError> {
    let client = Client::new(id, access)?;
    let listing = client.list(revision)?;
    let has = |file: &str| listing.has(file);
    let bring = |file: &str| download::bring(&client, cache, &listing, file);
    if gguf.is_some() || !files::CANDIDATES.into_iter().any(has) {
        let chosen =
            gguf::chosen(listing.names(), gguf).map_err(|unclear| HubError::Unclear { id: id.into(), unclear })?;
        if let Some(first) = chosen {
            let parts = gguf::parts(&first);
            if let Some(part) = parts.iter().find(|part| !has(part)) {
                return Err(HubError::MissingPart { id: id.into(), part: part.clone() });
            }
            for part in parts {
                bring(&part)?;
            }
            return Ok((listing.commit.clone(), Some(first)));
        }
    }
    let missing = |file, hint| HubError::MissingFile { id: id.into(), file, hint };
    if !has(CONFIG) {
        return Err(missing(CONFIG, "only models in the form of transformers can be served"));
    }
    let mut wanted = vec![CONFIG];
    wanted.extend(OPTIONAL.into_iter().filter(|file| has(file)));
    match (has(TOKENIZER), has("vocab.json") && has("merges.txt")) {
        (true, _) => wanted.push(TOKENIZER),
        (false, true) => wanted.extend(["vocab.json", "merges.txt"]),
        (false, false) => return Err(missing("tokenizer.json, or vocab.json and merges.txt", "it cannot be served")),
    }
    let offered = || files::CANDIDATES.into_iter().filter(|file| has(file));
    // Those that another tool has chosen are as good.
    let chosen = offered().find(|file| cache.file(&listing.commit, file).exists()).or_else(|| offered().next());
    let chosen = chosen.ok_or_else(|| missing(files::CANDIDATES[0], "it holds no weights of a known name"))?;
    for file in OPTIONAL.into_iter().chain([TOKENIZER]).filter(|file| !has(file)) {
        cache.note_absent(&listing.commit, file);
    }

    for file in wanted {
        bring(file)?;
    }
    let last = bring(chosen)?;
    if files::is_index(&last) {
        let broken = |reason| HubError::Index { id: id.into(), index: chosen, reason };
        let text = fs::read_to_string(&last).map_err(|error| broken(error.to_string()))?;
        let parts = files::parts(&text).map_err(broken)?;
        if let Some(lost) = parts.iter().find(|part| !has(part)) {
            return Err(broken(format!("it names {lost}, which the repository does not have")));
        }
        for part in parts {
            bring(&part)?;
        }
    }
    Ok((listing.commit.clone(), None))
}

#[cfg(test)]
mod tests;
