//! What `explain` says of each token, as text: alternatives, the sampling chain, the time of every stage on every rank.
//!
//! Reads the JSON of a reply (docs/http-api.md); knows no server.

use serde_json::Value;

use crate::{
    bars::Bars,
    terminal::{Look, Screen},
};

const BAR_WIDTH: usize = 24;

/// All tokens of a list `explain`, the first of which is the `first`th of the answer.
pub(crate) fn tokens(explained: &Value, first: usize, bars: Bars) -> String {
    list(explained).iter().enumerate().map(|(i, value)| token(value, first + i, bars)).collect()
}

fn token(token: &Value, index: usize, bars: Bars) -> String {
    let mut text = format!("\n{index}  {}\n", quoted(&token["token"]));
    if token["forced"] == true {
        return text + "   forced: it was not drawn\n";
    }
    text += &format!("   {:<16} {:>8} {:>8}\n", "alternatives", "model", "drawn");
    for a in list(&token["alternatives"]) {
        let drawn = a["probability"].as_f64().unwrap_or(0.0);
        let end = match a["removed_by"].as_str() {
            Some(by) => format!("removed by {by}"),
            None => bars.draw(drawn, BAR_WIDTH),
        };
        let model = percent(a["logprob"].as_f64().unwrap_or(0.0).exp());
        let is_chosen = a["id"] == token["id"];
        let mark = if is_chosen { '>' } else { ' ' };
        let line = format!(" {mark} {:<16} {model:>8} {:>8} {end}", quoted(&a["token"]), percent(drawn));
        text += &if is_chosen { Screen::of_stdout().paint(Look::Chosen, &line) } else { line };
        text.push('\n');
    }
    text += "   chain\n";
    for p in list(&token["chain"]) {
        text += &format!("     {}\n", processor(p));
    }
    if list(&token["chain"]).is_empty() {
        text += "     every processor is neutral: drawn as the model says\n";
    }
    text + &step(&token["step"], bars)
}

fn processor(p: &Value) -> String {
    let mut text = p["processor"].as_str().unwrap_or("?").to_owned();
    if let Some(value) = p["value"].as_f64() {
        // As it was typed, not as its f32 is.
        text += &format!(" {}", value as f32);
    }
    let (changed, removed) = (p["changed"].as_u64().unwrap_or(0), p["removed"].as_u64().unwrap_or(0));
    if changed > 0 {
        text += &format!(": changed {changed} logits");
    }
    if removed > 0 {
        let mass = percent(p["removed_mass"].as_f64().unwrap_or(0.0));
        text += &format!(": removed {removed} tokens with {mass} of the probability");
    } else if changed == 0 {
        text += ": removed nothing";
    }
    text
}

/// One line a stage, one column a rank.
fn step(step: &Value, bars: Bars) -> String {
    let ranks = list(&step["ranks"]);
    let ms = |value: &Value| value["ms"].as_f64().unwrap_or(0.0);
    let counted = |name: &str, what: &str| format!("{} {what}{}", step[name], if step[name] == 1 { "" } else { "s" });
    let mut text = format!(
        "   step {}: {}, {}, {:.3} ms\n",
        step["number"],
        counted("sequences", "sequence"),
        counted("tokens", "token"),
        ms(step)
    );
    let columns = |cell: &dyn Fn(&Value) -> String| ranks.iter().map(|rank| format!(" {:>9}", cell(rank))).collect();
    let header: String = columns(&|rank| format!("rank {}", rank["rank"]));
    text += &format!("     {:<34}{header}\n", "ms");
    let whole = ranks.first().map_or(0.0, ms);
    // Waiting lies within the reductions, whichever it was first met in.
    let mut stages: Vec<&Value> = ranks.first().map(|rank| list(&rank["stages"])).unwrap_or_default().iter().collect();
    stages.sort_by_key(|stage| stage["kind"] == "waiting");
    for stage in stages {
        let name = stage["stage"].as_str().unwrap_or("?");
        let name = match stage["kind"].as_str() {
            Some("reduction") => format!("all-reduce: {name}"),
            Some("waiting") => "all-reduce: of these, waiting".into(),
            _ => name.to_owned(),
        };
        let same = |rank: &Value| {
            list(&rank["stages"])
                .iter()
                .find(|s| (&s["stage"], &s["kind"]) == (&stage["stage"], &stage["kind"]))
                .map(ms)
        };
        let cells: String = columns(&|rank| same(rank).map_or("-".into(), |ms| format!("{ms:.3}")));
        let bar = bars.draw(ms(stage) / whole, BAR_WIDTH);
        text += &format!("     {name:<34}{cells} {bar}\n");
    }
    let total: String = columns(&|rank| format!("{:.3}", ms(rank)));
    text + &format!("     {:<34}{total}\n", "the step, on the rank")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A token with its spaces and line ends to be seen.
fn quoted(token: &Value) -> String {
    format!("{:?}", token.as_str().unwrap_or_default())
}

fn percent(share: f64) -> String {
    match share * 100.0 {
        p if p > 0.0 && p < 0.1 => "< 0.1 %".into(),
        p => format!("{p:.1} %"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_token_is_told_with_its_alternatives_its_chain_and_its_step() {
        let alternative = |id: u32, token: &str, p: f64, drawn: f64, by: Value| json!({"id": id, "token": token, "logprob": p.ln(), "probability": drawn, "removed_by": by});
        let stages = json!([{"stage": "QKV", "kind": "product", "ms": 0.5},
                            {"stage": "MLP projection", "kind": "reduction", "ms": 0.25},
                            {"stage": "waiting for peers", "kind": "waiting", "ms": 0.1}]);
        let value = json!([{
            "token": " Paris", "id": 7,
            "alternatives": [alternative(7, " Paris", 0.75, 1.0, Value::Null), alternative(9, "\n", 0.25, 0.0, json!("top_p"))],
            "chain": [{"processor": "temperature", "value": f64::from(0.3f32), "changed": 4096, "removed": 0, "removed_mass": 0.0},
                      {"processor": "top_p", "value": 0.5, "changed": 0, "removed": 4095, "removed_mass": 0.25}],
            "step": {"number": 3, "sequences": 1, "tokens": 2, "ms": 1.5,
                     "ranks": [{"rank": 0, "ms": 1.0, "stages": stages}, {"rank": 1, "ms": 1.0, "stages": stages}]},
        }, {"token": "<|output_start|>", "id": 12, "forced": true}]);
        let expected = r#"
5  " Paris"
   alternatives        model    drawn
 > " Paris"           75.0 %  100.0 % ########################
   "\n"               25.0 %    0.0 % removed by top_p
   chain
     temperature 0.3: changed 4096 logits
     top_p 0.5: removed 4095 tokens with 25.0 % of the probability
   step 3: 1 sequence, 2 tokens, 1.500 ms
     ms                                    rank 0    rank 1
     QKV                                    0.500     0.500 ############
     all-reduce: MLP projection             0.250     0.250 ######
     all-reduce: of these, waiting          0.100     0.100 ##
     the step, on the rank                  1.000     1.000

6  "<|output_start|>"
   forced: it was not drawn
"#;
        assert_eq!(tokens(&value, 5, Bars::Ascii), expected);
    }
}
