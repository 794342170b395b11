//! Ranks of other hosts: the door where they join, and the secret that they show there.

pub(crate) mod gather;
pub(crate) mod secret;
