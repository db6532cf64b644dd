//! Reads a TOML document key by key, gathers everything that is wrong with it, and reports all of it
//! at once. Knows nothing of what the keys mean.

use std::ops::RangeInclusive;

use toml::{Table, Value};

/// One thing that is wrong with one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// The key, with its section, such as `redis.url`.
    pub(super) key: String,
    /// What is wrong.
    pub(super) reason: String,
}

/// A document being read. Keys are named with their section, such as `redis.url`.
pub(super) struct Fields<'a> {
    document: &'a Table,
    pub(super) known: Vec<&'static str>,
    problems: Vec<Problem>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(document: &'a Table) -> Self {
        Self {
            document,
            known: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// Notes that `key` is wrong.
    pub(super) fn refuse(&mut self, key: &str, reason: impl Into<String>) {
        self.problems.push(Problem {
            key: key.to_owned(),
            reason: reason.into(),
        });
    }

    /// Whether the document has `key`.
    pub(super) fn has(&mut self, key: &'static str) -> bool {
        self.value(key).is_some()
    }

    /// The text at `key`.
    pub(super) fn text(&mut self, key: &'static str) -> Option<&'a str> {
        let value = self.value(key)?;
        let text = value.as_str();
        if text.is_none() {
            self.refuse(key, format!("must be text in quotes, not {}", kind(value)));
        }
        text
    }

    /// The texts at `key`: a list, or one alone.
    pub(super) fn texts(&mut self, key: &'static str) -> Option<Vec<&'a str>> {
        let value = self.value(key)?;
        let texts = match value {
            Value::Array(list) => list.iter().map(Value::as_str).collect(),
            one => one.as_str().map(|text| vec![text]),
        };
        if texts.is_none() {
            self.refuse(key, "must be a list of texts in quotes");
        }
        texts
    }

    /// The text at `key`, or nothing and a problem if there is none.
    pub(super) fn required_text(&mut self, key: &'static str, what: &str) -> Option<&'a str> {
        if !self.has(key) {
            self.refuse(key, format!("is missing: {what}"));
            return None;
        }
        let text = self.text(key)?;
        if text.is_empty() {
            self.refuse(key, format!("is empty: {what}"));
            return None;
        }
        Some(text)
    }

    /// The whole number at `key`, if it is in `range`.
    pub(super) fn number(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.value(key)?;
        let number = value.as_integer().and_then(|n| u64::try_from(n).ok());
        match number {
            Some(number) if range.contains(&number) => Some(number),
            _ => {
                let (low, high) = range.into_inner();
                self.refuse(
                    key,
                    format!("must be a whole number from {low} to {high}, not {value}"),
                );
                None
            }
        }
    }

    /// The `true` or `false` at `key`.
    pub(super) fn flag(&mut self, key: &'static str) -> Option<bool> {
        let value = self.value(key)?;
        let flag = value.as_bool();
        if flag.is_none() {
            self.refuse(key, format!("must be true or false, not {}", kind(value)));
        }
        flag
    }

    /// The text at `key`, as `parse` understands it.
    pub(super) fn parsed<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.text(key)?;
        match parse(text) {
            Ok(parsed) => Some(parsed),
            Err(reason) => {
                self.refuse(key, reason);
                None
            }
        }
    }

    /// All problems, those of unknown keys first: they are often why another key is missing.
    pub(super) fn finish(self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (name, value) in self.document {
            match value {
                Value::Table(section) if section.is_empty() => problems.extend(self.empty(name)),
                Value::Table(section) => problems.extend(
                    section
                        .keys()
                        .filter_map(|key| self.unknown(&format!("{name}.{key}"))),
                ),
                _ => problems.extend(self.unknown(name)),
            }
        }
        problems.extend(self.problems);
        problems
    }

    /// The problem with `key` if it was never asked for.
    fn unknown(&self, key: &str) -> Option<Problem> {
        if self.known.contains(&key) {
            return None;
        }
        let reason = match nearest(key, &self.known) {
            Some(near) => format!("unknown key, did you mean `{near}`?"),
            None => "unknown key".to_owned(),
        };
        Some(Problem {
            key: key.to_owned(),
            reason,
        })
    }

    /// The problem with the empty section `name` if nothing in it was ever asked for.
    fn empty(&self, name: &str) -> Option<Problem> {
        let known = |key: &&str| {
            key.split_once('.')
                .is_some_and(|(section, _)| section == name)
        };
        (!self.known.iter().any(known)).then(|| Problem {
            key: name.to_owned(),
            reason: "unknown section".to_owned(),
        })
    }

    fn value(&mut self, key: &'static str) -> Option<&'a Value> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        match key.split_once('.') {
            None => self.document.get(key),
            Some((section, key)) => self.document.get(section)?.as_table()?.get(key),
        }
    }
}

/// What `value` is, in words.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "text",
        Value::Integer(_) | Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a section",
    }
}

/// The known key that looks most like `key`, if one looks alike at all. A key's last part counts
/// too: who writes `url` or `redis_url` means `redis.url`.
fn nearest<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    let plain = |text: &str| text.replace(['.', '-'], "_").to_ascii_lowercase();
    let last = |text: &str| text.rsplit('.').next().map(plain).unwrap_or_default();
    let (best, score) = known
        .iter()
        .map(|candidate| {
            let whole = strsim::normalized_damerau_levenshtein(&plain(key), &plain(candidate));
            let part = strsim::normalized_damerau_levenshtein(&last(key), &last(candidate));
            (*candidate, whole.max(part * 0.95))
        })
        .max_by(|a, b| a.1.total_cmp(&b.1))?;
    (score >= 0.6).then_some(best)
}

#[cfg(test)]
mod tests;
