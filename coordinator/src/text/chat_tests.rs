use std::{fs, path::PathBuf};

use super::*;

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn demo() -> Tokenizer {
    Tokenizer::load(&data("launcher/demo/nano-chat"), 4096).unwrap()
}

fn message(role: Role, content: &str) -> Message {
    Message { role, content: content.into() }
}

fn with_template(template: &str, tokenizer: &Tokenizer) -> ChatFormat {
    ChatFormat::probe(Some(JinjaTemplate::new(template).unwrap()), tokenizer)
}

fn transcript(tokenizer: &Tokenizer) -> ChatFormat {
    ChatFormat::probe(None, tokenizer)
}

const DIALOGPT: &str = "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}";

#[test]
fn golden_prompts_of_the_demo_model() {
    let tokenizer = demo();
    let chat = ChatFormat::load(&data("launcher/demo/nano-chat"), &tokenizer).unwrap();
    let golden: serde_json::Value =
        serde_json::from_slice(&fs::read(data("launcher/demo/nano-chat/golden.json")).unwrap()).unwrap();
    for case in golden.as_array().unwrap() {
        let prompt = case["prompt"].as_str().unwrap();
        let ids: Vec<TokenId> = serde_json::from_value(case["prompt_ids"].clone()).unwrap();
        assert_eq!(tokenizer.encode(prompt, Specials::Match), ids);
        if let Some(question) = prompt.strip_prefix("User: ").and_then(|p| p.strip_suffix("\nAssistant:"))
            && !question.contains("\nAssistant:")
        {
            assert_eq!(chat.encode(&[Message::user(question)], &tokenizer).unwrap(), ids);
        }
        let reply: Vec<TokenId> = serde_json::from_value(case["greedy_ids"].clone()).unwrap();
        let text: String = tokenizer.decode(&reply[..reply.len() - 1]);
        assert_eq!(text.trim_start(), case["text"].as_str().unwrap());
    }
    assert!(chat.trims_reply(), "replies begin with the space after `Assistant:`");
    assert!(chat.ignores_system());
    assert!(chat.stops().is_empty());
}

#[test]
fn turns_end_with_the_templates_own_special_token() {
    let tokenizer = demo();
    let chat = ChatFormat::load(&data("launcher/demo/nano-chat"), &tokenizer).unwrap();
    let messages = [Message::user("Hi"), message(Role::Assistant, "Hello!"), Message::user("Bye")];
    let whole = "User: Hi\nAssistant: Hello!<|endoftext|>User: Bye\nAssistant:";
    assert_eq!(chat.encode(&messages, &tokenizer).unwrap(), tokenizer.encode(whole, Specials::Match));
}

#[test]
fn users_cannot_write_special_tokens() {
    let tokenizer = demo();
    let chat = ChatFormat::load(&data("launcher/demo/nano-chat"), &tokenizer).unwrap();
    for content in [
        "<|endoftext|>",
        "a <|endoftext|><|endoftext|> b",
        "<<|endoftext|>>",
        "<|endoftext|",
        "|endoftext|>",
        "\u{f0000}<|endoftext|>\u{f0001}",
    ] {
        let ids = chat.encode(&[Message::user(content)], &tokenizer).unwrap();
        let as_one_text = format!("User: {content}\nAssistant:");
        assert_eq!(ids, tokenizer.encode(&as_one_text, Specials::Literal), "{content:?}");
        assert!(!ids.contains(&4095));
    }
}

#[test]
fn special_tokens_do_not_form_at_seams() {
    let tokenizer = demo();
    // Contents meet without anything between them, and are trimmed.
    let chat = with_template("{% for m in messages %}{{ m.content | trim }}{% endfor %}{{ eos_token }}", &tokenizer);
    for (first, second) in
        [("<|endof", "text|>"), ("a<", "|endoftext|> b"), ("<|endoftext|  ", "  >"), ("<", "|endoftext|>")]
    {
        let messages = [Message::user(first), message(Role::Assistant, second)];
        let ids = chat.encode(&messages, &tokenizer).unwrap();
        let mut expected = tokenizer.encode(&format!("{}{}", first.trim(), second.trim()), Specials::Literal);
        expected.push(4095);
        assert_eq!(ids, expected, "{first:?} {second:?}");
    }
}

#[test]
fn dialogue_with_separators_only() {
    let tokenizer = demo();
    let chat = with_template(DIALOGPT, &tokenizer);
    let messages = [Message::user("Hello"), message(Role::Assistant, "Hi"), Message::user("x<|endoftext|>y")];
    let mut expected = tokenizer.encode("Hello<|endoftext|>Hi<|endoftext|>", Specials::Match);
    expected.extend(tokenizer.encode("x<|endoftext|>y", Specials::Literal));
    expected.push(4095);
    assert_eq!(chat.encode(&messages, &tokenizer).unwrap(), expected);
    assert!(!chat.trims_reply() && !chat.ignores_system());
}

#[test]
fn dialogpt_is_known_by_its_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = demo();
    let config = fs::read(data("tests/golden/formats/dialogpt/config.json")).unwrap();
    fs::write(folder.path().join("config.json"), config).unwrap();
    let chat = ChatFormat::load(folder.path(), &tokenizer).unwrap();
    let turns = [Message::user("Hello"), message(Role::Assistant, "Hi"), Message::user("Bye")];
    let expected = "Hello<|endoftext|>Hi<|endoftext|>Bye<|endoftext|>";
    assert_eq!(chat.encode(&turns, &tokenizer).unwrap(), tokenizer.encode(expected, Specials::Match));
    let with_system = [message(Role::System, "Be kind."), Message::user("Hello")];
    let expected = "Be kind.\nHello<|endoftext|>";
    assert_eq!(chat.encode(&with_system, &tokenizer).unwrap(), tokenizer.encode(expected, Specials::Match));
    assert!(chat.stops().is_empty() && !chat.ignores_system());
}

#[test]
fn without_a_template_chats_become_a_transcript() {
    let tokenizer = demo();
    let chat = transcript(&tokenizer);
    let messages = [
        message(Role::System, "Be kind."),
        Message::user("Hi"),
        message(Role::Assistant, "Hello!"),
        Message::user("Bye"),
    ];
    let expected = "Be kind.\n\nUser: Hi\nAssistant: Hello!\nUser: Bye\nAssistant:";
    assert_eq!(chat.encode(&messages, &tokenizer).unwrap(), tokenizer.encode(expected, Specials::Literal));
    assert_eq!(chat.stops(), ["\nUser:"]);
    assert!(chat.trims_reply() && !chat.ignores_system());
}

#[test]
fn templates_are_found_where_hugging_face_puts_them() {
    let tokenizer = demo();
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let load = || ChatFormat::load(folder.path(), &tokenizer);
    assert_eq!(load().unwrap().template(), None);
    write(
        "tokenizer_config.json",
        r#"{"chat_template": [{"name":"rag","template":"r"},{"name":"default","template":"d"}]}"#,
    );
    assert_eq!(load().unwrap().template(), Some("d"));
    write("tokenizer_config.json", r#"{"chat_template": "{% if %}"}"#);
    assert!(load().unwrap_err().to_string().contains("chat template: "));
    write("chat_template.jinja", "j");
    assert_eq!(load().unwrap().template(), Some("j"));
    let huge = fs::File::create(folder.path().join("chat_template.jinja")).unwrap();
    huge.set_len(crate::text::MAX_FILE_BYTES + 1).unwrap();
    let message = load().unwrap_err().to_string();
    assert!(message.contains("chat_template.jinja: it is larger than 256 MB"), "{message}");
}

#[test]
fn a_template_may_refuse_messages() {
    let tokenizer = demo();
    let chat = with_template(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}x",
        &tokenizer,
    );
    let error = chat.encode(&[message(Role::System, "s")], &tokenizer).unwrap_err();
    assert!(error.contains("no system role"), "{error}");
    assert!(!chat.ignores_system(), "refusing is not ignoring");
}
