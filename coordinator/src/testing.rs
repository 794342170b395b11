//! Stand-ins for tests: the demo model's text, and an engine that answers from a script.

use std::{
    collections::VecDeque,
    fs::File,
    io::{Read, Seek},
    path::Path,
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime},
};

use nanoinfer_shared::{
    ModelShape, Partition,
    protocol::{Category, DType, Stage, StepTimes, TokenId},
};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::{
    engine::{
        config::ModelCard,
        explanation::{Alternative, Explanation, Narrowing, Processed, StepReport},
        handle::{self, Door, EngineHandle},
        request::{Event, FinishReason, PromptLogprobs, Request, TokenLogprobs},
        submission::{Command, Submission},
    },
    text::{ModelText, Specials, TextEngine},
};

static DEMO: LazyLock<(ModelShape, Arc<ModelText>)> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../launcher/demo/nano-chat");
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let shape = ModelShape::from_config_json(&config).unwrap();
    let text = ModelText::load(&folder, &shape).unwrap();
    (shape, Arc::new(text))
});

pub(crate) fn demo_text() -> Arc<ModelText> {
    DEMO.1.clone()
}

pub(crate) fn demo_card() -> ModelCard {
    ModelCard {
        name: "someone/nano-chat".into(),
        served_name: None,
        shape: DEMO.0.clone(),
        parameters: DEMO.0.parameters(),
        dtype: DType::F32,
        partition: Partition::new(&DEMO.0, 2).unwrap(),
        weight_bytes: vec![6_000_000, 5_900_000],
        digest: "00c0ffee".into(),
        started: SystemTime::now(),
        build_id: "0.1.0-test".into(),
    }
}

/// What is logged on this thread from here on: all there is, where a test's server has no other.
pub(crate) struct Logged {
    log: Arc<File>,
    _subscribed: tracing::subscriber::DefaultGuard,
}

impl Logged {
    pub(crate) fn start() -> Self {
        let log = Arc::new(tempfile::tempfile().unwrap());
        let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
        Self { log, _subscribed: tracing::subscriber::set_default(subscriber) }
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        (&*self.log).rewind().unwrap();
        (&*self.log).read_to_string(&mut text).unwrap();
        text
    }
}

/// What a scripted engine does with one request.
pub(crate) enum Act {
    /// Sends these.
    Events(Vec<Event>),
    /// Sends these, and then nothing until the receiver is dropped, which it reports here.
    Hang(Vec<Event>, mpsc::UnboundedSender<usize>),
}

/// An engine that takes requests and does nothing with them.
pub(crate) fn silent(queue: usize) -> (EngineHandle, mpsc::Receiver<Command>) {
    silent_to(DEMO.0.context, queue)
}

/// The same for texts of so many positions.
fn silent_to(n_positions: usize, queue: usize) -> (EngineHandle, mpsc::Receiver<Command>) {
    handle::channel(Door { vocab_size: DEMO.0.vocab_size, n_positions, max_queue: queue, max_queue_tokens: 1 << 20 })
}

/// An engine that handles one request after another by a script.
pub(crate) fn scripted(queue: usize, script: impl Fn(&Request) -> Act + Send + 'static) -> EngineHandle {
    scripted_to(DEMO.0.context, queue, script)
}

/// The same for texts of so many positions.
pub(crate) fn scripted_to(
    n_positions: usize,
    queue: usize,
    script: impl Fn(&Request) -> Act + Send + 'static,
) -> EngineHandle {
    let (handle, mut receiver) = silent_to(n_positions, queue);
    handle.status().set_ready(true);
    tokio::spawn(async move {
        while let Some(command) = receiver.recv().await {
            let Command::Submit { sequences: submissions, .. } = command else { continue };
            for Submission { request, events, .. } in submissions {
                let (list, hang) = match script(&request) {
                    Act::Events(list) => (list, None),
                    Act::Hang(list, dropped) => (list, Some(dropped)),
                };
                for event in list {
                    if events.send(event).await.is_err() {
                        break;
                    }
                }
                if let Some(dropped) = hang {
                    tokio::spawn(async move {
                        events.closed().await;
                        let _ = dropped.send(request.choice as usize);
                    });
                }
            }
        }
    });
    handle
}

/// An engine of the demo model that answers everything with `reply`.
pub(crate) fn saying(reply: &'static str) -> TextEngine {
    engine(scripted(64, move |request| Act::Events(speak(request, reply))))
}

pub(crate) fn engine(handle: EngineHandle) -> TextEngine {
    TextEngine::new(handle, demo_text(), Arc::new(demo_card()))
}

/// A model that thinks before it answers, with the demo's tokens.
static THINKING: LazyLock<Arc<ModelText>> = LazyLock::new(|| {
    let template = "{% for m in messages %}<{{ m.role }}>{% if m.reasoning_content %}<think>{{ m.reasoning_content }}\
        </think>{% endif %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>\
        {% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}";
    with_template(template)
});

/// Such a model over an engine.
pub(crate) fn thinking(handle: EngineHandle) -> TextEngine {
    TextEngine::new(handle, THINKING.clone(), Arc::new(demo_card()))
}

/// A model with the demo's tokens and such a template.
fn with_template(template: &str) -> Arc<ModelText> {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../launcher/demo/nano-chat");
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(demo.join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    Arc::new(ModelText::load(folder.path(), &DEMO.0).unwrap())
}

/// A model that calls functions as Qwen's do.
static CALLING: LazyLock<Arc<ModelText>> = LazyLock::new(|| {
    with_template(
        "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}<tool_call>…</tool_call>{% endif %}\
        {% for m in messages %}<{{ m.role }}>{{ m.name }}:{{ m.content }}{% for call in m.tool_calls %}<tool_call>\n\
        {\"name\": \"{{ call.function.name }}\", \"arguments\": {{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}\
        {% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
    )
});

pub(crate) fn calling_text() -> Arc<ModelText> {
    CALLING.clone()
}

/// Positions of such a model: what describes tools is longer than the demo's context.
pub(crate) const CALLING_POSITIONS: usize = 1024;

/// Such a model over an engine.
pub(crate) fn calling(handle: EngineHandle) -> TextEngine {
    let mut card = demo_card();
    card.shape.context = CALLING_POSITIONS;
    TextEngine::new(handle, CALLING.clone(), Arc::new(card))
}

/// A model that has something calculated, with the demo's tokens but the last four words, in whose place are the marks.
static CALCULATING: LazyLock<Arc<ModelText>> = LazyLock::new(|| {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../launcher/demo/nano-chat/tokenizer.json");
    let mut json: Value = serde_json::from_str(&std::fs::read_to_string(demo).unwrap()).unwrap();
    json["model"]["vocab"].as_object_mut().unwrap().retain(|_, id| id.as_u64().unwrap() < 4091);
    let merges = json["model"]["merges"].as_array_mut().unwrap();
    merges.truncate(merges.len() - 4);
    let mark = |(id, name): (u32, &str)| {
        let mut token = json["added_tokens"][0].clone();
        (token["id"], token["content"]) = (id.into(), format!("<|{name}|>").into());
        token
    };
    let mut added: Vec<Value> =
        (4091..).zip(["python_start", "python_end", "output_start", "output_end"]).map(mark).collect();
    added.push(json["added_tokens"][0].clone());
    json["added_tokens"] = added.into();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    Arc::new(ModelText::load(folder.path(), &DEMO.0).unwrap())
});

pub(crate) fn calculating_text() -> Arc<ModelText> {
    CALCULATING.clone()
}

/// Such a model, which says `reply`, marks and all.
pub(crate) fn calculating(reply: &'static str) -> TextEngine {
    let mut ids = CALCULATING.tokenizer.encode(reply, Specials::Match).unwrap();
    ids.push(4095);
    let handle = scripted(64, move |request| Act::Events(speak_tokens(request, &ids)));
    TextEngine::new(handle, CALCULATING.clone(), Arc::new(demo_card()))
}

/// The events of an engine that says `reply` and then ends the text, as far as the request's limits allow.
pub(crate) fn speak(request: &Request, reply: &str) -> Vec<Event> {
    let tokenizer = &demo_text().tokenizer;
    let mut ids = tokenizer.encode(reply, Specials::Match).unwrap();
    ids.push(4095);
    speak_tokens(request, &ids)
}

pub(crate) fn speak_tokens(request: &Request, ids: &[TokenId]) -> Vec<Event> {
    let mut events = Vec::new();
    if let Some(PromptLogprobs { top, from }) = request.sampling.prompt_logprobs {
        let scored = |i: usize| i >= from.max(1);
        let scores = request.prompt.iter().enumerate().map(|(i, &id)| scored(i).then(|| score(id, top))).collect();
        events.push(Event::Prompt(scores));
    }
    let (mut next, mut drawn, mut forced) = (request.next.clone(), ids.iter(), VecDeque::new());
    let mut stopped = false;
    for _ in 0..request.max_tokens {
        let is_forced = !forced.is_empty();
        let Some(id) = forced.pop_front().or_else(|| drawn.next().copied()) else { break };
        forced.extend(next.iter_mut().flat_map(|next| next.after(id)));
        events.push(Event::Token {
            id,
            forced: is_forced,
            logprobs: request.sampling.logprobs.filter(|_| !is_forced).map(|top| score(id, top)),
            explanation: (request.sampling.explain && !is_forced).then(|| Box::new(explanation(id))),
        });
        stopped = drawn.len() == 0 && forced.is_empty();
    }
    events.push(Event::Finished(if stopped { FinishReason::Stop } else { FinishReason::Length }));
    events
}

/// A made-up score: the most likely tokens are always 0, 1, 2 …
pub(crate) fn score(id: TokenId, top: u32) -> TokenLogprobs {
    let of = |id: TokenId| -0.1 - id as f32 / 7.0;
    TokenLogprobs { id, logprob: of(id), top: (0..top).map(|id| (id, of(id))).collect() }
}

/// A made-up explanation: greedy, in a step of two ranks.
fn explanation(id: TokenId) -> Explanation {
    let stage = |category, name: &str| Stage { category, name: name.into(), time: Duration::from_micros(300) };
    let stages = vec![stage(Category::Product, "QKV"), stage(Category::Waiting, "waiting for peers")];
    let times = StepTimes { whole: Duration::from_micros(700), stages };
    let ranks = vec![times.clone(), times];
    let step = StepReport { step: 3, sequences: 1, tokens: 1, elapsed: Duration::from_millis(1), ranks };
    let greedy =
        Processed { processor: "temperature", value: Some(0.0), changed: 0, removed: 4095, removed_mass: 0.25 };
    let alternatives = vec![Alternative { id, logprob: -0.1, probability: 1.0, removed_by: None }];
    Explanation { narrowing: Narrowing { chain: vec![greedy], alternatives }, step: Arc::new(step) }
}
