//! What requests may ask for and a route does not do.
//!
//! A route takes the fields that it knows, and looks up here what is left. Invariant: of the fields that any dialect
//! knows, one that would change the answer is refused by name; one whose sender is content with the plain answer too is
//! left out, and the reply says so. Does not know routes.

use super::{Failure, Fields};

/// Would change the answer, unless they ask for nothing: null, `false`, an empty text or list. First what says what the text may
/// be, then what it follows, then what the reply has beside it.
const REFUSED: [&str; 3] = [
    "format structured_outputs structural_tag json_schema grammar regex ebnf allowed_token_ids bad_words \
     logits_processors use_beam_search ignore_eos stop_token_ids",
    "messages prompt prompt_embeds system suffix template context documents images audio chat_template \
     continue_final_message add_special_tokens truncate_prompt_tokens shift tools functions \
     web_search_options think enable_thinking",
    "echo include_stop_str_in_output logprobs prompt_logprobs return_token_ids return_tokens_as_token_ids \
     explain",
];

/// The same, where the value that asks for nothing is another, in JSON.
const REFUSED_UNLESS: [(&str, &str); 9] = [
    ("response_format", r#"{"type": "text"}"#),
    ("modalities", r#"["text"]"#),
    ("n", "1"),
    ("best_of", "1"),
    ("min_tokens", "0"),
    ("add_generation_prompt", "true"),
    ("skip_special_tokens", "true"),
    ("chat_template_kwargs", "{}"),
    ("mm_processor_kwargs", "{}"),
];

/// Further constraints on the text begin like this: vLLM has had half a dozen.
const REFUSED_PREFIX: &str = "guided_";

/// Wishes for how the answer comes about, which any answer may meet; and the value that wishes for nothing.
const LEFT_OUT: [(&str, &str); 9] = [
    ("reasoning_effort", r#""none""#),
    ("reasoning", "{}"),
    ("thinking", r#"{"type": "disabled"}"#),
    ("verbosity", r#""medium""#),
    ("mirostat", "0"),
    ("tfs_z", "1"),
    ("top_a", "0"),
    ("xtc_probability", "0"),
    ("dry_multiplier", "0"),
];

/// Change nothing here, whatever they say.
const IGNORED: &str = "user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention \
    parallel_tool_calls prediction spaces_between_special_tokens guided_decoding_backend";

/// Takes what a route left.
pub(super) fn take(fields: &mut Fields) -> Result<(), Failure> {
    fields.ignore(IGNORED);
    for name in REFUSED.into_iter().flat_map(|names| names.split(' ')) {
        fields.refuse(name)?;
    }
    for name in fields.beginning(REFUSED_PREFIX) {
        fields.refuse(&name)?;
    }
    for (name, nothing) in REFUSED_UNLESS {
        fields.refuse_unless(name, nothing)?;
    }
    for (name, nothing) in LEFT_OUT {
        if fields.asked(name, nothing)?.is_some() {
            fields.warn(format!("`{}` was left out: this server knows no such setting", fields.path(name)));
        }
    }
    Ok(())
}
