//! Takes typed, range-checked values out of a TOML table, key by key. What is left at the end is unknown and
//! refused with the nearest key that was asked for.

use std::ops::RangeInclusive;

use toml::{Table, Value};

use crate::error::ConfigError;

/// A table being read: keys are taken out as they are asked for.
pub(crate) struct Fields<'a> {
    origin: &'a str,
    /// Dotted prefix, without the last dot; empty at the root.
    prefix: String,
    table: Table,
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(origin: &'a str, prefix: String, table: Table) -> Self {
        Fields {
            origin,
            prefix,
            table,
            known: Vec::new(),
        }
    }

    /// What errors call the text.
    pub(crate) fn origin(&self) -> &'a str {
        self.origin
    }

    /// The dotted name of a key of this table.
    pub(crate) fn dotted(&self, key: &str) -> String {
        if self.prefix.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.prefix)
        }
    }

    /// A value that is there and not yet taken.
    pub(crate) fn peek(&self, key: &str) -> Option<&Value> {
        self.table.get(key)
    }

    /// Whether nothing is left in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Takes a raw value; the key counts as known from now on.
    pub(crate) fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.table.remove(key)
    }

    /// Takes a sub-table; an absent one is empty.
    pub(crate) fn section(&mut self, key: &'static str) -> Result<Fields<'a>, ConfigError> {
        let table = match self.take(key) {
            None => Table::new(),
            Some(Value::Table(table)) => table,
            Some(other) => {
                return Err(self.refuse(key, &other, format!("a section ([{}])", self.dotted(key))));
            }
        };
        Ok(Fields::new(self.origin, self.dotted(key), table))
    }

    /// The error for a missing key. A key much like it that is there in its stead is the likelier slip.
    pub(crate) fn missing(&self, key: &str, expected: impl Into<String>) -> ConfigError {
        let misspelt = self.table.keys().find(|other| strsim::jaro_winkler(key, other) > 0.85);
        match misspelt {
            Some(misspelt) => ConfigError::UnknownKey {
                origin: self.origin.to_owned(),
                key: self.dotted(misspelt),
                nearest: Some(self.dotted(key)),
            },
            None => ConfigError::Missing {
                origin: self.origin.to_owned(),
                key: self.dotted(key),
                expected: expected.into(),
            },
        }
    }

    /// The error for a value that is not allowed.
    pub(crate) fn refuse(&self, key: &str, value: &Value, expected: impl Into<String>) -> ConfigError {
        self.refuse_with(key, value, expected, "change it in the file or with --set")
    }

    /// As [`Fields::refuse`], with advice of its own.
    pub(crate) fn refuse_with(
        &self,
        key: &str,
        value: &Value,
        expected: impl Into<String>,
        advice: impl Into<String>,
    ) -> ConfigError {
        ConfigError::Value {
            origin: self.origin.to_owned(),
            key: self.dotted(key),
            value: value.to_string(),
            expected: expected.into(),
            advice: advice.into(),
        }
    }

    /// A whole number in a range.
    pub(crate) fn integer(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        default: Option<u64>,
    ) -> Result<u64, ConfigError> {
        self.optional_integer(key, range.clone())?
            .or(default)
            .ok_or_else(|| self.missing(key, whole_number(&range)))
    }

    /// As [`Fields::integer`], for values of at most 32 bits.
    pub(crate) fn integer32(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u32>,
        default: Option<u32>,
    ) -> Result<u32, ConfigError> {
        let range = u64::from(*range.start())..=u64::from(*range.end());
        let value = self.integer(key, range, default.map(u64::from))?;
        Ok(u32::try_from(value).unwrap_or(u32::MAX))
    }

    /// A whole number in a range, if it is there.
    pub(crate) fn optional_integer(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<u64>, ConfigError> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        match integer_in(&value, &range) {
            Some(number) => Ok(Some(number)),
            None => Err(self.refuse(key, &value, whole_number(&range))),
        }
    }

    /// A finite number for which `allowed` holds; `expected` says in words which those are.
    pub(crate) fn number(
        &mut self,
        key: &'static str,
        default: Option<f64>,
        expected: &str,
        allowed: impl Fn(f64) -> bool,
    ) -> Result<f64, ConfigError> {
        self.optional_number(key, expected, allowed)?
            .or(default)
            .ok_or_else(|| self.missing(key, expected))
    }

    /// As [`Fields::number`], if it is there.
    pub(crate) fn optional_number(
        &mut self,
        key: &'static str,
        expected: &str,
        allowed: impl Fn(f64) -> bool,
    ) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        match finite(&value) {
            Some(number) if allowed(number) => Ok(Some(number)),
            _ => Err(self.refuse(key, &value, expected)),
        }
    }

    /// `true` or `false`.
    pub(crate) fn boolean(&mut self, key: &'static str, default: bool) -> Result<bool, ConfigError> {
        match self.take(key) {
            None => Ok(default),
            Some(Value::Boolean(value)) => Ok(value),
            Some(other) => Err(self.refuse(key, &other, "true or false")),
        }
    }

    /// A text that is not empty, if it is there.
    pub(crate) fn optional_text(&mut self, key: &'static str, expected: &str) -> Result<Option<String>, ConfigError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(text)),
            Some(other) => Err(self.refuse(key, &other, expected)),
        }
    }

    /// One of a few words.
    pub(crate) fn word<T: Copy>(
        &mut self,
        key: &'static str,
        words: &[(&str, T)],
        default: Option<T>,
    ) -> Result<T, ConfigError> {
        let Some(value) = self.take(key) else {
            return default.ok_or_else(|| self.missing(key, one_of(words)));
        };
        words
            .iter()
            .find(|(word, _)| value.as_str() == Some(word))
            .map(|(_, meaning)| *meaning)
            .ok_or_else(|| self.refuse(key, &value, one_of(words)))
    }

    /// Refuses the first key that nobody took.
    pub(crate) fn done(self) -> Result<(), ConfigError> {
        let Some(unknown) = self.table.keys().next() else {
            return Ok(());
        };
        Err(ConfigError::UnknownKey {
            origin: self.origin.to_owned(),
            key: self.dotted(unknown),
            nearest: nearest(unknown, &self.known).map(|key| self.dotted(key)),
        })
    }
}

/// The known key most like an unknown one.
fn nearest<'k>(unknown: &str, known: &[&'k str]) -> Option<&'k str> {
    known
        .iter()
        .map(|key| (strsim::jaro_winkler(unknown, key), *key))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, key)| key)
}

/// A TOML integer inside a range.
pub(crate) fn integer_in(value: &Value, range: &RangeInclusive<u64>) -> Option<u64> {
    let number = u64::try_from(value.as_integer()?).ok()?;
    range.contains(&number).then_some(number)
}

/// A TOML integer or float as a finite number.
pub(crate) fn finite(value: &Value) -> Option<f64> {
    let number = match value {
        Value::Float(number) => *number,
        Value::Integer(number) => *number as f64,
        _ => return None,
    };
    number.is_finite().then_some(number)
}

/// "a whole number of at least 1", or "… from 1 to 10".
fn whole_number(range: &RangeInclusive<u64>) -> String {
    if *range.end() == MAX {
        format!("a whole number of at least {}", range.start())
    } else {
        format!("a whole number from {} to {}", range.start(), range.end())
    }
}

fn one_of<T>(words: &[(&str, T)]) -> String {
    let quoted: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
    match quoted.len() {
        1 => quoted.concat(),
        _ => format!("one of {}", quoted.join(", ")),
    }
}

/// The largest whole number that TOML can say.
pub(crate) const MAX: u64 = i64::MAX as u64;
