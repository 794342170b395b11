//! The ZIP archives that torch.save writes: where each entry lies in the mapped file.
//!
//! Entries of such an archive are stored, not compressed, so that nothing needs to be unpacked: a compressed one is refused,
//! and names are keys, never paths. Knows nothing of tensors. Invariant: every range lies inside the file.
//! Reference: PKWARE's APPNOTE.TXT, sections 4.3.7, 4.3.12, 4.3.14 to 4.3.16, 4.5.3.

use std::{collections::HashMap, ops::Range};

use super::shown::shown;

/// Most entries: each tensor has one; gpt2-xl with its optimizer has some 1,800.
const MAX_ENTRIES: u64 = 1 << 17;
/// A comment of 64 KB may follow the end record of 22 bytes.
const END_SEARCH_BYTES: usize = 22 + (1 << 16);
const END: u32 = 0x0605_4b50;
const END_64: u64 = 0x0606_4b50;
const END_64_LOCATOR: u64 = 0x0706_4b50;
const CENTRAL: u64 = 0x0201_4b50;
const LOCAL: u64 = 0x0403_4b50;
/// In a field of 32 bits: the value is in the ZIP64 extra field.
const IN_EXTRA: u64 = u32::MAX as u64;
const EXTRA_64: u64 = 1;
const STORED: u64 = 0;

/// Entries of an archive, by their names below the folder that all are in.
#[derive(Debug)]
pub(super) struct Archive<'a> {
    entries: HashMap<&'a [u8], Range<usize>>,
}

impl<'a> Archive<'a> {
    /// Reads the directory at the end of the archive.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let (count, mut at) = directory(bytes)?;
        if count > MAX_ENTRIES {
            return Err(format!("the archive has {count} entries, more than {MAX_ENTRIES}"));
        }
        let mut entries = HashMap::new();
        let mut root = None;
        for _ in 0..count {
            let field = Fields(bytes.get(at..).unwrap_or_default());
            if field.number(0, 4)? != CENTRAL {
                return Err("its directory is broken".into());
            }
            let len = |at| field.number(at, 2).map(|len| len as usize);
            let (name_len, extra_len, comment_len) = (len(28)?, len(30)?, len(32)?);
            let name = field.slice(46, name_len)?;
            let name_shown = || shown(&String::from_utf8_lossy(name));
            let extra = field.slice(46 + name_len, extra_len)?;
            let sizes = [field.number(24, 4)?, field.number(20, 4)?, field.number(42, 4)?];
            let [size, packed, local] = with_extra(sizes, extra)?;
            let method = field.number(10, 2)?;
            if method != STORED || size != packed {
                let name = name_shown();
                return Err(format!("`{name}` is compressed (method {method}); torch.save stores, use it again"));
            }
            if let Some(folder) = name.strip_suffix(b"data.pkl")
                && (folder.is_empty() || folder.ends_with(b"/"))
            {
                root.get_or_insert(folder);
            }
            let range = content(bytes, local, size).map_err(|reason| format!("`{}`: {reason}", name_shown()))?;
            if entries.insert(name, range).is_some() {
                return Err("it has two entries of one name".into());
            }
            at += 46 + name_len + extra_len + comment_len;
        }
        let root = root.ok_or("it has no data.pkl, so that torch.save did not write it")?;
        let below = |(name, range): (&'a [u8], _)| Some((name.strip_prefix(root)?, range));
        Ok(Self { entries: entries.into_iter().filter_map(below).collect() })
    }

    /// Where the entry `name` lies.
    pub(super) fn entry(&self, name: &str) -> Option<Range<usize>> {
        self.entries.get(name.as_bytes()).cloned()
    }

    /// Where the entries of a folder lie.
    pub(super) fn below(&self, folder: &str) -> impl Iterator<Item = Range<usize>> {
        let is_below = move |(name, _): &(&&[u8], &Range<usize>)| name.starts_with(folder.as_bytes());
        self.entries.iter().filter(is_below).map(|(_, range)| range.clone())
    }
}

/// Number of entries, and where the directory begins.
fn directory(bytes: &[u8]) -> Result<(u64, usize), String> {
    let from = bytes.len().saturating_sub(END_SEARCH_BYTES);
    let signature = END.to_le_bytes();
    let end = bytes[from..].windows(4).rposition(|window| window == signature).map(|at| from + at);
    let end = end.ok_or("it has no end record, so that its end is missing")?;
    let record = Fields(&bytes[end..]);
    let (mut count, mut start) = (record.number(10, 2)?, record.number(16, 4)?);
    // torch writes ZIP64 records always, and the old ones with what fits into them.
    if let Some(locator) = end.checked_sub(20).map(|at| Fields(&bytes[at..]))
        && locator.number(0, 4)? == END_64_LOCATOR
    {
        let at = usize::try_from(locator.number(8, 8)?).unwrap_or(usize::MAX);
        let record = Fields(bytes.get(at..).unwrap_or_default());
        if record.number(0, 4)? != END_64 {
            return Err("its ZIP64 end record is not where it should be".into());
        }
        (count, start) = (record.number(32, 8)?, record.number(48, 8)?);
    }
    Ok((count, usize::try_from(start).unwrap_or(usize::MAX)))
}

/// Sizes and offset, taken from the ZIP64 extra field where 32 bits are too few for them.
fn with_extra(mut values: [u64; 3], mut extra: &[u8]) -> Result<[u64; 3], String> {
    while extra.len() >= 4 {
        let (id, len) = (Fields(extra).number(0, 2)?, Fields(extra).number(2, 2)? as usize);
        let field = Fields(extra.get(4..4 + len).ok_or("an extra field is cut short")?);
        if id == EXTRA_64 {
            let wide = values.iter_mut().filter(|value| **value == IN_EXTRA);
            for (i, value) in wide.enumerate() {
                *value = field.number(8 * i, 8)?;
            }
        }
        extra = &extra[4 + len..];
    }
    Ok(values)
}

/// Where the content of the entry with this local header lies.
fn content(bytes: &[u8], local: u64, size: u64) -> Result<Range<usize>, String> {
    let outside = || "it lies outside of the file".to_owned();
    let at = usize::try_from(local).ok().filter(|&at| at < bytes.len()).ok_or_else(outside)?;
    let header = Fields(&bytes[at..]);
    if header.number(0, 4)? != LOCAL {
        return Err("there is no local header where the directory says".into());
    }
    let start = at + 30 + header.number(26, 2)? as usize + header.number(28, 2)? as usize;
    let end = usize::try_from(size).ok().and_then(|size| start.checked_add(size));
    end.filter(|&end| end <= bytes.len()).map(|end| start..end).ok_or_else(outside)
}

/// Little-endian fields of a record.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn slice(&self, at: usize, len: usize) -> Result<&'a [u8], String> {
        self.0.get(at..at + len).ok_or_else(|| "a record is cut short".into())
    }

    /// A number of so many bytes.
    fn number(&self, at: usize, len: usize) -> Result<u64, String> {
        Ok(self.slice(at, len)?.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }
}
