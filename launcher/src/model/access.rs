//! Where models are looked up and kept.
//!
//! Does not know what a model is made of.

use std::{path::PathBuf, time::Duration};

use crate::proxy::Proxies;

/// Where models are looked up and kept. Filled by the command line from the environment.
#[derive(Clone, Debug)]
pub struct Caches {
    /// Folders for what is unpacked here, as the demo model, or sent by node 0, by preference; the first that can be written is taken.
    pub demo: Vec<PathBuf>,
    /// The Hugging Face hub.
    pub hub: HubAccess,
}

impl Caches {
    /// Nothing is kept, and nothing is asked for.
    pub fn nowhere() -> Self {
        Self { demo: Vec::new(), hub: HubAccess::offline(PathBuf::new()) }
    }
}

/// The Hugging Face hub, or a mirror, and its local cache in the layout that all Hugging Face tools share.
#[derive(Clone)]
pub struct HubAccess {
    /// Holds `models--org--name` folders; `$HF_HOME/hub`.
    pub cache: PathBuf,
    /// Scheme and host, without a trailing slash; `$HF_ENDPOINT`.
    pub endpoint: String,
    /// Sent to that scheme, host and port only, wherever it redirects to; `$HF_TOKEN`.
    pub token: Option<String>,
    /// Use what the cache has and never ask the hub; `$HF_HUB_OFFLINE`.
    pub offline: bool,
    /// How long an answer may not move before it counts as lost; `$HF_HUB_DOWNLOAD_TIMEOUT`.
    pub patience: Duration,
    /// On the way to the hub.
    pub proxies: Proxies,
}

impl HubAccess {
    /// To a cache only.
    pub fn offline(cache: PathBuf) -> Self {
        let proxies = Proxies::default();
        Self { cache, endpoint: String::new(), token: None, offline: true, patience: Self::PATIENCE, proxies }
    }

    /// Unless the environment says another.
    pub const PATIENCE: Duration = Duration::from_secs(30);
}

impl std::fmt::Debug for HubAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cache, endpoint, token, offline, .. } = self;
        // The token itself must not reach a log.
        let token = token.as_ref().map(|_| "…");
        write!(f, "HubAccess {{ cache: {cache:?}, endpoint: {endpoint:?}, token: {token:?}, offline: {offline}, … }}")
    }
}

/// Whether what the cache has of a hub model is good enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    /// Yes.
    Cached,
    /// Only if the hub has nothing newer.
    Newest,
}
