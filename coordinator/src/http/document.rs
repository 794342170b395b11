//! openapi.json: every route with its fields, answers and an example.
//!
//! Written by hand: requests are read field by field, so there are no types that it could be derived from. Tests, and `.ci/clients`,
//! hold the server against it. Knows no request.

use serde_json::Value;

const OPENAPI: &str = include_str!("page/openapi.json");

/// As it was written, since its order is that of use, with the version of the server; examples name the model that is served.
pub(super) fn written(version: &str, model: &str) -> String {
    let quoted = |text: &str| Value::from(text).to_string();
    let document = OPENAPI.replacen(r#""version": """#, &format!(r#""version": {}"#, quoted(version)), 1);
    document.replace(r#""nano-chat""#, &quoted(model))
}

/// As a value.
pub(super) fn read() -> Value {
    serde_json::from_str(OPENAPI).expect("a test reads it")
}

/// What a path answers, like `GET, POST`.
pub(super) fn methods(path: &str) -> String {
    let document = read();
    let fits = |pattern: &str| {
        let mut parts = path.split('/');
        let begins = pattern.split('/').all(|part| match part.starts_with('{') {
            true => parts.next().is_some(),
            false => parts.next() == Some(part),
        });
        // The rest of a path is one name, as ids of the hub have a slash.
        begins && (pattern.ends_with('}') || parts.next().is_none())
    };
    let paths = document["paths"].as_object().into_iter().flatten();
    let of_path = paths.filter(|(pattern, _)| fits(pattern)).filter_map(|(_, methods)| methods.as_object());
    of_path.flat_map(|methods| methods.keys().map(|method| method.to_uppercase())).collect::<Vec<_>>().join(", ")
}
