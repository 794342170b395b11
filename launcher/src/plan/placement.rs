//! Where the ranks of a cluster run, as far as a plan depends on it.

/// Where the ranks will run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// All on this host.
    Here,
    /// Anywhere; they join over TCP.
    Elsewhere,
}
