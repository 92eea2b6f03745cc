//! A checker for the part of JSON Schema (draft 2020-12) that the project's schema uses.

use serde_json::Value;

/// Keywords that say nothing about whether a value is right.
const WORDS: [&str; 8] =
    ["$schema", "$id", "$defs", "title", "description", "contentEncoding", "contentMediaType", "$comment"];

/// Why `value` is not what `schema` wants, with the place in it; `None` if it is.
///
/// # Panics
/// The schema uses a keyword that this checker does not know, or refers to what is not there.
pub fn fault(root: &Value, value: &Value) -> Option<String> {
    check(root, root, value, "")
}

fn check(root: &Value, schema: &Value, value: &Value, at: &str) -> Option<String> {
    let keywords = schema.as_object().expect("a schema is an object");
    keywords.iter().find_map(|(word, want)| keyword(root, schema, word, want, value, at))
}

fn keyword(root: &Value, schema: &Value, word: &str, want: &Value, value: &Value, at: &str) -> Option<String> {
    let fault = |right: bool| (!right).then(|| format!("{at}: {word} {want}, got {value}"));
    let list = || want.as_array().expect("a list").iter();
    let bound = |holds: fn(f64, f64) -> bool| value.as_f64().is_none_or(|v| holds(v, want.as_f64().expect("a number")));
    match word {
        "$ref" => {
            let place = want.as_str().and_then(|w| w.strip_prefix('#')).expect("a place in this schema");
            check(root, root.pointer(place).expect("the place is there"), value, at)
        }
        "type" if want.is_array() => fault(list().any(|t| is(value, t))),
        "type" => fault(is(value, want)),
        "const" => fault(value == want),
        "minimum" => fault(bound(|v, w| v >= w)),
        "maximum" => fault(bound(|v, w| v <= w)),
        "minItems" => fault(value.as_array().is_none_or(|a| a.len() as u64 >= want.as_u64().expect("a number"))),
        "items" => {
            let items = value.as_array()?.iter().enumerate();
            items.map(|(i, v)| check(root, want, v, &format!("{at}/{i}"))).find_map(|f| f)
        }
        "required" => {
            let object = value.as_object()?;
            fault(list().all(|name| name.as_str().is_some_and(|name| object.contains_key(name))))
        }
        "properties" => {
            let object = value.as_object()?;
            let known = want.as_object().expect("an object").iter();
            known.filter_map(|(name, s)| check(root, s, object.get(name)?, &format!("{at}/{name}"))).next()
        }
        "additionalProperties" => {
            assert_eq!(want, &Value::Bool(false), "only false is known");
            let known = schema["properties"].as_object().expect("properties beside it");
            fault(value.as_object()?.keys().all(|name| known.contains_key(name)))
        }
        "oneOf" | "anyOf" => {
            let faults: Vec<Option<String>> = list().map(|s| check(root, s, value, at)).collect();
            let right = faults.iter().filter(|f| f.is_none()).count();
            let all = || faults.iter().flatten().cloned().collect::<Vec<_>>().join("; ");
            (right == 0 || word == "oneOf" && right > 1).then(|| format!("{right} of {word}: {}", all()))
        }
        word => {
            assert!(WORDS.contains(&word), "the checker does not know {word}");
            None
        }
    }
}

fn is(value: &Value, kind: &Value) -> bool {
    match kind.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("number") => value.is_number(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("null") => value.is_null(),
        other => panic!("the checker does not know the type {other:?}"),
    }
}
