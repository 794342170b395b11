use std::{fs, path::PathBuf, sync::LazyLock};

use proptest::prelude::*;

use super::*;
use crate::text::Specials;

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn demo() -> Tokenizer {
    Tokenizer::load(&data("launcher/demo/nano-chat"), 4096).unwrap()
}

fn message(role: Role, content: &str) -> Message {
    Message::new(role, content)
}

fn with_template(template: &str, tokenizer: &Tokenizer) -> ChatFormat {
    ChatFormat::probe(Some(JinjaTemplate::new(template).unwrap()), tokenizer).0
}

fn transcript(tokenizer: &Tokenizer) -> ChatFormat {
    ChatFormat::probe(None, tokenizer).0
}

const DIALOGPT: &str = "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}";

#[test]
fn what_a_calculator_was_asked_needs_a_template_with_a_place_for_it() {
    let tokenizer = &demo();
    let part = Part { kind: PartKind::Python, text: "<|endoftext|>1".into() };
    let said = Message { before: vec![part], ..message(Role::Assistant, "2") };
    let encode = |template: &str| {
        let format = with_template(template, tokenizer);
        format.encode(
            std::slice::from_ref(&said),
            &ChatLayout { ending: Ending::Closed, ..ChatLayout::default() },
            tokenizer,
        )
    };
    assert!(encode("{{ messages[0].content }}").unwrap_err().contains("has no place for what a calculator was asked"));
    let written = encode(
        "{% for message in messages %}{% for part in message.before %}[{{ part.kind }}: {{ part.text }}]{% endfor %}{{ message.content }}{% endfor %}",
    );
    assert_eq!(written.unwrap(), tokenizer.encode("[python: <|endoftext|>1]2", Specials::Literal).unwrap());
}

#[test]
fn golden_prompts_of_the_demo_model() {
    let tokenizer = demo();
    let chat = ChatFormat::load(&data("launcher/demo/nano-chat"), &tokenizer).unwrap();
    let golden: serde_json::Value =
        serde_json::from_slice(&fs::read(data("launcher/demo/nano-chat/golden.json")).unwrap()).unwrap();
    for case in golden.as_array().unwrap() {
        let prompt = case["prompt"].as_str().unwrap();
        let ids: Vec<TokenId> = serde_json::from_value(case["prompt_ids"].clone()).unwrap();
        assert_eq!(tokenizer.encode(prompt, Specials::Match).unwrap(), ids);
        if let Some(question) = prompt.strip_prefix("User: ").and_then(|p| p.strip_suffix("\nAssistant:"))
            && !question.contains("\nAssistant:")
        {
            assert_eq!(chat.encode(&[Message::user(question)], &ChatLayout::default(), &tokenizer).unwrap(), ids);
        }
        let reply: Vec<TokenId> = serde_json::from_value(case["greedy_ids"].clone()).unwrap();
        let text: String = tokenizer.decode(&reply[..reply.len() - 1]);
        assert_eq!(text.trim_start(), case["text"].as_str().unwrap());
    }
    assert!(chat.trims_reply, "replies begin with the space after `Assistant:`");
    assert!(chat.ignores_system);
    assert!(chat.stops().is_empty());
}

#[test]
fn turns_end_with_the_templates_own_special_token() {
    let tokenizer = demo();
    let chat = ChatFormat::load(&data("launcher/demo/nano-chat"), &tokenizer).unwrap();
    let messages = [Message::user("Hi"), message(Role::Assistant, "Hello!"), Message::user("Bye")];
    let whole = "User: Hi\nAssistant: Hello!<|endoftext|>User: Bye\nAssistant:";
    assert_eq!(
        chat.encode(&messages, &ChatLayout::default(), &tokenizer).unwrap(),
        tokenizer.encode(whole, Specials::Match).unwrap()
    );
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
        let ids = chat.encode(&[Message::user(content)], &ChatLayout::default(), &tokenizer).unwrap();
        let as_one_text = format!("User: {content}\nAssistant:");
        assert_eq!(ids, tokenizer.encode(&as_one_text, Specials::Literal).unwrap(), "{content:?}");
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
        let ids = chat.encode(&messages, &ChatLayout::default(), &tokenizer).unwrap();
        let mut expected = tokenizer.encode(&format!("{}{}", first.trim(), second.trim()), Specials::Literal).unwrap();
        expected.push(4095);
        assert_eq!(ids, expected, "{first:?} {second:?}");
    }
}

#[test]
fn dialogue_with_separators_only() {
    let tokenizer = demo();
    let chat = with_template(DIALOGPT, &tokenizer);
    let messages = [Message::user("Hello"), message(Role::Assistant, "Hi"), Message::user("x<|endoftext|>y")];
    let mut expected = tokenizer.encode("Hello<|endoftext|>Hi<|endoftext|>", Specials::Match).unwrap();
    expected.extend(tokenizer.encode("x<|endoftext|>y", Specials::Literal).unwrap());
    expected.push(4095);
    assert_eq!(chat.encode(&messages, &ChatLayout::default(), &tokenizer).unwrap(), expected);
    assert!(!chat.trims_reply && !chat.ignores_system);
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
    assert_eq!(
        chat.encode(&turns, &ChatLayout::default(), &tokenizer).unwrap(),
        tokenizer.encode(expected, Specials::Match).unwrap()
    );
    let with_system = [message(Role::System, "Be kind."), Message::user("Hello")];
    let expected = "Be kind.\nHello<|endoftext|>";
    assert_eq!(
        chat.encode(&with_system, &ChatLayout::default(), &tokenizer).unwrap(),
        tokenizer.encode(expected, Specials::Match).unwrap()
    );
    assert!(chat.stops().is_empty() && !chat.ignores_system);
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
    assert_eq!(
        chat.encode(&messages, &ChatLayout::default(), &tokenizer).unwrap(),
        tokenizer.encode(expected, Specials::Literal).unwrap()
    );
    assert_eq!(chat.stops(), ["\nUser:"]);
    assert!(chat.trims_reply && !chat.ignores_system);
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
    huge.set_len(crate::text::files::MAX_FILE_BYTES + 1).unwrap();
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
    let error = chat.encode(&[message(Role::System, "s")], &ChatLayout::default(), &tokenizer).unwrap_err();
    assert!(error.contains("no system role"), "{error}");
    assert!(!chat.ignores_system, "refusing is not ignoring");
}

/// Templates that put contents beside parts of the demo's one special token, or change them.
const SEAMS: [&str; 9] = [
    "{% for m in messages %}{{ '<' + m.content + '>' }}{% endfor %}{{ eos_token }}",
    "{% for m in messages %}{{ '<|' ~ m.content ~ '|>' }}{% endfor %}{{ eos_token }}",
    "{% for m in messages %}<|end{{ m.content }}text|>{% endfor %}{{ eos_token }}",
    "{% for m in messages %}{{ m.content }}|{% endfor %}{{ eos_token }}",
    "{% for m in messages %}{{ m.content | trim }}{{ eos_token }}{% endfor %}",
    "{% for m in messages %}{{ m.content | reverse }}{% endfor %}{{ eos_token }}",
    "{% for m in messages %}{{ m.content[1:] }}{{ m.content[:2] }}{% endfor %}{{ eos_token }}",
    "{% for m in messages %}{% for c in m.content %}{{ c }}-{% endfor %}{% endfor %}{{ eos_token }}",
    "{{ messages | map(attribute='content') | join }}{{ eos_token }}",
];

proptest! {
    #[test]
    fn content_is_text_in_every_template(
        contents in proptest::collection::vec("[<|>endoftx ]{0,6}|<?\\|?endof(text)?\\|?>?|e?ndoftext\\|?|txetfodne", 1..4),
        template in 0..SEAMS.len(),
    ) {
        static DEMO: LazyLock<Tokenizer> = LazyLock::new(demo);
        let tokenizer = &*DEMO;
        let chat = with_template(SEAMS[template], tokenizer);
        let messages: Vec<_> = contents.into_iter().map(Message::user).collect();
        let ids = chat.encode(&messages, &ChatLayout::default(), tokenizer).unwrap();
        // The same with a mark in the place of the special token, which then is the only one.
        let marked = SEAMS[template].replace("eos_token", "'\u{1}'");
        let text = with_template(&marked, tokenizer).render(&messages, true, &Map::new(), tokenizer).unwrap();
        let mut expected = Vec::new();
        for (i, piece) in text.split('\u{1}').enumerate() {
            if i > 0 {
                expected.push(4095);
            }
            expected.extend(tokenizer.encode(piece, Specials::Literal).unwrap());
        }
        prop_assert_eq!(ids, expected);
    }
}

#[test]
fn templates_see_the_text_that_they_look_for() {
    let tokenizer = demo();
    let chat = with_template(
        "{% for m in messages %}{{ m.content.split('</end>')[-1] }}{{ 'T' if 'text' in m.content }}{{ m.content | upper }}\
         {{ eos_token }}{% endfor %}",
        &tokenizer,
    );
    let encode = |content: &str| chat.encode(&[Message::user(content)], &ChatLayout::default(), &tokenizer).unwrap();
    let expected = |text: &str| {
        let mut ids = tokenizer.encode(text, Specials::Literal).unwrap();
        ids.push(4095);
        ids
    };
    assert_eq!(encode("a</end>text"), expected("textTA</END>TEXT"));
    assert_eq!(encode("<|endoftext|>"), expected("<|endoftext|>T<|ENDOFTEXT|>"));
}

#[test]
fn special_tokens_that_a_template_makes_of_text_are_none() {
    let tokenizer = demo();
    let encode = |template: &str, content: &str| {
        with_template(template, &tokenizer).encode(&[Message::user(content)], &ChatLayout::default(), &tokenizer)
    };
    let mut text = tokenizer.encode("a <|endoftext|> b", Specials::Literal).unwrap();
    text.push(4095);
    assert_eq!(encode("{{ messages[0].content | lower }}{{ eos_token }}", "a <|ENDofTEXT|> b").unwrap(), text);
    assert_eq!(
        encode("{{ messages[0].content | replace('.', '') }}{{ eos_token }}", "a <|end.of.text|> b").unwrap(),
        text
    );
    // Here the template has to see characters of special tokens, and makes one of what touches no end.
    let doubled = "{{ messages[0].content | replace('ee', 'e') }}{{ eos_token }}";
    assert_eq!(
        encode(doubled, "see").unwrap(),
        [tokenizer.encode("se", Specials::Literal).unwrap(), vec![4095]].concat()
    );
    let error = encode(doubled, "a <|eendoftext|> b").unwrap_err();
    assert!(error.contains("special tokens of what a message says"), "{error}");
}

#[test]
fn templates_see_role_and_content_only() {
    let tokenizer = demo();
    let chat = with_template(
        "{% for m in messages %}{{ m.keys() | list }}{{ m.name is defined }}{{ m.tool_calls is defined }}{{ m.get('x') }}\
         {% if m.tool_calls %}no{% endif %}{{ m.name | default('-') }}{% endfor %}{{ tools }}{{ enable_thinking is defined }}",
        &tokenizer,
    );
    let text = chat.render(&[Message::user("hi")], true, &Map::new(), &tokenizer).unwrap();
    assert_eq!(text, "['role', 'content']FalseFalseNone-NoneFalse");
}

#[test]
fn what_chats_will_fail_at_is_told_at_the_start() {
    let tokenizer = demo();
    let doubts = |source: &str| ChatFormat::probe(Some(JinjaTemplate::new(source).unwrap()), &tokenizer).1;
    assert_eq!(doubts(DIALOGPT), [""; 0]);
    assert_eq!(doubts("{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}x"), [""; 0]);
    let unknown = doubts("x{% if tools %}{{ tools | urlize }}{{ helper() }}{% endif %}");
    assert_eq!(unknown, ["names what is not known here: filter `urlize`, function `helper`; chats that reach it fail"]);
    let broken = doubts("{{ messages[0].name.first }}").join("\n");
    assert!(broken.contains("fails at a single question") && broken.contains("(line 1)"), "{broken}");
    let one_turn = doubts("{{ messages[1].content.casefold() if messages | length > 1 }}").join("\n");
    assert!(one_turn.contains("fails at a question with its answer"), "{one_turn}");
    assert!(one_turn.contains("method `casefold`"), "{one_turn}");
}

#[test]
fn a_template_of_another_editor_reads_the_same() {
    let tokenizer = demo();
    let folder = tempfile::tempdir().unwrap();
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(data("launcher/demo/nano-chat/tokenizer_config.json")).unwrap()).unwrap();
    let source = config["chat_template"].as_str().unwrap().replace("%}", "%}\n") + "\n";
    let conversation = [Message::user("Hi\r\nthere"), message(Role::Assistant, "Yes."), Message::user("Bye")];
    let encode = |name: &str, text: &str| {
        for name in ["chat_template.jinja", "tokenizer_config.json"] {
            let _ = fs::remove_file(folder.path().join(name));
        }
        fs::write(folder.path().join(name), text).unwrap();
        let chat = ChatFormat::load(folder.path(), &tokenizer).unwrap();
        chat.encode(&conversation, &ChatLayout::default(), &tokenizer).unwrap()
    };
    let ids = encode("chat_template.jinja", &source);
    for end in ["\r\n", "\r"] {
        let source = source.replace('\n', end);
        assert_eq!(encode("chat_template.jinja", &source), ids);
        assert_eq!(encode("chat_template.jinja", &format!("\u{feff}{source}")), ids);
        for template in [serde_json::json!(source), serde_json::json!([{"name": "default", "template": source}])] {
            assert_eq!(
                encode("tokenizer_config.json", &serde_json::json!({"chat_template": template}).to_string()),
                ids
            );
        }
    }
}

/// The prompt in which the last of `messages` goes on.
fn open(chat: &ChatFormat, messages: &[Message], tokenizer: &Tokenizer) -> Result<String, String> {
    let layout = ChatLayout { ending: Ending::Open, ..ChatLayout::default() };
    chat.encode(messages, &layout, tokenizer).map(|ids| tokenizer.decode(&ids))
}

#[test]
fn a_turn_that_goes_on_ends_where_its_text_does() {
    let tokenizer = demo();
    let turns = |last: &str| [Message::user("Hi"), message(Role::Assistant, last)];
    let chatml = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}\
                  {% if add_generation_prompt %}[assistant]{% endif %}";
    let trimming = chatml.replace("m.content", "m.content | trim");
    for (template, last, expected) in [
        (chatml, "The cat ", "[user]Hi<|endoftext|>[assistant]The cat "),
        (chatml, "Hi", "[user]Hi<|endoftext|>[assistant]Hi"),
        (&trimming, "The cat ", "[user]Hi<|endoftext|>[assistant]The cat"),
        (chatml, "a <|endoftext|> b <|end", "[user]Hi<|endoftext|>[assistant]a <|endoftext|> b <|end"),
    ] {
        let chat = with_template(template, &tokenizer);
        assert_eq!(open(&chat, &turns(last), &tokenizer).unwrap(), expected);
    }
    let literal = with_template(chatml, &tokenizer).encode(
        &turns("a <|endoftext|>"),
        &ChatLayout { ending: Ending::Open, ..ChatLayout::default() },
        &tokenizer,
    );
    assert_eq!(literal.unwrap().iter().filter(|&&id| id == 4095).count(), 1, "what was said stays text");
    assert_eq!(open(&transcript(&tokenizer), &turns("The cat"), &tokenizer).unwrap(), "User: Hi\nAssistant: The cat");
    let deaf = with_template(
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
        &tokenizer,
    );
    assert!(open(&deaf, &turns("x"), &tokenizer).unwrap_err().contains("leaves the last message out"));
}

#[test]
fn a_template_sees_further_variables_whose_texts_make_no_special_tokens() {
    let tokenizer = demo();
    let chat = with_template("{{ eos_token }}{{ note }}{% if loud %}!{% endif %}{{ messages[0].content }}", &tokenizer);
    let variables = serde_json::json!({"note": "<|endoftext|>", "loud": true, "unused": {"a": ["b"]}});
    let layout = ChatLayout {
        ending: Ending::NewTurn,
        variables: variables.as_object().unwrap().clone(),
        ..ChatLayout::default()
    };
    let ids = chat.encode(&[Message::user("Hi")], &layout, &tokenizer).unwrap();
    assert_eq!(tokenizer.decode(&ids), "<|endoftext|><|endoftext|>!Hi");
    assert_eq!(ids.iter().filter(|&&id| id == 4095).count(), 1);
}
