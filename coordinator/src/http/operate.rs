//! Around the answers: who is let in, how long connections live, and how the server is.
//!
//! [`access`] and [`neighbours`] let requests in, [`request_id`] names them; [`connections`] serves sockets, with a place among
//! [`places`] each, [`watched`] while they wait, an [`exchange`] for all who look after one; [`probes`] and [`live`] tell how the
//! server is. Nothing here knows what is asked.

pub(super) mod access;
pub(super) mod connections;
mod exchange;
pub(super) mod live;
pub(super) mod neighbours;
mod places;
pub(super) mod probes;
pub(super) mod request_id;
mod watched;
