//! Starts and watches a NanoInfer cluster.
