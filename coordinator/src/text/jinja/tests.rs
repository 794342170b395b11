use std::collections::BTreeMap;

use serde::Deserialize;

use super::*;
use crate::clock::UtcTime;

#[derive(Deserialize, Serialize)]
struct Message {
    role: String,
    content: String,
}

fn render(source: &str) -> Result<String, String> {
    let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    let messages = [message("system", "Be <kind>."), message("user", " Hi 'you' ")];
    let tokens = BTreeMap::from([("bos_token", "<s>"), ("eos_token", "")]);
    JinjaTemplate::new(source)?.render(&messages, true, &tokens)
}

fn vectors() -> serde_json::Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/vectors/chat_templates.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn messages(messages: &serde_json::Value) -> Vec<Message> {
    serde_json::from_value(messages.clone()).unwrap()
}

#[test]
fn blocks_are_trimmed_as_transformers_does() {
    let source = "{% for m in messages %}\n    {% if m['role'] == 'user' %}\n{{ m.content | trim }}\n    {% endif %}\n{% endfor %}\nend";
    assert_eq!(render(source).unwrap(), "Hi 'you'\nend");
}

#[test]
fn python_methods_and_variables_work() {
    assert_eq!(render("{{ messages[1].content.strip().upper() }}").unwrap(), "HI 'YOU'");
    assert_eq!(render("{{ bos_token }}{{ eos_token }}{{ messages[1:] | length }}").unwrap(), "<s>1");
    assert_eq!(render("{{ messages[0].get('name', 'none') }}").unwrap(), "none");
    assert_eq!(render("{% if tools is none and not missing %}ok{% endif %}").unwrap(), "ok");
    assert_eq!(render("{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns.x }}").unwrap(), "2");
    assert_eq!(
        render("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}x{% endfor %}").unwrap(),
        "x"
    );
}

#[test]
fn templates_render_as_in_transformers() {
    let vectors = vectors();
    let tokens: BTreeMap<String, String> = serde_json::from_value(vectors["tokens"].clone()).unwrap();
    for case in vectors["cases"].as_array().unwrap() {
        let messages = messages(&case["messages"]);
        let template = JinjaTemplate::new(case["template"].as_str().unwrap()).unwrap();
        let text = template.render(&messages, case["add_generation_prompt"] == true, &tokens);
        assert_eq!(text.as_deref(), Ok(case["text"].as_str().unwrap()), "{}", case["name"]);
    }
}

#[test]
fn templates_of_families_render_as_in_transformers() {
    let vectors = vectors();
    let families = &vectors["families"];
    let mut wrong = Vec::new();
    for case in families["cases"].as_array().unwrap() {
        let (name, conversation) = (case["template"].as_str().unwrap(), case["conversation"].as_str().unwrap());
        let template = JinjaTemplate::new(families["templates"][name].as_str().unwrap()).unwrap();
        assert!(template.unknown().is_empty(), "{name}: {:?}", template.unknown());
        let messages = families["conversations"][conversation].as_array().unwrap();
        let mut variables = vectors["tokens"].clone();
        variables.as_object_mut().unwrap().extend(case["variables"].as_object().unwrap().clone());
        let today = || UtcTime::now().strftime("%d %b %Y");
        let before = today();
        let text = template.render(messages, case["add_generation_prompt"] == true, &variables);
        // On either side of midnight.
        let dates = [before, today()];
        let expected = |date: &String| case["text"].as_str().map(|text| text.replace("{%d %b %Y}", date));
        let is_right = match &text {
            Ok(text) => dates.iter().any(|date| expected(date).as_ref() == Some(text)),
            Err(error) => {
                case["error"].as_str().is_some_and(|theirs| theirs.contains(error.split(" (line").next().unwrap()))
            }
        };
        if !is_right {
            wrong.push(format!("{name}, {conversation}, {}: {text:?}\n{}", case["variables"], case["text"]));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_template_that_never_ends_is_stopped() {
    let error = render("{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}").unwrap_err();
    assert!(error.contains("fuel"), "{error}");
    let doubling = "{% set n = namespace(x='xx') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}";
    render(doubling).unwrap_err();
    render("{{ 'x' * 9999999999 }}").unwrap_err();
}

#[test]
fn values_nested_as_deep_as_fuel_lasts_end_no_process() {
    let nested = |times: usize, end: &str| {
        let nest = "{% for i in range(999) %}{% set n.x = [n.x] %}{% endfor %}";
        render(&format!("{{% set n = namespace(x=[]) %}}{}{end}", nest.repeat(times)))
    };
    assert_eq!(nested(60, "done").unwrap(), "done");
    // With all fuel, and shown: whether that is text or an error, it is an answer.
    let _ = nested(1000, "");
    let _ = nested(60, "{{ n.x }}");
    let _ = nested(60, "{{ n.x | tojson }}");
}

#[test]
fn generation_marks_are_neutral() {
    let source = "a{% generation %}b{%- endgeneration -%} c{% if add_generation_prompt %}d{% endif %}";
    assert_eq!(render(source).unwrap(), "abcd");
    assert!(render("x {% unfinished").is_err());
}

#[test]
fn errors_say_what_and_where() {
    assert_eq!(render("\n{{ raise_exception('No system role!') }}").unwrap_err(), "No system role! (line 2)");
    assert!(render("{% if %}").unwrap_err().contains("line 1"));
    assert!(render("{{ strftime_now('%Y') }}").unwrap().parse::<u32>().unwrap() >= 2024);
}

#[test]
fn one_line_templates_render_as_in_jinja2() {
    let vectors = vectors();
    let tokens: BTreeMap<String, String> = serde_json::from_value(vectors["tokens"].clone()).unwrap();
    let messages = messages(&vectors["messages"]);
    let mut wrong = Vec::new();
    for case in vectors["one_liners"].as_array().unwrap() {
        let template = case["template"].as_str().unwrap();
        let text = JinjaTemplate::new(template).and_then(|t| t.render(&messages, true, &tokens));
        let equals = text.as_deref().ok() == case["text"].as_str();
        let is_right = match case["here"].as_str() {
            None => equals,
            Some("refused") => text.is_err(),
            // So that the list stays true: what has become equal belongs among the others.
            Some(_) => text.is_ok() && !equals,
        };
        if !is_right {
            wrong.push(format!("{template}\n   here   {text:?}\n   jinja2 {}{}", case["text"], case["error"]));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn line_ends_of_a_template_are_newlines() {
    let source = "{% for m in messages %}\n  {{ m.role }}{{ 'a\nb' }}\n{% endfor %}\nend\n";
    let text = render(source).unwrap();
    assert_eq!(text, "  systema\nb\n  usera\nb\nend");
    for end in ["\r\n", "\r"] {
        assert_eq!(render(&source.replace('\n', end)).unwrap(), text);
    }
    // Escapes and contents are no line ends of the source.
    assert_eq!(render("{{ 'a\\r\\n' }}").unwrap(), "a\r\n");
    let message = Message { role: "user".into(), content: "a\r\nb\rc".into() };
    let template = JinjaTemplate::new("{{ messages[0].content }}\r\n").unwrap();
    assert_eq!(template.render(&[message], true, &BTreeMap::<String, String>::new()).unwrap(), "a\r\nb\rc");
}

#[test]
fn what_no_one_knows_is_named_at_once() {
    let unknown = |source| JinjaTemplate::new(source).unwrap().unknown();
    let source = "{% if tools %}{{ tools | urlize }}{{ 'a'.casefold() }}{{ lipsum() }}{{ 1 is nosuch }}{{ helper(1) }}\
                  {% endif %}{% block b %}{{ 'x' | wordwrap }}{% endblock %}";
    let expected = [
        "filter `urlize`",
        "filter `wordwrap`",
        "function `helper`",
        "function `lipsum`",
        "method `casefold`",
        "test `nosuch`",
    ];
    assert_eq!(unknown(source), expected);
    let known = "{% macro m(x) %}{{ x.strip() | upper }}{{ caller() }}{% endmacro %}{{ m('a') }}{{ namespace(a=1).a }}\
                 {% for i in range(2) %}{{ loop.cycle(1, 2) }}{{ loop(i) }}{{ i is odd }}{% endfor %}{{ {}.items() }}\
                 {{ [].index(1) }}{{ dict.fromkeys([]) }}{{ cycler(1).next() }}{{ 5 % 2 }}{{ raise_exception('') }}\
                 {% block c %}{{ self.c() }}{{ super() }}{% endblock %}{% set f = m %}{{ f(1) }}{{ strftime_now('%Y') }}";
    assert_eq!(unknown(known), [""; 0]);
}

#[test]
fn what_a_template_makes_is_paid_for_before_it_is_made() {
    // None of these would fit into any memory: the refusal must come first.
    for source in [
        "{{ 'a'.center(10 ** 12) }}",
        "{{ 'a'.ljust(10 ** 12) }}{{ 'x' }}",
        "{{ 'a'.rjust(10 ** 18, '日') }}",
        "{{ '1'.zfill(10 ** 12) }}",
        "{{ '\\t'.expandtabs(10 ** 12) }}",
        "{{ 'a' | center(10 ** 12) }}",
        "{{ 'a' | indent(10 ** 12, true) }}",
        "{{ '%1000000000000d' % 1 }}{{ '%*d' % (10 ** 12, 1) }}",
        "{{ '%*d' % (10 ** 12, 1) }}",
        "{{ '%1000000000000s' | format('a') }}",
        "{{ '{:>1000000000000}'.format('a') }}",
        "{{ [1] | tojson(indent=10 ** 12) }}",
    ] {
        let error = render(source).unwrap_err();
        assert!(error.contains("fuel"), "{source}: {error}");
    }
    // These grow from small parts; each would be gigabytes.
    for source in [
        "{{ ([[1] * 30000] * 30000) | tojson(separators=('x' * 100, ':')) }}",
        "{{ ([[1] * 30000] * 30000) | tojson(sort_keys=true) }}",
        "{{ ([[1] * 30000] * 30000) | tojson(indent='x' * 1000) }}",
        "{{ ('x' * 30000).join(['y'] * 300000) }}",
        "{{ ('a' * 1000000) | replace('a', 'b' * 100000) }}",
        "{{ ('a' * 1000000).replace('a', 'b' * 100000) }}",
        "{{ ('<' * 30000000) | e }}",
        "{{ ('a\\n' * 1000000) | indent(100000) }}",
        "{{ ([['a' * 1000] * 1000] * 1000) | center }}",
        "{{ '%s%s' % ([['a' * 1000] * 1000] * 1000, 1) }}",
        "{{ '%.65000d%.65000f' * 100000 % ((1, 1.0) * 100000) }}",
        "{{ '%r' % [[['a' * 1000] * 1000] * 1000] }}",
        "{{ [['a' * 1000] * 1000] * 1000 }}",
        "{{ ([['a' * 1000] * 1000] * 1000) ~ '' }}",
        "{{ ([['a' * 1000] * 1000] * 1000) | string }}",
        "{{ ([['a' * 1000] * 1000] * 1000) | upper }}",
        "{{ ([['a' * 1000] * 1000] * 1000) | join }}",
        "{{ ''.join(['a' * 1000000] * 1000) }}",
        "{{ ('a,' * 20000000).split(',') | length }}",
    ] {
        let error = render(source).unwrap_err();
        assert!(error.contains("fuel"), "{source}: {error}");
    }
    assert!(render("{% set ns = namespace(x=[]) %}{% for i in range(500) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}").is_err());
}

#[test]
fn random_draws_the_same_at_every_rendering() {
    let source = "{% for i in range(20) %}{{ range(9) | list | random }}{% endfor %}";
    let text = render(source).unwrap();
    assert_eq!(render(source).unwrap(), text);
    assert!(text.chars().any(|c| c != text.chars().next().unwrap()), "{text}");
}
