//! A template's source in the dialect that the library reads.
//!
//! Line ends become `\n` wherever they stand, as in Jinja2. `{% generation %}` marks, which only matter in training, become
//! `{% with %}`: what is set within stays within. Escapes in string literals that Python has and the library lacks are
//! spelled out. Knows tokens of the language, so that comments, raw text and strings are left alone; not its grammar.

use minijinja::{
    machinery::{Token, tokenize},
    syntax::SyntaxConfig,
};

/// What the library is to compile. A source that is no Jinja comes out as it is, for the compiler to say so.
pub(super) fn prepare(written: &str, syntax: &SyntaxConfig) -> String {
    let source = written.replace("\r\n", "\n").replace('\r', "\n");
    let tokens: Vec<_> = tokenize(&source, false, syntax.clone()).map_while(Result::ok).collect();
    let mut out = String::with_capacity(source.len());
    let mut copied = 0;
    for (i, (token, span)) in tokens.iter().enumerate() {
        let range = span.start_offset as usize..span.end_offset as usize;
        let is_tag = i > 0
            && matches!(tokens[i - 1].0, Token::BlockStart)
            && matches!(tokens.get(i + 1), Some((Token::BlockEnd, _)));
        let replacement = match token {
            Token::Ident("generation") if is_tag => "with".to_owned(),
            Token::Ident("endgeneration") if is_tag => "endwith".to_owned(),
            Token::Str(_) | Token::String(_) => respell(&source[range.clone()]),
            _ => continue,
        };
        out.push_str(&source[copied..range.start]);
        out.push_str(&replacement);
        copied = range.end;
    }
    out + &source[copied..]
}

/// `\U0001f600`, `\a` and `\v` as Python reads them; `\/`, which is no escape in Python but one in the library.
fn respell(literal: &str) -> String {
    let mut out = String::with_capacity(literal.len());
    let mut rest = literal;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let escape = &rest[at..];
        let wide = escape.get(2..10).and_then(|digits| u32::from_str_radix(digits, 16).ok()).and_then(char::from_u32);
        let (read, written) = match (escape.as_bytes().get(1), wide) {
            (Some(b'U'), Some(c)) => (10, c.to_string()),
            (Some(b'a'), _) => (2, "\\x07".into()),
            (Some(b'v'), _) => (2, "\\x0b".into()),
            (Some(b'/'), _) => (2, "\\\\/".into()),
            _ => {
                let read = 1 + escape[1..].chars().next().map_or(0, char::len_utf8);
                (read, escape[..read].to_owned())
            }
        };
        out.push_str(&written);
        rest = &escape[read..];
    }
    out + rest
}
