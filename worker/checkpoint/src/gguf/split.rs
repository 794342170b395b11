//! How the parts of a split model are called: `NAME-00001-of-00003.gguf`. Any of them stands for all.
//!
//! Knows names only; what the parts say of themselves is compared when they are open.

use std::path::{Path, PathBuf};

use super::{super::error::CheckpointError, Header};

const ENDING: &str = ".gguf";

/// Whether a file is a GGUF, by its name.
pub fn is_gguf(name: &str) -> bool {
    name.ends_with(ENDING)
}

/// Names of all parts, where `name` is that of one.
pub fn gguf_parts(name: &str) -> Option<impl Iterator<Item = String> + use<'_>> {
    let (whole, total) = name.strip_suffix(ENDING)?.rsplit_once("-of-")?;
    let (whole, number) = whole.rsplit_once('-')?;
    let parsed = |digits: &str| Some(digits).filter(|digits| digits.len() == 5)?.parse::<u32>().ok();
    let (number, total) = (parsed(number)?, parsed(total)?);
    (1..=total).contains(&number).then(|| (1..=total).map(move |i| format!("{whole}-{i:05}-of-{total:05}{ENDING}")))
}

/// All files that `path` stands for: all parts, or itself.
pub(crate) fn files(path: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let name = path.file_name().and_then(|name| name.to_str());
    let Some(parts) = name.and_then(gguf_parts) else { return Ok(vec![path.to_owned()]) };
    // Of more than there are the first is missing.
    let there = |part| match path.with_file_name(part) {
        file if file.exists() => Ok(file),
        file => Err(CheckpointError::MissingPart { file, of: path.to_owned() }),
    };
    parts.map(there).collect()
}

/// That these are all parts of one model, in order; else which is not, and why.
pub(crate) fn check(parts: &[Header<'_>]) -> Result<(), (usize, String)> {
    let mut tensors = 0;
    for (i, part) in parts.iter().enumerate() {
        let key = |name, default| Ok(part.unsigned(name).map_err(|reason| (i, reason))?.unwrap_or(default));
        let (number, count) = (key("split.no", 0)?, key("split.count", 1)?);
        tensors += part.tensors.len();
        if number != i || count.max(1) != parts.len() {
            let (number, i) = (number.saturating_add(1), i + 1);
            let reason = format!(
                "it says that it is part {number} of {count}, but it was opened as part {i} of {}: parts are known by \
                 their names, NAME-00001-of-00002{ENDING}",
                parts.len()
            );
            return Err((i - 1, reason));
        }
        let all = key("split.tensors.count", tensors)?;
        if count > 1 && i + 1 == parts.len() && all != tensors {
            return Err((i, format!("it says that all parts have {all} tensors, and they have {tensors}")));
        }
    }
    Ok(())
}
