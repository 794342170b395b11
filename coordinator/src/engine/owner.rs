//! Whose a sequence is: a request, and the party that asked.
//!
//! Does not know sequences, or whose turn it is.

use std::net::IpAddr;

use crate::engine::request::Client;

/// Identity of a request, in order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RequestId(pub(crate) u64);

/// One of those among whom turns go round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Party {
    /// A request that stands for itself.
    Request(RequestId),
    /// All requests of an address.
    Address(IpAddr),
}

/// Whose a sequence is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Owner {
    pub(crate) party: Party,
    pub(crate) request: RequestId,
}

impl Owner {
    /// Of all sequences of one request of a client.
    pub(crate) fn new(client: Client, request: RequestId) -> Self {
        let party = match client {
            Client::Local => Party::Request(request),
            Client::Address(address) => Party::Address(address),
        };
        Self { party, request }
    }
}
