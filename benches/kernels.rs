//! Kernels in the shapes of GPT-2 124M, on all cores, beside what this machine can do at most.
//!
//! `cargo bench -p nanoinfer-benches --bench kernels`. Products of few rows are held against reading their weights (GiB/s),
//! those of many against multiply-adds in registers (Gelem/s, which are GFLOP/s). The LM head is larger than most caches, a layer's
//! matrix may be not: only the first measures memory.

use std::{thread, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nanoinfer_benches::{UNIT, VOCABULARY, WIDTH, activations, attention, candidates, layer_norm, product, weights};
use nanoinfer_kernels::{Element, Epilogue, Isa, Kernels, PackedMatrix};

const KINDS: [Element; 3] = [Element::F32, Element::Bf16, Element::Int8];
/// f32 elements read to measure memory: far above any cache.
const READ: usize = 64 << 20;

fn all_cores() -> Kernels {
    Kernels::new(Isa::detect(), thread::available_parallelism().map_or(1, usize::from), true)
        .expect("the system has threads to give")
}

fn memory(criterion: &mut Criterion) {
    let mut kernels = all_cores();
    let mut group = criterion.benchmark_group("memory");
    group.sample_size(20).measurement_time(Duration::from_secs(3));
    let data = vec![1.0; READ];
    group.throughput(Throughput::Bytes(4 * READ as u64));
    group.bench_function("limit: reading", |b| b.iter(|| kernels.read_all(&data)));
    drop(data);
    for kind in KINDS {
        let head = weights(Isa::detect(), kind, WIDTH, VOCABULARY);
        group.throughput(Throughput::Bytes(PackedMatrix::bytes(kind, UNIT, WIDTH, VOCABULARY) as u64));
        for rows in [1, 8] {
            let (x, mut out) = (activations(rows * WIDTH), vec![0.0; rows * VOCABULARY]);
            group.bench_function(BenchmarkId::new(format!("LM head, {kind:?}"), rows), |b| {
                b.iter(|| kernels.matmul(&x, &head, Epilogue::None, &mut out));
            });
        }
    }
    group.finish();
}

fn arithmetic(criterion: &mut Criterion) {
    const ROUNDS: usize = 100_000;
    let mut kernels = all_cores();
    let mut group = criterion.benchmark_group("arithmetic");
    group.sample_size(20).measurement_time(Duration::from_secs(3));
    let (operations, _) = kernels.multiply_add(ROUNDS);
    group.throughput(Throughput::Elements(operations));
    group.bench_function("limit: multiply-add, f32", |b| b.iter(|| kernels.multiply_add(ROUNDS)));
    for kind in KINDS {
        for rows in [32, 512] {
            let mut work = product(Isa::detect(), kind, rows);
            group.throughput(Throughput::Elements((2 * rows * WIDTH * 4 * WIDTH) as u64));
            group.bench_function(work.name.clone(), |b| b.iter(|| work.run(&mut kernels)));
        }
    }
    group.finish();
}

fn the_rest(criterion: &mut Criterion) {
    let mut kernels = all_cores();
    let mut group = criterion.benchmark_group("rows");
    group.sample_size(20).measurement_time(Duration::from_secs(2));
    for mut work in [layer_norm(1), layer_norm(32), attention(1, 512), attention(32, 512), candidates(Isa::detect())] {
        group.bench_function(work.name.clone(), |b| b.iter(|| work.run(&mut kernels)));
    }
    group.finish();
}

criterion_group!(benches, memory, arithmetic, the_rest);
criterion_main!(benches);
