//! End to end: the real binary on a free port, spoken to over HTTP. One binary, so that servers are started in one place.
//!
//! Index
//! - [`chat`]: the README's two commands; `/api/chat` in both forms, streamed and not
//! - [`demo`]: the built-in model, asked all that it was taught
//! - [`golden`]: transformers' greedy ids through HTTP, for nproc 1, 2, 3, 5 over shared memory and TCP; batches
//! - [`nanochat`]: its checkpoints as they lie in its cache, of every generation, through HTTP
//! - [`completions`]: `/v1/completions`, log-probabilities, tokenization
//! - [`calculator`]: results are forced on what a model writes
//! - [`bad_input`]: what is refused, how it is said, and that nothing else is disturbed
//! - [`load`]: 200 clients in a pool far too small; hang-ups; the same bits whatever batch, chunks, cache and preemption
//! - [`lifecycle`]: signals, killed ranks, killed launchers, draining
//! - [`recovery`]: ranks that are lost while requests run, and had again
//! - [`strangers`]: whoever comes to any door at any time, and noise within a rank's own link
//! - [`cores`]: threads run where the plan puts them; where the system gives none
//! - [`cable`]: a cable between two hosts is cut, and both ends notice
//! - [`surroundings`]: closed and full outputs, addresses that Kubernetes leaves in the environment, other people's folders
//! - [`nodes`]: one process a host: as one host, ranks and nodes that are lost, who is refused, what started them
//! - [`slices`]: a node whose host has no checkpoint
//! - [`memory`]: `--plan` against measured memory, gpt2-xl's 25 heads over 2 and 3 ranks
//! - [`gpu`]: ranks on an emulated GPU: golden ids, graphs, NCCL, what is missing, `gpu-check`
//! - [`streams`]: two hundred at once
//! - [`trace`]: `--trace` is a file for Perfetto in which steps, layers and their parts nest
//! - [`configs`]: every file in `configs/` starts
//! - [`imports`]: the import rules of docs/architecture.md
//! - [`circles`]: no file of a crate needs one that needs it
//! - [`docs`]: files, links and flags that the documents name exist
//! - [`example`]: the 100-line program

mod checkpoint;
mod fake_gpu;
mod server;

mod bad_input;
mod cable;
mod calculator;
mod chat;
mod circles;
mod completions;
mod configs;
mod cores;
mod demo;
mod docs;
mod example;
mod golden;
mod gpu;
mod imports;
mod lifecycle;
mod load;
mod memory;
mod nanochat;
mod nodes;
mod recovery;
mod slices;
mod strangers;
mod streams;
mod surroundings;
mod trace;
