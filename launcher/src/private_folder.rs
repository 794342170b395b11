//! Folders that nobody else can put anything into, also where all users share the one above, as in `/tmp`.
//!
//! What somebody else may write they may also have written: weights to be mapped, templates to be run. Root is no exception, as
//! it is root who has most to lose. Does not know what such a folder is for.
//!
//! ```text
//! /tmp             may be written by all where it is sticky: nobody renames what is another's
//!   nanoinfer-0    made 0700; ours (or root's), no link, nobody else writes: so it stays what it was when it was looked at
//! ```

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::Path,
};

/// Bits of a mode: others may write, and may not rename what is not theirs.
const GROUP_OR_OTHERS_WRITE: u32 = 0o022;
const OTHERS_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// Makes a folder, and those above it, if it is not there.
///
/// # Errors
/// When it cannot be made, or somebody else has or could have put something into it; says who, or by which mode.
pub(crate) fn make(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let found = fs::symlink_metadata(folder)?;
    if !found.is_dir() {
        return Err(io::Error::other("it is a link, which may lead to somebody else's folder"));
    }
    check(&found)?;
    let above = folder.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mode = fs::metadata(above)?.mode();
    if mode & OTHERS_WRITE != 0 && mode & STICKY == 0 {
        return Err(io::Error::other(format!(
            "anybody may put another in its place: mode {:o} above it",
            mode & 0o7777
        )));
    }
    Ok(())
}

/// Whether only we, or root, can have made and can change this.
///
/// # Errors
/// Says who else, or by which mode.
pub(crate) fn check(found: &Metadata) -> io::Result<()> {
    let us = rustix::process::geteuid().as_raw();
    let (owner, mode) = (found.uid(), found.mode());
    if owner != us && owner != 0 {
        return Err(io::Error::other(format!("it belongs to user {owner}, not to us ({us})")));
    }
    if mode & GROUP_OR_OTHERS_WRITE != 0 {
        return Err(io::Error::other(format!("others may write there: mode {:o}", mode & 0o7777)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_folder_is_made_for_us_alone_and_found_again() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a/b");
        make(&folder).unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o7777, 0o700);
        make(&folder).unwrap();
        set_mode(&folder, 0o755);
        make(&folder).unwrap();
    }

    #[test]
    fn what_others_may_write_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a");
        make(&folder).unwrap();
        for mode in [0o770, 0o777, 0o702, 0o1777] {
            set_mode(&folder, mode);
            let error = make(&folder).unwrap_err().to_string();
            assert!(error.contains(&format!("mode {mode:o}")), "{error}");
        }
        set_mode(&folder, 0o700);
        set_mode(root.path(), 0o777);
        assert!(make(&folder).unwrap_err().to_string().contains("mode 777 above it"));
        set_mode(root.path(), 0o1777);
        make(&folder).unwrap();
        let link = root.path().join("link");
        symlink(&folder, &link).unwrap();
        assert!(make(&link).unwrap_err().to_string().contains("a link"));
    }

    #[test]
    fn what_belongs_to_somebody_else_is_refused_also_by_root() {
        if !rustix::process::geteuid().is_root() {
            crate::say(format_args!("only root can give a folder away: what belongs to others is not tried"));
            return;
        }
        const NOBODY: u32 = 65534;
        let root = tempfile::tempdir().unwrap();
        let (folder, link) = (root.path().join("a"), root.path().join("link"));
        make(&folder).unwrap();
        symlink(&folder, &link).unwrap();
        lchown(&link, Some(NOBODY), None).unwrap();
        assert!(make(&link).is_err());
        chown(&folder, Some(NOBODY), None).unwrap();
        let error = make(&folder).unwrap_err().to_string();
        assert_eq!(error, "it belongs to user 65534, not to us (0)");
    }
}
