//! Tokenizers and chat templates: loaded, and where they still load, used.

use std::fs;

use nanoinfer_checkpoint::TokenizerFiles;
use nanoinfer_launch::text::{ChatLayout, Message, ModelText, Specials, Tokenizer};
use nanoinfer_shared::ModelShape;

use crate::{bound_memory, mutate::Mutator, root};

const ROUNDS: u64 = 600;

/// Loads the text side of `folder` and, if that works, encodes with it.
fn use_folder(folder: &std::path::Path, shape: &ModelShape) -> bool {
    let Ok(text) = ModelText::load(folder, shape) else { return false };
    let ids = text.tokenizer.encode("Hi there, who are you? <|endoftext|>", Specials::Match).unwrap();
    assert!(ids.iter().all(|&id| (id as usize) < shape.vocab_size));
    let _ = text.tokenizer.decode(&ids);
    // A template may have something against these messages.
    let _ =
        text.chat.encode(&[Message::user("What's the <|endoftext|> time?")], &ChatLayout::default(), &text.tokenizer);
    true
}

#[test]
fn mutated_tokenizers_and_templates_give_values_or_errors() {
    bound_memory();
    let template = "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'].strip() + '\\n' }}\
                    {% elif loop.first %}{{ raise_exception('no') }}{% else %}{% generation %}{{ message.content | tojson(indent=2) }}\
                    {% endgeneration %}{{ eos_token * 2 }}{% endif %}{% endfor %}{% for i in range(3) %}{{ i ** 2 }}{% endfor %}\
                    {% set ns = namespace(x='ab') %}{% if add_generation_prompt %}{{ ns.x[:1] ~ strftime_now('%Y') }}{% endif %}";
    let words: [&[u8]; 12] = [
        b"{% for i in range(99999) %}",
        b"{% set x = x ~ x %}",
        b"{{ 'x' * 999999999 }}",
        b"{{ [[]] * 99999999 }}",
        b"{{ '%99999999d' | format(1) }}",
        b"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        b"((((((((",
        b"[[[[[[[[",
        b"\"",
        b"\\",
        b"null",
        b"-1",
    ];
    for (number, (from, files)) in [
        ("tiny", &["vocab.json", "merges.txt", "tokenizer_config.json", "chat_template.jinja"][..]),
        ("inner", &["tokenizer.json", "tokenizer_config.json"]),
    ]
    .iter()
    .enumerate()
    {
        let folder = root().join("tests/golden").join(from);
        let shape = ModelShape::from_config_json(&fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let seeds: Vec<(&str, Vec<u8>)> = files
            .iter()
            .map(|&file| (file, fs::read(folder.join(file)).unwrap_or_else(|_| template.as_bytes().to_vec())))
            .collect();
        let write = |(file, bytes): &(&str, Vec<u8>)| fs::write(dir.path().join(file), bytes).unwrap();
        seeds.iter().for_each(write);
        assert!(use_folder(dir.path(), &shape), "{from} itself is good");
        let mut mutator = Mutator::new(number as u64);
        for (file, seed) in &seeds {
            for _ in 0..ROUNDS {
                write(&(file, mutator.mutated(seed, &words)));
                use_folder(dir.path(), &shape);
            }
            write(&(file, seed.clone()));
        }
    }
}

#[test]
fn templates_that_never_end_or_explode_are_stopped() {
    bound_memory();
    let folder = root().join("tests/golden/tiny");
    let shape = ModelShape::from_config_json(&fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for file in ["vocab.json", "merges.txt"] {
        fs::copy(folder.join(file), dir.path().join(file)).unwrap();
    }
    for template in [
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='xx') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        "{{ 'x' * 9999999999 }}",
        "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    ] {
        fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
        let text = ModelText::load(dir.path(), &shape).unwrap();
        let error = text.chat.encode(&[Message::user("Hi")], &ChatLayout::default(), &text.tokenizer).unwrap_err();
        assert!(!error.is_empty(), "{template}");
    }
}

#[test]
fn mutated_pickles_of_tokenizers_give_values_or_errors() {
    bound_memory();
    let seed = fs::read(root().join("tests/golden/nanochat/tokenizer/tokenizer.pkl")).unwrap();
    let words: [&[u8]; 8] =
        [b"cos\nsystem\n", b"R", b"\x81", b"b", b"u", b"C\x01a", b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f", b"h\x0b"];
    let dir = tempfile::tempdir().unwrap();
    let pickle = dir.path().join("tokenizer.pkl");
    let use_pickle = |bytes: &[u8]| {
        fs::write(&pickle, bytes).unwrap();
        let Ok(files) = TokenizerFiles::of_pickle(&pickle) else { return false };
        fs::write(dir.path().join("tokenizer.json"), files.tokenizer).unwrap();
        fs::write(dir.path().join("tokenizer_config.json"), files.config).unwrap();
        // The expression that cuts words may be none.
        let Ok(tokenizer) = Tokenizer::load(dir.path(), 1 << 10) else { return false };
        tokenizer.encode_document("Hi there, who are you? <|bos|>").is_ok()
    };
    assert!(use_pickle(&seed));
    let mut mutator = Mutator::new(7);
    let passed = (0..3 * ROUNDS).filter(|_| use_pickle(&mutator.mutated(&seed, &words))).count() as u64;
    assert!((1..3 * ROUNDS).contains(&passed), "{passed} mutations did no harm");
}
