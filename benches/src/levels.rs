//! Which instruction set multiplies fastest on this machine: the products of a step, each set in turns with the others.
//!
//! `cargo run --release -p nanoinfer-benches --bin levels [-- f32|bf16|int8]`. What it printed on the CPUs that were measured is why
//! `Isa::detect` chooses as it does. Milliseconds are of the CPU, a thread, medians over rounds in which every set has its turn: so what
//! else runs on the machine moves them least. Only ratios count.

use std::{
    env, thread,
    time::{Duration, Instant},
};

use nanoinfer_benches::{VOCABULARY, activations, weights};
use nanoinfer_kernels::{Activation, Element, Epilogue, Isa, Kernels, PackedMatrix};
use rustix::time::{ClockId, clock_gettime};

/// Name, width and layers.
const MODELS: [(&str, usize, usize); 2] = [("124M", 768, 12), ("medium, 6 of 24", 1024, 6)];
const ROWS: [usize; 6] = [1, 8, 16, 32, 128, 512];
/// Rows of a step that ask for logits, at most: more are a prompt's.
const LOGITS: usize = 32;
const MEASURE_FOR: Duration = Duration::from_secs(6);

/// The matrices of a model.
struct Products {
    width: usize,
    layers: Vec<[PackedMatrix; 4]>,
    head: PackedMatrix,
    bias: Vec<f32>,
}

impl Products {
    fn new(isa: Isa, element: Element, width: usize, layers: usize) -> Self {
        let layer = |_| {
            [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
                .map(|(k, n)| weights(isa, element, k, n))
        };
        Self {
            width,
            layers: (0..layers).map(layer).collect(),
            head: weights(isa, element, width, VOCABULARY),
            bias: activations(4 * width),
        }
    }

    /// All of a step of `rows` rows, from `x` to `out`.
    fn run(&self, kernels: &mut Kernels, rows: usize, x: &[f32], out: &mut [f32]) {
        for matrix in self.layers.iter().flatten() {
            let bias = &self.bias[..matrix.columns()];
            let epilogue = match matrix.columns() / self.width {
                4 => Epilogue::BiasActivation(bias, Activation::GeluTanh),
                _ => Epilogue::Bias(bias),
            };
            kernels.matmul(&x[..rows * matrix.rows()], matrix, epilogue, &mut out[..rows * matrix.columns()]);
        }
        let asked = if rows > LOGITS { 1 } else { rows };
        kernels.matmul(&x[..asked * self.width], &self.head, Epilogue::None, &mut out[..asked * VOCABULARY]);
    }
}

fn main() {
    let wanted = env::args().nth(1);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let levels: Vec<Isa> = Isa::available().into_iter().filter(|isa| *isa > Isa::Portable).collect();
    println!("products of a step on {threads} threads: CPU milliseconds of each, and times the speed of the first");
    let kinds =
        [Element::F32, Element::Bf16, Element::Int8].map(|element| (element, format!("{element:?}").to_lowercase()));
    for (name, width, layers) in MODELS {
        for (element, element_name) in
            kinds.iter().filter(|(_, name)| wanted.as_ref().is_none_or(|wanted| wanted == name))
        {
            let products: Vec<_> = levels.iter().map(|&isa| Products::new(isa, *element, width, layers)).collect();
            // Waiting threads sleep, so that the CPU's time is of work only.
            let kernels = |&isa: &Isa| Kernels::new(isa, threads, false).expect("the system has threads to give");
            let mut all: Vec<Kernels> = levels.iter().map(kernels).collect();
            for rows in ROWS {
                let medians = measure(&products, &mut all, rows);
                let of = |(isa, ms): (&Isa, &f64)| format!("{} {ms:.2} ({:.2} x)", isa.name(), medians[0] / ms);
                let texts: Vec<_> = levels.iter().zip(&medians).map(of).collect();
                println!("{name:<16} {element_name:<5} {rows:>4} rows  {}", texts.join("  "));
            }
        }
    }
}

/// Median milliseconds of each.
fn measure(products: &[Products], all: &mut [Kernels], rows: usize) -> Vec<f64> {
    let x = activations(rows * 4 * products[0].width);
    let mut out = vec![0.0; (rows.min(LOGITS) * VOCABULARY).max(rows * 4 * products[0].width)];
    let mut times = vec![Vec::new(); all.len()];
    let begun = Instant::now();
    while begun.elapsed() < MEASURE_FOR || times[0].len() < 5 {
        for ((kernels, products), times) in all.iter_mut().zip(products).zip(&mut times) {
            let before = cpu_ms();
            products.run(kernels, rows, &x, &mut out);
            times.push(cpu_ms() - before);
        }
    }
    let threads = thread::available_parallelism().map_or(1, usize::from) as f64;
    times.iter_mut().map(|times| median(times) / threads).collect()
}

/// What this process had of the CPU until now.
fn cpu_ms() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
