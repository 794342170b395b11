//! A plan as people read it: what was chosen, and a line for each rank with what it holds.

use std::fmt;

use nanoinfer_shared::{
    ModelShape,
    comm::CommDType,
    protocol::{BLOCK_TOKENS, CommKind},
};
use nanoinfer_worker::RankMemory;

use super::Plan;
use crate::size::ByteSize;

impl Plan {
    /// What partial sums go over, of several ranks.
    fn link(&self) -> Option<&'static str> {
        match self.load.comm {
            CommKind::Local => None,
            CommKind::Shm => Some("shared memory"),
            CommKind::Tcp if self.load.hosts.iter().any(|&ranks| ranks > 1) => {
                Some("shared memory within a host and TCP between")
            }
            CommKind::Tcp => Some("TCP"),
            CommKind::Nccl => Some("NCCL"),
        }
    }

    /// Logs the same as events: one of the whole, one for each note and each rank.
    pub(crate) fn log(&self) {
        let shape = &self.model.shape;
        tracing::info!(
            model = self.model.name,
            layers = shape.layers,
            heads = shape.attention.heads,
            kv_heads = shape.attention.kv_heads,
            width = shape.width,
            vocabulary = shape.vocab_size,
            positions = self.shape.context,
            parameters = shape.parameters(),
            ranks = self.partition.world(),
            hosts = self.hosts.len(),
            dtype = %self.load.dtype,
            kv_dtype = %self.load.kv_dtype,
            link = self.link(),
            sums = if self.load.comm_dtype == CommDType::Bf16 { "bf16" } else { "f32" },
            kv_blocks = self.kv_blocks,
            kv_tokens = self.kv_blocks * BLOCK_TOKENS,
            bytes = self.memory.iter().map(RankMemory::total).sum::<u64>(),
            "plan"
        );
        self.notes.iter().for_each(|note| tracing::info!("{note}"));
        for (rank, (share, memory)) in self.partition.shares().iter().zip(&self.memory).enumerate() {
            let node = self.hosts.iter().position(|(_, ranks)| ranks.contains(&rank)).unwrap_or(0);
            tracing::info!(
                rank,
                node,
                threads = self.on_hosts[rank].threads,
                heads = ?share.heads,
                kv_heads = ?share.kv_heads,
                ffn = ?share.ffn,
                vocab = ?share.vocab,
                weight_bytes = memory.weights,
                kv_bytes = memory.kv,
                activation_bytes = memory.activations,
                link_bytes = memory.link,
                bytes = memory.total(),
                "plan of a rank"
            );
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, shape) = (&self.model.name, &self.model.shape);
        let ModelShape { layers, width, vocab_size, .. } = shape;
        let (attention, parameters) = (&shape.attention, shape.parameters() as f64 / 1e6);
        let is_grouped = attention.kv_heads < attention.heads;
        let heads = match is_grouped {
            true => format!("{} heads on {} of keys and values", attention.heads, attention.kv_heads),
            false => format!("{} heads", attention.heads),
        };
        let positions = match self.shape.context {
            all if all == shape.context => all.to_string(),
            some => format!("{some} of {}", shape.context),
        };
        let counted = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let world = self.partition.world();
        let threads = || self.on_hosts.iter().map(|on_host| on_host.threads);
        writeln!(
            f,
            "{name}: {layers} layers, {heads}, width {width}, vocabulary {vocab_size}, {positions} positions, {parameters:.1} M parameters"
        )?;
        writeln!(
            f,
            "{} {}, {}{}, {}{}{}, {} of KV ({} tokens)",
            counted(world, "rank"),
            match self.hosts.len() {
                1 => "on this host".to_owned(),
                hosts => format!("on {hosts} hosts"),
            },
            match (threads().min().unwrap_or(1), threads().max().unwrap_or(1)) {
                (least, most) if least == most => counted(most, "thread"),
                (least, most) => format!("{least} to {most} threads"),
            },
            if world > 1 { " each" } else { "" },
            self.load.dtype,
            self.link().map_or(String::new(), |link| format!(", data link {link}")),
            match self.load.comm_dtype {
                CommDType::F32 => "",
                CommDType::Bf16 => ", partial sums in bf16",
            },
            counted(self.kv_blocks, "block"),
            self.kv_blocks * BLOCK_TOKENS,
        )?;
        if self.hosts.len() > 1 {
            for (node, (host, ranks)) in self.hosts.iter().enumerate() {
                let ranks: Vec<String> = ranks.clone().map(|rank| rank.to_string()).collect();
                let (threads, one) = (self.on_hosts[self.hosts[node].1.start].threads, ranks.len() == 1);
                writeln!(
                    f,
                    "node {node} is {}: rank{} {}, {}{}",
                    host.name,
                    if one { "" } else { "s" },
                    ranks.join(", "),
                    counted(threads, "thread"),
                    if one { "" } else { " each" }
                )?;
            }
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "{note}"))?;
        if self.on_gpus() {
            writeln!(
                f,
                "computing on GPUs has not run on hardware yet: `nanoinfer-launch gpu-check` tells whether it is right"
            )?;
        }
        writeln!(f)?;
        let header = ["rank", "heads", "kv heads", "ffn", "vocab", "weights", "kv", "activations", "link", "total"];
        let mut rows = vec![header.map(String::from).to_vec()];
        for (rank, (share, memory)) in self.partition.shares().iter().zip(&self.memory).enumerate() {
            let bytes = [memory.weights, memory.kv, memory.activations, memory.link, memory.total()];
            let [weights, kv, activations, link, total] = bytes.map(|bytes| ByteSize(bytes).to_string());
            let ranges = [&share.heads, &share.kv_heads, &share.ffn, &share.vocab].map(|range| format!("{range:?}"));
            rows.push([vec![rank.to_string()], ranges.to_vec(), vec![weights, kv, activations, link, total]].concat());
        }
        if !is_grouped {
            // The same as the heads.
            rows.iter_mut().for_each(|row| drop(row.remove(2)));
        }
        let widths: Vec<usize> =
            (0..rows[0].len()).map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0)).collect();
        for row in &rows {
            let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:>width$}")).collect();
            writeln!(f, "{}", cells.join("  "))?;
        }
        let total: u64 = self.memory.iter().map(RankMemory::total).sum();
        write!(f, "\nall ranks: {}", ByteSize(total))
    }
}
