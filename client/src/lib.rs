//! The NanoInfer client: generate from a server or a model.
