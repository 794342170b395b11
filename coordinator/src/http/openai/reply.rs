//! The objects that `/v1/completions` and `/v1/chat/completions` answer with: the same around their choices, and most of a choice.

use std::{iter, sync::Arc};

use axum::response::Response;
use nanoinfer_shared::protocol::TokenId;
use serde::Serialize;

use super::request::ReplyOptions;
use crate::{
    clock::UtcTime,
    http::{
        App,
        error::{Failure, Form},
        explain::Explained,
        logprobs::{ChatLogprobs, CompletionLogprobs, PromptScores},
        model_name, sampling,
        writer::{self, Framing, Objects, Writer, json},
    },
    request::FinishReason,
    text::{Calculation, CallPiece, Chunk, GenerateRequest, ModelText, prompt::PreparedPrompt},
};

/// What the answers of one route have of their own.
pub(crate) trait Route: Send + 'static {
    /// What ids begin with.
    const ID: &str;
    /// `object` of a whole reply, and of a piece.
    const OBJECTS: [&str; 2];

    /// Before a stream's first piece of a choice.
    fn opening<'a>(&self, _about: &'a About, _index: usize) -> Option<Choice<'a>> {
        None
    }

    /// The next piece of a choice.
    fn piece<'a>(&mut self, about: &'a About, chunk: &'a Chunk) -> Choice<'a>;

    /// A whole one.
    fn whole<'a>(&mut self, about: &'a About, chunk: &'a Chunk) -> Choice<'a> {
        self.piece(about, chunk)
    }

    /// Scores of the prompt that stand beside the choices.
    fn beside<'a>(&self, _about: &'a About, _first: Option<&'a Chunk>) -> Option<PromptScores<'a>> {
        None
    }
}

/// What an answer is about.
pub(crate) struct About {
    pub(crate) text: Arc<ModelText>,
    prompts: Vec<PreparedPrompt>,
    pub(crate) reply: ReplyOptions,
}

/// One entry of `choices`: a whole one, or the next piece.
#[derive(Default, Serialize)]
pub(crate) struct Choice<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) delta: Option<Message<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) explain: Option<Explained<'a>>,
    pub(crate) finish_reason: Option<&'static str>,
    pub(crate) index: usize,
    pub(crate) logprobs: Option<Logprobs<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<Message<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_logprobs: Option<PromptScores<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_token_ids: Option<&'a [TokenId]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_ids: Option<Vec<TokenId>>,
}

/// What the model says in a chat, or what follows of it.
#[derive(Default, Serialize)]
pub(crate) struct Message<'a> {
    /// What the model had calculated before the content, or so far.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(crate) calculations: &'a [Calculation],
    /// Null in a whole one of which nothing but thinking or calls came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<Option<&'a str>>,
    /// What the model thought before it; not there where it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reasoning_content: Option<&'a str>,
    /// Null in a whole one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) refusal: Option<()>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tool_calls: Vec<ToolCall>,
}

/// A call of a function, or what follows of one.
#[derive(Serialize)]
pub(crate) struct ToolCall {
    function: Function,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// In streams.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
}

#[derive(Serialize)]
struct Function {
    arguments: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

impl ToolCall {
    /// The first piece of a call gives it an id.
    pub(crate) fn new(piece: &CallPiece, streams: bool) -> Self {
        let begins = piece.name.is_some();
        Self {
            function: Function { arguments: piece.arguments.clone(), name: piece.name.clone() },
            id: begins.then(|| format!("call_{:016x}", sampling::random())),
            index: streams.then_some(piece.index),
            kind: begins.then_some("function"),
        }
    }
}

/// The two forms of them.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum Logprobs<'a> {
    Chat { content: ChatLogprobs<'a>, refusal: () },
    Completion(CompletionLogprobs<'a>),
}

impl About {
    /// The prompt of a choice.
    pub(crate) fn prompt(&self, choice: usize) -> &PreparedPrompt {
        &self.prompts[choice / self.reply.n]
    }

    /// The field `prompt_token_ids` of a choice.
    pub(crate) fn prompt_token_ids(&self, choice: usize) -> Option<&[TokenId]> {
        self.reply.token_ids.then(|| self.prompt(choice).ids.as_slice())
    }

    /// The field `prompt_logprobs` of what has a choice's scores.
    pub(crate) fn prompt_logprobs<'a>(&'a self, chunk: &'a Chunk) -> Option<PromptScores<'a>> {
        let (top, scores) = self.reply.prompt_logprobs.zip(chunk.prompt_logprobs.as_deref())?;
        Some(PromptScores { tokenizer: &self.text.tokenizer, top: top as usize, scores })
    }

    /// What all choices have.
    pub(crate) fn choice<'a>(&'a self, chunk: &'a Chunk) -> Choice<'a> {
        let (tokenizer, tokens) = (&self.text.tokenizer, &chunk.tokens);
        let finish_reason = chunk.finish.map(|reason| match reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        });
        Choice {
            explain: self.reply.explain.then_some(Explained { tokenizer, tokens }),
            finish_reason,
            index: chunk.index,
            token_ids: self.reply.token_ids.then(|| tokens.iter().map(|token| token.id).collect()),
            ..Choice::default()
        }
    }
}

/// Generates, and answers in the form of a route.
pub(crate) async fn answer<R: Route>(
    app: &App,
    request: GenerateRequest,
    left_out: Vec<String>,
    reply: ReplyOptions,
    route: R,
) -> Result<Response, Failure> {
    writer::answer(app, request, left_out, reply.stream, |generation, warnings| {
        let (card, prompts) = (app.engine.card(), generation.prompts().to_vec());
        let prompt_tokens = prompts.iter().map(|prompt| prompt.ids.len()).sum();
        ReplyWriter {
            envelope: Envelope {
                created: UtcTime::now().unix_seconds(),
                id: format!("{}-{:016x}", R::ID, sampling::random()),
                model: model_name::shown(card).to_owned(),
                object: R::OBJECTS[usize::from(reply.stream)],
            },
            fingerprint: card.build_id.clone(),
            usage: Usage { completion_tokens: 0, prompt_tokens, total_tokens: prompt_tokens },
            warnings,
            about: About { text: app.engine.text().clone(), prompts, reply },
            route,
        }
    })
    .await
}

struct ReplyWriter<R> {
    envelope: Envelope,
    fingerprint: String,
    usage: Usage,
    /// To be said in the next object.
    warnings: Vec<String>,
    about: About,
    route: R,
}

/// The same in every object of an answer.
#[derive(Serialize)]
struct Envelope {
    created: u64,
    id: String,
    model: String,
    object: &'static str,
}

/// Tokens read and written; a prompt counts once, whatever its choices.
#[derive(Clone, Copy, Serialize)]
struct Usage {
    completion_tokens: usize,
    prompt_tokens: usize,
    total_tokens: usize,
}

/// A reply, or a piece of one.
#[derive(Serialize)]
struct Reply<'a> {
    /// Before all else: [`whole`](Writer::whole) counts on it.
    choices: &'a [Choice<'a>],
    #[serde(flatten)]
    envelope: &'a Envelope,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptScores<'a>>,
    system_fingerprint: &'a str,
    /// Null in the chunks before the one that has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'a [String],
}

impl<R: Route> ReplyWriter<R> {
    fn around<'a>(&'a self, choices: &'a [Choice<'a>]) -> Reply<'a> {
        Reply {
            choices,
            envelope: &self.envelope,
            prompt_logprobs: None,
            system_fingerprint: &self.fingerprint,
            usage: Some(Some(self.usage)),
            warnings: &self.warnings,
        }
    }

    fn push(&self, choice: Choice, out: &mut Objects) {
        let ReplyOptions { include_usage, continuous_usage, .. } = self.about.reply;
        let usage = if continuous_usage { Some(Some(self.usage)) } else { include_usage.then_some(None) };
        out.push(&Reply { usage, ..self.around(&[choice]) });
    }
}

impl<R: Route> Writer for ReplyWriter<R> {
    const FRAMING: &'static Framing = &writer::SSE;
    const FORM: Form = Form::OpenAi;

    fn count(&mut self, chunk: &Chunk) {
        self.usage.completion_tokens += chunk.tokens.len();
        self.usage.total_tokens += chunk.tokens.len();
    }

    fn begin(&mut self, out: &mut Objects) {
        for index in 0..self.about.reply.n {
            if let Some(choice) = self.route.opening(&self.about, index) {
                self.push(choice, out);
                self.warnings.clear();
            }
        }
    }

    fn piece(&mut self, chunk: &Chunk, out: &mut Objects) {
        let choice = self.route.piece(&self.about, chunk);
        self.push(choice, out);
        self.warnings.clear();
    }

    fn end(&mut self, out: &mut Objects) {
        if self.about.reply.include_usage {
            out.push(&self.around(&[]));
        }
    }

    /// The choices, each made when it is its turn, between what stands before and behind them.
    fn whole(mut self, choices: Vec<Chunk>) -> impl Iterator<Item = Vec<u8>> + Send + 'static {
        let prompt_logprobs = self.route.beside(&self.about, choices.first());
        let mut head = json(&Reply { prompt_logprobs, ..self.around(&[]) });
        let tail = head.split_off("{\"choices\":[".len());
        let choices = choices.into_iter().enumerate().map(move |(i, chunk)| {
            let mut choice = json(&self.route.whole(&self.about, &chunk));
            if i > 0 {
                choice.insert(0, b',');
            }
            choice
        });
        iter::once(head).chain(choices).chain(iter::once(tail))
    }
}
