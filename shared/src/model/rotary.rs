//! Rotary positions: by which angles queries and keys are turned.
//!
//! ```text
//! a head u = (a, b), halves of D / 2;  angle m = position · frequency m
//!   (a · cos − b · sin,  b · cos + a · sin)
//! ```
//! Models are trained with frequencies, and angles, that are rounded to f32; so are these, and of such an angle sine and cosine
//! are exact at any position. Does not know heads or devices.
//! Reference: `transformers/modeling_rope_utils.py`.

use std::{f64::consts::PI, fmt};

use serde::{Deserialize, Serialize};

/// Angles of a model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rotary {
    /// The longest wave is `2π · theta`, nearly.
    pub theta: f64,
    /// How it was stretched to a longer context than it was trained with first.
    pub scaling: RotaryScaling,
    /// Heads are turned by the angles' opposites.
    pub backwards: bool,
    /// Whether sine and cosine are rounded.
    pub rounding: Rounding,
}

/// To what sine and cosine are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rounding {
    /// They are not.
    None,
    /// To bf16.
    Bf16,
    /// To bf16, unless the model is computed in f32.
    AsComputed,
}

/// How a longer context is reached.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum RotaryScaling {
    /// Not at all.
    None,
    /// All frequencies are divided.
    Linear {
        /// By this.
        factor: f64,
    },
    /// Low frequencies are divided, high ones are not, between them it is mixed; of Llama 3.1.
    Llama3 {
        /// By this.
        factor: f64,
        /// Waves longer than the first context by this are low.
        low_freq_factor: f64,
        /// Waves shorter than the first context by this are high.
        high_freq_factor: f64,
        /// Positions of the first context.
        original_context: f64,
    },
    /// The same by a ramp over dimensions, and scores grow; arXiv:2309.00071.
    Yarn {
        /// By this.
        factor: f64,
        /// Positions of the first context.
        original_context: f64,
        /// Turns within the first context from which on a frequency is high.
        beta_fast: f64,
        /// Turns below which it is low.
        beta_slow: f64,
        /// Whether the ramp begins and ends at whole dimensions.
        truncate: bool,
        /// What sine and cosine are multiplied by.
        attention_factor: f32,
    },
}

impl fmt::Display for Rotary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "theta {}", self.theta)?;
        match self.scaling {
            RotaryScaling::None => Ok(()),
            RotaryScaling::Linear { factor } => write!(f, ", all slowed {factor} times"),
            RotaryScaling::Llama3 { factor, .. } => write!(f, ", slow ones slowed {factor} times as in Llama 3.1"),
            RotaryScaling::Yarn { factor, .. } => write!(f, ", slow ones slowed {factor} times as in YaRN"),
        }
    }
}

impl Rotary {
    /// Whether sine and cosine are rounded to bf16 where a model is computed in f32, or in less.
    pub fn is_rounded(&self, in_f32: bool) -> bool {
        match self.rounding {
            Rounding::None => false,
            Rounding::Bf16 => true,
            Rounding::AsComputed => !in_f32,
        }
    }

    /// Frequencies in radians a position `[D / 2]`, the highest first.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        let (base, width) = (f64::from(self.theta as f32), head_dim as f32);
        let wave = |i: usize| libm::pow(base, f64::from((2 * i) as f32 / width)) as f32;
        let plain = (0..head_dim / 2).map(|i| 1.0 / wave(i));
        match self.scaling {
            RotaryScaling::None => plain.collect(),
            RotaryScaling::Linear { factor } => plain.map(|frequency| frequency / factor as f32).collect(),
            RotaryScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let scaled = |frequency: f32| {
                    let length = (2.0 * PI) as f32 / frequency;
                    if length < (original_context / high_freq_factor) as f32 {
                        return frequency;
                    }
                    if length > (original_context / low_freq_factor) as f32 {
                        return frequency / factor as f32;
                    }
                    let high_share = (original_context as f32 / length - low_freq_factor as f32)
                        / (high_freq_factor - low_freq_factor) as f32;
                    (1.0 - high_share) * frequency / factor as f32 + high_share * frequency
                };
                plain.map(scaled).collect()
            }
            RotaryScaling::Yarn { factor, original_context, beta_fast, beta_slow, truncate, .. } => {
                // The dimension whose wave turns so often within the first context.
                let dimension = |turns: f64| {
                    head_dim as f64 * libm::log(original_context / (turns * 2.0 * PI)) / (2.0 * libm::log(self.theta))
                };
                let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
                if low == high {
                    high += 0.001;
                }
                let mixed = |(i, frequency): (usize, f32)| {
                    let high_share = 1.0 - ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                    1.0 / (factor as f32 * wave(i)) * (1.0 - high_share) + frequency * high_share
                };
                plain.enumerate().map(mixed).collect()
            }
        }
    }

    /// What sine and cosine are multiplied by.
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            RotaryScaling::Yarn { attention_factor, .. } => attention_factor,
            _ => 1.0,
        }
    }
}
