//! Where ranks come from when others are lost.
//!
//! Does not know what a loss is, nor what becomes of the others.

use std::{error::Error, fmt};

use nanoinfer_shared::{
    link::ControlLink,
    protocol::{FromRank, ToRank},
};

/// Why a source has no rank to give.
pub type SourceError = Box<dyn Error + Send + Sync>;

/// Where ranks come from again.
pub trait RankSource: Send + fmt::Debug {
    /// Ends what is left of the `lost` ranks and gets others in their place; both they and the links are in rank order. Where ranks
    /// share memory, all of them get that of start number `group`. Returns early when nobody waits any more: `given_up`.
    ///
    /// # Errors
    /// Says what the system, or another host, does not give.
    fn replace(
        &mut self,
        group: u32,
        lost: &[Lost],
        given_up: &dyn Fn() -> bool,
    ) -> Result<Vec<ControlLink<ToRank, FromRank>>, SourceError>;
}

/// A rank that is lost.
#[derive(Clone, Debug)]
pub struct Lost {
    /// Which.
    pub rank: usize,
    /// What it wrote is not to be trusted.
    pub is_corrupt: bool,
}
