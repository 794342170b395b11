//! A self-contained page: opens without a server or a network, light or dark.

const STYLE: &str = "\
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.25rem .6rem;border-bottom:1px solid #8884}
td.number,th.number{text-align:right;font-variant-numeric:tabular-nums}
svg{width:100%;font-size:12px;fill:currentColor}
rect.ours{fill:#3b7dd8}rect.foreign{fill:#9aa3ad}line.reference{stroke:#d8593b;stroke-width:2}
pre{overflow:auto;background:#8881;padding:.6rem}p.note{opacity:.75}
";

/// A whole page; title and body are HTML.
pub fn document(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n<body>\n{body}</body>\n</html>\n"
    )
}

/// A heading with a note and what follows; all of it HTML.
pub fn section(title: &str, note: &str, content: &str) -> String {
    format!("<h2>{title}</h2>\n<p class=\"note\">{note}</p>\n{content}")
}
