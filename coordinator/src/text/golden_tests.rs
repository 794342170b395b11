//! Every kind of tokenizer, against what transformers makes of the same files.

use std::{fs, path::Path};

use nanoinfer_shared::protocol::TokenId;
use serde_json::Value;

use super::{Detokenizer, Specials, Tokenizer};

struct Kind {
    name: String,
    tokenizer: Tokenizer,
    value: Value,
}

fn kinds() -> Vec<Kind> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tokenizers.json");
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
