//! Folders of nanochat as they are found, and its tokenizers against tiktoken and nanochat's own code (`tests/golden/nanochat`).

use std::fs;

use nanoinfer_checkpoint::TokenizerFiles;
use serde_json::Value;

use super::*;
use crate::{
    model::{
        Caches, HubAccess, Version, resolve, resolve_checkpoint,
        tests::{golden, golden_path},
        unpack,
    },
    text::{
        ChatFormat, ChatLayout, Ending, GenerationDefaults, Message, ModelText, Part, PartKind, Role, Specials,
        Tokenizer,
    },
};

fn json(path: &str) -> Value {
    serde_json::from_slice(&golden(path)).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn message(value: &Value) -> Message {
    let role = match value["role"].as_str().unwrap() {
        "system" => Role::System,
        "user" => Role::User,
        _ => Role::Assistant,
    };
    let part = |part: &Value| {
        let kind = match part["type"].as_str().unwrap() {
            "text" => PartKind::Text,
            "python" => PartKind::Python,
            _ => PartKind::PythonOutput,
        };
        Part { kind, text: part["text"].as_str().unwrap().to_owned() }
    };
    match &value["content"] {
        Value::Array(parts) => Message { before: parts.iter().map(part).collect(), ..Message::new(role, "") },
        content => Message::new(role, content.as_str().unwrap()),
    }
}

/// The folder that a pickle becomes.
fn unpacked(pickle: &Path, root: &Path) -> PathBuf {
    unpack::tokenizer("{}", &TokenizerFiles::of_pickle(pickle).unwrap(), &[root.join("cache")]).unwrap()
}

#[test]
fn ids_texts_and_chats_are_those_of_nanochat() {
    for name in ["tokenizer", "tokenizer-1k"] {
        let root = tempfile::tempdir().unwrap();
        let folder = unpacked(&golden_path(&format!("nanochat/{name}/tokenizer.pkl")), root.path());
        let expected = json(&format!("nanochat/{name}/vectors.json"));
        let rows = expected["vocab_size"].as_u64().unwrap() as usize;
        let tokenizer = Tokenizer::load(&folder, rows + 19).unwrap();
        let bos = expected["bos"].as_u64().unwrap() as u32;
        assert_eq!((tokenizer.vocab_size(), tokenizer.bos()), (rows, Some(("<|bos|>", bos))));
        for case in expected["encode"].as_array().unwrap() {
            let (text, ids) = (case["text"].as_str().unwrap(), ids(&case["ids"]));
            // Special tokens are text, whoever writes them.
            assert_eq!(tokenizer.encode(text, Specials::Literal).unwrap(), ids, "{name}: {text:?}");
            assert_eq!(tokenizer.encode(text, Specials::Match).unwrap(), ids, "{name}: {text:?}");
            assert_eq!(tokenizer.encode_document(text).unwrap(), [&[bos][..], &ids].concat(), "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&ids), text, "{name}");
            assert!(tokenizer.fewest_tokens(text.len()).unwrap() <= ids.len(), "{name}: {text:?}");
        }
        for (id, bytes) in (0..).zip(expected["decode_hex"].as_array().unwrap()) {
            let hexadecimal: String = tokenizer.bytes(id).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hexadecimal, bytes.as_str().unwrap(), "{name}: token {id}");
        }
        for (text, id) in expected["special_tokens"].as_object().unwrap() {
            let id = id.as_u64().unwrap() as u32;
            assert!(tokenizer.is_special(id) && tokenizer.spell(id) == *text, "{name}: {text}");
        }
        let ends = GenerationDefaults::load(&folder, rows).unwrap().eos_token_ids;
        assert_eq!(ends.iter().map(|&end| tokenizer.spell(end)).collect::<Vec<_>>(), ["<|assistant_end|>", "<|bos|>"]);

        let chat = ChatFormat::load(&folder, &tokenizer).unwrap();
        let encode = |messages: &[Message], ending| {
            chat.encode(messages, &ChatLayout { ending, ..ChatLayout::default() }, &tokenizer)
        };
        for case in expected["chats"].as_array().unwrap() {
            let messages = case["conversation"]["messages"].as_array().unwrap();
            let messages: Vec<_> = messages.iter().map(message).collect();
            let (_, asked) = messages.split_last().unwrap();
            assert_eq!(encode(asked, Ending::NewTurn).unwrap(), ids(&case["ids_for_completion"]), "{name}: {case}");
            let (closed, open) = (ids(&case["ids"]), &ids(&case["ids"])[..ids(&case["ids"]).len() - 1]);
            assert_eq!(encode(&messages, Ending::Closed).unwrap(), closed, "{name}: {case}");
            assert_eq!(encode(&messages, Ending::Open).unwrap(), open, "{name}: {case}");
        }
        let turns = |roles: &[Role]| roles.iter().map(|&role| Message::new(role, "x")).collect::<Vec<_>>();
        for (roles, part) in [
            (&[Role::User, Role::User][..], "message 2 should be the assistant's, not the user's"),
            (&[Role::Assistant], "message 1 should be the user's"),
            (&[Role::System, Role::Assistant], "message 2 should be the user's"),
            (&[Role::User, Role::System], "message 2 should be the assistant's, not the system's"),
            (&[Role::System], "no message of the user"),
        ] {
            let error = encode(&turns(roles), Ending::NewTurn).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}

#[test]
fn vocabularies_by_chance_are_merged_as_tiktoken_does() {
    let root = tempfile::tempdir().unwrap();
    let pickle = root.path().join(PICKLE);
    for (number, kind) in json("nanochat/random.json")["vocabularies"].as_array().unwrap().iter().enumerate() {
        let digits = kind["pickle"].as_str().unwrap();
        let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
        fs::write(&pickle, (0..digits.len()).step_by(2).map(byte).collect::<Vec<_>>()).unwrap();
        let folder = unpacked(&pickle, root.path());
        let tokenizer = Tokenizer::load(&folder, 1 << 16).unwrap();
        for case in kind["texts"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text, Specials::Match).unwrap(), ids(&case["ids"]), "{number}: {text:?}");
        }
        fs::remove_dir_all(folder).unwrap();
    }
}

#[test]
fn the_other_class_of_tokenizers_is_a_tokenizer_json_as_any() {
    let tokenizer = Tokenizer::load(&golden_path("nanochat/tokenizer-json"), 512).unwrap();
    for case in json("nanochat/tokenizer-json/vectors.json")["encode"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, Specials::Match).unwrap(), ids(&case["ids"]), "{text:?}");
    }
}

/// What nanochat leaves in its cache after two trainings: the model of `A` as a base, that of `E` as a chat model, of two steps.
fn nanochats_cache(root: &Path) -> PathBuf {
    let cache = root.join("nanochat");
    let put = |from: &str, to: &str| {
        let to = cache.join(to);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(golden_path("nanochat").join(from), to).unwrap();
    };
    put("tokenizer/tokenizer.pkl", "tokenizer/tokenizer.pkl");
    put("A/model_000650.pt", "base_checkpoints/d3/model_000650.pt");
    put("A/meta_000650.json", "base_checkpoints/d3/meta_000650.json");
    for step in ["000483", "000100"] {
        put("E/model_000483.pt", &format!("chatsft_checkpoints/d4/model_{step}.pt"));
        put("E/meta_000483.json", &format!("chatsft_checkpoints/d4/meta_{step}.json"));
    }
    // Read by nobody.
    fs::write(cache.join("chatsft_checkpoints/d4/optim_000999_rank0.pt"), "x").unwrap();
    fs::write(cache.join("chatsft_checkpoints/d4/config.json"), "of another").unwrap();
    cache
}

#[test]
fn a_folder_is_found_as_nanochat_leaves_it_and_as_people_upload_it() {
    let root = tempfile::tempdir().unwrap();
    let caches = Caches { demo: vec![root.path().join("demo")], hub: HubAccess::offline(root.path().join("hub")) };
    let cache = nanochats_cache(root.path());
    let at = |path: &Path, step| {
        resolve(Some(path.to_str().unwrap()), Version { step, revision: None }, &caches).map_err(|e| e.to_string())
    };
    let sft = cache.join("chatsft_checkpoints/d4");
    let model = at(&sft, None).unwrap();
    assert_eq!(model.weights, [sft.join("model_000483.pt")]);
    assert_eq!((model.shape.model_type(), model.shape.layers), ("nanochat_later", 4));
    let text = ModelText::load(&model.folder, &model.shape).unwrap();
    assert!(text.tokenizer.vocab_size() == 301 && text.chat.template().is_some());
    assert_eq!(at(&sft, Some(100)).unwrap().weights, [sft.join("model_000100.pt")]);
    assert_eq!(at(&sft.join("model_000100.pt"), None).unwrap().weights, [sft.join("model_000100.pt")]);
    assert_eq!(at(&cache.join("base_checkpoints"), None).unwrap().shape.layers, 3);
    // What is not clear or not there is named with what there is.
    for (path, step, parts) in [
        (
            &cache,
            None,
            ["in several folders: base_checkpoints/d3, chatsft_checkpoints/d4", "nanochat/base_checkpoints/d3"],
        ),
        (
            &sft,
            Some(7),
            ["d4 has no checkpoint of step 7; there are 100, 483", "hint: leave --step out to take the last"],
        ),
        (&sft.join("model_000100.pt"), Some(483), ["no checkpoint of step 483; there are 100", "hint: "]),
        (
            &golden_path("tiny"),
            Some(1),
            ["has no checkpoint of step 1: only nanochat's have steps", "hint: leave --step out"],
        ),
    ] {
        let error = at(path, step).unwrap_err();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
    let error = resolve(None, Version { step: Some(1), revision: None }, &caches).unwrap_err().to_string();
    assert!(error.contains("only nanochat's have steps"), "{error}");

    // Flat, with the tokenizer beside it, in a folder there, converted by somebody, and not at all.
    let flat = root.path().join("flat");
    fs::create_dir(&flat).unwrap();
    for file in ["model_000483.pt", "meta_000483.json"] {
        fs::copy(sft.join(file), flat.join(file)).unwrap();
    }
    let pickle = cache.join("tokenizer").join(PICKLE);
    let error = at(&flat, None).unwrap_err();
    assert!(error.contains("flat has no tokenizer.pkl") && error.contains("hint: copy it from"), "{error}");
    resolve_checkpoint(flat.to_str(), None, &caches).unwrap();
    fs::copy(golden_path("nanochat/tokenizer-json/tokenizer.json"), flat.join(TOKENIZER)).unwrap();
    assert_eq!(at(&flat, None).unwrap().folder, flat.join("."));
    fs::create_dir(flat.join("tokenizer")).unwrap();
    fs::copy(&pickle, flat.join("tokenizer").join(PICKLE)).unwrap();
    assert_eq!(at(&flat, None).unwrap().folder, model.folder);
    fs::rename(flat.join("tokenizer").join(PICKLE), flat.join(PICKLE)).unwrap();
    let whole = at(&flat, None).unwrap();
    assert_eq!((whole.fingerprint, whole.folder), (model.fingerprint, model.folder.clone()));
    fs::write(flat.join(PICKLE), b"\x80\x04cposix\nsystem\n.").unwrap();
    let error = at(&flat, None).unwrap_err();
    assert!(error.contains("tokenizer.pkl: refused") && error.contains("`posix.system`"), "{error}");
    fs::remove_file(flat.join("meta_000483.json")).unwrap();
    let error = at(&flat, None).unwrap_err();
    assert!(error.contains("meta_000483.json") && error.contains("copy both"), "{error}");
}

#[test]
fn transformers_port_of_it_may_have_the_pickle_too() {
    let root = tempfile::tempdir().unwrap();
    let caches = Caches { demo: vec![root.path().join("demo")], hub: HubAccess::offline(root.path().join("hub")) };
    let folder = root.path().join("hf");
    fs::create_dir(&folder).unwrap();
    for file in ["hf/config.json", "hf/model.safetensors", "tokenizer/tokenizer.pkl"] {
        let from = golden_path("nanochat").join(file);
        fs::copy(&from, folder.join(from.file_name().unwrap())).unwrap();
    }
    let find = || resolve(folder.to_str(), None, &caches).unwrap();
    let model = find();
    assert_eq!(model.shape.model_type(), "nanochat");
    assert!(ModelText::load(&model.folder, &model.shape).unwrap().chat.template().is_some());
    assert_eq!(json_at(&model.folder.join("config.json"))["model_type"], "nanochat");
    fs::copy(golden_path("nanochat/tokenizer-json/tokenizer.json"), folder.join(TOKENIZER)).unwrap();
    assert_eq!(find().folder, folder, "as any other's");
}

fn json_at(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}
