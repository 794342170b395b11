//! Numbers that others published, to stand beside ours. Each with its source; none is a target.

/// Per task accuracies of `gpt2` (124M) by an independent port of the protocol, in bf16.
pub(crate) const GPT2_TASKS: (&str, &[(&str, f64)]) = (
    "gpt2 124M, an MLX port in bf16 (SammyTourani/road-to-52)",
    &[
        ("hellaswag_zeroshot", 0.3088),
        ("jeopardy", 0.0033),
        ("bigbench_qa_wikidata", 0.2826),
        ("arc_easy", 0.4184),
        ("arc_challenge", 0.2227),
        ("copa", 0.62),
        ("commonsense_qa", 0.2375),
        ("piqa", 0.6208),
        ("openbook_qa", 0.276),
        ("lambada_openai", 0.3241),
        ("hellaswag", 0.3070),
        ("winograd", 0.5934),
        ("winogrande", 0.5162),
        ("bigbench_dyck_languages", 0.155),
        ("agi_eval_lsat_ar", 0.2304),
        ("bigbench_cs_algorithms", 0.4235),
        ("bigbench_operators", 0.0905),
        ("bigbench_repeat_copy_logic", 0.03125),
        ("squad", 0.0579),
        ("coqa", 0.1328),
        ("boolq", 0.5544),
        ("bigbench_language_identification", 0.2592),
    ],
);

/// CORE, by nanochat.
pub(crate) const CORE: &[(&str, f64)] =
    &[("gpt2", 0.1139), ("gpt2-medium", 0.1849), ("gpt2-large", 0.2146), ("gpt2-xl", 0.2565)];

/// Perplexity of WikiText-2, by token: the GPT-2 paper, and Hugging Face's page.
pub(crate) const WIKITEXT2: &[(&str, f64)] = &[
    ("gpt2, paper", 29.41),
    ("gpt2-medium, paper", 22.76),
    ("gpt2-large, paper", 19.93),
    ("gpt2-xl, paper", 18.34),
    ("gpt2-large, Hugging Face, stride 512", 16.44),
];
