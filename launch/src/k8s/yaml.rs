//! Values as a stream of YAML documents, keys in the order of the alphabet.

use serde_json::Value;

use crate::ending::Ending;

/// The documents, each begun by `---`.
pub(crate) fn stream(objects: &[Value]) -> Result<String, Ending> {
    objects
        .iter()
        .map(|object| Ok(format!("---\n{}", document(object)?)))
        .collect()
}

/// One document, with a line feed at its end.
pub(crate) fn document(object: &Value) -> Result<String, Ending> {
    let text = serde_saphyr::to_string(object).map_err(Ending::failed)?;
    Ok(format!("{}\n", text.trim_end()))
}
