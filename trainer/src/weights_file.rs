//! Final weights: `model.safetensors` (float32 masters by tensor name), with `config.toml` and `tokenizer.json` beside it,
//! in one folder that appears whole or not at all; and reading them back.
//!
//! The file's metadata carries `format = "lockstep-weights"`, `version = "1"` and the step; another version is refused.

use std::collections::{BTreeMap, HashMap};
use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use lockstep_config::RunConfig;
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize_to_file};

use crate::error::TrainerError;

pub(crate) const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = "config.toml";
const TOKENIZER: &str = "tokenizer.json";
const FORMAT: &str = "lockstep-weights";
const VERSION: &str = "1";

fn file_error(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> TrainerError {
    let path = path.display().to_string();
    move |source| TrainerError::File { what, path, source }
}

/// Collects tensors and writes the folder.
pub struct Writer {
    folder: PathBuf,
    step: u64,
    tensors: Vec<(String, Vec<usize>, Vec<u8>)>,
}

impl Writer {
    /// For a folder, after `step` steps.
    pub fn new(folder: PathBuf, step: u64) -> Writer {
        Writer {
            folder,
            step,
            tensors: Vec::new(),
        }
    }

    /// Adds a tensor.
    pub fn add(&mut self, name: &str, shape: &[i64], values: &[f32]) {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.tensors
            .push((name.to_owned(), shape.iter().map(|n| *n as usize).collect(), bytes));
    }

    /// Writes everything beside the folder and renames it into its place.
    pub fn finish(self, config: &RunConfig, data: &Path) -> Result<(), TrainerError> {
        let partial = self.folder.with_extension("partial");
        if partial.exists() {
            std::fs::remove_dir_all(&partial).map_err(file_error("cannot clear", &partial))?;
        }
        std::fs::create_dir_all(&partial).map_err(file_error("cannot make the folder", &partial))?;
        let path = partial.join(WEIGHTS);
        let mut views = Vec::with_capacity(self.tensors.len());
        for (name, shape, bytes) in &self.tensors {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes)
                .map_err(|e| TrainerError::Broken(format!("cannot write {name} into {}: {e}", path.display())))?;
            views.push((name.as_str(), view));
        }
        let metadata = HashMap::from([
            ("format".to_owned(), FORMAT.to_owned()),
            ("version".to_owned(), VERSION.to_owned()),
            ("step".to_owned(), self.step.to_string()),
        ]);
        serialize_to_file(views, Some(metadata), &path)
            .map_err(|e| TrainerError::Broken(format!("cannot write {}: {e}", path.display())))?;
        sort_metadata(&path).map_err(file_error("cannot order the metadata of", &path))?;
        let config_path = partial.join(CONFIG);
        std::fs::write(&config_path, config.to_toml()).map_err(file_error("cannot write", &config_path))?;
        let tokenizer = partial.join(TOKENIZER);
        std::fs::copy(data.join(TOKENIZER), &tokenizer).map_err(file_error("cannot write", &tokenizer))?;
        std::fs::File::open(&path)
            .and_then(|f| f.sync_all())
            .map_err(file_error("cannot flush", &path))?;
        put_into_place(&partial, &self.folder)
    }
}

/// Orders the keys of a file's metadata, which the library writes in another order each time: equal weights are equal bytes.
fn sort_metadata(path: &Path) -> std::io::Result<()> {
    const BEGINS: &[u8] = b"{\"__metadata__\":";
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let mut header = Vec::new();
    (&file).take(u64::from_le_bytes(length)).read_to_end(&mut header)?;
    let Some(rest) = header.strip_prefix(BEGINS) else {
        return Ok(());
    };
    let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<BTreeMap<String, String>>();
    let Some(metadata) = values.next().transpose()? else {
        return Ok(());
    };
    let sorted = serde_json::to_vec(&metadata)?;
    // The same keys and values: other than that only their order can differ.
    if sorted.len() == values.byte_offset() {
        file.seek(SeekFrom::Start(8 + BEGINS.len() as u64))?;
        file.write_all(&sorted)?;
    }
    Ok(())
}

/// Renames a folder to its place. One that was there, of a run that was stopped and has gone on since, goes.
fn put_into_place(partial: &Path, folder: &Path) -> Result<(), TrainerError> {
    let failed = file_error("cannot put into place", folder);
    let before = folder.with_extension("before");
    if folder.exists() {
        if before.exists() {
            std::fs::remove_dir_all(&before).map_err(file_error("cannot remove", &before))?;
        }
        std::fs::rename(folder, &before).map_err(file_error("cannot move", folder))?;
    }
    std::fs::rename(partial, folder).map_err(failed)?;
    if before.exists() {
        std::fs::remove_dir_all(&before).map_err(file_error("cannot remove", &before))?;
    }
    Ok(())
}

/// Weights read back: config and tensors by name.
pub struct Weights {
    /// The run's config.
    pub config: RunConfig,
    /// Steps that made them.
    pub step: u64,
    /// Name → (shape, values).
    pub tensors: HashMap<String, (Vec<i64>, Vec<f32>)>,
}

/// Reads a folder of final weights.
pub fn read(folder: &Path) -> Result<Weights, TrainerError> {
    let path = folder.join(WEIGHTS);
    let bytes = std::fs::read(&path).map_err(file_error("cannot read the weights", &path))?;
    let refused = |why: String| TrainerError::Refused(format!("{} {why}", path.display()));
    let (_, metadata) =
        SafeTensors::read_metadata(&bytes).map_err(|e| refused(format!("is not a safetensors file: {e}")))?;
    let keys = metadata.metadata().clone().unwrap_or_default();
    let key = |name: &str| keys.get(name).map_or("", String::as_str);
    if key("format") != FORMAT || key("version") != VERSION {
        return Err(refused(format!(
            "has format {:?} version {:?}; this build reads {FORMAT} version {VERSION}",
            key("format"),
            key("version")
        )));
    }
    let file = SafeTensors::deserialize(&bytes).map_err(|e| refused(format!("is damaged: {e}")))?;
    let mut tensors = HashMap::new();
    for (name, view) in file.tensors() {
        if view.dtype() != Dtype::F32 {
            return Err(refused(format!("holds {name} as {:?}, not float32", view.dtype())));
        }
        let values = view
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        tensors.insert(name.clone(), (view.shape().iter().map(|n| *n as i64).collect(), values));
    }
    Ok(Weights {
        config: RunConfig::read(folder.join(CONFIG), &[])?,
        step: key("step").parse().unwrap_or(0),
        tensors,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_weights_are_equal_bytes_and_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(WEIGHTS);
        let mut first: Option<Vec<u8>> = None;
        for _ in 0..32 {
            let bytes = 1.5f32.to_le_bytes();
            let view = TensorView::new(Dtype::F32, vec![1], &bytes).unwrap();
            let keys = ["format", "version", "step", "another"];
            let metadata = keys.map(|key| (key.to_owned(), format!("{key} \"quoted\""))).into();
            serialize_to_file([("w", view)], Some(metadata), &path).unwrap();
            sort_metadata(&path).unwrap();
            let written = std::fs::read(&path).unwrap();
            let read = SafeTensors::read_metadata(&written).unwrap().1;
            assert_eq!(read.metadata().as_ref().unwrap()["step"], "step \"quoted\"");
            assert_eq!(
                SafeTensors::deserialize(&written).unwrap().tensor("w").unwrap().data(),
                bytes
            );
            assert!(*first.get_or_insert_with(|| written.clone()) == written);
        }
    }
}
