//! Every kind of tokenizer, against what transformers, or the tokenizers library itself, makes of the same files.

use std::{fs, path::Path};

use nanoinfer_shared::protocol::TokenId;
use serde_json::Value;

use super::{ChatFormat, ChatLayout, Detokenizer, Ending, Message, Role, Specials, Tokenizer};

struct Kind {
    name: String,
    tokenizer: Tokenizer,
    value: Value,
}

fn kinds() -> Vec<Kind> {
    let mut kinds = kinds_in("tokenizers.json");
    kinds.extend(families());
    kinds
}

/// Those built as the tokenizers of well-known models are.
fn families() -> Vec<Kind> {
    kinds_in("family_tokenizers.json")
}

fn kinds_in(file: &str) -> Vec<Kind> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(file);
    let golden: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let read = |kind: &Value| {
        let folder = tempfile::tempdir().unwrap();
        for (file, content) in kind["files"].as_object().unwrap() {
            let text = content.as_str().map_or_else(|| content.to_string(), str::to_owned);
            fs::write(folder.path().join(file), text).unwrap();
        }
        let name = kind["kind"].as_str().unwrap().to_owned();
        let rows = kind["rows"].as_u64().unwrap() as usize;
        let tokenizer = Tokenizer::load(folder.path(), rows).unwrap_or_else(|error| panic!("{name}: {error}"));
        Kind { name, tokenizer, value: kind.clone() }
    };
    golden["kinds"].as_array().unwrap().iter().map(read).collect()
}

fn ids(value: &Value) -> Vec<TokenId> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Tokens as they come from a model, after `before`: each piece, and what the end brings.
fn stream(tokenizer: &Tokenizer, before: &[TokenId], ids: &[TokenId]) -> Vec<String> {
    let mut detokenizer = Detokenizer::after(tokenizer, before);
    let mut pieces = Vec::new();
    for &id in ids.iter().filter(|&&id| !tokenizer.is_special(id)) {
        let mut text = String::new();
        detokenizer.push(tokenizer, id, &mut text);
        pieces.push(text);
    }
    let mut tail = String::new();
    detokenizer.flush(tokenizer, &mut tail);
    pieces.push(tail);
    pieces
}

#[test]
fn texts_become_the_reference_s_ids() {
    for Kind { name, tokenizer, value } in kinds() {
        assert_eq!(tokenizer.eos().map(|(text, _)| text), value["eos"].as_str(), "{name}");
        for text in value["texts"].as_array().unwrap() {
            let content = text["text"].as_str().unwrap();
            let encode = |specials| tokenizer.encode(content, specials).unwrap();
            assert_eq!(encode(Specials::Match), ids(&text["ids"]), "{name}: {content:?}");
            assert_eq!(encode(Specials::Literal), ids(&text["literal"]), "{name}: {content:?}, literally");
            let document = tokenizer.encode_document(content).unwrap();
            assert_eq!(document, ids(&text["document"]), "{name}: {content:?}, as a document");
            assert_eq!(tokenizer.decode(&ids(&text["ids"])), text["decoded"].as_str().unwrap(), "{name}");
            assert!(tokenizer.fewest_tokens(content.len()) <= Some(document.len()), "{name}: {content:?}");
        }
    }
}

#[test]
fn text_comes_as_the_reference_has_it_in_pieces_too() {
    for Kind { name, tokenizer, value } in kinds() {
        for sequence in value["sequences"].as_array().unwrap() {
            let ids = ids(&sequence["ids"]);
            let expected = sequence["text"].as_str().unwrap();
            let pieces = stream(&tokenizer, &[], &ids);
            assert_eq!(pieces.concat(), expected, "{name}: {ids:?}");
        }
    }
}

#[test]
fn tokens_have_the_bytes_that_they_add_and_padding_is_no_token() {
    for Kind { name, tokenizer, value } in families() {
        let expected: Vec<String> = serde_json::from_value(value["bytes"].clone()).unwrap();
        let hexadecimal = |id| tokenizer.bytes(id).iter().map(|byte| format!("{byte:02x}")).collect();
        let bytes: Vec<String> = (0..expected.len() as TokenId).map(hexadecimal).collect();
        assert_eq!(bytes, expected, "{name}");
        assert_eq!(tokenizer.vocab_size(), expected.len(), "{name}: rows behind the last token are none of it");
        assert!(tokenizer.unused_ids().is_empty(), "{name}");
    }
}

#[test]
fn byte_level_text_comes_no_later_than_from_the_library() {
    for Kind { name, tokenizer, value } in families().into_iter().filter(|kind| kind.tokenizer.decoder().is_none()) {
        for text in value["texts"].as_array().unwrap() {
            let expected: Vec<String> = serde_json::from_value(text["pieces"].clone()).unwrap();
            let shown = ids(&text["ids"]).into_iter().zip(expected).filter(|(id, _)| !tokenizer.is_special(*id));
            let (ids, expected): (Vec<_>, Vec<_>) = shown.unzip();
            let pieces = stream(&tokenizer, &[], &ids);
            for tokens in 1..=ids.len() {
                let (ours, theirs) = (pieces[..tokens].concat(), expected[..tokens].concat());
                assert!(ours.starts_with(&theirs), "{name}: {ours:?} after {tokens} tokens, {theirs:?}");
            }
        }
    }
}

#[test]
fn a_rendered_text_becomes_the_ids_of_a_trusted_one() {
    for Kind { name, tokenizer, value } in families() {
        for text in value["texts"].as_array().unwrap() {
            let rendered = tokenizer.encode_rendered(text["text"].as_str().unwrap(), str::to_owned).unwrap();
            assert_eq!(rendered, ids(&text["ids"]), "{name}: {}", text["text"]);
        }
    }
}

#[test]
fn conversations_become_the_ids_of_what_transformers_renders() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/vectors/chat_templates.json");
    let vectors: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let rendered = &vectors["families"];
    let folder = tempfile::tempdir().unwrap();
    let mut compared = 0;
    for Kind { name, tokenizer, .. } in families() {
        let Some(template) = rendered["templates"][&name].as_str() else { continue };
        fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
        let chat = ChatFormat::load(folder.path(), &tokenizer).unwrap();
        let of_family = rendered["cases"].as_array().unwrap().iter().filter(|case| case["template"] == name);
        for case in of_family.filter(|case| case["text"].as_str().is_some_and(|text| !text.contains("{%d %b %Y}"))) {
            let said = rendered["conversations"][case["conversation"].as_str().unwrap()].as_array().unwrap();
            let messages: Vec<Message> = said.iter().map(message).collect();
            let ending = if case["add_generation_prompt"] == true { Ending::NewTurn } else { Ending::Closed };
            let layout = ChatLayout {
                ending,
                variables: case["variables"].as_object().unwrap().clone(),
                ..ChatLayout::default()
            };
            // There, texts of all families begin with the same token.
            let bos = tokenizer.named.get("bos_token").map_or("", String::as_str);
            let text = case["text"].as_str().unwrap().replace("<s>", bos);
            let expected = tokenizer.encode(&text, Specials::Match).unwrap();
            assert_eq!(chat.encode(&messages, &layout, &tokenizer).unwrap(), expected, "{name}: {text}");
            compared += 1;
        }
    }
    assert!(compared > 100, "{compared}");
}

fn message(value: &Value) -> Message {
    let role = match value["role"].as_str().unwrap() {
        "system" => Role::System,
        "user" => Role::User,
        _ => Role::Assistant,
    };
    let reasoning_content = value["reasoning_content"].as_str().map(str::to_owned);
    Message { reasoning_content, ..Message::new(role, value["content"].as_str().unwrap()) }
}

#[test]
fn a_text_begins_once_whether_template_or_tokenizer_begins_it() {
    let folder = tempfile::tempdir().unwrap();
    let template = "{{ bos_token }}{% for message in messages %}[{{ message.content }}]{% endfor %}";
    fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    for Kind { name, tokenizer, .. } in families() {
        let chat = ChatFormat::load(folder.path(), &tokenizer).unwrap();
        let chat = chat.encode(&[Message::user("hi")], &ChatLayout::default(), &tokenizer).unwrap();
        let document = tokenizer.encode_document("[hi]").unwrap();
        let text = tokenizer.encode("[hi]", Specials::Match).unwrap();
        let begins = |ids: &[TokenId]| ids.iter().filter(|&&id| tokenizer.is_special(id)).count();
        let (named, added) = match &*name {
            "Llama 3" | "TinyLlama" | "Mistral" => (1, 1),
            "SmolLM2" => (1, 0),
            _ => (0, 0),
        };
        assert_eq!([begins(&chat), begins(&document), begins(&text)], [named, added, 0], "{name}");
        assert_eq!(document[added..], text, "{name}");
    }
}

#[test]
fn a_continuation_is_what_its_prompt_lacks_of_the_whole() {
    for Kind { name, tokenizer, value } in kinds() {
        let shown = |ids: &[TokenId]| {
            let ids: Vec<TokenId> = ids.iter().copied().filter(|&id| !tokenizer.is_special(id)).collect();
            tokenizer.decode(&ids)
        };
        for sequence in value["sequences"].as_array().unwrap() {
            let ids = ids(&sequence["ids"]);
            for cut in 0..ids.len() {
                let (prompt, rest) = ids.split_at(cut);
                let (whole, begun) = (shown(&ids), shown(prompt));
                // Half a character, and one run of bytes, belong to both sides.
                let Some(lacking) = whole.strip_prefix(&begun).filter(|_| !begun.ends_with('\u{fffd}')) else {
                    continue;
                };
                let split_run = [prompt.last(), rest.first()].map(|id| tokenizer.spell(*id.unwrap_or(&0)));
                if split_run.iter().all(|spelled| spelled.starts_with("bytes:")) {
                    continue;
                }
                assert_eq!(stream(&tokenizer, prompt, rest).concat(), lacking, "{name}: {prompt:?} + {rest:?}");
            }
        }
    }
}

#[test]
fn tokens_that_stand_for_bytes_wait_for_whole_characters() {
    let kinds = kinds();
    let kind = kinds.iter().find(|kind| kind.name == "byte fallback").unwrap();
    let tokenizer = &kind.tokenizer;
    // The reference's ids: the bytes come right behind <unk>, <s> and </s>.
    assert_eq!(tokenizer.bytes(3 + 0xe6), [0xe6]);
    assert_eq!(
        (tokenizer.spell(3 + 0xe6).as_str(), tokenizer.spell(3 + 0x41).as_str()),
        ("bytes:\\xe6", "bytes:\\x41")
    );
    let moon: Vec<TokenId> = "月".bytes().map(|byte| 3 + TokenId::from(byte)).collect();
    let word = tokenizer.encode("cat", Specials::Literal).unwrap();
    let pieces = stream(tokenizer, &[], &[moon.clone(), word].concat());
    assert_eq!(pieces[..3].concat(), "", "a run of bytes is text or not as a whole");
    assert!(pieces[3].starts_with('月'), "{pieces:?}");
    assert_eq!(stream(tokenizer, &[], &moon[..2]).concat(), "\u{fffd}\u{fffd}");
}
