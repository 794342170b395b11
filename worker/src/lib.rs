//! One rank: checkpoint, shard, one forward step.
