use super::*;
use crate::testing::demo_text;

const WALL: usize = 256;

fn room(max: MaxTokens) -> Room {
    Room { wall: WALL, max, keep_last: None }
}

fn text_prompt(text: &str) -> Prompt {
    Prompt::Text { text: text.into(), add_special_tokens: true }
}

fn message(role: Role, content: impl Into<String>) -> Message {
    Message::new(role, content)
}

fn conversation(turns: usize) -> Vec<Message> {
    let mut messages = Vec::new();
    for turn in 0..turns {
        messages.push(Message::user(format!("What is {turn} + 5?")));
        messages.push(message(Role::Assistant, format!("{turn} + 5 is {}.", turn + 5)));
    }
    messages.push(Message::user("And the capital of France?"));
    messages
}

#[test]
fn completions_fit_or_are_cut_and_prompts_that_do_not_are_refused_with_both_numbers() {
    let text = demo_text();
    let tokens = |n: usize| Prompt::Tokens(vec![7; n]);
    let prepare = |n, max| tokens(n).prepare(&text, room(max)).map(|p| p.max_tokens);
    assert_eq!(prepare(255, MaxTokens::Given(1)), Ok(1));
    assert_eq!(prepare(256, MaxTokens::Given(0)), Ok(0));
    assert_eq!(prepare(250, MaxTokens::Default(16)), Ok(6));
    assert_eq!(prepare(250, MaxTokens::Wall), Ok(6));
    for asked in [7, usize::MAX] {
        assert_eq!(prepare(250, MaxTokens::Given(asked)), Ok(6));
        let warnings = tokens(250).prepare(&text, room(MaxTokens::Given(asked))).unwrap().warnings;
        assert_eq!(warnings, [format!("max_tokens {asked} was cut to 6: the model's context ends at 256 tokens")]);
    }
    let whole = Prompt::Chat { messages: conversation(1), truncate: false, layout: ChatLayout::default() };
    let refused = whole.prepare(&text, room(MaxTokens::Given(256))).unwrap_err();
    assert!(matches!(refused, GenerateError::MaxTokensTooLarge { max_tokens: 256, wall: 256, .. }), "{refused}");
    assert!(refused.to_string().contains("hint: leave max_tokens out"), "{refused}");
    for max in [MaxTokens::Wall, MaxTokens::Default(16), MaxTokens::Given(1)] {
        assert_eq!(prepare(256, max), Err(GenerateError::PromptTooLong { tokens: 256, exact: true, wall: 256 }));
    }
    assert!(prepare(257, MaxTokens::Given(0)).unwrap_err().to_string().contains("256 tokens, but the prompt has 257"));
}

#[test]
fn hopeless_texts_are_refused_without_encoding_them() {
    let text = demo_text();
    let error = text_prompt(&"x".repeat(4 << 20)).prepare(&text, room(MaxTokens::Wall)).unwrap_err();
    assert!(matches!(error, GenerateError::PromptTooLong { exact: false, wall: 256, .. }), "{error}");
    assert!(error.to_string().contains("at least"));
}

#[test]
fn an_empty_text_begins_a_document_and_empty_tokens_are_refused() {
    let text = demo_text();
    assert_eq!(text_prompt("").prepare(&text, room(MaxTokens::Wall)).unwrap().ids, [4095]);
    assert_eq!(Prompt::Tokens(vec![]).prepare(&text, room(MaxTokens::Wall)), Err(GenerateError::EmptyPrompt));
    let unknown = Prompt::Tokens(vec![1, 4096]).prepare(&text, room(MaxTokens::Wall));
    assert_eq!(unknown, Err(GenerateError::UnknownToken { field: "prompt", id: 4096, vocab_size: 4096 }));
}

#[test]
fn chats_lose_as_few_of_the_oldest_turns_as_needed() {
    let text = demo_text();
    let messages = conversation(40);
    let prepared = Prompt::Chat { messages: messages.clone(), truncate: true, layout: ChatLayout::default() }
        .prepare(&text, room(MaxTokens::Wall))
        .unwrap();
    assert!(prepared.ids.len() <= 192 && prepared.ids.len() > 160, "{}", prepared.ids.len());
    assert_eq!(prepared.ids.len() + prepared.max_tokens, WALL);
    assert!(prepared.warnings[0].contains("oldest messages were dropped"), "{:?}", prepared.warnings);
    let rendered = text.tokenizer.decode(&prepared.ids);
    assert!(rendered.starts_with("User: What is "), "whole turns go: {rendered}");
    assert!(rendered.ends_with("User: And the capital of France?\nAssistant:"));

    let refused =
        Prompt::Chat { messages, truncate: false, layout: ChatLayout::default() }.prepare(&text, room(MaxTokens::Wall));
    assert!(matches!(refused, Err(GenerateError::PromptTooLong { wall: 256, .. })));
}

#[test]
fn what_fits_is_left_alone() {
    let text = demo_text();
    let messages = conversation(2);
    let prepared = Prompt::Chat { messages, truncate: true, layout: ChatLayout::default() }
        .prepare(&text, room(MaxTokens::Given(20)))
        .unwrap();
    assert_eq!((prepared.max_tokens, prepared.warnings.len()), (20, 0));
    let prepared = Prompt::single_turn("Hi").prepare(&text, room(MaxTokens::Given(1000))).unwrap();
    assert_eq!(prepared.max_tokens, WALL - prepared.ids.len());
    assert!(prepared.warnings[0].contains("max_tokens 1000 was cut"));
}

#[test]
fn a_single_turn_that_does_not_fit_is_refused() {
    let text = demo_text();
    let prepare = |n: usize| Prompt::single_turn("cat ".repeat(n)).prepare(&text, room(MaxTokens::Wall));
    assert!(matches!(prepare(2000), Err(GenerateError::PromptTooLong { wall: 256, .. })));
    let mut messages = conversation(3);
    messages.push(Message::user("cat ".repeat(2000)));
    let prepared =
        Prompt::Chat { messages, truncate: true, layout: ChatLayout::default() }.prepare(&text, room(MaxTokens::Wall));
    assert!(matches!(prepared, Err(GenerateError::PromptTooLong { wall: 256, .. })));
}

#[test]
fn instructions_survive_and_an_ignored_one_is_reported() {
    let mut messages = conversation(40);
    messages.insert(0, message(Role::System, "Be brief."));
    let turns = turn_starts(&messages);
    assert_eq!(turns.len(), 41);
    let kept = without_turns(&messages, &turns, 40);
    assert_eq!(kept.len(), 2);
    assert_eq!(kept[0].role, Role::System);
    let prepared = Prompt::Chat { messages, truncate: true, layout: ChatLayout::default() }
        .prepare(&demo_text(), room(MaxTokens::Wall))
        .unwrap();
    assert!(prepared.warnings.iter().any(|w| w.contains("system message was ignored")));
}
