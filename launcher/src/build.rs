//! Which build this is.

/// Version and commit: ranks and coordinator must carry the same to come together.
/// `+src` stands for a build outside of git, `-dirty` for sources that differ from the commit.
pub const BUILD_ID: &str = env!("NANOINFER_BUILD_ID");
