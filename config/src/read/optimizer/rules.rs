//! Rules about tensors: `optimizer.hidden` and `optimizer.groups`. Whether they match anything is checked against a model.

use toml::{Table, Value};

use super::super::POSITIVE;
use super::{NOT_NEGATIVE, absent};
use crate::error::ConfigError;
use crate::fields::{Fields, integer_in};
use crate::sections::*;

fn pattern(fields: &Fields<'_>, key: &'static str, text: &str) -> Result<String, ConfigError> {
    match glob::Pattern::new(text) {
        Ok(_) if !text.is_empty() => Ok(text.to_owned()),
        read => {
            let reason = read.err().map_or("it is empty", |error| error.msg);
            Err(fields.refuse_with(
                key,
                &Value::String(text.to_owned()),
                "a pattern of tensor names with *, ? and [...]",
                format!("correct it ({reason})"),
            ))
        }
    }
}

/// The text of `match` in a table of rules.
fn matched(inner: &mut Fields<'_>) -> Result<String, ConfigError> {
    const EXPECTED: &str = "a pattern of tensor names such as \"*.qkv.weight\"";
    let text = inner.optional_text("match", EXPECTED)?;
    let text = text.ok_or_else(|| inner.missing("match", EXPECTED))?;
    pattern(inner, "match", &text)
}

pub(super) fn hidden(fields: &mut Fields<'_>, orthogonalises: bool) -> Result<Option<Vec<HiddenRule>>, ConfigError> {
    const KEY: &str = "hidden";
    const EXPECTED: &str =
        "a list of rules: \"pattern\", \"!pattern\" or { match = \"pattern\", split = 3 | \"thirds\" | \"heads\" }";
    if !orthogonalises {
        absent(fields, KEY, "this method orthogonalises nothing")?;
    }
    let Some(value) = fields.take(KEY) else {
        return Ok(None);
    };
    let Some(list) = value.as_array().filter(|list| !list.is_empty()) else {
        return Err(fields.refuse(KEY, &value, EXPECTED));
    };
    let mut rules = Vec::with_capacity(list.len());
    for (index, rule) in list.iter().enumerate() {
        rules.push(match rule {
            Value::String(text) => match text.strip_prefix('!') {
                Some(not) => HiddenRule {
                    pattern: pattern(fields, KEY, not)?,
                    hidden: None,
                },
                None => HiddenRule {
                    pattern: pattern(fields, KEY, text)?,
                    hidden: Some(Split::Parts(1)),
                },
            },
            Value::Table(table) => {
                let prefix = format!("{}[{index}]", fields.dotted(KEY));
                let mut inner = Fields::new(fields.origin(), prefix, table.clone());
                let pattern = matched(&mut inner)?;
                if pattern.starts_with('!') {
                    return Err(inner.refuse_with(
                        "match",
                        &Value::String(pattern),
                        "a pattern of what is hidden",
                        "write what is not hidden as a text of its own: \"!pattern\"",
                    ));
                }
                let split = match inner.take("split") {
                    None => Split::Parts(1),
                    Some(Value::String(word)) if word == "thirds" => Split::Parts(3),
                    Some(Value::String(word)) if word == "heads" => Split::Heads,
                    Some(value) => match integer_in(&value, &(1..=65_536)) {
                        Some(parts) => Split::Parts(parts as u32),
                        None => {
                            return Err(inner.refuse(
                                "split",
                                &value,
                                "a number of parts from 1 to 65536, \"thirds\" or \"heads\"",
                            ));
                        }
                    },
                };
                inner.done()?;
                HiddenRule {
                    pattern,
                    hidden: Some(split),
                }
            }
            _ => return Err(fields.refuse(KEY, &value, EXPECTED)),
        });
    }
    Ok(Some(rules))
}

pub(super) fn groups(fields: &mut Fields<'_>) -> Result<Vec<GroupRule>, ConfigError> {
    const KEY: &str = "groups";
    const EXPECTED: &str = "a list of groups such as { match = \"wte.*\", lr_scale = 0.5, weight_decay = 0.0 }";
    let Some(value) = fields.take(KEY) else {
        return Ok(Vec::new());
    };
    let tables: Option<Vec<&Table>> = value
        .as_array()
        .and_then(|list| list.iter().map(Value::as_table).collect());
    let Some(tables) = tables else {
        return Err(fields.refuse(KEY, &value, EXPECTED));
    };
    let mut groups = Vec::with_capacity(tables.len());
    for (index, table) in tables.into_iter().enumerate() {
        let prefix = format!("{}[{index}]", fields.dotted(KEY));
        let mut inner = Fields::new(fields.origin(), prefix, table.clone());
        let pattern = matched(&mut inner)?;
        let lr_scale = inner.optional_number("lr_scale", POSITIVE, |x| x > 0.0)?;
        let weight_decay = inner.optional_number("weight_decay", NOT_NEGATIVE, |x| x >= 0.0)?;
        if lr_scale.is_none() && weight_decay.is_none() {
            return Err(inner.missing("lr_scale", "or weight_decay: a group changes one of them"));
        }
        inner.done()?;
        groups.push(GroupRule {
            pattern,
            lr_scale: lr_scale.unwrap_or(1.0),
            weight_decay,
        });
    }
    Ok(groups)
}
