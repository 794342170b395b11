//! More hosts than one: nodes find one another (`surroundings`), come in at node 0 (`knock`, `door`), and start ranks as node 0
//! says (`node`, `all_ranks`), also where there is no checkpoint (`slices`).

pub(crate) mod all_ranks;
pub(crate) mod door;
pub(crate) mod knock;
mod messages;
pub(crate) mod node;
pub(crate) mod node_links;
mod nodelist;
pub(crate) mod secret;
pub(crate) mod slices;
pub(crate) mod surroundings;
