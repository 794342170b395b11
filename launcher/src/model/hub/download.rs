//! One file of a repository, from the hub into a snapshot of the cache.
//!
//! ```text
//! blobs/<name>.incomplete ──all bytes, digest right──► blobs/<name> ◄── snapshots/<commit>/<file>
//!       └ locked, hashed as it grows, taken up where it ends
//! ```
//! The name is the digest that the listing gives. Where a mirror lists none it is made of commit and file until the content
//! has come, and is then the content's SHA-256. Does not know what files mean.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    os::unix::fs::symlink,
    path::PathBuf,
};

use indicatif::{ProgressBar, ProgressStyle};
use sha1::Sha1;
use sha2::{Digest as _, Sha256, digest::DynDigest};

use super::{
    cache::{RepoCache, is_whole},
    client::{Client, Trouble, passing},
    error::HubError,
    listing::{Announced, Digest, Listing},
};
use crate::{say, size::ByteSize};

/// Bytes that are read at a time.
const CHUNK: usize = 256 << 10;

/// Brings `file` of a listing into the snapshot of its commit, unless it is there whole.
pub(super) fn bring(
    client: &Client<'_>,
    cache: &RepoCache,
    listing: &Listing,
    file: &str,
) -> Result<PathBuf, HubError> {
    let (announced, commit, id) = (listing.announced(file), listing.commit.as_str(), client.id);
    let place = cache.file(commit, file);
    if is_whole(&place, announced.size) {
        return Ok(place);
    }
    let known = announced.digest.as_ref().map(|digest| digest.hex().to_owned());
    let name = known.clone().unwrap_or_else(|| format!("{commit}-{}", file.replace('/', "--")));
    let waiting = || say(format_args!("waiting for another download of {id}: {file}"));
    let failed = |source| cache.failed(source);
    let _lock = cache.lock(&name, waiting).map_err(failed)?;
    // The other one may have brought it.
    if is_whole(&place, announced.size) {
        return Ok(place);
    }
    let blob = match known {
        Some(name) if is_whole(&cache.blob(&name), announced.size) => name,
        _ => download(client, cache, (commit, file, &name), &announced)?,
    };
    cache.place(commit, file, &blob, |from, to| symlink(from, to)).map_err(failed)
}

/// Downloads a blob; what it is called.
fn download(
    client: &Client<'_>,
    cache: &RepoCache,
    (commit, file, name): (&str, &str, &str),
    announced: &Announced,
) -> Result<String, HubError> {
    let (id, failed) = (client.id, |source| cache.failed(source));
    let size = announced.size.map_or(String::new(), |size| format!(", {}", ByteSize(size)));
    say(format_args!("downloading {id}: {file}{size}"));
    let url = client.address(commit, file);
    // Shows itself on a terminal only.
    let style = ProgressStyle::with_template("{wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left");
    let bar = ProgressBar::new(announced.size.unwrap_or(0)).with_style(style.expect("the template is well-formed"));
    let outcome = loop {
        let mut partial = Partial::open(cache, name, (id, file), announced).map_err(failed)?;
        let inherited = partial.len > 0;
        let come = client.persist(|reached| {
            let outcome = partial.go_on(client, (&url, commit), &bar);
            *reached = partial.len;
            outcome
        });
        match come.and_then(|()| partial.finish()) {
            Err(error @ HubError::Content { .. }) => {
                fs::remove_file(&partial.path).map_err(failed)?;
                if !inherited {
                    break Err(error);
                }
                say(format_args!("{id}: what an earlier download left is not of {file}; starting over"));
            }
            other => break other,
        }
    };
    bar.finish_and_clear();
    outcome
}

/// What has come of a blob.
struct Partial<'a> {
    cache: &'a RepoCache,
    /// Repository and file, to name them.
    of: (&'a str, &'a str),
    path: PathBuf,
    content: File,
    /// Of the content so far.
    hash: Box<dyn DynDigest>,
    /// Bytes so far.
    len: u64,
    announced: Announced,
}

impl<'a> Partial<'a> {
    /// Takes up what an earlier download left.
    fn open(cache: &'a RepoCache, name: &str, of: (&'a str, &'a str), announced: &Announced) -> io::Result<Self> {
        let (path, content) = cache.open_incomplete(name)?;
        let hash = hash_of(announced);
        let mut partial = Self { cache, of, path, content, hash, len: 0, announced: announced.clone() };
        let mut chunk = vec![0; CHUNK];
        loop {
            match read(&mut partial.content, &mut chunk)? {
                0 => return Ok(partial),
                n => partial.count(&chunk[..n]),
            }
        }
    }

    /// Asks for what is missing and writes what comes.
    fn go_on(&mut self, client: &Client<'_>, (url, commit): (&str, &str), bar: &ProgressBar) -> Result<(), Trouble> {
        if self.announced.size.is_some_and(|size| self.len > size) {
            self.restart()?;
        }
        if self.announced.size == Some(self.len) {
            return Ok(());
        }
        let mut answer = client.get(url, commit, self.len)?;
        if answer.from != Some(self.len) {
            // The whole, or a part that does not say which: mirrors ignore ranges.
            self.restart()?;
            if answer.from != Some(0) {
                answer = client.get(url, commit, 0)?;
            }
            if answer.from != Some(0) {
                return Err(passing(url, "no part was asked for, and a part is what comes".into()));
            }
        }
        if let (None, Some(sha256)) = (&self.announced.digest, answer.sha256) {
            self.announced.digest = Some(Digest::Sha256(sha256));
        }
        match (self.announced.size, answer.size) {
            (Some(announced), Some(size)) if announced != size => {
                return Err(self.differs_in_size(announced, size).into());
            }
            (announced, size) => self.announced.size = announced.or(size),
        }
        bar.set_length(self.announced.size.unwrap_or(0));
        let mut body = answer.body.into_reader();
        let mut chunk = vec![0; CHUNK];
        loop {
            bar.set_position(self.len);
            let n = read(&mut body, &mut chunk).map_err(|error| passing(url, error.to_string()))?;
            self.content.write_all(&chunk[..n]).map_err(|source| self.cache.failed(source))?;
            self.count(&chunk[..n]);
            match self.announced.size {
                Some(size) if self.len > size => return Err(self.differs_in_size(size, self.len).into()),
                Some(size) if n == 0 && self.len < size => {
                    return Err(passing(url, format!("the answer ended after {} of {size} bytes", self.len)));
                }
                _ if n == 0 => return Ok(()),
                _ => {}
            }
        }
    }

    fn count(&mut self, content: &[u8]) {
        self.hash.update(content);
        self.len += content.len() as u64;
    }

    fn restart(&mut self) -> Result<(), HubError> {
        (self.len, self.hash) = (0, hash_of(&self.announced));
        self.content.set_len(0).and_then(|()| self.content.rewind()).map_err(|source| self.cache.failed(source))
    }

    /// Gives it its name, if it is what was announced.
    fn finish(&mut self) -> Result<String, HubError> {
        let got: String = self.hash.finalize_reset().iter().map(|byte| format!("{byte:02x}")).collect();
        if let Some(digest) = self.announced.digest.as_ref().filter(|digest| digest.hex() != got) {
            return Err(self.differs(format!("digest {}", digest.hex()), format!("digest {got}")));
        }
        // A full disk may show only now; what has a name is whole.
        let named = self.content.sync_all().and_then(|()| fs::rename(&self.path, self.cache.blob(&got)));
        named.map(|()| got).map_err(|source| self.cache.failed(source))
    }

    fn differs_in_size(&self, expected: u64, got: u64) -> HubError {
        self.differs(format!("{expected} bytes"), format!("{got} bytes"))
    }

    fn differs(&self, expected: String, got: String) -> HubError {
        let (id, file) = self.of;
        HubError::Content { id: id.into(), file: file.into(), expected, got }
    }
}

/// What makes the digest that content is compared by.
fn hash_of(announced: &Announced) -> Box<dyn DynDigest> {
    match (&announced.digest, announced.size) {
        (Some(Digest::GitBlob(_)), Some(size)) => Box::new(Sha1::new_with_prefix(format!("blob {size}\0"))),
        _ => Box::new(Sha256::new()),
    }
}

/// As [`Read::read`], past interruptions.
fn read(from: &mut impl Read, chunk: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
