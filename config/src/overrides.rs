//! `--set section.key=value`: lays single values over the table that was read from the file.

use toml::{Table, Value};

use crate::error::ConfigError;

/// The keys of `run` of which exactly one says how long the run is.
pub(crate) const LENGTH_KEYS: [&str; 4] = ["steps", "samples", "tokens", "epochs"];

/// Keys whose values are texts: `--set run.name=7` means the name "7".
const TEXT_KEYS: [[&str; 2]; 4] = [
    ["run", "name"],
    ["data", "path"],
    ["data", "validation"],
    ["coordinator", "bind"],
];

/// Lays each `key=value` over `table`, in order. The value is read as TOML, else it is taken as a text. A
/// length given here takes the place of the file's, whatever its unit.
pub(crate) fn apply(table: &mut Table, sets: &[String]) -> Result<(), ConfigError> {
    let parsed = sets.iter().map(|text| split(text)).collect::<Result<Vec<_>, _>>()?;
    let sets_length = parsed
        .iter()
        .any(|set| set.path.len() == 2 && set.path[0] == "run" && LENGTH_KEYS.contains(&set.path[1].as_str()));
    if sets_length && let Some(Value::Table(run)) = table.get_mut("run") {
        for key in LENGTH_KEYS {
            run.remove(key);
        }
    }
    for set in parsed {
        place(table, set)?;
    }
    Ok(())
}

struct Set<'t> {
    text: &'t str,
    path: Vec<String>,
    value: Value,
}

fn split(text: &str) -> Result<Set<'_>, ConfigError> {
    let refuse = |reason: &str| ConfigError::Set {
        text: text.to_owned(),
        reason: reason.to_owned(),
    };
    let (key, value) = text.split_once('=').ok_or_else(|| refuse("there is no `=` in it"))?;
    let path: Vec<String> = key.split('.').map(|part| part.trim().to_owned()).collect();
    let plain =
        |part: &String| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if !path.iter().all(plain) {
        return Err(refuse("the part before `=` is not a dotted key"));
    }
    if path.len() < 2 {
        return Err(refuse("the key names no section"));
    }
    let value = value.trim();
    if value.is_empty() {
        return Err(refuse("the value after `=` is empty"));
    }
    // A value that opens a text, list or table of TOML and does not close it is a slip, not a text.
    let is_text = TEXT_KEYS.iter().any(|key| path == key) && !value.starts_with(['"', '\'']);
    let value = match value.parse::<Value>() {
        _ if is_text => Value::String(value.to_owned()),
        Ok(value) => value,
        Err(error) if value.starts_with(['"', '\'', '[', '{']) => {
            return Err(refuse(&format!("the value is not valid TOML ({})", error.message())));
        }
        Err(_) => Value::String(value.to_owned()),
    };
    Ok(Set { text, path, value })
}

fn place(table: &mut Table, set: Set<'_>) -> Result<(), ConfigError> {
    let Some((last, sections)) = set.path.split_last() else {
        return Ok(());
    };
    let mut at = table;
    for (depth, section) in sections.iter().enumerate() {
        let entry = at.entry(section.clone()).or_insert_with(|| Value::Table(Table::new()));
        match entry {
            Value::Table(inner) => at = inner,
            other => {
                return Err(ConfigError::Set {
                    text: set.text.to_owned(),
                    reason: format!(
                        "`{}` is {other} in the file, which has no keys of its own",
                        set.path[..=depth].join(".")
                    ),
                });
            }
        }
    }
    at.insert(last.clone(), set.value);
    Ok(())
}
