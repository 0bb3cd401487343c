//! Tokenizers: bytes, GPT-2's, one from a `tokenizers` JSON file, or one trained on the text itself. Each is stored
//! beside the data as `tokenizer.json`, which goes with the weights wherever they go.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde_json::{Value, json};
use tiktoken_rs::{CoreBPE, r50k_base_singleton};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, TokenizerBuilder};

use crate::error::DataError;
use crate::manifest::check_version;
use crate::text::lines_in_chunks;

/// The tokenizer's file name.
pub(crate) const FILE: &str = "tokenizer.json";
/// The version of the format that is written and read.
pub(crate) const VERSION: u32 = 1;

const END_OF_TEXT: &str = "<|endoftext|>";
/// The 256 bytes and the end of text.
const SMALLEST_TRAINED: u32 = 257;
/// Bytes of text that a `tokenizers` tokenizer encodes at a time: it keeps some hundred bytes for each.
const CHUNK: usize = 1 << 16;

/// A `--tokenizer` word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenizerChoice {
    /// `byte`: a token a byte.
    Byte,
    /// `gpt2`: GPT-2's byte-pair encoding.
    Gpt2,
    /// `FILE.json`: a file of the `tokenizers` library.
    File(PathBuf),
    /// `train:VOCAB`: a byte-level byte-pair encoding trained on the training split.
    Train(u32),
}

impl FromStr for TokenizerChoice {
    type Err = String;

    fn from_str(word: &str) -> Result<TokenizerChoice, String> {
        const CHOICES: &str = "write byte, gpt2, FILE.json or train:VOCAB";
        if let Some(vocab) = word.strip_prefix("train:") {
            return match vocab.parse() {
                Ok(vocab) if (SMALLEST_TRAINED..=1_000_000).contains(&vocab) => Ok(TokenizerChoice::Train(vocab)),
                _ => Err(format!(
                    "the vocabulary of {word:?} must be a whole number from {SMALLEST_TRAINED} (256 bytes and the end of text) to 1000000"
                )),
            };
        }
        match word {
            "byte" => Ok(TokenizerChoice::Byte),
            "gpt2" => Ok(TokenizerChoice::Gpt2),
            _ if word.ends_with(".json") => Ok(TokenizerChoice::File(word.into())),
            _ => Err(format!("the tokenizer {word:?} is not known; {CHOICES}")),
        }
    }
}

/// Turns text into tokens and back.
pub struct Tokenizer {
    kind: Kind,
}

enum Kind {
    Byte,
    Gpt2(&'static CoreBPE),
    Library(Box<tokenizers::Tokenizer>),
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokenizer({}, {})", self.kind(), self.vocab())
    }
}

impl Tokenizer {
    /// A token a byte; 256 of them.
    pub fn byte() -> Tokenizer {
        Tokenizer { kind: Kind::Byte }
    }

    /// GPT-2's byte-pair encoding; 50,257 tokens.
    pub fn gpt2() -> Tokenizer {
        Tokenizer {
            kind: Kind::Gpt2(r50k_base_singleton()),
        }
    }

    /// A tokenizer from a JSON file of the `tokenizers` library.
    ///
    /// # Errors
    /// The file cannot be read or is none of that library.
    pub fn from_library_file(path: &Path) -> Result<Tokenizer, DataError> {
        let text = std::fs::read(path).map_err(|error| DataError::system("read the tokenizer", path, &error))?;
        Tokenizer::from_library_json(&text).map_err(|error| {
            DataError::Input(format!(
                "{}: this is not a tokenizer of the `tokenizers` library ({error}); give its tokenizer.json",
                path.display()
            ))
        })
    }

    fn from_library_json(json: &[u8]) -> tokenizers::Result<Tokenizer> {
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(json)?;
        // What is cut or filled up is no longer the text.
        tokenizer.with_truncation(None)?;
        tokenizer.with_padding(None);
        Ok(Tokenizer {
            kind: Kind::Library(Box::new(tokenizer)),
        })
    }

    /// A byte-level byte-pair encoding of at most `vocab` tokens, trained on these texts. The same texts give the
    /// same tokenizer.
    ///
    /// # Errors
    /// The library refuses the texts.
    pub fn train<'t>(vocab: u32, texts: impl IntoIterator<Item = &'t str>) -> Result<Tokenizer, DataError> {
        let failed = |error| DataError::Input(format!("training a tokenizer of {vocab} tokens failed: {error}"));
        let mut trainer = BpeTrainer::builder()
            .vocab_size(vocab as usize)
            .show_progress(false)
            .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let byte_level = ByteLevel::default().add_prefix_space(false);
        let mut tokenizer: tokenizers::TokenizerImpl<BPE, tokenizers::NormalizerWrapper, _, _, _> =
            TokenizerBuilder::new()
                .with_model(BPE::default())
                .with_normalizer(None)
                .with_pre_tokenizer(Some(byte_level))
                .with_post_processor(Some(byte_level))
                .with_decoder(Some(byte_level))
                .build()
                .map_err(failed)?;
        let chunks: Vec<&str> = texts
            .into_iter()
            .flat_map(|text| lines_in_chunks(text, CHUNK))
            .collect();
        tokenizer.train(&mut trainer, chunks.into_iter()).map_err(failed)?;
        let json = tokenizer.to_string(false).map_err(failed)?;
        Tokenizer::from_library_json(json.as_bytes()).map_err(failed)
    }

    /// Reads `tokenizer.json` of a data folder, or of a folder of weights.
    ///
    /// # Errors
    /// The file cannot be read, is broken, or of an unknown version or kind.
    pub fn load(folder: &Path) -> Result<Tokenizer, DataError> {
        let path = folder.join(FILE);
        let text =
            std::fs::read_to_string(&path).map_err(|error| DataError::system("read the tokenizer", &path, &error))?;
        let broken = |error: &dyn fmt::Display| DataError::damaged(&path, format!("the tokenizer is broken ({error})"));
        let value: Value = serde_json::from_str(&text).map_err(|error| broken(&error))?;
        check_version(&value, &path, "the tokenizer format", VERSION)?;
        match value.get("kind").and_then(Value::as_str) {
            Some("byte") => Ok(Tokenizer::byte()),
            Some("gpt2") => Ok(Tokenizer::gpt2()),
            Some("library") => {
                let definition = value.get("definition").unwrap_or(&Value::Null).to_string();
                Tokenizer::from_library_json(definition.as_bytes()).map_err(|error| broken(&error))
            }
            other => Err(broken(&format!("its kind {other:?} is not known"))),
        }
    }

    /// The content of `tokenizer.json`.
    ///
    /// # Errors
    /// The library cannot write its tokenizer down.
    pub fn to_json(&self) -> Result<String, DataError> {
        let failed = |error: &dyn fmt::Display| DataError::Input(format!("the tokenizer cannot be stored: {error}"));
        let value = match &self.kind {
            Kind::Byte | Kind::Gpt2(_) => json!({ "version": VERSION, "kind": self.kind() }),
            Kind::Library(tokenizer) => {
                let text = tokenizer.to_string(false).map_err(|error| failed(&error))?;
                let definition: Value = serde_json::from_str(&text).map_err(|error| failed(&error))?;
                json!({ "version": VERSION, "kind": self.kind(), "definition": definition })
            }
        };
        Ok(value.to_string())
    }

    /// Its kind: `byte`, `gpt2` or `library`.
    pub fn kind(&self) -> &'static str {
        match self.kind {
            Kind::Byte => "byte",
            Kind::Gpt2(_) => "gpt2",
            Kind::Library(_) => "library",
        }
    }

    /// Size of the vocabulary: every token is below it.
    pub fn vocab(&self) -> u32 {
        match &self.kind {
            Kind::Byte => 256,
            Kind::Gpt2(_) => 50_257,
            // Ids may have gaps: the largest one counts.
            Kind::Library(tokenizer) => tokenizer
                .get_vocab(true)
                .into_values()
                .max()
                .map_or(0, |largest| largest + 1),
        }
    }

    /// The token that stands between documents, where there is one.
    pub fn end_of_text(&self) -> Option<u32> {
        match &self.kind {
            Kind::Byte => None,
            Kind::Gpt2(_) => Some(50_256),
            Kind::Library(tokenizer) => tokenizer.token_to_id(END_OF_TEXT),
        }
    }

    /// The tokens of a text. Words that look like special tokens are text like any other.
    ///
    /// # Errors
    /// A `tokenizers` tokenizer without a token for something in the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        match &self.kind {
            Kind::Byte => Ok(text.bytes().map(u32::from).collect()),
            Kind::Gpt2(bpe) => Ok(bpe.encode_ordinary(text)),
            Kind::Library(tokenizer) => {
                let mut tokens = Vec::new();
                for chunk in lines_in_chunks(text, CHUNK) {
                    let encoding = tokenizer
                        .encode_fast(chunk, false)
                        .map_err(|error| DataError::Input(format!("the tokenizer cannot encode the text: {error}")))?;
                    tokens.extend_from_slice(encoding.get_ids());
                }
                Ok(tokens)
            }
        }
    }

    /// The text of tokens. Bytes that are not UTF-8 and tokens outside of the vocabulary become `U+FFFD`.
    pub fn decode(&self, tokens: &[u32]) -> String {
        match &self.kind {
            Kind::Byte => lossy(
                tokens
                    .iter()
                    .map(|token| u8::try_from(*token).ok().map(|byte| vec![byte])),
            ),
            Kind::Gpt2(bpe) => lossy(tokens.iter().map(|token| bpe.decode_bytes(&[*token]).ok())),
            Kind::Library(tokenizer) => tokenizer
                .decode(tokens, false)
                .unwrap_or_else(|_| char::REPLACEMENT_CHARACTER.to_string()),
        }
    }
}

fn lossy(pieces: impl Iterator<Item = Option<Vec<u8>>>) -> String {
    let bytes: Vec<u8> = pieces
        .flat_map(|piece| piece.unwrap_or_else(|| "\u{fffd}".into()))
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
