//! What the hub says that a repository holds at a commit: names, sizes and digests.
//!
//! Nothing that a server sends becomes part of a path unless it went through here: a commit and a digest are hexadecimal
//! digits, a name stays below the folder that it is joined to. Headers are never part of a path.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;

/// The files of a repository at one commit.
#[derive(Debug)]
pub(super) struct Listing {
    /// 40 hexadecimal digits.
    pub(super) commit: String,
    files: BTreeMap<String, Announced>,
}

/// What is known of a file before it comes; mirrors may know nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Announced {
    /// Bytes; always known where the digest is git's, which covers it.
    pub(super) size: Option<u64>,
    pub(super) digest: Option<Digest>,
}

/// A digest of a file's content in lower-case hexadecimal digits: what blobs of the cache are called by.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Digest {
    /// Of the content; large files have it.
    Sha256(String),
    /// Git's: SHA-1 of a header with the size, and the content.
    GitBlob(String),
}

impl Digest {
    pub(super) fn hex(&self) -> &str {
        let (Self::Sha256(hex) | Self::GitBlob(hex)) = self;
        hex
    }
}

/// Answer of `/api/models/{id}/revision/{revision}?blobs=true`, as far as it matters here.
#[derive(Deserialize)]
struct Answer {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    /// The same in the words of another route.
    oid: Option<String>,
    size: Option<u64>,
}

impl Listing {
    /// Reads an answer about `revision`; the error says what is wrong with it.
    pub(super) fn parse(json: &[u8], revision: &str) -> Result<Self, String> {
        let Answer { sha, siblings } = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let commit = sha.to_ascii_lowercase();
        if !is_commit(&commit) {
            return Err(format!("its commit is {sha:?}, which is no commit"));
        }
        if is_commit(revision) && revision != commit {
            return Err(format!("it is of commit {commit}, not of {revision}"));
        }
        let named = |sibling: Sibling| {
            let name = sibling.rfilename.clone();
            if !stays_below(&name) {
                return Err(format!("it names a file {name:?}"));
            }
            let announced = announced(sibling).map_err(|digest| format!("the digest of {name} is {digest:?}"))?;
            Ok((name, announced))
        };
        Ok(Self { commit, files: siblings.into_iter().map(named).collect::<Result<_, _>>()? })
    }

    pub(super) fn has(&self, file: &str) -> bool {
        self.files.contains_key(file)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        self.files.keys().cloned()
    }

    pub(super) fn announced(&self, file: &str) -> Announced {
        self.files.get(file).cloned().unwrap_or_default()
    }
}

/// The error is a digest that is none.
fn announced(Sibling { size, blob_id, lfs, .. }: Sibling) -> Result<Announced, String> {
    let hex = |text: String, digits: usize| match text.strip_prefix("sha256:").unwrap_or(&text).to_ascii_lowercase() {
        hex if is_hex(&hex, digits) => Ok(hex),
        _ => Err(text),
    };
    let (sha256, lfs_size) = lfs.map_or((None, None), |lfs| (lfs.sha256.or(lfs.oid), lfs.size));
    let size = size.or(lfs_size);
    let digest = match (sha256, blob_id, size) {
        (Some(sha256), _, _) => Some(Digest::Sha256(hex(sha256, 64)?)),
        (None, Some(id), Some(_)) => Some(Digest::GitBlob(hex(id, 40)?)),
        _ => None,
    };
    Ok(Announced { size, digest })
}

/// Whether this is a commit in full.
pub(super) fn is_commit(text: &str) -> bool {
    is_hex(text, 40)
}

/// Whether these are so many lower-case hexadecimal digits.
pub(super) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a path that is joined to a folder stays below it, and can be shown on a terminal.
pub(super) fn stays_below(path: &str) -> bool {
    let mut components = Path::new(path).components().peekable();
    components.peek().is_some()
        && components.all(|component| matches!(component, std::path::Component::Normal(_)))
        && !path.contains(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    const SHA256: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn parse(sha: &str, sibling: serde_json::Value) -> Result<Listing, String> {
        Listing::parse(serde_json::json!({"sha": sha, "siblings": [sibling]}).to_string().as_bytes(), "main")
    }

    #[test]
    fn names_commits_and_digests_that_could_leave_the_cache_are_refused() {
        let plain = || serde_json::json!({"rfilename": "a"});
        for sha in ["", "main", "/etc", "../../x", &COMMIT[1..], &format!("{COMMIT}/"), &COMMIT.replace('0', "g")] {
            assert!(parse(sha, plain()).unwrap_err().contains("commit"), "{sha}");
        }
        for name in ["", "/etc/passwd", "..", "a/../../b", "../a", "./a", "a\nb", "a\u{1b}[2J", "/"] {
            let error = parse(COMMIT, serde_json::json!({"rfilename": name})).unwrap_err();
            assert!(error.contains("names a file") && !error.contains(['\n', '\u{1b}']), "{error}");
        }
        for (size, blob, lfs) in [
            (1, "/home/a/.bashrc", serde_json::Value::Null),
            (1, "../../../x", serde_json::Value::Null),
            (1, SHA256, serde_json::Value::Null),
            (1, COMMIT, serde_json::json!({"sha256": "/etc/x"})),
            (1, COMMIT, serde_json::json!({"oid": COMMIT})),
        ] {
            let sibling = serde_json::json!({"rfilename": "a", "size": size, "blobId": blob, "lfs": lfs});
            assert!(parse(COMMIT, sibling).unwrap_err().contains("digest of a"), "{blob}");
        }
        let other = Listing::parse(br#"{"sha":"1123456789abcdef0123456789abcdef01234567","siblings":[]}"#, COMMIT);
        assert!(other.unwrap_err().contains("not of 0123"));
        assert!(Listing::parse(b"<html>sign in</html>", "main").is_err());
    }

    #[test]
    fn digests_are_those_that_name_blobs_in_the_cache() {
        let of = |sibling| parse(&COMMIT.to_uppercase(), sibling).unwrap().announced("a/b");
        let known = |size, digest| Announced { size: Some(size), digest: Some(digest) };
        let lfs = serde_json::json!({"rfilename": "a/b", "size": 9, "blobId": COMMIT, "lfs": {"sha256": SHA256.to_uppercase(), "size": 9, "pointerSize": 1}});
        assert_eq!(of(lfs), known(9, Digest::Sha256(SHA256.into())));
        let oid = serde_json::json!({"rfilename": "a/b", "lfs": {"oid": format!("sha256:{SHA256}"), "size": 9}});
        assert_eq!(of(oid), known(9, Digest::Sha256(SHA256.into())));
        let small = serde_json::json!({"rfilename": "a/b", "size": 9, "blobId": COMMIT});
        assert_eq!(of(small), known(9, Digest::GitBlob(COMMIT.into())));
        // Git's digest covers the size: without it, it cannot be compared.
        let sizeless = serde_json::json!({"rfilename": "a/b", "blobId": COMMIT});
        assert_eq!(of(sizeless), Announced::default());
    }
}
