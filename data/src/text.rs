//! Text on its way in: found under files and folders, checked to be UTF-8, split for validation, cut into chunks.

use std::path::{Path, PathBuf};

use crate::error::DataError;

/// One text file.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) text: String,
}

/// Reads every text under `paths`, in their order; files of a folder in the order of their names, hidden ones left
/// out. `out` may not lie in an input folder, as it would be read as text next time.
pub(crate) fn read_documents(paths: &[PathBuf], out: &Path) -> Result<Vec<Document>, DataError> {
    let mut files = Vec::new();
    for path in paths {
        let meta = path
            .metadata()
            .map_err(|error| DataError::system("read the text", path, &error))?;
        if meta.is_dir() {
            if lies_in(out, path) {
                return Err(DataError::Input(format!(
                    "the output folder {} lies in the input folder {}; choose an --out elsewhere",
                    out.display(),
                    path.display()
                )));
            }
            list(path, &mut files)?;
        } else {
            files.push(path.clone());
        }
    }
    if files.is_empty() {
        return Err(DataError::Input(
            "there is no text file under the given paths; give files or folders of text".into(),
        ));
    }
    files.iter().map(|file| read_document(file)).collect()
}

fn lies_in(inner: &Path, outer: &Path) -> bool {
    let absolute = |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path));
    match (absolute(inner), absolute(outer)) {
        (Ok(inner), Ok(outer)) => inner.starts_with(outer),
        _ => false,
    }
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), DataError> {
    let failed = |error: std::io::Error| DataError::system("list the folder", folder, &error);
    let entries: Result<Vec<_>, _> = std::fs::read_dir(folder).map_err(failed)?.collect();
    let mut entries = entries.map_err(failed)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        // Links to folders are not followed: they may lead in a circle.
        if entry.file_type().map_err(failed)?.is_dir() {
            list(&entry.path(), files)?;
        } else if entry.path().is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn read_document(path: &Path) -> Result<Document, DataError> {
    let bytes = std::fs::read(path).map_err(|error| DataError::system("read the text", path, &error))?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Document { text }),
        Err(error) => Err(DataError::Input(format!(
            "{}: this is not UTF-8 text (byte {}); convert it, or leave the file out",
            path.display(),
            error.utf8_error().valid_up_to()
        ))),
    }
}

/// Splits documents, taken as one long text, into training and validation: the last tenth of the bytes, rounded
/// down and to a whole character, is for validation.
pub(crate) fn split_last_tenth(documents: &[Document]) -> (Vec<&str>, Vec<&str>) {
    let total: usize = documents.iter().map(|document| document.text.len()).sum();
    let mut left = total - total / 10;
    let (mut train, mut validation) = (Vec::new(), Vec::new());
    for document in documents {
        let mut cut = left.min(document.text.len());
        while !document.text.is_char_boundary(cut) {
            cut += 1;
        }
        left = left.saturating_sub(cut);
        let (head, tail) = document.text.split_at(cut);
        for (part, into) in [(head, &mut train), (tail, &mut validation)] {
            if !part.is_empty() {
                into.push(part);
            }
        }
    }
    (train, validation)
}

/// Cuts a text into pieces of at least `size` bytes (but the last), each ending after a line break that stands alone
/// between two words: there, tokenizers that split at white space give the same tokens as for the whole.
pub(crate) fn lines_in_chunks(text: &str, size: usize) -> Vec<&str> {
    let bytes = text.as_bytes();
    let alone = |at: usize| {
        bytes[at] == b'\n'
            && at > 0
            && bytes.get(at + 1).is_some_and(|next| next.is_ascii_graphic())
            && bytes[at - 1].is_ascii_graphic()
    };
    let mut chunks = Vec::new();
    let mut start = 0;
    while let Some(cut) = (start + size..bytes.len()).find(|at| alone(*at)) {
        chunks.push(&text[start..=cut]);
        start = cut + 1;
    }
    if start < text.len() {
        chunks.push(&text[start..]);
    }
    chunks
}
