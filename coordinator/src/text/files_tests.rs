//! Tokenizers as people's tools write them: the demo model's files, changed.

use std::{
    fs,
    io::{Read, Seek},
    path::Path,
    sync::Arc,
};

use nanoinfer_shared::ModelShape;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

const ROWS: usize = 4096;
const ROOM: Room = Room { wall: 256, max: MaxTokens::Wall, keep_last: None };

fn demo(file: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../launcher/demo/nano-chat").join(file)).unwrap()
}

fn demo_json(file: &str) -> Value {
    serde_json::from_slice(&demo(file)).unwrap()
}

/// A folder with these files, of the demo model where nothing else is said.
fn folder(files: &[(&str, Value)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        fs::write(folder.path().join(file), demo(file)).unwrap();
    }
    for (file, value) in files {
        fs::write(folder.path().join(file), value.to_string()).unwrap();
    }
    folder
}

/// The demo's tokenizer.json, changed.
fn changed(change: impl FnOnce(&mut Value)) -> Value {
    let mut value = demo_json("tokenizer.json");
    change(&mut value);
    value
}

fn added(id: u32, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": !special, "special": special})
}

fn with_added(tokens: &[Value]) -> Value {
    changed(|value| value["added_tokens"].as_array_mut().unwrap().extend_from_slice(tokens))
}

fn load(folder: &TempDir, rows: usize) -> Result<ModelText, TextError> {
    let mut shape =
        ModelShape::from_config_json(&fs::read_to_string(folder.path().join("config.json")).unwrap()).unwrap();
    shape.vocab_size = rows;
    ModelText::load(folder.path(), &shape)
}

/// What loading says, and what it gives.
fn load_and_listen(folder: &TempDir, rows: usize) -> (ModelText, String) {
    let log = Arc::new(tempfile::tempfile().unwrap());
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
    let text = tracing::subscriber::with_default(subscriber, || load(folder, rows).unwrap());
    let mut said = String::new();
    (&*log).rewind().unwrap();
    (&*log).read_to_string(&mut said).unwrap();
    (text, said)
}

fn ask(text: &ModelText, content: &str) -> Vec<u32> {
    text.chat.encode(&[Message::user(content)], &ChatLayout::default(), &text.tokenizer).unwrap()
}

#[test]
fn what_a_file_sets_for_one_call_or_for_training_does_not_last() {
    let truncation = json!({"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0});
    let padding = json!({"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"});
    let folder = folder(&[(
        "tokenizer.json",
        changed(|value| {
            (value["truncation"], value["padding"]) = (truncation, padding);
            value["model"]["dropout"] = 0.9.into();
        }),
    )]);
    let (text, said) = load_and_listen(&folder, ROWS);
    let whole = "What is a cat? ".repeat(10);
    let ids = text.tokenizer.encode_document(&whole).unwrap();
    assert_eq!((ids.len(), text.tokenizer.decode(&ids)), (51, whole.clone()));
    assert!((0..20).all(|_| text.tokenizer.encode_document(&whole).unwrap() == ids), "no dropout");
    assert!(said.contains("WARN") && said.contains("`model.dropout`"), "{said}");
}

#[test]
fn what_nobody_knows_is_ignored_aloud() {
    let folder = folder(&[(
        "tokenizer.json",
        changed(|value| {
            value["something_new"] = json!({});
            value["model"]["a_setting"] = true.into();
            value["pre_tokenizer"]["how"] = "well".into();
            value["added_tokens"].as_array_mut().unwrap().push(added(5000, "<late>", true));
        }),
    )]);
    let (text, said) = load_and_listen(&folder, 4100);
    for part in [
        "`something_new`",
        "`model.a_setting`",
        "`pre_tokenizer.how`",
        "`<late>` says that it is 5000",
        "makes it 4096",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert_eq!(said.matches("WARN").count(), 4, "{said}");
    assert_eq!(text.tokenizer.encode("<late>", Specials::Match).unwrap(), [4096], "as the library has it");
    assert!(!load_and_listen(&self::folder(&[]), ROWS).1.contains("WARN"), "nothing to say of the demo model");
}

#[test]
fn added_words_are_words_for_everybody_and_special_ones_are_not() {
    let folder = folder(&[
        ("tokenizer.json", with_added(&[added(4096, "Quokka-7", false), added(4097, "café", false)])),
        ("added_tokens.json", json!({"Quokka-7": 4096, "café": 4097})),
        (
            "special_tokens_map.json",
            json!({"bos_token": "<|endoftext|>", "eos_token": {"content": "<|endoftext|>", "lstrip": false}}),
        ),
    ]);
    let text = load(&folder, 4098).unwrap();
    assert!(ask(&text, "See Quokka-7 here").contains(&4096));
    assert!(!ask(&text, "See <|endoftext|> here").contains(&4095));
    assert!(!text.tokenizer.is_special(4096) && text.tokenizer.is_special(4095));
    assert_eq!((text.tokenizer.decode(&[4096]), text.tokenizer.spell(4097)), ("Quokka-7".into(), "café".into()));
}

#[test]
fn white_space_beside_a_templates_special_tokens_goes_as_they_say() {
    let mut user = added(4096, "<|user|>", true);
    user["rstrip"] = true.into();
    let mut config = demo_json("tokenizer_config.json");
    config["chat_template"] = "{% for m in messages %}<|user|>\n{{ m.content }}{% endfor %}".into();
    let folder = folder(&[("tokenizer.json", with_added(&[user])), ("tokenizer_config.json", config)]);
    let text = load(&folder, 4097).unwrap();
    assert_eq!(ask(&text, "hi"), [4096, 71, 72]);
    let typed = ask(&text, "<|user|>\nhi");
    assert_eq!((typed[0], typed.iter().filter(|&&id| id == 4096).count()), (4096, 1));
    assert_eq!(text.tokenizer.decode(&typed), "<|user|><|user|>\nhi", "what users typed stays whole");
}

#[test]
fn nothing_that_users_write_is_normalized_into_a_special_token() {
    let mut end = added(4095, "<|endoftext|>", true);
    end["normalized"] = true.into();
    let folder = folder(&[(
        "tokenizer.json",
        changed(|value| {
            value["normalizer"] = json!({"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]});
            value["added_tokens"] = json!([end]);
        }),
    )]);
    let text = load(&folder, ROWS).unwrap();
    assert_eq!(text.tokenizer.encode("<|EndOfText|>", Specials::Match).unwrap(), [4095]);
    for typed in ["<|EndOfText|>", "＜|endoftext|＞", "<|endoftext|>"] {
        assert!(!ask(&text, typed).contains(&4095), "{typed}");
    }
}

#[test]
fn only_the_start_of_a_chat_is_the_start_of_its_text() {
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true});
    let vocab = json!({"<unk>": 0, "▁": 1, "a": 2, "b": 3, "<s>": 4});
    let file = json!({
        "version": "1.0",
        "added_tokens": [added(0, "<unk>", true), added(4, "<s>", true)],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [metaspace.clone()]},
        "decoder": metaspace,
        "model": {"type": "BPE", "unk_token": "<unk>", "vocab": vocab, "merges": []},
    });
    let config = json!({"tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": "{% for m in messages %}a<s>{{ m.content }}<s>b{% endfor %}"});
    let folder =
        folder(&[("tokenizer.json", file), ("tokenizer_config.json", config), ("generation_config.json", json!({}))]);
    let text = load(&folder, 5).unwrap();
    assert_eq!(ask(&text, "b"), [1, 2, 4, 3, 4, 3]);
    assert_eq!(ask(&text, "b"), text.tokenizer.encode("a<s>b<s>b", Specials::Match).unwrap());
    assert_eq!(text.tokenizer.decode(&[1, 2, 1, 3]), "a b");
    assert_eq!(text.tokenizer.bytes(1), b" ");
    assert_eq!(text.tokenizer.fewest_tokens(1 << 30), None, "unknown characters are put together");
    let long = Prompt::Text { text: "a ".repeat(1 << 20), add_special_tokens: true };
    let refused = long.prepare(&text, ROOM).unwrap_err();
    assert_eq!(refused, GenerateError::TextTooLong { bytes: 2 << 20 });
}

#[test]
fn a_token_without_a_row_is_left_out() {
    let mut config = demo_json("tokenizer_config.json");
    config["pad_token"] = "[PAD]".into();
    let files = [("tokenizer.json", with_added(&[added(4096, "[PAD]", true)])), ("tokenizer_config.json", config)];
    let (text, said) = load_and_listen(&folder(&files), ROWS);
    assert!(said.contains("WARN") && said.contains("`[PAD]` is left out: it is 4096"), "{said}");
    let ids = text.tokenizer.encode_document("x[PAD]").unwrap();
    assert!(ids.len() > 2 && ids.iter().all(|&id| id < 4096), "ordinary text: {ids:?}");
    assert_eq!(text.tokenizer.named["pad_token"], "[PAD]");
    let used = Prompt::Tokens(vec![4096]).prepare(&text, ROOM).unwrap_err();
    assert!(matches!(used, GenerateError::UnknownToken { id: 4096, .. }), "{used}");
    assert!(load(&folder(&files), 4097).unwrap().tokenizer.is_special(4096), "with a row it is a token");
}

#[test]
fn what_cannot_be_done_is_refused_in_words() {
    let refuse = |change: &dyn Fn(&mut Value)| {
        let error = load(&folder(&[("tokenizer.json", changed(change))]), ROWS).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json"), "{error}");
        error
    };
    let fuse = json!({"type": "Fuse"});
    let replace = json!({"type": "Replace", "pattern": {"String": "ab"}, "content": ""});
    let error = refuse(&|value| value["decoder"] = json!({"type": "Sequence", "decoders": [fuse, replace]}));
    assert!(error.contains("Replace") && error.contains("behind Fuse"), "{error}");
    let error = refuse(&|value| value["decoder"] = json!({"type": "Strip", "content": " ", "start": 0, "stop": 1}));
    assert!(error.contains("Strip with `stop`"), "{error}");
    let error = refuse(&|value| {
        value["post_processor"] = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [], "special_tokens": {"[X]": {"id": "[X]", "ids": [9999], "tokens": ["[X]"]}}});
    });
    assert!(error.contains("9999") && error.contains("4096"), "{error}");
    for (section, kind) in [("normalizer", "Unheard"), ("decoder", "Of"), ("model", "Kinds")] {
        refuse(&|value| value[section] = json!({"type": kind}));
    }
    refuse(&|value| value["version"] = "2.0".into());
}

#[test]
fn a_text_that_no_token_stands_for_is_an_error() {
    let file = json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "unk_token": "<none>", "vocab": {"known": 0}},
    });
    let folder = folder(&[
        ("tokenizer.json", file),
        ("tokenizer_config.json", json!({"tokenizer_class": "PreTrainedTokenizerFast"})),
        ("generation_config.json", json!({})),
    ]);
    let text = load(&folder, 1).unwrap();
    assert_eq!(text.tokenizer.encode("known known", Specials::Match), Ok(vec![0, 0]));
    let prompt = Prompt::Text { text: "unknown".into(), add_special_tokens: true };
    let error = prompt.prepare(&text, ROOM).unwrap_err();
    assert!(matches!(error, GenerateError::Encode(_)), "{error}");
    assert!(error.to_string().contains("cannot encode this text"), "{error}");
    let error = text.chat.encode(&[Message::user("unknown")], &ChatLayout::default(), &text.tokenizer).unwrap_err();
    assert!(error.contains("cannot encode this text"), "{error}");
}

#[test]
fn byte_order_marks_and_numbers_of_python_are_read_in_every_file() {
    let wide = |bytes: Vec<u8>| -> Vec<u8> {
        let text = String::from_utf8(bytes).unwrap();
        std::iter::once('\u{feff}')
            .chain(text.chars())
            .collect::<String>()
            .encode_utf16()
            .flat_map(u16::to_be_bytes)
            .collect()
    };
    for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        let folder = folder(&[]);
        fs::write(folder.path().join(file), wide(demo(file))).unwrap();
        let error = load(&folder, ROWS).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains("UTF-16, where UTF-8 is expected"), "{error}");
    }
    let marked = |bytes: Vec<u8>| [b"\xef\xbb\xbf".to_vec(), bytes].concat();
    let plain = load(&folder(&[]), ROWS).unwrap();
    let whole = "What is <|endoftext|> naïve 日本?";
    let expected = plain.tokenizer.encode(whole, Specials::Match).unwrap();
    for form in [&["tokenizer.json"][..], &["vocab.json", "merges.txt"]] {
        let folder = tempfile::tempdir().unwrap();
        for file in ["config.json", "tokenizer_config.json", "generation_config.json"].iter().chain(form) {
            fs::write(folder.path().join(file), marked(demo(file))).unwrap();
        }
        for (file, content) in [
            ("special_tokens_map.json", "{\"x\": NaN}"),
            ("added_tokens.json", "{}"),
            ("chat_template.jinja", "{{ messages[0].content }}"),
        ] {
            fs::write(folder.path().join(file), marked(content.into())).unwrap();
        }
        let text = load(&folder, ROWS).unwrap();
        assert_eq!(text.tokenizer.encode(whole, Specials::Match).unwrap(), expected);
        assert_eq!(ask(&text, "Hi"), plain.tokenizer.encode("Hi", Specials::Literal).unwrap());
        // Where nobody reads it, and where it is read.
        let path = folder.path().join("tokenizer_config.json");
        let config = |field: &str| fs::write(&path, format!("{{\"model_max_length\": 1e999, {field}}}")).unwrap();
        config("\"x\": [-Infinity]");
        load(&folder, ROWS).unwrap();
        for field in ["eos_token", "add_prefix_space", "tokenizer_class"] {
            config(&format!("\"{field}\": Infinity"));
            let error = load(&folder, ROWS).unwrap_err().to_string();
            assert!(
                error.contains("tokenizer_config.json") && error.contains(field) && error.contains("got Infinity"),
                "{error}"
            );
        }
    }
    let text = changed(|value| value["model"]["unk_token"] = "@@@".into()).to_string().replace("\"@@@\"", "NaN");
    let folder = folder(&[]);
    fs::write(folder.path().join("tokenizer.json"), text).unwrap();
    let error = load(&folder, ROWS).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json") && error.contains("`model.unk_token` is NaN"), "{error}");
}
