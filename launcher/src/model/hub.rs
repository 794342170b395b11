//! Models of the Hugging Face hub: from the shared cache, else downloaded into it.
//!
//! A download is pinned to the commit that the hub names first, weights come last, and the reference of the revision is
//! written at the end: a revision that the cache knows is complete, and is used without asking the hub again.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{ApiBuilder, ApiError, ApiRepo},
};
use indicatif::ProgressBar;
use serde::Deserialize;

use super::{CONFIG, Freshness, HubAccess, has_tokenizer, weights};
use crate::{say, size::ByteSize};

/// Small files that are taken if the repository has them.
const OPTIONAL: [&str; 5] = [
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
];
/// How often a broken transfer is taken up again where it broke.
const RETRIES: usize = 4;
/// How long the hub may take to name a repository's files.
const LISTING_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a model did not come from the hub.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Told not to ask, and the cache does not have it.
    #[error(
        "{id} is not in the cache {}, and HF_HUB_OFFLINE is set\n  hint: unset HF_HUB_OFFLINE to download it, or pass a folder: --model /path/to/model",
        .cache.display()
    )]
    Offline {
        /// Repository.
        id: String,
        /// Where it was looked for.
        cache: PathBuf,
    },
    /// No answer, or none that makes sense.
    #[error(
        "cannot download {id}: {url}: {reason}\n  the cache {} does not have it either\n  hint: where there is no network, copy the model's files here and pass the folder: --model /path/to/model; for a mirror set HF_ENDPOINT",
        .cache.display()
    )]
    Unreachable {
        /// Repository.
        id: String,
        /// What was asked.
        url: String,
        /// What happened.
        reason: String,
        /// Where it was looked for first.
        cache: PathBuf,
    },
    /// The hub says no.
    #[error("the hub has no model {id} at revision {revision}, or not for you ({url}: {status})\n  hint: {hint}")]
    Refused {
        /// Repository.
        id: String,
        /// Revision.
        revision: String,
        /// What was asked.
        url: String,
        /// HTTP status.
        status: u16,
        /// What to do.
        hint: &'static str,
    },
    /// The repository holds no model that this server reads.
    #[error("{id} has no {file} on the hub\n  hint: {hint}")]
    MissingFile {
        /// Repository.
        id: String,
        /// What is missing.
        file: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// The list of a checkpoint's parts is broken.
    #[error("{id}: {index}: {reason}")]
    Index {
        /// Repository.
        id: String,
        /// The index.
        index: &'static str,
        /// What is wrong in it.
        reason: String,
    },
    /// What came is not what the hub announced.
    #[error("{id}: {file} has {got} bytes, but the hub announced {expected}; it was removed\n  hint: try again")]
    Size {
        /// Repository.
        id: String,
        /// File.
        file: String,
        /// Announced.
        expected: u64,
        /// Come.
        got: u64,
    },
    /// The cache could not be written.
    #[error("cannot write to the cache {}: {source}\n  hint: set HF_HOME to a folder that can be written", .cache.display())]
    Cache {
        /// Where.
        cache: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// Answer of `/api/models/{id}/revision/{revision}`, as far as it matters here.
#[derive(Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    /// Bytes; mirrors may leave it out.
    size: Option<u64>,
}

/// The folder that holds the files of `id` at `revision`.
pub(super) fn fetch(id: &str, revision: &str, access: &HubAccess, freshness: Freshness) -> Result<PathBuf, HubError> {
    if let Some(folder) = cached(id, revision, &access.cache)
        && (freshness == Freshness::Cached || access.offline)
    {
        return Ok(folder);
    }
    if access.offline {
        return Err(HubError::Offline { id: id.into(), cache: access.cache.clone() });
    }
    let listing = list(id, revision, access)?;
    let cache = Cache::new(access.cache.clone());
    let known_as = |revision: &str| {
        cache
            .repo(Repo::with_revision(id.into(), RepoType::Model, revision.into()))
            .create_ref(&listing.sha)
            .map_err(|source| HubError::Cache { cache: access.cache.clone(), source })
    };
    if let Some(folder) = cached(id, &listing.sha, &access.cache) {
        known_as(revision)?;
        return Ok(folder);
    }
    let has = |file: &str| listing.siblings.iter().any(|sibling| sibling.rfilename == file);
    let missing = |file, hint| HubError::MissingFile { id: id.into(), file, hint };
    if !has(CONFIG) {
        return Err(missing(CONFIG, "only models in the form of transformers can be served"));
    }
    let mut wanted = vec![CONFIG];
    wanted.extend(OPTIONAL.into_iter().filter(|file| has(file)));
    match (has("tokenizer.json"), has("vocab.json") && has("merges.txt")) {
        (true, _) => wanted.push("tokenizer.json"),
        (false, true) => wanted.extend(["vocab.json", "merges.txt"]),
        (false, false) => return Err(missing("tokenizer.json, or vocab.json and merges.txt", "it cannot be served")),
    }
    let chosen = weights::CANDIDATES.into_iter().find(|file| has(file));
    let chosen = chosen.ok_or_else(|| missing(weights::CANDIDATES[0], "it holds no weights of a known name"))?;

    let api = ApiBuilder::from_cache(cache.clone())
        .with_endpoint(access.endpoint.clone())
        .with_token(access.token.clone())
        .with_user_agent("nanoinfer", env!("CARGO_PKG_VERSION"))
        .with_retries(RETRIES)
        .build()
        .map_err(|error| failed(id, &access.endpoint, &error, access))?;
    // Pinned: a push to the repository during the download does not mix two commits.
    let pinned = Repo::with_revision(id.into(), RepoType::Model, listing.sha.clone());
    let repo = api.repo(pinned.clone());
    let get = |file: &str| {
        let size = listing.siblings.iter().find(|sibling| sibling.rfilename == file).and_then(|sibling| sibling.size);
        get(&repo, &cache.repo(pinned.clone()), id, (file, size), access)
    };
    for file in wanted {
        get(file)?;
    }
    let last = get(chosen)?;
    if weights::is_index(&last) {
        let text = fs::read_to_string(&last).unwrap_or_default();
        let broken = |reason| HubError::Index { id: id.into(), index: chosen, reason };
        for part in weights::parts(&text).map_err(broken)? {
            get(&part)?;
        }
    }
    known_as(revision)?;
    Ok(last.parent().expect("a file lies in a folder").to_path_buf())
}

/// The snapshot of `revision` (a branch, a tag, or a commit) if the cache has all that is needed of it.
fn cached(id: &str, revision: &str, cache: &Path) -> Option<PathBuf> {
    let folder = cache.join(Repo::model(id.into()).folder_name());
    let commit = fs::read_to_string(folder.join("refs").join(revision)).unwrap_or(revision.into());
    let snapshot = folder.join("snapshots").join(commit.trim());
    let has = |file: &str| snapshot.join(file).exists();
    let has_weights = weights::in_folder(&snapshot).is_ok();
    (has(CONFIG) && has_weights && has_tokenizer(&snapshot)).then_some(snapshot)
}

fn list(id: &str, revision: &str, access: &HubAccess) -> Result<Listing, HubError> {
    let revision_in_url = revision.replace('/', "%2F");
    let url = format!("{}/api/models/{id}/revision/{revision_in_url}?blobs=true", access.endpoint);
    let unreachable =
        |reason: String| HubError::Unreachable { id: id.into(), url: url.clone(), reason, cache: access.cache.clone() };
    let agent: ureq::Agent =
        ureq::Agent::config_builder().timeout_global(Some(LISTING_TIMEOUT)).http_status_as_error(false).build().into();
    let mut request = agent.get(&url).header("User-Agent", concat!("nanoinfer/", env!("CARGO_PKG_VERSION")));
    if let Some(token) = &access.token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    let mut response = request.call().map_err(|error| unreachable(error.to_string()))?;
    match response.status().as_u16() {
        200 => response.body_mut().read_json().map_err(|error| unreachable(error.to_string())),
        status @ (401 | 403 | 404) => Err(HubError::Refused {
            id: id.into(),
            revision: revision.into(),
            url: url.clone(),
            status,
            hint: match &access.token {
                None => "check the spelling; a private or gated model needs HF_TOKEN",
                Some(_) => "check the spelling, and that the token in use may read it",
            },
        }),
        status => Err(unreachable(format!("the hub answered {status}"))),
    }
}

fn get(
    repo: &ApiRepo,
    cache: &hf_hub::CacheRepo,
    id: &str,
    (file, size): (&str, Option<u64>),
    access: &HubAccess,
) -> Result<PathBuf, HubError> {
    if let Some(path) = cache.get(file) {
        return Ok(path);
    }
    say(format_args!("downloading {id}: {file}{}", size.map_or(String::new(), |size| format!(", {}", ByteSize(size)))));
    // The bar shows itself on a terminal only.
    let path = repo
        .download_with_progress(file, ProgressBar::new(0))
        .map_err(|error| failed(id, &repo.url(file), &error, access))?;
    let got = fs::metadata(&path).map(|metadata| metadata.len());
    match (size, got) {
        (Some(expected), Ok(got)) if got != expected => {
            // The content and the name that points to it: neither may be taken for a download that is whole.
            let _ = fs::canonicalize(&path).and_then(fs::remove_file);
            let _ = fs::remove_file(&path);
            Err(HubError::Size { id: id.into(), file: file.into(), expected, got })
        }
        _ => Ok(path),
    }
}

fn failed(id: &str, url: &str, error: &ApiError, access: &HubAccess) -> HubError {
    match error {
        ApiError::IoError(source) if source.kind() != std::io::ErrorKind::UnexpectedEof => HubError::Cache {
            cache: access.cache.clone(),
            source: std::io::Error::new(source.kind(), source.to_string()),
        },
        other => HubError::Unreachable {
            id: id.into(),
            url: url.into(),
            reason: other.to_string(),
            cache: access.cache.clone(),
        },
    }
}
