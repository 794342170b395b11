//! The kernels in the shapes of GPT-2 124M, for the benchmarks and for counting instructions.

use std::iter::repeat_n;

use nanoinfer_kernels::{
    Activation, Arena, AttentionRow, AttentionRows, Element, Epilogue, Isa, Kernels, KvLayer, KvLayout, PackedMatrix,
    QueryHeads, Scoring, arg_top_k, log_sum_exp,
};

/// Width of the model.
pub const WIDTH: usize = 768;
/// Tokens of its vocabulary.
pub const VOCABULARY: usize = 50257;
/// Heads, of 64 each.
const HEADS: usize = 12;
/// K that has a scale of its own in int8.
pub const UNIT: usize = 64;

/// A weight matrix `[k, n]` of no particular values.
pub fn weights(isa: Isa, kind: Element, k: usize, n: usize) -> PackedMatrix {
    let mut matrix = PackedMatrix::zeros(&Arena::default(), isa, kind, UNIT, k, n);
    for unit in 0..matrix.units() {
        let values: Vec<_> = activations(UNIT.min(k - unit * UNIT)).into_iter().flat_map(|x| repeat_n(x, n)).collect();
        matrix.set_tile(unit, 0..n, &values);
    }
    matrix
}

/// Values between −1 and 1.
pub fn activations(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919) as f32).sin()).collect()
}

/// Something to run again and again.
pub struct Work {
    /// Its name in tables and baselines.
    pub name: String,
    run: Box<dyn FnMut(&mut Kernels)>,
}

impl Work {
    fn new(name: impl Into<String>, run: impl FnMut(&mut Kernels) + 'static) -> Self {
        Self { name: name.into(), run: Box::new(run) }
    }

    /// Once.
    pub fn run(&mut self, kernels: &mut Kernels) {
        (self.run)(kernels);
    }
}

/// `rows` rows times a matrix of the MLP, with bias and GELU, as a layer has it.
pub fn product(isa: Isa, kind: Element, rows: usize) -> Work {
    let weights = weights(isa, kind, WIDTH, 4 * WIDTH);
    let (bias, x) = (activations(4 * WIDTH), activations(rows * WIDTH));
    let mut out = vec![0.0; rows * 4 * WIDTH];
    let name = format!("product {} x{rows}", format!("{kind:?}").to_lowercase());
    Work::new(name, move |kernels| {
        let epilogue = Epilogue::BiasActivation(&bias, Activation::GeluTanh);
        kernels.matmul(&x, &weights, epilogue, &mut out);
    })
}

/// LayerNorm of `rows` rows.
pub fn layer_norm(rows: usize) -> Work {
    let (x, gain, bias) = (activations(rows * WIDTH), activations(WIDTH), activations(WIDTH));
    let mut out = vec![0.0; rows * WIDTH];
    Work::new(format!("layer norm x{rows}"), move |kernels| kernels.layer_norm(&x, &gain, &bias, 1e-5, &mut out))
}

/// Attention of `rows` sequences that decode after `positions` positions each.
pub fn attention(rows: usize, positions: usize) -> Work {
    let layout = KvLayout { heads_local: HEADS, head_dim: WIDTH / HEADS };
    let blocks = positions.div_ceil(KvLayout::BLOCK);
    let layer = KvLayer::zeros(Element::F32, layout, rows * blocks);
    let tables: Vec<Vec<u32>> =
        (0..rows).map(|row| (row * blocks..(row + 1) * blocks).map(|block| block as u32).collect()).collect();
    let (qkv, mut out) = (activations(rows * 3 * WIDTH), vec![0.0; rows * WIDTH]);
    Work::new(format!("attention x{rows}, {positions} positions"), move |kernels| {
        let rows = AttentionRows::new(tables.iter().map(|blocks| AttentionRow { blocks, positions }).collect());
        kernels.attention(
            &layer,
            &rows,
            QueryHeads::ungrouped(HEADS),
            &qkv,
            Scoring { scale: 0.125, window: None },
            &mut out,
        );
    })
}

/// What a worker does with a row of logits.
pub fn candidates(isa: Isa) -> Work {
    let logits = activations(VOCABULARY);
    Work::new("log-sum-exp and 64 best", move |_| {
        std::hint::black_box((log_sum_exp(isa, &logits, 1.0), arg_top_k(isa, &logits, 64)));
    })
}
