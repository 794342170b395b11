//! `nanoinfer eval`: how good a model is, by the numbers that others publish.
mod python_text;
mod python_random;
mod porter;
mod rouge;
mod bleu;
mod core_prompt;
