//! The calculator of nanochat's models: what stands between `<|python_start|>` and `<|python_end|>` is calculated, and the result
//! forced behind it.
//!
//! ```text
//! drawn    … <|python_start|> 12 * 7 <|python_end|>
//! forced                                            <|output_start|> 84 <|output_end|>
//! drawn                                                                                …
//! ```
//! Where there is no result, nothing is forced and the model goes on. Knows tokens and what they spell; what expressions mean is
//! [`expression`]'s. Invariant: no code is run, and the work is bounded, as it is done between two steps: 1 KiB of expression.
//! Reference: karpathy/nanochat, nanochat/engine.py (`RowState` and `use_calculator`).

mod expression;
mod integer;

use std::sync::Arc;

use nanoinfer_shared::protocol::TokenId;

use self::expression::MAX_BYTES;
use super::{CalculatorMarks, ModelText, Specials};
use crate::engine::next::Next;

/// Follows one answer, and calculates what the model asks for.
#[derive(Clone, Debug)]
pub(super) struct Calculator {
    text: Arc<ModelText>,
    marks: CalculatorMarks,
    /// What was written of an expression.
    expression: Option<Vec<TokenId>>,
}

impl Calculator {
    pub(super) fn new(text: Arc<ModelText>, marks: CalculatorMarks) -> Self {
        Self { text, marks, expression: None }
    }

    /// The result of an expression, in tokens.
    fn result(&self, expression: &[TokenId]) -> Option<Vec<TokenId>> {
        // Of so many tokens no text of that length is made.
        if expression.len() > MAX_BYTES {
            return None;
        }
        let result = expression::value(&self.text.tokenizer.decode(expression))?;
        self.text.tokenizer.encode(&result, Specials::Literal).ok()
    }
}

impl Next for Calculator {
    fn after(&mut self, id: TokenId) -> Vec<TokenId> {
        let CalculatorMarks { python_start, python_end, output_start, output_end } = self.marks;
        if id == python_start {
            self.expression = Some(Vec::new());
        } else if id == python_end {
            let result = self.expression.take().and_then(|expression| self.result(&expression));
            let around = |result: Vec<TokenId>| [vec![output_start], result, vec![output_end]].concat();
            return result.map_or_else(Vec::new, around);
        } else if let Some(expression) = &mut self.expression
            && expression.len() <= MAX_BYTES
        {
            expression.push(id);
        }
        Vec::new()
    }

    fn boxed(&self) -> Box<dyn Next> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::calculating_text;

    /// What a model writes, with what is forced behind it in brackets.
    fn written(text: &str) -> String {
        let model = calculating_text();
        let mut calculator = Calculator::new(model.clone(), model.calculator.unwrap());
        let follow = |id| {
            let forced = calculator.after(id);
            assert!(forced.iter().all(|&id| calculator.after(id).is_empty()));
            let forced =
                if forced.is_empty() { String::new() } else { format!("[{}]", model.tokenizer.decode(&forced)) };
            model.tokenizer.decode(&[id]) + &forced
        };
        model.tokenizer.encode(text, Specials::Match).unwrap().into_iter().map(follow).collect()
    }

    #[test]
    fn results_are_forced_behind_what_has_one() {
        for (text, forced) in [
            ("So <|python_start|>12 * 7<|python_end|>", "[<|output_start|>84<|output_end|>]"),
            ("<|python_start|>'strawberry'.count('r')<|python_end|>", "[<|output_start|>3<|output_end|>]"),
            ("<|python_start|>1+<|python_start|>2/5<|python_end|>", "[<|output_start|>0.4<|output_end|>]"),
            ("<|python_start|>7//0<|python_end|>", ""),
            ("<|python_start|>import os<|python_end|>", ""),
            ("<|python_start|><|output_start|>1<|output_end|><|python_end|>", ""),
            ("<|python_start|><|python_end|>", ""),
            ("2+2<|python_end|>", ""),
            ("<|python_start|>2+2", ""),
        ] {
            assert_eq!(written(text), text.to_owned() + forced);
        }
        let long = |digits: usize| written(&format!("<|python_start|>{}<|python_end|>", "7".repeat(digits)));
        assert!(long(1024).ends_with("7<|output_end|>]") && long(1025).ends_with("7<|python_end|>"));
    }

    #[test]
    fn a_copy_goes_on_where_the_first_stands() {
        let model = calculating_text();
        let marks = model.calculator.unwrap();
        let mut calculator: Box<dyn Next> = Calculator::new(model.clone(), marks).boxed();
        calculator.after(marks.python_start);
        model.tokenizer.encode("6*7", Specials::Literal).unwrap().into_iter().for_each(|id| drop(calculator.after(id)));
        let forced = [&mut calculator.clone(), &mut calculator].map(|each| each.after(marks.python_end));
        assert_eq!(forced.map(|ids| model.tokenizer.decode(&ids)), ["<|output_start|>42<|output_end|>"; 2]);
    }

    #[test]
    fn only_a_tokenizer_with_all_four_marks_has_a_calculator() {
        assert_eq!(crate::testing::demo_text().calculator, None);
        assert!(calculating_text().calculator.is_some());
    }
}
