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

use nanoinfer_shared::{ModelShape, utf8};

use self::{
    cache::{OPTIONAL, RepoCache, Snapshot},
    client::Client,
    listing::Listing,
};
pub use self::{error::HubError, error::Refusal};
use super::{
    Version,
    access::{Freshness, HubAccess},
    files::{self, CONFIG},
    gguf, nanochat,
    tokenizer_files::TOKENIZER,
};
use crate::say;

/// The folder that holds the files of `id` in a version, and in it the file that is meant where a model is one: a GGUF, by name or
/// quantisation, or a checkpoint of nanochat, by its folder; or as the only one of a repository without other weights.
pub(super) fn fetch(
    id: &str,
    wanted: Option<&str>,
    version: Version<'_>,
    access: &HubAccess,
    freshness: Freshness,
) -> Result<(PathBuf, Option<PathBuf>), HubError> {
    let revision = version.revision.unwrap_or("main");
    if !listing::stays_below(revision) {
        return Err(HubError::Revision(revision.into()));
    }
    let cache = RepoCache::new(&access.cache, id);
    let snapshot = cache.snapshot(revision, wanted, version.step);
    let usable = snapshot.as_ref().filter(|snapshot| snapshot.lacks.is_empty());
    let go_on = |Snapshot { folder, file, unsure, .. }: &Snapshot, why: &str| {
        if !unsure.is_empty() {
            let files = unsure.join(", ");
            say(format_args!(
                "warning: the cache has no {files} of {id}, and the hub cannot be asked whether there is one: {why}\n  \
                 hint: `nanoinfer pull {id}` with a network completes it"
            ));
        }
        Ok((folder.clone(), file.clone()))
    };
    match usable {
        Some(usable) if access.offline => return go_on(usable, "HF_HUB_OFFLINE is set"),
        Some(usable) if freshness == Freshness::Cached && usable.unsure.is_empty() => {
            return Ok((usable.folder.clone(), usable.file.clone()));
        }
        None if access.offline => {
            let lacks = snapshot.map(|snapshot| snapshot.lacks).unwrap_or_default();
            return Err(HubError::Offline { id: id.into(), lacks, cache: access.cache.clone() });
        }
        _ => {}
    }
    // What is in use is completed as it is: a newer commit is for who asks for it.
    let usable = usable.filter(|_| freshness == Freshness::Cached);
    let at = Version { revision: Some(usable.map_or(revision, |usable| &usable.commit)), ..version };
    match download(id, wanted, at, access, &cache) {
        Ok((commit, file)) => {
            if let Err(error) = cache.remember(revision, &commit) {
                say(format_args!("warning: the cache cannot note that {revision} of {id} is {commit}: {error}"));
            }
            let folder = cache.folder(&commit);
            let file = file.map(|file| folder.join(file));
            Ok((folder, file))
        }
        Err(error) => match usable {
            Some(usable) => go_on(usable, error.to_string().lines().next().unwrap_or_default()),
            None => Err(error),
        },
    }
}

/// Brings what a model needs; the commit that it is of, and the file that it is.
fn download(
    id: &str,
    wanted: Option<&str>,
    version: Version<'_>,
    access: &HubAccess,
    cache: &RepoCache,
) -> Result<(String, Option<String>), HubError> {
    let client = Client::new(id, access)?;
    let listing = client.list(version.revision.unwrap_or("main"))?;
    let has = |file: &str| listing.has(file);
    let bring = |file: &str| download::bring(&client, cache, &listing, file);
    if wanted.is_some() || version.step.is_some() || !files::CANDIDATES.into_iter().any(has) {
        let no_checkpoint = |reason| HubError::NoCheckpoint { id: id.into(), reason };
        let checkpoint = nanochat::chosen(listing.names(), wanted, version.step).map_err(no_checkpoint)?;
        if let Some(model) = checkpoint {
            for file in needed(id, &model, &listing)? {
                bring(&file)?;
            }
            bring(&model)?;
            if nanochat::chosen(listing.names(), None, None).as_ref() == Ok(&Some(model.clone())) {
                cache.note_absent(&listing.commit, &nanochat::later(&model));
            }
            return Ok((listing.commit.clone(), Some(model)));
        }
        let chosen =
            gguf::chosen(listing.names(), wanted).map_err(|unclear| HubError::Unclear { id: id.into(), unclear })?;
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
    let missing = |file: &str, hint| HubError::MissingFile { id: id.into(), file: file.into(), hint };
    if !has(CONFIG) {
        return Err(missing(CONFIG, "only models in the form of transformers can be served"));
    }
    // Before gigabytes come in vain; where it is no text, that shows when it is read.
    if let Ok(text) = utf8::read_file(&bring(CONFIG)?) {
        ModelShape::from_config_json(&text).map_err(|source| HubError::Shape { id: id.into(), source })?;
    }
    let mut wanted: Vec<&str> = OPTIONAL.into_iter().filter(|file| has(file)).collect();
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

/// What a checkpoint of nanochat cannot do without, and what lies beside another tokenizer than its own.
fn needed(id: &str, model: &str, listing: &Listing) -> Result<Vec<String>, HubError> {
    let missing = |file: &str, hint| HubError::MissingFile { id: id.into(), file: file.into(), hint };
    let meta = nanochat::meta_of(model);
    if !listing.has(&meta) {
        return Err(missing(&meta, "its sizes are in there; another revision may be complete"));
    }
    let tokenizer = nanochat::tokenizer_in(model, |file| listing.has(file));
    let tokenizer = tokenizer.ok_or_else(|| missing(nanochat::PICKLE, nanochat::HINT))?;
    let beside =
        tokenizer.strip_suffix(TOKENIZER).into_iter().flat_map(|folder| OPTIONAL.map(|file| folder.to_owned() + file));
    let beside: Vec<String> = beside.filter(|file| listing.has(file)).collect();
    Ok([meta, tokenizer].into_iter().chain(beside).collect())
}

#[cfg(test)]
mod tests;
