//! How many instructions each kernel takes, held against a committed baseline: a guard that the noise of a machine cannot blur.
//!
//! `cargo run --release --bin instructions` compares with `benches/instructions.txt`; with `--update` it writes
//! that file. Needs valgrind, which counts in its own simulation of a CPU: AVX2 is forced, so that the counts are the same
//! wherever they are made; AVX-512 it does not know. Each kernel runs once and twice; the difference is one run of it, without
//! what starts the program.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, process::Command};

use anyhow::{Context, bail};
use nanoinfer_benches::{Work, attention, candidates, layer_norm, product};
use nanoinfer_kernels::{Element, Isa, Kernels};

const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.txt");
/// Another version of the compiler or of the C library moves counts by less, and so does code elsewhere: the scan for the best
/// candidates is compiled one way or another, 5.5 % apart, by what else its crate holds.
const TOLERANCE: f64 = 0.06;
const ISA: Isa = Isa::Avx2;

type Make = fn() -> Work;
const WORKS: [Make; 9] = [
    || product(ISA, Element::F32, 1),
    || product(ISA, Element::F32, 8),
    || product(ISA, Element::Bf16, 1),
    || product(ISA, Element::Bf16, 8),
    || product(ISA, Element::Int8, 1),
    || product(ISA, Element::Int8, 8),
    || layer_norm(8),
    || attention(1, 200),
    || candidates(ISA),
];

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => compare(&count_all()?),
        ["--update"] => fs::write(BASELINE, table(&count_all()?)).context("cannot write the baseline"),
        // What valgrind watches.
        ["--run", work, times] => {
            let (work, times): (usize, u32) = (work.parse()?, times.parse()?);
            let mut kernels = Kernels::new(ISA, 1, false).expect("one thread is the caller");
            let mut work = WORKS.get(work).context("there is no such kernel")?();
            (0..times).for_each(|_| work.run(&mut kernels));
            Ok(())
        }
        _ => bail!("usage: instructions [--update]"),
    }
}

/// Instructions by kernel.
type Counts = BTreeMap<String, u64>;

fn count_all() -> anyhow::Result<Counts> {
    let count = |(i, make): (usize, &Make)| Ok((make().name, count(i, 2)?.saturating_sub(count(i, 1)?)));
    WORKS.iter().enumerate().map(count).collect()
}

fn count(work: usize, times: u32) -> anyhow::Result<u64> {
    let program = std::env::current_exe().context("this program has no path")?;
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(program);
    let output = valgrind.args(["--run", &work.to_string(), &times.to_string()]).output();
    let output = output.context("cannot start valgrind\n  hint: apt-get install valgrind")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let collected =
        said.lines().find_map(|line| line.split_once("Collected : ")).map(|(_, number)| number.trim().parse());
    match collected {
        Some(Ok(number)) if output.status.success() => Ok(number),
        _ => bail!("valgrind did not count:\n{said}"),
    }
}

fn table(counts: &Counts) -> String {
    let mut text = String::from(
        "# Instructions of one run of each kernel with AVX2, by valgrind. Made by: instructions --update\n",
    );
    for (name, count) in counts {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{count:>10}  {name}");
    }
    text
}

fn compare(counts: &Counts) -> anyhow::Result<()> {
    let text =
        fs::read_to_string(Path::new(BASELINE)).context("there is no baseline\n  hint: instructions --update")?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let read = |line: &str| -> Option<(String, u64)> {
        let (count, name) = line.trim_start().split_once("  ")?;
        Some((name.to_owned(), count.parse().ok()?))
    };
    let baseline: Counts =
        lines.map(|line| read(line).with_context(|| format!("no count: {line}"))).collect::<Result<_, _>>()?;
    let mut moved = 0;
    for (name, &count) in counts {
        let Some(&before) = baseline.get(name) else {
            bail!("{name} is not in the baseline\n  hint: instructions --update")
        };
        let change = count as f64 / before as f64 - 1.0;
        let mark = if change.abs() > TOLERANCE { "  <-- moved" } else { "" };
        println!("{name:<32} {count:>10}  {:+.1} %{mark}", change * 100.0);
        moved += usize::from(change.abs() > TOLERANCE);
    }
    match moved {
        0 if counts.len() == baseline.len() => Ok(()),
        0 => bail!("the baseline has kernels that are gone\n  hint: instructions --update"),
        _ => bail!(
            "{moved} kernels moved by more than {} %\n  hint: if that is meant, instructions --update",
            TOLERANCE * 100.0
        ),
    }
}
