//! `--plan` against what ranks really take, at gpt2-xl's shape: 25 heads over 2 and 3 ranks.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use serde_json::json;

use crate::{
    checkpoint::{Sizes, write_random_gpt2},
    server::{Server, launcher, resident_bytes, root},
};

/// Bytes of each rank's row of the plan, by column.
fn planned(arguments: &[&str]) -> Vec<BTreeMap<String, f64>> {
    let output = launcher(&[arguments, &["--plan"]].concat()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let table: Vec<&str> = text.lines().skip_while(|line| !line.trim_start().starts_with("rank ")).collect();
    let columns: Vec<&str> = table[0].split_whitespace().skip(4).collect();
    let row = |line: &&str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.first()?.parse::<usize>().ok()?;
        let sizes = words[4..].chunks(2).map(|size| {
            let unit = match size[1] {
                "B" => 0,
                "KiB" => 10,
                "MiB" => 20,
                "GiB" => 30,
                other => panic!("{other} in {text}"),
            };
            size[0].parse::<f64>().unwrap() * f64::from(1u32 << unit)
        });
        Some(columns.iter().map(|&name| name.to_owned()).zip(sizes).collect())
    };
    table[1..].iter().filter_map(row).collect()
}

#[test]
fn gpt2_xl_runs_on_2_and_3_ranks_within_a_tenth_of_its_plan_also_while_loading() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = Sizes { n_layer: 48, n_head: 25, n_embd: 1600 };
    write_random_gpt2(dir.path(), &root().join("tests/data/gpt2-tokenizer"), sizes);
    let model = dir.path().to_str().unwrap();
    // Room for one sequence of full length on the rank with most heads: 48 layers, 13 or 9 heads of 64, 1,024 positions.
    for (nproc, kv_memory) in [("2", "328MB"), ("3", "227MB")] {
        let arguments = ["--model", model, "--nproc", nproc, "--kv-memory", kv_memory, "--max-seqs", "4"];
        let plan = planned(&arguments);
        let mut server = Server::spawn(launcher(&[&arguments[..], &["--port", "0"]].concat()));
        let loaded = AtomicBool::new(false);
        let pid = server.pid();
        let peaks = std::thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let mut peaks = BTreeMap::new();
                while !loaded.load(Relaxed) {
                    for (rank, child) in Server::ranks_of(pid) {
                        let peak = peaks.entry(rank).or_insert(0);
                        *peak = resident_bytes(child).unwrap_or(0).max(*peak);
                    }
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                peaks
            });
            server.await_ready();
            loaded.store(true, Relaxed);
            watch.join().unwrap()
        });
        // Half of the KV pool's positions are written, and a few tokens generated.
        let prompt: Vec<u32> = (0..512).map(|i| i * 97 % 50257).collect();
        let answer = server.ask("/v1/completions", &json!({ "prompt": prompt, "max_tokens": 3, "ignore_eos": true }));
        assert_eq!(answer["usage"]["completion_tokens"], 3);

        let ranks = server.rank_pids();
        assert_eq!((ranks.len(), plan.len()), (nproc.parse().unwrap(), ranks.len()));
        for (rank, (&pid, plan)) in ranks.iter().zip(&plan).enumerate() {
            let measured = resident_bytes(pid).unwrap() as f64;
            let total = plan["total"];
            println!(
                "nproc {nproc} rank {rank}: planned {total:.3e} B, measured {measured:.3e} B, {:.3e} B at most while loading",
                peaks[&rank] as f64
            );
            assert!(
                (total / measured - 1.0).abs() < 0.1,
                "nproc {nproc} rank {rank}: planned {total}, measured {measured}"
            );
            let loading = peaks[&rank] as f64;
            assert!(
                loading > 0.0 && loading < 1.05 * plan["weights"] + 64e6,
                "nproc {nproc} rank {rank}: {loading} while loading"
            );
        }
    }
}
