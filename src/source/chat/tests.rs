//! Chats as transformers renders them, and templates that mean harm.

use super::*;
use crate::source::Tokenizer;
use crate::testing::golden;

fn template(source: &str) -> Result<ChatTemplate> {
    ChatTemplate::new(source, Map::new(), "`here`")
}

fn render(source: &str) -> Result<String> {
    template(source)?.render(&[Message { role: "user", content: "Hello" }])
}

/// A text with `<FORMAT>` in place of each date.
fn dated(text: &str) -> String {
    let now = chrono::Local::now();
    ["%d %B %Y", "%d %b %Y"].iter().fold(text.to_owned(), |text, form| text.replace(&format!("<{form}>"), &now.format(form).to_string()))
}

/// `tests/golden/chat_templates.py` made the expected texts and ids with transformers.
#[test]
fn chats_are_those_of_transformers() {
    let expected: Vec<Value> = serde_json::from_slice(&std::fs::read(golden("chat/expected.json")).unwrap()).unwrap();
    let tokenizer = |path: &str| Tokenizer::from_file(Path::new(path)).unwrap();
    let bard = tokenizer("models/bard/tokenizer.json");
    let spm = tokenizer("tests/golden/cases/spm-legacy/tokenizer.json");
    let mut templates = std::collections::HashSet::new();
    for case in &expected {
        let name = case["template"].as_str().unwrap();
        let source = std::fs::read_to_string(golden("chat").join(name)).unwrap();
        let template = ChatTemplate::new(&source, case["tokens"].as_object().unwrap().clone(), name).unwrap();
        let system = case["system"].as_str().map(|content| Message { role: "system", content });
        let user = Message { role: "user", content: case["user"].as_str().unwrap() };
        let text = template.render(&system.into_iter().chain([user]).collect::<Vec<_>>()).unwrap();
        let wanted = case["text"].as_str().unwrap();
        assert_eq!(text, dated(wanted), "{name}");
        assert_eq!(template.is_dated(), wanted != dated(wanted), "{name}");
        if !template.is_dated() {
            let tokenizer = if case["tokenizer"] == "bard" { &bard } else { &spm };
            assert_eq!(Value::from(tokenizer.encode(&text)), case["ids"], "{name} {text:?}");
        }
        templates.insert(name);
    }
    assert_eq!(templates.len(), 10);
}

#[test]
fn nothing_is_not_gone_through() {
    let iterable = "{{ tools is iterable }} {{ messages is iterable }} {{ 'a' is iterable }} {{ 1 is iterable }} {{ absent is iterable }}";
    assert_eq!(render(iterable).unwrap().to_lowercase(), "false true true false true");
}

#[test]
fn lines_may_end_in_any_way() {
    for end in ["\r\n", "\r"] {
        let template = "{% if true %}\nA {{ 'it\\r\\n' }}\n{% endif %}\n{{ messages[0].content }}\n\n";
        assert_eq!(render(&template.replace('\n', end)).unwrap(), render(template).unwrap());
        assert_eq!(render(template).unwrap(), "A it\r\n\nHello\n");
    }
}

/// Templates of the kinds that would take hours or all memory: each ends in a sentence at once.
#[test]
fn hostile_templates_end_in_a_sentence() {
    let doubling = format!("{{% set ns = namespace(x='xx') %}}{}{{{{ ns.x }}}}", "{% set ns.x = ns.x ~ ns.x %}".repeat(60));
    let cases = [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ messages[0].content * 999 }}{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 'x' * 100000000000 }}",
        "{{ ('x' * 99999999) | replace('x', 'y' * 999999) }}",
        "{{ range(100000) | map('string') | join('x' * 100000) }}",
        "{{ '%99999999999d' | format(1) }}",
        "{{ strftime_now('%') }}",
        "{{ raise_exception('no users here') }}",
        "{% include 'other' %}",
        "{{ messages.nothing.more }}",
        "{% if %}",
        "{{ ",
        &doubling,
        "{% set ns = namespace(a=[]) %}{% for i in range(9000) %}{% for j in range(8) %}{% set ns.a = [ns.a] %}{% endfor %}{% endfor %}x",
        "{% set ns = namespace(a=1) %}{% set ns.a = ns %}{{ ns }}",
        "{% set ns = namespace(a=1) %}{% set ns.a = [ns] %}{{ ns.a }}",
        "{% set ns = namespace(a=1) %}{% set ns.a = {'b': ns} %}{{ ns.a | tojson }}",
        "{% set ns = namespace(a=1) %}{% set other = ns %}{% set ns.a = other %}{{ ns.a }}",
        "{% set ns = namespace(a=1) %}{% with other = ns %}{% set ns.a = other %}{{ ns.a }}{% endwith %}",
        "{% set ns = namespace(a=1) %}{% for other in [ns] %}{% set ns.a = other %}{% endfor %}{{ ns.a }}",
        "{% set ns = namespace(a=1) %}{% macro m(x) %}{% set ns.a = x %}{% endmacro %}{{ m(ns) }}{{ ns.a }}",
        "{%- set ns = namespace(a=1) -%}{%- set ns.a = ns if true else 0 -%}{{ ns.a }}",
        "{% set a = namespace(b=1) %}{% set c = namespace(d=a) %}{% set a.b = c.d %}{{ a.b }}",
        "{% set f = namespace %}{% set ns = f(a=1) %}{% set ns.a = ns %}{{ ns.a }}",
        "{% set a = b = namespace(c=1) %}{% set b.c = b %}{{ b.c }}",
        "{% set ns, other = namespace(a=1), 2 %}{% set ns.a = ns %}{{ ns }}",
        "{% set ns = namespace(a=namespace(b=1)) %}{% set ns.a.b = ns.a %}{{ ns.a }}",
        "{% set ns = namespace(a=1) | default(1) %}{{ ns }}",
        "{% set ns = [namespace(a=1)] | first %}{{ ns }}",
        "{% set ns = namespace(a=1) %}{% import 'chat' as m %}{% set ns.a = m.ns %}{{ ns.a }}",
    ];
    for source in cases {
        let error = render(source).err().unwrap_or_else(|| panic!("{source} should fail"));
        let text = error.to_string();
        assert_eq!(error.exit_code(), 2);
        assert!(text.starts_with("the chat template of `here` ") && text.len() < 600 && !text.contains('\n'), "{source}: {text}");
    }
    assert!(render("{{ raise_exception('no users here') }}").unwrap_err().to_string().contains("no users here"));
}

/// What the parser, the compiler and the engine descend into once a piece, as long as a template may be and longer: no stack is left.
#[test]
fn a_template_as_deep_as_it_is_long_ends_in_a_text_or_a_sentence() {
    for (before, piece, after) in [
        ("{{ ", "not ", "1 }}"),
        ("{{ ", "-", "1 }}"),
        ("{{ 1", "+1", " }}"),
        ("{{ 1", "~1", " }}"),
        ("{{ 1", "**1", " }}"),
        ("{{ 1", " and 1", " }}"),
        ("{{ 1", " or 1", " }}"),
        ("{{ 1", " if 1 else 1", " }}"),
        ("{{ 1", " is odd", " }}"),
        ("{{ 1", " is not odd", " }}"),
        ("{{ 'x'", "|trim", " }}"),
        ("{{ a", ".b", " }}"),
        ("{{ a", "()", " }}"),
        ("{{ a", "[0]", " }}"),
        ("{{ ", "(", "1"),
        ("{{ ", "[", "1"),
        ("{{ ", "{1:", "1"),
        ("{% if 0 %}", "{% elif 0 %}", "{% endif %}"),
        ("", "{% if 1 %}", "x"),
        ("", "{% for a in [1] %}", "x"),
        ("", "{{ 1 }}", ""),
        ("{% set ns = namespace(", "(", "1"),
    ] {
        let most = (bounds::LARGEST - before.len() - after.len()) / piece.len();
        for times in [1000, most] {
            let text = format!("{before}{}{after}", piece.repeat(times));
            if let Err(error) = render(&text) {
                assert!(error.to_string().starts_with("the chat template of `here` "), "{piece}: {error}");
            }
        }
        let error = render(&format!("{before}{}{after}", piece.repeat(300_000))).unwrap_err().to_string();
        assert!(error.contains("bytes, and at most 65536 are read"), "{piece}: {error}");
    }
}

#[test]
fn namespaces_hold_what_templates_count_with() {
    let source = "{%- set ns = namespace(n=0, last='x' ~ (1)) -%}{% set items = namespace() %}{% set items.n = 1 %}\
        {% for i in range(3) %}{% set ns.n = ns.n + i %}{% set ns.last = ns.last ~ i %}{% endfor %}\
        {{ ns.n }} {{ ns.last }} ns = namespace {{ 'ns' }} {% raw %}{{ ns }}{% endraw %}{# ns #}{{ {'a': items.n}|items|length }}";
    assert_eq!(render(source).unwrap(), "3 x1012 ns = namespace ns {{ ns }}1");
}

#[test]
fn special_tokens_that_nobody_names_are_seen() {
    let syntax = SyntaxConfig::builder().build().unwrap();
    let unknown = |source: &str| {
        let tokens = scan::tokens(source, &syntax);
        scan::unknown_tokens(&tokens, |name| name == "bos_token").into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(unknown("{{ bos_token }}{{ eos_token }}{% if x %}{{ 'a' + pad_token + eos_token }}{% endif %}"), ["eos_token", "pad_token"]);
    assert_eq!(unknown("eos_token {{ 'eos_token' }}{# {{ eos_token }} #}{{ m.eos_token }}{% set n = namespace(a_token=1) %}"), [""; 0]);
}

#[test]
fn the_date_is_that_of_one_moment() {
    let template = template("{{ strftime_now('%Y') }}").unwrap();
    let render = || template.render(&[Message { role: "user", content: "Hello" }]).unwrap();
    render();
    // In the middle of years, whatever the time zone.
    for (moment, year) in [(15_000_000, "1970"), (1_000_000_000, "2001")] {
        template.set_moment(Some(moment));
        assert_eq!((render().as_str(), template.moment()), (year, moment));
    }
}

#[test]
fn json_is_pythons() {
    let source = r#"{{ {"a": [1, 2.5, "<é>", none, true], "b": {}} | tojson }}{{ [1, [], {"a": 2}] | tojson(indent=2) }}"#;
    let wanted = "{\"a\": [1, 2.5, \"<é>\", null, true], \"b\": {}}[\n  1,\n  [],\n  {\n    \"a\": 2\n  }\n]";
    assert_eq!(render(source).unwrap(), wanted);
}

#[test]
fn a_folder_says_where_its_template_is() {
    let folder = tempfile::tempdir().unwrap();
    let files = ChatFiles::Folder(folder.path().to_owned());
    let read = || files.read().and_then(|template| template.render(&[Message { role: "user", content: "x" }]));
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    assert!(read().unwrap_err().to_string().contains("has no chat template"));
    assert!(ChatFiles::None.read().unwrap_err().to_string().starts_with("the model has no chat template"));
    write(
        "tokenizer_config.json",
        r#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": "{{ bos_token }}1{{ eos_token }}"}"#,
    );
    assert_eq!(read().unwrap(), "<s>1</s>");
    write("special_tokens_map.json", r#"{"bos_token": "<b>", "eos_token": "<e>", "pad_token": {"content": "<p>"}}"#);
    write("tokenizer_config.json", r#"{"eos_token": "</s>", "chat_template": "{{ bos_token }}1{{ eos_token }}{{ pad_token }}"}"#);
    assert_eq!(read().unwrap(), "<b>1</s><p>");
    write("special_tokens_map.json", "[");
    assert!(read().unwrap_err().to_string().contains("special_tokens_map.json` is not valid JSON"));
    write("special_tokens_map.json", "{}");
    write("tokenizer_config.json", r#"{"chat_template": [{"name": "rag", "template": "2"}, {"name": "default", "template": "3"}]}"#);
    assert_eq!(read().unwrap(), "3");
    write("tokenizer_config.json", r#"{"chat_template": [{"name": "rag", "template": "2"}, {"name": "tool_use", "template": "3"}]}"#);
    let refused = read().unwrap_err().to_string();
    assert!(refused.contains("are `rag`, `tool_use`, and none is the `default`"), "{refused}");
    write("chat_template.jinja", "4\n");
    assert_eq!(read().unwrap(), "4");
    write("tokenizer_config.json", "[");
    assert!(read().unwrap_err().to_string().contains("tokenizer_config.json` is not valid JSON"));
}
