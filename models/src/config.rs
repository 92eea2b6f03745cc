//! Reading configuration: values that are looked up under any of the names in use, and JSON as Python writes it.

use crate::error::Error;
use serde_json::Value;

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
            parts.extend(["ssm_cfg", "hf_config", "model_config", "config"].iter().filter_map(|k| part.get(k)));
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

    /// The first of `names` that is there and not null.
    pub(crate) fn get(&self, names: &[&str]) -> Option<(String, &'a Value)> {
        let mut all = self.parts.iter().flat_map(|p| names.iter().map(move |n| (n, p.get(n))));
        all.find_map(|(n, v)| v.filter(|v| !v.is_null()).map(|v| ((*n).to_owned(), v)))
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

    /// Refuses a file whose configuration says another size than its tensors.
    pub(crate) fn agree(&self, names: &[&str], tensors: usize) -> Result<(), Error> {
        match self.size(names)? {
            Some(said) if said != tensors => Err(self.bad(
                names[0],
                format!("{said}, as the configuration says"),
                format!("{tensors} in the tensors"),
            )),
            _ => Ok(()),
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

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(fields.flag(&["d_model"]).is_err());
    }
}
