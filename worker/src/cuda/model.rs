//! What of a model one rank computes on its GPU, and in what.

use nanoinfer_kernels::{
    Element,
    cuda::{carried_bytes, element_of_heads},
};
use nanoinfer_shared::{ModelShape, Share, protocol::LoadOrder};

use crate::element::element;

/// A rank's part of a model: all that sizes of memory follow from.
#[derive(Clone, Debug)]
pub(crate) struct RankModel {
    pub(crate) rank: usize,
    pub(crate) shape: ModelShape,
    pub(crate) share: Share,
    /// Of weights.
    pub(crate) element: Element,
}

impl RankModel {
    /// Of a model that was ordered.
    pub(crate) fn new(order: &LoadOrder, rank: usize, share: &Share) -> Self {
        Self { rank, shape: order.shape.clone(), share: share.clone(), element: element(order.dtype) }
    }

    /// Bytes of an element of queries, keys and values.
    pub(crate) fn head_bytes(&self) -> usize {
        element_of_heads(self.element).bytes()
    }

    /// Bytes of an element of what products take from the kernels before them.
    pub(crate) fn carried_bytes(&self) -> usize {
        carried_bytes(self.element)
    }
}
