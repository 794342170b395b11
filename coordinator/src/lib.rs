//! HTTP, text, scheduling, KV blocks and sampling.
