//! Step 4: the next token is drawn. The second argument is the temperature, the third the seed.
use nanoinfer_steps::{
    cache::Cache,
    decode, encode, open,
    pass::{alone, last, pass, rows_of, unseen},
    sampling::Sampling,
};

fn main() -> anyhow::Result<()> {
    let (model, tokenizer) = open(std::env::args().nth(1).as_deref())?;
    let end = tokenizer.token_to_id("<|endoftext|>");
    let temperature = std::env::args().nth(2).map_or(Ok(0.0), |word| word.parse())?;
    let seed = std::env::args().nth(3).map_or(Ok(0), |word| word.parse())?;
    let sampling = Sampling { temperature, top_k: 50, top_p: 0.95, seed };
    for line in std::io::stdin().lines() {
        let mut ids = encode(&tokenizer, &line?)?;
        let prompt = ids.len();
        let (mut cache, mut known) = (Cache::default(), 0);
        while ids.len() < model.sizes.positions && (ids.len() == prompt || ids.last().copied() != end) {
            let rows = rows_of(0, &ids, known);
            known = ids.len();
            let logits = pass(&model, &rows, &mut cache, &mut alone, &mut unseen);
            ids.push(sampling.draw(last(&logits, &model), ids.len()));
        }
        println!("{}", decode(&tokenizer, &ids[prompt..])?);
    }
    Ok(())
}
