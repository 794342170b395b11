use std::sync::Arc;

use nanoinfer_shared::protocol::TokenId;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    compiler::{Compiled, KEPT},
    follower::Opening,
    *,
};
use crate::{
    engine::next::Next,
    testing::demo_text,
    text::{Specials, thinking::Stage},
};

const END: TokenId = 4095;

fn compiled(grammar: Grammar) -> Result<Compiled, GrammarError> {
    Grammars::default().compile(&demo_text(), &[END], &Constraint { field: "format".into(), grammar })
}

fn follower(grammar: Grammar) -> Follower {
    Follower::new(demo_text(), compiled(grammar).unwrap(), Opening::AtOnce).at(None)
}

/// Has an answer written, token by token; how far it is followed, and whether it may end there.
fn follow(grammar: &Grammar, answer: &str) -> (String, bool) {
    let text = demo_text();
    let mut follower = follower(grammar.clone());
    let mut written = Vec::new();
    for id in text.tokenizer.encode(answer, Specials::Match).unwrap() {
        if follower.is_over() || !follower.mask().unwrap().allows(id as usize) {
            break;
        }
        written.push(id);
        follower.after(id);
    }
    let may_end = follower.is_over() || follower.mask().unwrap().allows(END as usize);
    (text.tokenizer.decode(&written), may_end)
}

#[test]
fn answers_are_followed_as_far_as_the_grammar_has_them() {
    let schema = json!({"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"], "additionalProperties": false});
    let schema = Grammar::Json(schema);
    let whole = |grammar: &Grammar, answer: &str| {
        assert_eq!(follow(grammar, answer), (answer.to_owned(), true), "{grammar:?}");
    };
    whole(&schema, r#"{"name": "cat", "age": 12}"#);
    whole(&schema, "{\n  \"name\": \"cat\",\n  \"age\": -3\n}");
    whole(&Grammar::json_object(), r#"{"a": [1, {"b": null}]}"#);
    whole(&Grammar::Json(json!({})), "[true]");
    whole(&Grammar::Json(Value::Bool(true)), "\"x\"");
    whole(&Grammar::Regex("[a-c]{2,3}x?".into()), "abx");
    whole(&Grammar::Choice(vec!["yes".into(), "no \"never\"\n".into()]), "no \"never\"\n");
    whole(&Grammar::Lark("start: \"a\" b*\nb: \"b\" | \"(\" b \")\"".into()), "ab(b)");
    for (grammar, answer, begin) in [
        (&schema, r#"{"age": 1}"#, r#"{""#),
        (&schema, r#"{"name": 1}"#, r#"{"name":"#),
        (&schema, r#"{"name": "a", "age": 12"#, r#"{"name": "a", "age": 12"#),
        (&Grammar::json_object(), "[1]", ""),
        (&Grammar::Regex("[0-9]+x".into()), "12 cats", "12"),
    ] {
        let (written, may_end) = follow(grammar, answer);
        assert!(written.trim_end().starts_with(begin.trim_end()) && written.len() <= begin.len(), "{written}");
        assert!(!may_end, "{answer}");
    }
}

#[test]
fn white_space_has_an_end() {
    let grammar = Grammar::Json(json!({"type": "array", "items": {"type": "integer"}}));
    let indented = |count: usize| format!("[1,\n{}2]", " ".repeat(count));
    assert!(follow(&grammar, &indented(20)).1 && follow(&grammar, "[1, 2]").1);
    assert!(!follow(&grammar, &indented(21)).1 && !follow(&grammar, "[1,  2]").1);
    let own = json!({"type": "array", "x-guidance": {"whitespace_pattern": " +"}});
    assert!(!follow(&Grammar::Json(own), "[1,    2]").1, "what a schema says of it is not asked for");
}

#[test]
fn special_tokens_have_no_text() {
    let mut follower = follower(Grammar::Regex("(?s:.)*".into()));
    let mask = follower.mask().unwrap();
    assert!(mask.allows(END as usize), "a whole text may end");
    assert!(!follow(&Grammar::Regex("<\\|endoftext\\|>".into()), "<|endoftext|>").1);
    follower.after(END);
    assert!(follower.is_over());
}

#[test]
fn a_token_is_forced_where_no_other_may_come_and_an_answer_is_over_where_none_may() {
    let text = demo_text();
    let mut follower = follower(Grammar::Choice(vec!["a\u{1f600}".into()]));
    let mut forced = follower.after(text.tokenizer.encode("a", Specials::Literal).unwrap()[0]);
    let mut bytes = Vec::new();
    while let Some(id) = forced.pop() {
        bytes.extend_from_slice(text.tokenizer.bytes(id));
        forced = follower.after(id);
    }
    assert_eq!(String::from_utf8(bytes).unwrap(), "\u{1f600}", "whose bytes are no part of a longer token");
    assert!(follower.is_over());
    let mut follower = self::follower(Grammar::Choice(vec!["the cat".into()]));
    assert!(follower.after(text.tokenizer.encode("t", Specials::Literal).unwrap()[0]).is_empty(), "h and he may come");
}

#[test]
fn a_copy_goes_on_by_itself() {
    let text = demo_text();
    let mut first = follower(Grammar::Regex("a(b|c)".into()));
    let token = |piece: &str| text.tokenizer.encode(piece, Specials::Literal).unwrap()[0];
    first.after(token("a"));
    let mut second = first.boxed();
    second.after(token("b"));
    assert!(second.is_over() && !first.is_over());
    assert!(first.mask().unwrap().allows(token("c") as usize));
    first.after(token("x"));
    assert!(first.mask().unwrap_err().contains("cannot be followed"), "what was not allowed is said");
}

#[test]
fn thoughts_are_free_and_the_grammar_begins_behind_them() {
    let text = demo_text();
    let inner = follower(Grammar::Regex("[0-9]".into()));
    let digit = text.tokenizer.encode("7", Specials::Literal).unwrap()[0];
    for stage in [Stage::Begun, Stage::Inside] {
        let mut follower = inner.at(Some(stage));
        for id in text.tokenizer.encode("Hm < 7 </thin </think>", Specials::Literal).unwrap() {
            assert!(!follower.is_masking() && !follower.is_over());
            follower.after(id);
        }
        assert!(follower.is_masking() && follower.mask().unwrap().allows(digit as usize));
        follower.after(digit);
        assert!(follower.is_over());
    }
    for stage in [None, Some(Stage::Answer), Some(Stage::Before)] {
        let mut follower = inner.at(stage);
        assert!(follower.is_masking());
        assert!(follower.mask().unwrap().allows(digit as usize));
    }
}

#[test]
fn a_grammar_may_begin_behind_a_mark_or_where_its_first_token_comes() {
    let text = demo_text();
    let grammar = compiled(Grammar::Regex("\\{[0-9]\\}".into())).unwrap();
    let write = |follower: &mut Follower, answer: &str| {
        for id in text.tokenizer.encode(answer, Specials::Literal).unwrap() {
            follower.after(id);
        }
    };
    let behind = Follower::new(text.clone(), grammar.clone(), Opening::Behind("<tool_call>"));
    let mut follower = behind.at(None);
    write(&mut follower, "{7 no <tool_cal");
    assert!(!follower.is_masking());
    write(&mut follower, "l>");
    assert!(follower.is_masking());
    write(&mut follower, "{7}");
    assert!(follower.is_over());
    let mut thinking = behind.at(Some(Stage::Inside));
    write(&mut thinking, "<tool_call> </think> So");
    assert!(!thinking.is_masking(), "a thought calls nothing");
    write(&mut thinking, "<tool_call>");
    assert!(thinking.is_masking());
    let perhaps = Follower::new(text.clone(), grammar, Opening::Perhaps);
    for (answer, is_masking) in [("{", true), (" {", true), ("Two {", false)] {
        let mut follower = perhaps.at(None);
        assert!(!follower.is_masking());
        write(&mut follower, answer);
        assert_eq!(follower.is_masking(), is_masking, "{answer}");
    }
}

#[test]
fn refusals_name_the_keyword_and_its_path() {
    for (schema, words) in [
        (
            json!({"properties": {"a/b": {"items": {"type": "string", "format": "banana"}}}}),
            "`format` at #/properties/a~1b/items: Unknown format: banana",
        ),
        (json!({"type": "object", "unevaluatedProperties": false}), "`unevaluatedProperties` at its root"),
        (
            json!({"$defs": {"x": {"not": {"type": "null"}}}, "anyOf": [{"type": "null"}, {"$ref": "#/$defs/x"}]}),
            "`not` at #/$defs/x",
        ),
        (json!({"type": "banana"}), "`type` at its root"),
        (json!({"$ref": "https://example.com/x"}), "`$ref` at its root"),
        (json!({"minimum": 3, "maximum": 2, "type": "integer"}), "at its root"),
    ] {
        let error = compiled(Grammar::Json(schema.clone())).map(|_| ()).unwrap_err().to_string();
        assert!(error.starts_with("`format` cannot be used: ") && error.contains(words), "{schema}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
    for grammar in [Grammar::Regex("(".into()), Grammar::Lark("start: x".into()), Grammar::Lark("{".into())] {
        let error = compiled(grammar).map(|_| ()).unwrap_err().to_string();
        assert!(error.starts_with("`format` cannot be used: "), "{error}");
    }
}

#[test]
fn grammars_have_bounds() {
    let mut deep = json!({"type": "null"});
    (0..40).for_each(|_| deep = json!({"properties": {"a": deep}}));
    let error = compiled(Grammar::Json(deep)).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("nested deeper than 64"), "{error}");
    let long = Grammar::Regex("a".repeat(MAX_GRAMMAR_BYTES + 1));
    assert!(compiled(long).map(|_| ()).unwrap_err().to_string().contains("over the limit"));
    for grammar in [
        Grammar::Regex("((((a{1,100}){1,100}){1,100}){1,100}){1,100}".into()),
        Grammar::Json(
            json!({"type": "array", "minItems": 1_000_000, "items": {"type": "array", "minItems": 1_000_000}}),
        ),
    ] {
        // Refused, or followed: it comes back.
        if let Ok(compiled) = compiled(grammar) {
            let _ = Follower::new(demo_text(), compiled, Opening::AtOnce).at(None).mask();
        }
    }
}

#[test]
fn what_leads_deep_is_refused_or_compiled_and_ends_nothing() {
    // Each definition refers to the next: as many as there is room for.
    let named = |count: usize| -> Value {
        let refers = |at: usize| (format!("a{at}"), json!({"$ref": format!("#/$defs/a{}", at + 1)}));
        let mut named: serde_json::Map<_, _> = (0..count).map(refers).collect();
        named.insert(format!("a{count}"), json!({"type": "null"}));
        json!({"$defs": named, "$ref": "#/$defs/a0"})
    };
    compiled(Grammar::Json(named(7000))).unwrap();
    // The same, with other keywords beside.
    let mut beside = named(5000);
    beside["$defs"].as_object_mut().unwrap().values_mut().for_each(|schema| schema["type"] = json!("null"));
    compiled(Grammar::Json(beside)).unwrap();
    let nested = |inner: Value| (0..50).fold(inner, |inner, _| json!({"items": inner}));
    let mut deep = named(300);
    deep["$defs"].as_object_mut().unwrap().values_mut().for_each(|schema| *schema = nested(schema.take()));
    let error = compiled(Grammar::Json(deep)).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("levels down, over the limit of 10000"), "{error}");
    for rule in ["r", "T"] {
        let count = 9900;
        let rules: Vec<String> = (0..count).map(|at| format!("{rule}{at}: {rule}{}", at + 1)).collect();
        let lark = format!("start: {rule}0\n{}\n{rule}{count}: \"x\"", rules.join("\n"));
        // The library may have bounds of its own.
        let _ = compiled(Grammar::Lark(lark));
    }
    let many = "(".repeat(20_000);
    assert!(compiled(Grammar::Lark(many)).map(|_| ()).unwrap_err().to_string().contains("levels down"));
}

#[test]
fn what_was_compiled_is_kept_for_a_while() {
    let grammars = Grammars::default();
    let compile = |regex: String| {
        let constraint = Constraint { field: "regex".into(), grammar: Grammar::Regex(regex) };
        grammars.compile(&demo_text(), &[END], &constraint).unwrap()
    };
    let first = compile("x".into());
    (0..KEPT - 1).for_each(|i| drop(compile(format!("a{i}"))));
    assert!(Arc::ptr_eq(&first.0, &compile("x".into()).0));
    (0..KEPT).for_each(|i| drop(compile(format!("b{i}"))));
    assert!(!Arc::ptr_eq(&first.0, &compile("x".into()).0));
    assert_eq!(grammars.kept.lock().unwrap().len(), KEPT);
}

/// Schemas, most of them good, some not.
fn schema() -> impl Strategy<Value = Value> {
    let number = || prop_oneof![Just(json!(0)), Just(json!(3)), Just(json!(-1)), Just(json!(1.5)), Just(json!("x"))];
    let leaf = prop_oneof![
        Just(json!({})),
        Just(json!(true)),
        Just(json!(false)),
        Just(json!({"$ref": "#"})),
        Just(json!({"$ref": "#/$defs/a"})),
        Just(json!({"const": {"a": [1, null]}})),
        "[a-z]{1,8}".prop_map(|name| json!({"type": name})),
        "[a-z-]{1,9}".prop_map(|name| json!({"type": "string", "format": name})),
        "[ -~]{0,12}".prop_map(|pattern| json!({"type": "string", "pattern": pattern})),
        "\\PC{0,200}".prop_map(|text| json!({"enum": [text, 1]})),
        (number(), number()).prop_map(|(low, high)| json!({"type": "integer", "minimum": low, "maximum": high})),
        (number(), number()).prop_map(|(low, high)| json!({"type": "string", "minLength": low, "maxLength": high})),
    ];
    leaf.prop_recursive(4, 40, 5, move |inner| {
        let list = proptest::collection::vec(inner.clone(), 0..4);
        prop_oneof![
            (inner.clone(), number()).prop_map(|(items, least)| json!({"type": "array", "items": items, "minItems": least})),
            (inner.clone(), inner.clone(), any::<bool>()).prop_map(|(a, b, closed)| {
                json!({"type": "object", "properties": {"a": a, "b\"": b}, "required": ["a"], "additionalProperties": !closed})
            }),
            (inner.clone(), "[a-z.*+]{0,6}").prop_map(|(value, name)| json!({"patternProperties": {name: value}})),
            (inner.clone(), inner.clone()).prop_map(|(root, named)| json!({"$defs": {"a": named}, "allOf": [root]})),
            list.clone().prop_map(|list| json!({"anyOf": list})),
            list.clone().prop_map(|list| json!({"oneOf": list})),
            list.prop_map(|list| json!({"allOf": list})),
            inner.prop_map(|inner| json!({"not": inner})),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever is asked for is refused in words, or followed for a while: a token that may come can be taken.
    #[test]
    fn whatever_is_asked_for_is_refused_or_followed(
        grammar in prop_oneof![
            4 => schema().prop_map(Grammar::Json),
            1 => "[ -~]{0,24}".prop_map(Grammar::Regex),
            1 => "(start: |[a-z]: |%json \\{|\\}|\"[a-z]\"|/[a-z]+/|[a-z]|\n| \\| |\\(|\\)|\\*|\\{1,3\\}){0,12}".prop_map(Grammar::Lark),
        ],
        mut dice in any::<u64>(),
    ) {
        let compiled = match compiled(grammar.clone()) {
            Ok(compiled) => compiled,
            Err(error) => {
                prop_assert!(error.to_string().starts_with("`format` ") && !error.to_string().contains('\n'), "{error}");
                return Ok(());
            }
        };
        let mut follower = Follower::new(demo_text(), compiled, Opening::AtOnce).at(None);
        for _ in 0..30 {
            if follower.is_over() {
                break;
            }
            // Beyond its bounds it says so.
            let Ok(mask) = follower.mask() else { break };
            let allowed: Vec<TokenId> = (0..4096).filter(|&id| mask.allows(id as usize)).collect();
            prop_assert!(!allowed.is_empty(), "{grammar:?}");
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let id = allowed[(dice >> 33) as usize % allowed.len()];
            for forced in follower.after(id) {
                prop_assert!(follower.mask().unwrap().only() == Some(forced));
            }
        }
    }
}
