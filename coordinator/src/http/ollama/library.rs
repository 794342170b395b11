//! The one model of this server, as a library of Ollama's: what can be asked of it, and what cannot be done to it.

use axum::{
    Json,
    extract::State,
    http::Method,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use crate::{
    clock::UtcTime,
    config::ModelCard,
    http::{App, Failure, Fields, model_name},
};

/// A time that does not come: the model stays loaded as long as the server runs.
const NEVER: &str = "9999-12-31T23:59:59Z";

/// The version of Ollama that clients may take this server for: none is known to ask for more than 0.6.4.
const OLLAMA_VERSION: &str = "0.12.11";

/// `GET /api/version`: clients take it apart into integers, and refuse what is too old for them.
pub(crate) async fn version(State(app): State<App>) -> Json<Value> {
    Json(json!({"version": OLLAMA_VERSION, "nanoinfer": app.engine.card().build_id}))
}

/// `GET /api/tags`: what there is.
pub(crate) async fn tags(State(app): State<App>) -> Json<Value> {
    let card = app.engine.card();
    let mut entry = entry(card);
    entry["modified_at"] = UtcTime::of(card.started).rfc3339().into();
    Json(json!({"models": [entry]}))
}

/// `GET /api/ps`: what is loaded.
pub(crate) async fn ps(State(app): State<App>) -> Json<Value> {
    let card = app.engine.card();
    let mut entry = entry(card);
    entry["expires_at"] = NEVER.into();
    entry["size_vram"] = 0.into();
    entry["context_length"] = card.shape.context.into();
    Json(json!({"models": [entry]}))
}

/// `POST /api/show`: everything about a model.
pub(crate) async fn show(State(app): State<App>, mut fields: Fields) -> Result<Json<Value>, Failure> {
    named(&app, &mut fields)?;
    fields.ignore("verbose");
    let _ = fields.finish(&app.unknown_fields);
    let card = app.engine.card();
    let text = app.engine.text();
    let defaults = &text.defaults;
    let parameters: Vec<String> = [
        defaults.temperature.map(|x| format!("temperature {x}")),
        defaults.top_k.map(|x| format!("top_k {x}")),
        defaults.top_p.map(|x| format!("top_p {x}")),
        defaults.max_new_tokens.map(|x| format!("num_predict {x}")),
    ]
    .into_iter()
    .flatten()
    .collect();
    let mut capabilities = vec!["completion"];
    capabilities.extend(text.chat.calls.map(|_| "tools"));
    capabilities.extend(text.chat.thinks.then_some("thinking"));
    Ok(Json(json!({
        "modelfile": format!("FROM {}", model_name::shown(card)),
        "parameters": parameters.join("\n"),
        "template": text.chat.template().unwrap_or_default(),
        "modified_at": UtcTime::of(card.started).rfc3339(),
        "details": details(card),
        "capabilities": capabilities,
        "model_info": model_info(card),
    })))
}

/// Sizes under the keys that a GGUF file has for them.
fn model_info(card: &ModelCard) -> Value {
    let (shape, family) = (&card.shape, card.shape.model_type());
    let sizes = [
        ("block_count", shape.layers),
        ("context_length", shape.context),
        ("embedding_length", shape.width),
        ("feed_forward_length", shape.mlp.inner),
        ("attention.head_count", shape.attention.heads),
        ("attention.head_count_kv", shape.attention.kv_heads),
        ("vocab_size", shape.vocab_size),
    ];
    let mut info = json!({"general.architecture": family, "general.parameter_count": card.parameters});
    sizes.into_iter().for_each(|(key, size)| info[format!("{family}.{key}")] = size.into());
    info
}

/// `POST /api/pull`: what is served is there already, and nothing else can be had.
pub(crate) async fn pull(State(app): State<App>, mut fields: Fields) -> Result<Response, Failure> {
    named(&app, &mut fields)?;
    fields.ignore("insecure username password");
    let stream = fields.boolean("stream")?.unwrap_or(true);
    let _ = fields.finish(&app.unknown_fields);
    let success = json!({"status": "success"});
    if !stream {
        return Ok(Json(success).into_response());
    }
    let lines = format!("{}\n{success}\n", json!({"status": "pulling manifest"}));
    Ok(([("content-type", "application/x-ndjson")], lines).into_response())
}

/// `POST /api/embed`, `/api/embeddings` and `/v1/embeddings`: known, and not what this model does. The mean of its last states would
/// be numbers, and not what anybody looks up texts by.
pub(crate) async fn embed(State(app): State<App>, mut fields: Fields) -> Result<Response, Failure> {
    named(&app, &mut fields)?;
    let message = format!("\"{}\" does not support embeddings", model_name::shown(app.engine.card()));
    let hint = "embeddings are what a model is trained for, like nomic-embed-text or all-MiniLM-L6-v2: llama.cpp's `llama-server \
        --embeddings`, text-embeddings-inference or Ollama serve those";
    Err(Failure::at("model", message).unsupported().with_hint(hint))
}

/// `create`, `copy`, `delete`, `push` and the blobs behind them.
pub(crate) async fn unchangeable(method: Method) -> Failure {
    let message = format!("this server serves one model, which a {method} cannot change");
    Failure::at("model", message).unsupported().with_hint("nanoinfer-launch --model chooses another")
}

/// Takes the model's name, which Ollama spells in two ways.
fn named(app: &App, fields: &mut Fields) -> Result<(), Failure> {
    let field = if fields.has("model") { "model" } else { "name" };
    let name = fields.string(field)?.ok_or_else(|| Failure::field("model", "is missing"))?;
    model_name::check(&name, app.engine.card())
}

fn entry(card: &ModelCard) -> Value {
    json!({
        "name": model_name::shown(card),
        "model": model_name::shown(card),
        "size": card.weight_bytes.iter().sum::<u64>(),
        "digest": card.digest,
        "details": details(card),
    })
}

fn details(card: &ModelCard) -> Value {
    json!({
        "parent_model": "",
        "format": "safetensors",
        "family": card.shape.model_type(),
        "families": [card.shape.model_type()],
        "parameter_size": parameter_size(card.parameters),
        "quantization_level": card.dtype.to_string().to_uppercase(),
    })
}

/// `124.4M`, as Ollama writes it.
fn parameter_size(parameters: usize) -> String {
    match parameters as f64 {
        n if n >= 1e9 => format!("{:.1}B", n / 1e9),
        n => format!("{:.1}M", n / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_as_ollama_writes_them() {
        assert_eq!([5_900_000, 124_439_808, 1_557_611_200].map(parameter_size), ["5.9M", "124.4M", "1.6B"]);
    }
}
