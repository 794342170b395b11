//! An image under construction, written as text; colours follow the reader's light or dark setting.

use nanoinfer_eval::plot::escape;

/// Classes: `a` to `d` are ranks or texts, `soft` is secondary text, `empty` what nobody holds, `sum` what is added up.
const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#20242b}.soft{fill:#5b6370;font-size:12px}\
.a{fill:#5b8def}.b{fill:#e58a4e}.c{fill:#4fae7b}.d{fill:#b07cd8}.empty{fill:#e2dfd7}.sum{fill:#c9506b}.wait{fill:#e9b6c1}\
.frame{fill:none;stroke:#20242b;stroke-width:1.5}.line{stroke:#9aa3ad;stroke-width:1;fill:none}\
@media(prefers-color-scheme:dark){text{fill:#e7e9ee}.soft{fill:#9aa3b2}.empty{fill:#30353f}.frame{stroke:#e7e9ee}\
.a{fill:#6f9cf5}.sum{fill:#e0708a}.wait{fill:#70404d}.line{stroke:#5b6370}}";

/// An image under construction.
pub(super) struct Svg {
    width: f64,
    height: f64,
    body: String,
}

impl Svg {
    pub(super) fn new(width: f64) -> Self {
        Self { width, height: 0.0, body: String::new() }
    }

    pub(super) fn rect(&mut self, class: &str, at: (f64, f64), size: (f64, f64), title: &str) {
        self.filled(class, at, size, "", title);
    }

    /// A rectangle as opaque as a share from 0 to 1.
    pub(super) fn shade(&mut self, class: &str, at: (f64, f64), size: (f64, f64), share: f64, title: &str) {
        self.filled(class, at, size, &format!(" opacity=\"{share:.2}\""), title);
    }

    fn filled(&mut self, class: &str, (x, y): (f64, f64), (width, height): (f64, f64), opacity: &str, title: &str) {
        let title = if title.is_empty() { String::new() } else { format!("<title>{}</title>", escape(title)) };
        self.body += &format!(
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"{opacity}>{title}</rect>\n"
        );
        self.height = self.height.max(y + height);
    }

    pub(super) fn text(&mut self, class: &str, anchor: &str, (x, y): (f64, f64), text: &str) {
        let text = escape(text);
        self.body +=
            &format!("<text class=\"{class}\" text-anchor=\"{anchor}\" x=\"{x:.1}\" y=\"{y:.1}\">{text}</text>\n");
        self.height = self.height.max(y + 4.0);
    }

    pub(super) fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        self.body += &format!("<path class=\"line\" d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\"/>\n");
        self.height = self.height.max(y1.max(y2));
    }

    pub(super) fn finish(self, title: &str) -> String {
        let (width, height) = (self.width, self.height + 8.0);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" role=\"img\">\n<title>{title}</title>\n<style>{STYLE}</style>\n{}</svg>\n",
            self.body
        )
    }
}

/// The class of a rank or a text.
pub(super) fn class(index: usize) -> &'static str {
    ["a", "b", "c", "d"][index % 4]
}
