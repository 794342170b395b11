//! HTTP with a hub, a mirror, and the hosts that they send us to: none of them is trusted.
//!
//! Redirects are followed here, so that the token goes to the endpoint's own scheme, host and port and to nobody else.
//! Answers are asked for as they are, since a range of something compressed is of no use. Every wait has an end. What
//! passes is tried again, a bounded number of times. Does not know files or the cache.

use std::{cell::Cell, thread, time::Duration};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ureq::{
    Agent, Body,
    http::{HeaderValue, Response, Uri, header},
};

use super::{
    error::{HubError, Refusal},
    listing::{Listing, is_hex},
};
use crate::{model::access::HubAccess, say};

/// How often in a row something is tried again without a byte of progress.
const RETRIES: u32 = 4;
/// Until a host takes a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_REDIRECTS: usize = 10;
/// A hub may ask for a pause; for a longer one somebody had better come back.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Bytes of a listing: a hundred thousand files take some 20 MB.
const MAX_LISTING: u64 = 64 << 20;
/// Characters of a server's own words that are shown.
const MAX_WORDS: usize = 300;
/// What a part of an address may hold as it is.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A repository on a hub.
pub(super) struct Client<'a> {
    pub(super) id: &'a str,
    access: &'a HubAccess,
    endpoint: Origin,
    token: Option<HeaderValue>,
    agent: Agent,
    /// Whether anybody ever answered: where nobody does, trying again only takes longer to say so.
    answered: Cell<bool>,
}

/// A body, and what the headers say about it.
pub(super) struct Answer {
    /// Of the first byte in the whole; none where an answer to a request for a part does not say.
    pub(super) from: Option<u64>,
    /// Bytes of the whole.
    pub(super) size: Option<u64>,
    /// Digest of the whole, from a hub that has linked to it: to compare with, never part of a path.
    pub(super) sha256: Option<String>,
    pub(super) body: Body,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// It may be over soon, after the pause that the server asks for.
    #[error("{reason}")]
    Passing { url: String, reason: String, pause: Option<Duration> },
    /// It stays.
    #[error(transparent)]
    Final(#[from] HubError),
}

/// Scheme, host and port.
type Origin = (String, String, u16);

impl<'a> Client<'a> {
    /// Of `id`.
    pub(super) fn new(id: &'a str, access: &'a HubAccess) -> Result<Self, HubError> {
        let endpoint = access.endpoint.parse().ok().and_then(|uri| origin(&uri));
        let endpoint = endpoint.ok_or_else(|| HubError::Setting {
            variable: "HF_ENDPOINT",
            reason: format!("{:?}, which is no address", access.endpoint),
            hint: "an address begins with https://",
        })?;
        let bearer = |token| {
            let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| HubError::Setting {
                variable: "HF_TOKEN",
                reason: "no token: it has characters that no token has".into(),
                hint: "tokens begin with hf_; the one in use is from HF_TOKEN, or from the file `token` in HF_HOME",
            })?;
            value.set_sensitive(true);
            Ok::<_, HubError>(value)
        };
        let token = access.token.as_ref().map(bearer).transpose()?;
        Ok(Self { id, access, endpoint, token, agent: agent(access.patience), answered: Cell::new(false) })
    }

    /// What the repository holds at `revision`.
    pub(super) fn list(&self, revision: &str) -> Result<Listing, HubError> {
        let (endpoint, id) = (&self.access.endpoint, self.id);
        let url = format!("{endpoint}/api/models/{id}/revision/{}?blobs=true", encoded(revision));
        self.persist(|_| {
            let mut answer = self.get(&url, revision, 0)?;
            let text = answer.body.with_config().limit(MAX_LISTING).read_to_vec();
            let text = text.map_err(|error| passing(&url, error.to_string()))?;
            let wrong = |reason| HubError::Listing { url: without_query(&url).into(), reason };
            Ok(Listing::parse(&text, revision).map_err(wrong)?)
        })
    }

    /// Where a file of a commit is.
    pub(super) fn address(&self, commit: &str, file: &str) -> String {
        let file = file.split('/').map(encoded).collect::<Vec<_>>().join("/");
        format!("{}/{}/resolve/{commit}/{file}", self.access.endpoint, self.id)
    }

    /// Does `attempt` until it succeeds or what stops it is not passing. It says how many bytes it has reached.
    pub(super) fn persist<T>(&self, mut attempt: impl FnMut(&mut u64) -> Result<T, Trouble>) -> Result<T, HubError> {
        let (mut furthest, mut tried) = (0, 0);
        loop {
            let mut reached = 0;
            let (url, reason, pause) = match attempt(&mut reached) {
                Ok(done) => return Ok(done),
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Passing { url, reason, pause }) => (url, reason, pause.unwrap_or_default()),
            };
            if reached > furthest {
                (furthest, tried) = (reached, 0);
            }
            if tried == RETRIES || !self.answered.get() {
                return Err(self.unreachable(&url, reason));
            }
            if pause > LONGEST_PAUSE {
                return Err(self.unreachable(&url, format!("{reason}; it asks to come back in {} s", pause.as_secs())));
            }
            // A second at first with the usual patience.
            let pause = pause.max(self.access.patience / 30 * 2u32.pow(tried));
            tried += 1;
            say(format_args!("{}: {reason}; trying again in {:.0} s", self.id, pause.as_secs_f64()));
            thread::sleep(pause);
        }
    }

    /// Asks for what is at `url` from byte `from` on.
    pub(super) fn get(&self, url: &str, revision: &str, from: u64) -> Result<Answer, Trouble> {
        let mut url = url.to_owned();
        let (mut linked_size, mut sha256) = (None, None);
        for _ in 0..=MAX_REDIRECTS {
            let uri = url.parse::<Uri>().ok().filter(|uri| origin(uri).is_some());
            let uri = uri.ok_or_else(|| self.unreachable(&url, "it is no address"))?;
            let is_ours = origin(&uri).as_ref() == Some(&self.endpoint);
            let mut request = self.agent.get(uri.clone());
            // Each host may have another; connections are kept by proxy too.
            if let Some(proxy) = self.access.proxies.of(&url).map_err(HubError::from)? {
                request = request.config().proxy(Some(proxy)).build();
            }
            if is_ours && let Some(token) = &self.token {
                request = request.header(header::AUTHORIZATION, token.clone());
            }
            if from > 0 {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            let response = request.call().map_err(|error| self.trouble(&url, &error))?;
            self.answered.set(true);
            let value = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
            linked_size = linked_size.or_else(|| value("x-linked-size")?.parse().ok());
            let digest = value("x-linked-etag").map(|etag| etag.trim_matches('"').to_ascii_lowercase());
            sha256 = sha256.or(digest.filter(|digest| is_hex(digest, 64)));
            match value("location") {
                Some(location) if response.status().is_redirection() => url = joined(&uri, location),
                _ => return self.judge(&url, revision, is_ours, response, (linked_size, sha256)),
            }
        }
        Err(self.unreachable(&url, "redirects without an end").into())
    }

    /// What an answer means that is no redirect.
    fn judge(
        &self,
        url: &str,
        revision: &str,
        is_ours: bool,
        response: Response<Body>,
        (linked_size, sha256): (Option<u64>, Option<String>),
    ) -> Result<Answer, Trouble> {
        let value = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let number = |name: &str| value(name)?.trim().parse().ok();
        let status = response.status();
        match status.as_u16() {
            200 | 206 => {
                let encoding = value("content-encoding").filter(|name| !name.eq_ignore_ascii_case("identity"));
                if let Some(encoding) = encoding {
                    let reason = format!("it comes as {encoding}, although it was asked for as it is");
                    return Err(self.unreachable(url, reason).into());
                }
                let (from, size) = match value("content-range").and_then(content_range) {
                    Some((from, size)) => (Some(from), size),
                    None if status == 200 => (Some(0), number("content-length")),
                    None => (None, None),
                };
                Ok(Answer { from, size: size.or(linked_size), sha256, body: response.into_body() })
            }
            // There is nothing from there on: what we have is none of it.
            416 => Ok(Answer { from: None, size: None, sha256, body: response.into_body() }),
            code @ (401 | 403 | 404) if is_ours => {
                // Headers are printable characters only.
                let said = value("x-error-message").map_or(String::new(), |words| format!(", {words:.MAX_WORDS$}"));
                let refusal = match value("x-error-code") {
                    Some("GatedRepo") => Refusal::Gated,
                    Some("RevisionNotFound") => Refusal::Revision,
                    Some("EntryNotFound") => Refusal::File,
                    _ => Refusal::Repository,
                };
                let (id, revision, url) = (self.id.into(), revision.into(), without_query(url).into());
                let has_token = self.token.is_some();
                Err(HubError::Refused { id, revision, url, status: code, said, refusal, has_token }.into())
            }
            // Elsewhere: the address that the hub gave us was good for a while.
            401 | 403 | 404 | 408 | 425 | 429 | 500..=599 => {
                let pause = number("retry-after").map(Duration::from_secs);
                Err(Trouble::Passing { url: url.into(), reason: format!("{} answered {status}", host(url)), pause })
            }
            _ => Err(self.unreachable(url, format!("the answer is {status}")).into()),
        }
    }

    fn trouble(&self, url: &str, error: &ureq::Error) -> Trouble {
        use ureq::Error::{ConnectionFailed, HostNotFound, Io, Protocol, Timeout};
        match error {
            Io(_) | Timeout(_) | HostNotFound | ConnectionFailed | Protocol(_) => passing(url, error.to_string()),
            _ => self.unreachable(url, error.to_string()).into(),
        }
    }

    fn unreachable(&self, url: &str, reason: impl Into<String>) -> HubError {
        let (id, url, cache) = (self.id.into(), without_query(url).into(), self.access.cache.clone());
        HubError::Unreachable { id, url, reason: reason.into(), cache }
    }
}

fn agent(patience: Duration) -> Agent {
    let config = Agent::config_builder()
        .user_agent(concat!("nanoinfer/", env!("CARGO_PKG_VERSION")))
        .accept_encoding("identity")
        .proxy(None)
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_resolve(Some(CONNECT_TIMEOUT.min(patience)))
        .timeout_connect(Some(CONNECT_TIMEOUT.min(patience)))
        .timeout_send_request(Some(patience))
        .timeout_recv_response(Some(patience))
        // Each: a large file may take hours, but never so long for nothing.
        .timeout_per_read(Some(patience));
    config.build().into()
}

/// Trouble on the way.
pub(super) fn passing(url: &str, reason: String) -> Trouble {
    Trouble::Passing { url: url.into(), reason, pause: None }
}

fn encoded(part: &str) -> String {
    utf8_percent_encode(part, UNRESERVED).to_string()
}

/// None of what is no address for HTTP.
fn origin(uri: &Uri) -> Option<Origin> {
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let port = match scheme.as_str() {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    Some((scheme, uri.host()?.to_ascii_lowercase(), uri.port_u16().unwrap_or(port)))
}

/// The address that a `Location` names, seen from `base` (RFC 3986, 5.2, without dots in paths).
fn joined(base: &Uri, location: &str) -> String {
    let scheme = base.scheme_str().unwrap_or("https");
    let authority = base.authority().map_or("", |authority| authority.as_str());
    if location.contains("://") {
        location.into()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    }
}

/// The first byte, and the size of the whole unless it is `*`.
fn content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, size) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.trim().parse().ok()?, size.trim().parse().ok()))
}

/// Signed addresses have their signature behind the question mark.
fn without_query(url: &str) -> &str {
    url.split('?').next().unwrap_or(url)
}

fn host(url: &str) -> &str {
    url.split("://").nth(1).and_then(|rest| rest.split(['/', '?']).next()).unwrap_or(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_joined_as_servers_mean_them() {
        let base = "https://hub.example:8443/org/name/resolve/main/a.json?x=1".parse().unwrap();
        for (location, expected) in [
            ("https://cdn.example/a?Signature=s", "https://cdn.example/a?Signature=s"),
            ("//cdn.example/a", "https://cdn.example/a"),
            ("/api/resolve-cache/a%20b", "https://hub.example:8443/api/resolve-cache/a%20b"),
            ("b.json", "https://hub.example:8443/org/name/resolve/main/b.json"),
        ] {
            assert_eq!(joined(&base, location), expected);
        }
        let is_same = |a: &str, b: &str| origin(&a.parse().unwrap()) == origin(&b.parse().unwrap());
        assert!(is_same("https://Hub.example/a", "https://hub.example:443/b"));
        for other in
            ["http://hub.example", "https://hub.example:8443", "https://hub.example.evil", "https://cdn.hub.example"]
        {
            assert!(!is_same("https://hub.example", other), "{other}");
        }
        assert_eq!(origin(&"ftp://hub.example/a".parse().unwrap()), None);
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        assert_eq!(content_range("bytes */10"), None);
    }
}
