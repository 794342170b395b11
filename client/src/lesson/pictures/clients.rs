//! Step 11 of chapter 4: when each client gets pieces of its answer, as several ask the last program at once.

use std::{path::Path, thread};

use super::svg::{Svg, class};
use crate::lesson::build::serving::Program;

const QUESTIONS: [&str; 6] = [
    "What is a cat?",
    "Hello!",
    "What is the capital of France?",
    "What is a violin?",
    "What is a river?",
    "What is the capital of Japan?",
];
const LEFT: f64 = 220.0;
const TOP: f64 = 10.0;
const LANE: f64 = 24.0;
const WIDTH: f64 = 420.0;

pub(super) fn draw(folder: &Path) -> anyhow::Result<String> {
    let program = Program::start(folder)?;
    program.ask(QUESTIONS[0])?;
    let answers = thread::scope(|scope| {
        let asked: Vec<_> = QUESTIONS.iter().map(|question| scope.spawn(move || program.ask(question))).collect();
        asked.into_iter().map(|one| one.join().expect("a client does not panic")).collect::<anyhow::Result<Vec<_>>>()
    })?;
    let longest = answers.iter().map(|answer| answer.whole_s).fold(0.0, f64::max);
    let x = |seconds: f64| LEFT + seconds / longest * WIDTH;
    let mut svg = Svg::new(LEFT + WIDTH + 16.0);
    for (client, (answer, question)) in answers.iter().zip(QUESTIONS).enumerate() {
        let y = TOP + client as f64 * LANE;
        svg.text("soft", "end", (LEFT - 10.0, y + 15.0), question);
        svg.rect("empty", (LEFT, y + 8.0), (x(answer.whole_s) - LEFT, 3.0), "");
        for &piece in &answer.pieces_s {
            svg.rect(class(client), (x(piece) - 1.0, y), (2.0, LANE - 5.0), &format!("{:.1} ms", piece * 1e3));
        }
    }
    let words = format!(
        "a bar is a piece of text that arrives; all ask at once, and the last is done after {:.0} ms",
        longest * 1e3
    );
    svg.text("soft", "start", (12.0, TOP + QUESTIONS.len() as f64 * LANE + 18.0), &words);
    Ok(svg.finish("Pieces of answers as they arrive at several clients"))
}
