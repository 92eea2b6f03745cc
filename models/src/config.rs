//! Reading configuration: values that are looked up under any of the names in use, and JSON as Python writes it.

use crate::error::Error;
use serde_json::{Map, Value};
use std::fmt::Display;
use std::ops::RangeInclusive;

/// Parses JSON that may hold `Infinity`, `-Infinity` and `NaN`, as Python's writer leaves them; they become strings.
pub(crate) fn parse(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(text).or_else(|error| {
        let (mut out, mut rest, mut quoted) = (String::with_capacity(text.len() + 16), text, false);
        let mut found = false;
        while let Some(c) = rest.chars().next() {
            let word = ["-Infinity", "Infinity", "NaN"].into_iter().find(|w| !quoted && rest.starts_with(w));
            let taken = match (word, c) {
                (Some(word), _) => {
                    out.extend(["\"", word, "\""]);
                    found = true;
                    word.len()
                }
                (None, '\\') if quoted => {
                    let escape = 1 + rest[1..].chars().next().map_or(0, char::len_utf8);
                    out.push_str(&rest[..escape]);
                    escape
                }
                _ => {
                    quoted ^= c == '"';
                    out.push(c);
                    c.len_utf8()
                }
            };
            rest = &rest[taken..];
        }
        if found { serde_json::from_str(&out) } else { Err(error) }
    })
}

/// A configuration, its nested parts (`ssm_cfg`, `hf_config`, …) searched as if they lay in it.
pub(crate) struct Fields<'a> {
    file: String,
    parts: Vec<&'a Value>,
}

impl<'a> Fields<'a> {
    /// The fields of `config`; `file` is named in errors.
    pub(crate) fn new(config: Option<&'a Value>, file: impl Into<String>) -> Self {
        let mut parts: Vec<&Value> = config.into_iter().collect();
        let mut at = 0;
        while let Some(part) = parts.get(at).copied() {
            parts
                .extend(["ssm_cfg", "hf_config", "model_config", "model", "config"].iter().filter_map(|k| part.get(k)));
            at += 1;
        }
        Self { file: file.into(), parts }
    }

    /// The configuration itself.
    pub(crate) fn whole(&self) -> Option<&'a Value> {
        self.parts.first().copied()
    }

    /// The file that is named in errors.
    pub(crate) fn file(&self) -> &str {
        &self.file
    }

    /// Those of `names` that are there and not null, part by part.
    pub(crate) fn all<'n>(&self, names: &'n [&str]) -> impl Iterator<Item = (&'n str, &'a Value)> {
        let all = self.parts.iter().flat_map(move |p| names.iter().map(move |n| (*n, p.get(n))));
        all.filter_map(|(n, v)| v.filter(|v| !v.is_null()).map(|v| (n, v)))
    }

    /// Whether a part has all of `names`.
    pub(crate) fn together(&self, names: &[&str]) -> bool {
        self.parts.iter().any(|p| names.iter().all(|n| p.get(n).is_some_and(|v| !v.is_null())))
    }

    /// The first of `names` that is there and not null.
    pub(crate) fn get(&self, names: &[&str]) -> Option<(String, &'a Value)> {
        self.all(names).next().map(|(n, v)| (n.to_owned(), v))
    }

    /// The error of a field.
    pub(crate) fn bad(&self, field: &str, expected: impl ToString, got: impl ToString) -> Error {
        Error::Config {
            file: self.file.clone(),
            field: field.into(),
            expected: expected.to_string(),
            got: got.to_string(),
        }
    }

    fn read<T>(&self, names: &[&str], expected: &str, f: impl Fn(&Value) -> Option<T>) -> Result<Option<T>, Error> {
        match self.get(names) {
            Some((name, v)) => f(v).map(Some).ok_or_else(|| self.bad(&name, expected, v)),
            None => Ok(None),
        }
    }

    /// A size.
    pub(crate) fn size(&self, names: &[&str]) -> Result<Option<usize>, Error> {
        self.read(names, "a whole number", |v| v.as_u64().and_then(|v| usize::try_from(v).ok()))
    }

    /// A number; `"inf"` and `"Infinity"` count as one.
    pub(crate) fn number(&self, names: &[&str]) -> Result<Option<f32>, Error> {
        self.read(names, "a number", number)
    }

    /// What a norm adds to the variance: from 0 to below 1.
    pub(crate) fn eps(&self, names: &[&str], default: f32) -> Result<f32, Error> {
        match self.number(names)? {
            Some(eps) if !(0.0..1.0).contains(&eps) => {
                let name = self.get(names).map_or_else(String::new, |(name, _)| name);
                Err(self.bad(&name, "0 to 1", eps))
            }
            eps => Ok(eps.unwrap_or(default)),
        }
    }

    /// Two numbers.
    pub(crate) fn pair(&self, names: &[&str]) -> Result<Option<(f32, f32)>, Error> {
        self.read(names, "two numbers", |v| match v.as_array().map(Vec::as_slice) {
            Some([a, b]) => number(a).zip(number(b)),
            _ => None,
        })
    }

    /// Yes or no.
    pub(crate) fn flag(&self, names: &[&str]) -> Result<Option<bool>, Error> {
        self.read(names, "true or false", Value::as_bool)
    }

    /// A word.
    pub(crate) fn word(&self, names: &[&str]) -> Result<Option<String>, Error> {
        self.read(names, "a word", |v| v.as_str().map(str::to_owned))
    }

    /// Refuses a file whose configuration says another size than its tensors, under any of `names`.
    pub(crate) fn agree(&self, names: &[&str], tensors: usize) -> Result<(), Error> {
        for (name, v) in self.all(names) {
            match whole(v) {
                Some(said) if said == tensors as u64 => {}
                // Upstream chooses by itself.
                None if v == "auto" => {}
                Some(said) => return Err(self.contradiction(name, said, tensors)),
                None => return Err(self.bad(name, "a whole number", v)),
            }
        }
        Ok(())
    }

    /// As [`Fields::agree`], of the ratio of a width to another one, which upstream rounds down.
    pub(crate) fn agree_ratio(&self, name: &str, from: usize, to: usize) -> Result<(), Error> {
        let other = |v: &Value| v.as_f64().is_none_or(|by| (by * from as f64) as usize != to);
        match self.all(&[name]).find(|(_, v)| other(v)) {
            Some((name, v)) => Err(self.contradiction(name, v, format!("{from} to {to} columns"))),
            None => Ok(()),
        }
    }

    /// The error of a field that says something else than the tensors.
    pub(crate) fn contradiction(&self, name: &str, said: impl Display, tensors: impl Display) -> Error {
        self.bad(name, format!("{said}, as the configuration says"), format!("{tensors} in the tensors"))
    }

    /// Refuses a file whose configuration says of a part that it is there, or not, and whose tensors show the other.
    pub(crate) fn agree_flag(&self, name: &str, tensors: bool) -> Result<(), Error> {
        match self.flag(&[name])? {
            Some(said) if said != tensors => Err(self.contradiction(name, said, tensors)),
            _ => Ok(()),
        }
    }
}

/// A size as configurations write it: a number, perhaps with a point, or two that are the same.
pub(crate) fn whole(v: &Value) -> Option<u64> {
    match v {
        Value::Array(all) => {
            let first = all.first().and_then(whole);
            first.filter(|n| all.iter().all(|v| whole(v) == Some(*n)))
        }
        _ => {
            v.as_u64().or_else(|| v.as_f64().filter(|v| v.fract() == 0.0 && (0.0..1e15).contains(v)).map(|v| v as u64))
        }
    }
}

fn number(v: &Value) -> Option<f32> {
    match v {
        // Rust reads "inf", "Infinity" and their negatives as Python writes them.
        Value::String(word) => word.parse().ok().filter(|v: &f32| !v.is_nan()),
        _ => v.as_f64().map(|v| v as f32),
    }
}

/// An object of the configuration and its name in errors.
pub(crate) struct Section<'a> {
    pub(crate) path: &'a str,
    pub(crate) name: &'a str,
    pub(crate) map: &'a Map<String, Value>,
}

impl<'a> Section<'a> {
    pub(crate) fn top(config: Option<&'a Value>, path: &'a str) -> Result<Self, Error> {
        match config {
            Some(Value::Object(map)) => Ok(Self { path, name: "", map }),
            other => Err(Error::Config {
                file: path.into(),
                field: "config".into(),
                expected: "an object in the file's metadata or in config.json".into(),
                got: other.map_or("nothing".into(), Value::to_string),
            }),
        }
    }

    /// The section `name` of a configuration.
    pub(crate) fn of(config: Option<&'a Value>, path: &'a str, name: &'a str) -> Result<Self, Error> {
        Section::top(config, path)?.section(name)
    }

    /// The section as it is written.
    pub(crate) fn value(&self) -> Value {
        Value::Object(self.map.clone())
    }

    pub(crate) fn section(&self, name: &'a str) -> Result<Self, Error> {
        match self.map.get(name) {
            Some(Value::Object(map)) => Ok(Self { path: self.path, name, map }),
            other => Err(self.bad(name, "an object", other.map_or("nothing".into(), Value::to_string))),
        }
    }

    pub(crate) fn bad(&self, field: &str, expected: impl ToString, got: impl ToString) -> Error {
        let field = if self.name.is_empty() { field.into() } else { format!("{}.{field}", self.name) };
        let mut got = got.to_string();
        if let Some((at, _)) = got.char_indices().nth(200) {
            got.truncate(at);
            got.push('…');
        }
        Error::Config { file: self.path.into(), field, expected: expected.to_string(), got }
    }

    /// Refuses fields of other names.
    pub(crate) fn only(&self, known: &[&str]) -> Result<(), Error> {
        match self.map.keys().find(|k| !known.contains(&k.as_str())) {
            Some(key) => Err(self.bad(key, format!("one of {}", known.join(", ")), "an unknown field")),
            None => Ok(()),
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }

    pub(crate) fn required(&self, name: &str, expected: impl ToString) -> Result<&'a Value, Error> {
        self.get(name).ok_or_else(|| self.bad(name, expected, "nothing"))
    }

    pub(crate) fn word(&self, name: &str, known: &[&'static str]) -> Result<&'static str, Error> {
        let v = self.required(name, known.join(", "))?;
        let found = known.iter().find(|k| v.as_str() == Some(**k));
        found.copied().ok_or_else(|| self.bad(name, known.join(", "), v))
    }

    pub(crate) fn whole(&self, name: &str, v: &Value, range: &RangeInclusive<usize>) -> Result<usize, Error> {
        let n = v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| range.contains(n));
        n.ok_or_else(|| self.bad(name, format!("a whole number, {} to {}", range.start(), range.end()), v))
    }

    pub(crate) fn size(&self, name: &str, range: RangeInclusive<usize>) -> Result<usize, Error> {
        let v = self.required(name, format!("a whole number, {} to {}", range.start(), range.end()))?;
        self.whole(name, v, &range)
    }

    pub(crate) fn size_or(&self, name: &str, default: usize, range: RangeInclusive<usize>) -> Result<usize, Error> {
        self.get(name).map_or(Ok(default), |v| self.whole(name, v, &range))
    }

    pub(crate) fn pair(&self, name: &str, range: RangeInclusive<usize>) -> Result<Option<(usize, usize)>, Error> {
        match self.get(name).map(|v| (v, v.as_array().map(Vec::as_slice))) {
            None => Ok(None),
            Some((_, Some([a, b]))) => Ok(Some((self.whole(name, a, &range)?, self.whole(name, b, &range)?))),
            Some((v, _)) => Err(self.bad(name, "two whole numbers", v)),
        }
    }

    pub(crate) fn triple(&self, name: &str, range: RangeInclusive<f64>) -> Result<Option<[f32; 3]>, Error> {
        let Some(v) = self.get(name) else { return Ok(None) };
        let expected = || format!("three numbers of {} to {}", range.start(), range.end());
        let one = |v: &Value| v.as_f64().filter(|v| range.contains(v)).map(|v| v as f32);
        match v.as_array().map(Vec::as_slice) {
            Some([a, b, c]) => match (one(a), one(b), one(c)) {
                (Some(a), Some(b), Some(c)) => Ok(Some([a, b, c])),
                _ => Err(self.bad(name, expected(), v)),
            },
            _ => Err(self.bad(name, expected(), v)),
        }
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<f64>, Error> {
        match self.get(name) {
            None => Ok(None),
            Some(v) => v.as_f64().map(Some).ok_or_else(|| self.bad(name, "a number", v)),
        }
    }

    pub(crate) fn flag(&self, name: &str) -> Result<bool, Error> {
        match self.get(name) {
            None => Ok(false),
            Some(v) => v.as_bool().ok_or_else(|| self.bad(name, "true or false", v)),
        }
    }
}

/// The arguments of upstream's constructor: under `model`, or by themselves.
pub(crate) fn arguments(config: &Value) -> &Value {
    config.get("model").filter(|m| m.is_object()).unwrap_or(config)
}

/// A field of a configuration: at its top, in its `model`, `layer` or `kernel` part, or in the `layer` of its `model`.
pub(crate) fn field<'a>(config: Option<&'a Value>, name: &str) -> Option<&'a Value> {
    present(config, name).filter(|v| !v.is_null())
}

/// As [`field`], of one that is null as well. A list of layers counts as its first one.
pub(crate) fn present<'a>(config: Option<&'a Value>, name: &str) -> Option<&'a Value> {
    let config = config?;
    let first = |v: &'a Value| v.as_array().map_or(Some(v), |all| all.first());
    let layer = |of: &'a Value| of.get("layer").and_then(first);
    let model = config.get("model");
    let parts = [Some(config), model, layer(config), config.get("kernel"), model.and_then(layer)];
    parts.into_iter().flatten().find_map(|part| part.get(name))
}

/// A field that is true or false.
pub(crate) fn flag(config: Option<&Value>, name: &str, default: bool, file: &str) -> Result<bool, Error> {
    match field(config, name) {
        Some(v) => v.as_bool().ok_or_else(|| bad(file, name, "true or false", v)),
        None => Ok(default),
    }
}

/// The error of a field.
pub(crate) fn bad(file: &str, field: &str, expected: impl ToString, got: impl ToString) -> Error {
    let (expected, got) = (expected.to_string(), got.to_string());
    Error::Config { file: file.into(), field: field.into(), expected, got }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_upstream_keeps_them() {
        for text in [
            r#"{"disc": "zoh"}"#,
            r#"{"model": {"disc": "zoh"}}"#,
            r#"{"layer": {"disc": "zoh"}}"#,
            r#"{"model": {"layer": {"disc": "zoh"}}}"#,
        ] {
            let v = parse(text).unwrap();
            assert_eq!(field(Some(&v), "disc").and_then(Value::as_str), Some("zoh"), "{text}");
        }
    }

    #[test]
    fn python_numbers_are_read() {
        let text = r#"{"time_step_limit": [0.0, Infinity], "a": "NaN \" Infinity", "b": [NaN, -Infinity]}"#;
        let v = parse(text).unwrap();
        assert_eq!(v["a"], "NaN \" Infinity");
        assert_eq!(v["b"][1], "-Infinity");
        let fields = Fields::new(Some(&v), "f");
        assert_eq!(fields.pair(&["dt_limit", "time_step_limit"]).unwrap(), Some((0.0, f32::INFINITY)));
        assert!(fields.pair(&["b"]).is_err());
        assert!(parse("{\"a\": Infinity").is_err());
        assert!(parse("{\"a\": \"\\").is_err());
        assert!(parse("nonsense").is_err());
    }

    #[test]
    fn nested_parts_count() {
        let v: Value = serde_json::json!({"d_model": 8, "hf_config": {"ssm_cfg": {"ngroups": 2}, "n": null}, "n": 3});
        let fields = Fields::new(Some(&v), "f");
        assert_eq!(fields.size(&["n_groups", "ngroups"]).unwrap(), Some(2));
        assert_eq!(fields.size(&["n"]).unwrap(), Some(3));
        assert_eq!(fields.size(&["absent"]).unwrap(), None);
        assert!(fields.agree(&["hidden_size", "d_model"], 8).is_ok() && fields.agree(&["d_model"], 9).is_err());
        let error = fields.agree(&["hidden_size", "d_model"], 9).unwrap_err().to_string();
        assert!(error.contains("d_model") && !error.contains("hidden_size"), "{error}");
        assert!(fields.flag(&["d_model"]).is_err());
    }
}
