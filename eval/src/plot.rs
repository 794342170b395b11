//! Bars as SVG, written as text.

/// One bar.
#[derive(Clone, Debug)]
pub struct Bar {
    /// What it is of.
    pub label: String,
    /// How long it is.
    pub value: f64,
    /// What others got, as a line across the bar.
    pub reference: Option<f64>,
    /// Somebody else's value altogether, in another colour.
    pub foreign: bool,
}

impl Bar {
    /// A bar of ours, with nothing beside it.
    pub fn new(label: impl Into<String>, value: f64) -> Self {
        Self { label: label.into(), value, reference: None, foreign: false }
    }
}

const ROW: usize = 22;
const LABEL_WIDTH: usize = 260;
const PLOT_WIDTH: usize = 440;
const NUMBER_WIDTH: usize = 80;
/// Longest label, in characters.
const MAX_LABEL: usize = 40;

/// Horizontal bars from 0, one below the other; values below 0 go to the left of it.
pub fn bars(bars: &[Bar]) -> String {
    let finite = |x: &f64| x.is_finite();
    let numbers = || bars.iter().flat_map(|bar| [Some(bar.value), bar.reference]).flatten().filter(finite);
    let (low, high) = (numbers().fold(0.0, f64::min), numbers().fold(0.0, f64::max));
    let span = if high > low { high - low } else { 1.0 };
    drawn(bars, |value| (value - low) / span)
}

/// How far along a logarithmic scale a value lies that begins at half of the least of `values` and ends at the most.
pub fn log_share(values: &[f64]) -> impl Fn(f64) -> f64 + use<> {
    let positive = || values.iter().copied().filter(|value| *value > 0.0 && value.is_finite());
    let low = positive().fold(f64::INFINITY, f64::min) / 2.0;
    let high = positive().fold(low * 2.0, f64::max);
    move |value: f64| (value / low).ln() / (high / low).ln()
}

/// Bars whose ends `place` puts between 0 and 1.
fn drawn(bars: &[Bar], place: impl Fn(f64) -> f64) -> String {
    let finite = |x: &f64| x.is_finite();
    let x = |value: f64| LABEL_WIDTH as f64 + place(value) * PLOT_WIDTH as f64;
    let (width, height) = (LABEL_WIDTH + PLOT_WIDTH + NUMBER_WIDTH, ROW * bars.len() + 8);
    let mut svg = format!("<svg viewBox=\"0 0 {width} {height}\" role=\"img\">\n");
    for (i, bar) in bars.iter().enumerate() {
        let y = i * ROW + 4;
        let class = if bar.foreign { "foreign" } else { "ours" };
        let text_y = y + 14;
        let label = escape(&shortened(&bar.label));
        svg += &format!("<text x=\"{}\" y=\"{text_y}\" text-anchor=\"end\">{label}</text>", LABEL_WIDTH - 8);
        if bar.value.is_finite() {
            let (left, right) = (x(bar.value.min(0.0)), x(bar.value.max(0.0)));
            svg += &format!(
                "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{y}\" width=\"{:.1}\" height=\"{}\"><title>{label}: {}</title></rect>",
                (right - left).max(1.0),
                ROW - 6,
                bar.value
            );
        }
        if let Some(reference) = bar.reference.filter(finite) {
            let at = x(reference);
            svg +=
                &format!("<line class=\"reference\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{y}\" y2=\"{}\"/>", y + ROW - 6);
        }
        svg += &format!("<text x=\"{}\" y=\"{text_y}\">{}</text>\n", LABEL_WIDTH + PLOT_WIDTH + 8, number(bar.value));
    }
    svg + "</svg>\n"
}

/// With four digits that matter.
pub fn number(value: f64) -> String {
    match value.abs() {
        x if !x.is_finite() => "–".into(),
        x if x >= 1000.0 => format!("{value:.0}"),
        x if x >= 10.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// Text as HTML and SVG show it.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn shortened(label: &str) -> String {
    if label.chars().count() <= MAX_LABEL {
        return label.to_owned();
    }
    label.chars().take(MAX_LABEL - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_a_logarithmic_scale_equal_factors_are_equal_lengths() {
        let share = log_share(&[2.0, 4.0, 16.0, f64::NAN]);
        let at = [1.0, 2.0, 4.0, 8.0, 16.0].map(|value| (share(value) * 100.0).round());
        assert_eq!(at, [0.0, 25.0, 50.0, 75.0, 100.0]);
    }

    #[test]
    fn bars_reach_as_far_as_their_values() {
        let bar = |label: &str, value, reference| Bar { reference, ..Bar::new(label, value) };
        let svg = bars(&[bar("a <b>", 2.0, Some(1.0)), bar("c", -2.0, None), bar("none", f64::NAN, None)]);
        assert_eq!(svg.matches("<rect").count(), 2, "what is no number has no bar");
        // From -2 to 2 over 440 units beside labels of 260: 0 is at 480.
        assert!(
            svg.contains("x=\"480.0\" y=\"4\" width=\"220.0\"") && svg.contains("x=\"260.0\" y=\"26\" width=\"220.0\"")
        );
        assert!(svg.contains("a &lt;b&gt;") && svg.contains("x1=\"590.0\""), "{svg}");
        assert!(bars(&[]).contains("</svg>"));
    }
}
