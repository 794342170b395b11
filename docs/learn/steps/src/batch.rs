//! Step 5. Many texts at once: the weights are read once a step, however many texts get a token of it.
//!
//! All begin together, and the batch is over when the longest is: who is done early keeps its place. Step 10 mends that.

use crate::{
    model::Model,
    pass::{Memory, alone, pass, rows_of, unseen},
    sampling::Sampling,
};

/// Goes on with every text until `end` or `most` tokens more; returns what each got, and how many steps it took.
pub fn generate(
    model: &Model,
    texts: &[Vec<u32>],
    memory: &mut dyn Memory,
    sampling: Sampling,
    end: u32,
    most: usize,
) -> (Vec<Vec<u32>>, usize) {
    let mut all: Vec<Vec<u32>> = texts.to_vec();
    let mut known = vec![0; texts.len()];
    let mut steps = 0;
    loop {
        let is_open = |(text, tokens): &(usize, &Vec<u32>)| {
            let new = tokens.len() - texts[*text].len();
            new < most && tokens.len() < model.sizes.positions && (new == 0 || tokens.last() != Some(&end))
        };
        let open: Vec<usize> = all.iter().enumerate().filter(is_open).map(|(text, _)| text).collect();
        if open.is_empty() {
            return (all.iter().zip(texts).map(|(tokens, prompt)| tokens[prompt.len()..].to_vec()).collect(), steps);
        }
        // Prompts are read whole; after that it is a token a text.
        let rows: Vec<_> = open.iter().flat_map(|&text| rows_of(text, &all[text], known[text])).collect();
        let logits = pass(model, &rows, memory, &mut alone, &mut unseen);
        steps += 1;
        for (row, logits) in rows.iter().zip(logits.chunks_exact(model.sizes.vocab)) {
            if row.position + 1 == all[row.text].len() {
                known[row.text] = all[row.text].len();
                all[row.text].push(sampling.draw(logits, row.position + 1));
            }
        }
    }
}
