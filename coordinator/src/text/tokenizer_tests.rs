use std::{fs, path::PathBuf};

use serde_json::Value;

use super::*;
use crate::text::Detokenizer;

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn gpt2() -> Tokenizer {
    Tokenizer::load(&data("tests/data/gpt2-tokenizer"), 50257).unwrap()
}

fn vectors() -> Value {
    serde_json::from_slice(&fs::read(data("tests/data/vectors/gpt2_tok_vectors.json")).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<TokenId> {
    serde_json::from_value(value["ids"].clone()).unwrap()
}

#[test]
fn real_vocabulary_agrees_with_the_reference_vectors() {
    let tokenizer = gpt2();
    let vectors = vectors();
    for vector in vectors["vectors"].as_array().unwrap() {
        let text = vector["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, Specials::Match).unwrap(), ids(vector), "{text:?}");
        assert_eq!(tokenizer.encode_document(text).unwrap(), ids(vector), "{text:?}");
        assert_eq!(tokenizer.decode(&ids(vector)), vector["decoded"].as_str().unwrap());
    }
    for vector in vectors["invalid"].as_array().unwrap() {
        assert_eq!(tokenizer.decode(&ids(vector)), vector["lossy"].as_str().unwrap());
    }
    let expected: Vec<char> = serde_json::from_value(vectors["byte_to_unicode"].clone()).unwrap();
    assert_eq!(byte_level::alphabet()[..], expected);
}

#[test]
fn streaming_emits_what_the_reference_emits() {
    let tokenizer = gpt2();
    for vector in vectors()["streaming"].as_array().unwrap() {
        let mut detokenizer = Detokenizer::default();
        let expected: Vec<String> = serde_json::from_value(vector["emitted"].clone()).unwrap();
        let mut whole = String::new();
        for (id, expected) in ids(vector).into_iter().zip(expected) {
            let mut text = String::new();
            detokenizer.push(&tokenizer, id, &mut text);
            assert_eq!(text, expected);
            whole += &text;
        }
        detokenizer.flush(&tokenizer, &mut whole);
        assert_eq!(whole, vector["text"].as_str().unwrap().to_owned() + vector["tail"].as_str().unwrap_or(""));
    }
}

#[test]
fn literal_text_never_becomes_a_special_token() {
    let tokenizer = gpt2();
    assert_eq!(tokenizer.encode("<|endoftext|>", Specials::Match).unwrap(), [50256]);
    assert_eq!(tokenizer.encode("<|endoftext|>", Specials::Literal).unwrap(), [27, 91, 437, 1659, 5239, 91, 29]);
    assert_eq!(tokenizer.encode("a<|endoftext|><|endoftext|>", Specials::Match).unwrap(), [64, 50256, 50256]);
    assert!(tokenizer.is_special(50256) && !tokenizer.is_special(0));
}

#[test]
fn tokens_that_are_no_text_are_spelled_in_hexadecimal() {
    let tokenizer = gpt2();
    assert_eq!(tokenizer.spell(15496), "Hello");
    assert_eq!(tokenizer.spell(8582), "bytes:\\xf0\\x9f");
    assert_eq!(tokenizer.spell(50256), "<|endoftext|>");
    assert_eq!(tokenizer.bytes(60_000), b"");
}

#[test]
fn every_id_is_known_and_padding_is_found() {
    assert!(gpt2().unused_ids().is_empty());
    let padded = Tokenizer::load(&data("tests/data/gpt2-tokenizer"), 50304).unwrap();
    assert_eq!((padded.vocab_size(), padded.unused_ids()), (50257, &[][..]));
    assert!(padded.fewest_tokens(1_000_000) > Some(1024));
    assert_eq!(padded.fewest_tokens(1), Some(1));
}

#[test]
fn both_forms_of_the_demo_tokenizer_agree() {
    let folder = data("launcher/demo/nano-chat");
    let json = Tokenizer::load(&folder, 4096).unwrap();
    let other = tempfile::tempdir().unwrap();
    for file in ["vocab.json", "merges.txt"] {
        fs::copy(folder.join(file), other.path().join(file)).unwrap();
    }
    let files = Tokenizer::load(other.path(), 4096).unwrap();
    let text = "User: What is a cat?\nAssistant: naïve 日本 <|endoftext|> x";
    assert_eq!(json.encode(text, Specials::Match).unwrap(), files.encode(text, Specials::Match).unwrap());
    assert_eq!(json.eos(), Some(("<|endoftext|>", 4095)));
    assert_eq!(files.eos(), Some(("<|endoftext|>", 4095)));
    assert!((0..4096).all(|id| json.bytes(id) == files.bytes(id)));
}

#[test]
fn configuration_adds_spaces_and_the_first_token() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["vocab.json", "merges.txt"] {
        fs::copy(data("launcher/demo/nano-chat").join(file), folder.path().join(file)).unwrap();
    }
    let load = |config: &str| {
        fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
        Tokenizer::load(folder.path(), 4096).unwrap()
    };
    let plain = load("{}");
    let spaced = load(r#"{"add_prefix_space": true}"#);
    assert_eq!(spaced.encode("cat", Specials::Match).unwrap(), plain.encode(" cat", Specials::Match).unwrap());
    let bos = load(r#"{"add_bos_token": true, "bos_token": {"content": "<|endoftext|>"}}"#);
    assert_eq!(bos.encode_document("cat").unwrap()[0], 4095);
    assert_eq!(bos.encode_document("cat").unwrap()[1..], plain.encode_document("cat").unwrap());
}

#[test]
fn longer_special_tokens_win_and_given_ids_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["vocab.json", "merges.txt"] {
        fs::copy(data("launcher/demo/nano-chat").join(file), folder.path().join(file)).unwrap();
    }
    let config = |id: u32| {
        format!(
            r#"{{"eos_token":"<|endoftext|>","added_tokens_decoder":{{"4095":{{"content":"<|endoftext|>","special":true}},
            "{id}":{{"content":"<|endoftext|>!","special":true}}}}}}"#
        )
    };
    fs::write(folder.path().join("tokenizer_config.json"), config(4096)).unwrap();
    let tokenizer = Tokenizer::load(folder.path(), 4097).unwrap();
    assert_eq!(tokenizer.encode("<|endoftext|><|endoftext|>!", Specials::Match).unwrap(), [4095, 4096]);
    fs::write(folder.path().join("tokenizer_config.json"), config(4100)).unwrap();
    let error = Tokenizer::load(folder.path(), 5000).unwrap_err().to_string();
    assert!(
        error.contains(
            "the added token `<|endoftext|>!` is 4096, but tokenizer_config.json or added_tokens.json says 4100"
        ),
        "{error}"
    );
}

#[test]
fn older_models_name_their_special_tokens_in_other_files() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["vocab.json", "merges.txt"] {
        fs::copy(data("launcher/demo/nano-chat").join(file), folder.path().join(file)).unwrap();
    }
    let write = |file: &str, text: &str| fs::write(folder.path().join(file), text).unwrap();
    write("special_tokens_map.json", r#"{"eos_token": {"content": "<end>"}, "pad_token": "<pad>"}"#);
    write("added_tokens.json", r#"{"<|endoftext|>": 4095, "<end>": 4096, "<pad>": 4097}"#);
    let tokenizer = Tokenizer::load(folder.path(), 4200).unwrap();
    assert_eq!(tokenizer.eos(), Some(("<end>", 4096)));
    assert_eq!(tokenizer.bos(), Some(("<|endoftext|>", 4095)));
    assert_eq!(tokenizer.named["pad_token"], "<pad>");
    assert_eq!(tokenizer.encode("<end><pad>", Specials::Match).unwrap(), [4096, 4097]);
    assert!(!tokenizer.encode("<end><pad>", Specials::Literal).unwrap().contains(&4096));
    // As in transformers, what tokenizer_config.json says comes second, unless it has entries of its own.
    write("tokenizer_config.json", r#"{"eos_token": "<|endoftext|>"}"#);
    assert_eq!(Tokenizer::load(folder.path(), 4200).unwrap().eos(), Some(("<end>", 4096)));
    write("tokenizer_config.json", r#"{"eos_token": "<|endoftext|>", "added_tokens_decoder": {}}"#);
    assert_eq!(Tokenizer::load(folder.path(), 4200).unwrap().eos(), Some(("<|endoftext|>", 4095)));
}

#[test]
fn broken_folders_give_clear_errors() {
    let folder = tempfile::tempdir().unwrap();
    let load = |vocab_size| Tokenizer::load(folder.path(), vocab_size).unwrap_err().to_string();
    assert!(load(10).contains("hint: it needs tokenizer.json, or vocab.json and merges.txt"));
    fs::write(folder.path().join("vocab.json"), "{").unwrap();
    fs::write(folder.path().join("merges.txt"), "#version: 0.2\nab\n").unwrap();
    assert!(load(10).contains("vocab.json"), "{}", load(10));
    fs::write(folder.path().join("vocab.json"), r#"{"a":0,"b":1}"#).unwrap();
    assert!(load(10).contains("line 2 is no pair"), "{}", load(10));
    fs::write(folder.path().join("merges.txt"), "a b\n").unwrap();
    assert!(load(10).contains("line 1: \"ab\" is not in the vocabulary"), "{}", load(10));
    let json = r#"{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}}"#;
    fs::write(folder.path().join("tokenizer.json"), json).unwrap();
    assert!(load(10).contains("tokenizer.json"), "{}", load(10));
    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    fs::write(folder.path().join("merges.txt"), "").unwrap();
    fs::write(folder.path().join("tokenizer_config.json"), "[").unwrap();
    assert!(load(10).contains("tokenizer_config.json"), "{}", load(10));
    fs::write(folder.path().join("tokenizer_config.json"), "{}").unwrap();
    fs::write(folder.path().join("vocab.json"), r#"{"a":0,"b":70}"#).unwrap();
    let error = load(10);
    assert!(error.contains("70") && error.contains("10"), "{error}");
}
