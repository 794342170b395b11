//! CPU kernels: packed matrix products, LayerNorm, activations, paged attention.
