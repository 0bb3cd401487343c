//! Bearer tokens: 256 random bits, of which the coordinator keeps a hash only.
//!
//! A hash that is slow on purpose would gain nothing: it protects what people choose, and nobody chooses these. What does
//! not look like such a token is refused before it is hashed, so that a chosen password is never one.

use std::path::Path;

use crate::access::{Identity, Role};

/// Every token begins with this, so that it is known for what it is wherever it turns up.
const PREFIX: &str = "lst_";
/// Random bytes of a token.
const RANDOM: usize = 32;
/// Entries of a token file.
const MOST_ENTRIES: usize = 4096;
/// Keeps hashes of tokens apart from all other hashes of this project.
const CONTEXT: &str = "lockstep 2026 bearer token v1";

/// A token. It prints nothing of itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

/// Why something is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Of another form.
    #[error(
        "it does not look like a token: `lst_` and 64 hexadecimal digits, as `lockstep certs token` prints them once"
    )]
    Form,
    /// The system gives no random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(String),
}

impl Token {
    /// A new one.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn generate() -> Result<Token, TokenError> {
        let mut bytes = [0; RANDOM];
        getrandom::fill(&mut bytes).map_err(|error| TokenError::Random(error.to_string()))?;
        Ok(Token(format!("{PREFIX}{}", blake3::Hash::from_bytes(bytes).to_hex())))
    }

    /// Reads one; white space around it does not count.
    ///
    /// # Errors
    /// It does not look like one.
    pub fn parse(text: &str) -> Result<Token, TokenError> {
        let text = text.trim();
        let digits = text.strip_prefix(PREFIX).ok_or(TokenError::Form)?;
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        match digits.len() == 2 * RANDOM && digits.bytes().all(is_hex) {
            true => Ok(Token(text.to_owned())),
            false => Err(TokenError::Form),
        }
    }

    /// What is shown to the coordinator. For the wire, and for nothing else.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What the coordinator keeps.
    fn hash(&self) -> blake3::Hash {
        blake3::Hash::from_bytes(blake3::derive_key(CONTEXT, self.0.as_bytes()))
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Whether this can be the name of somebody: 1 to 64 letters, digits, `.`, `_`, `-` or `@`.
pub fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'@');
    (1..=64).contains(&name.len()) && name.bytes().all(allowed)
}

/// The line of a token file that lets a token in.
pub fn entry(identity: &Identity, token: &Token) -> String {
    format!("{} {} {}", identity.role, identity.name, token.hash().to_hex())
}

/// Whom tokens let in.
#[derive(Clone, Debug, Default)]
pub struct Tokens(Vec<(blake3::Hash, Identity)>);

impl Tokens {
    /// Reads a token file: a line `ROLE NAME HASH` for each token; empty lines and those that begin with `#` do not count.
    ///
    /// # Errors
    /// One sentence with the line; nothing of the line is repeated, since somebody may have put a token there.
    pub(crate) fn parse(text: &str, file: &Path) -> Result<Tokens, String> {
        let mut entries = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let entry = Tokens::line(line).map_err(|cause| {
                format!(
                    "line {number} of {} is not `ROLE NAME HASH`: {cause}. `lockstep certs token` writes such lines",
                    file.display()
                )
            })?;
            if entries.len() == MOST_ENTRIES {
                return Err(format!("{} has more than {MOST_ENTRIES} tokens", file.display()));
            }
            entries.push(entry);
        }
        Ok(Tokens(entries))
    }

    fn line(line: &str) -> Result<(blake3::Hash, Identity), &'static str> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let &[role, name, hash] = words.as_slice() else {
            return Err("it has not three words");
        };
        let role = Role::of_word(role).ok_or("the role is none of trainer, operator and viewer")?;
        if !is_name(name) {
            return Err("the name has other characters than letters, digits, `.`, `_`, `-` and `@`, or is too long");
        }
        let hash = blake3::Hash::from_hex(hash).map_err(|_| "the hash has not 64 hexadecimal digits")?;
        let name = name.to_owned();
        Ok((hash, Identity { role, name }))
    }

    /// Lets one more in.
    pub(crate) fn add(&mut self, token: &Token, identity: Identity) {
        self.0.push((token.hash(), identity));
    }

    /// Whom a token lets in. Takes the same time whichever entry it is, if it is one.
    pub fn find(&self, token: &Token) -> Option<&Identity> {
        let hash = token.hash();
        let mut found = None;
        for (known, identity) in &self.0 {
            // `blake3::Hash` compares in constant time.
            if *known == hash {
                found = Some(identity);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alice() -> Identity {
        Identity {
            role: Role::Operator,
            name: "alice".to_owned(),
        }
    }

    #[test]
    fn a_token_is_known_by_its_hash_and_prints_nothing() {
        let (token, other) = (Token::generate().unwrap(), Token::generate().unwrap());
        assert_ne!(token, other);
        let line = entry(&alice(), &token);
        assert!(!line.contains(&token.reveal()[4..]) && !format!("{token:?}").contains(&token.reveal()[4..]));
        let tokens = Tokens::parse(&format!("# people\n\n{line}\n"), Path::new("tokens")).unwrap();
        assert_eq!(tokens.find(&token), Some(&alice()));
        assert_eq!(tokens.find(&other), None);
        assert_eq!(Token::parse(&format!(" {}\n", token.reveal())).unwrap(), token);
    }

    #[test]
    fn what_a_person_would_choose_is_no_token() {
        for text in [
            "",
            "secret",
            "lst_",
            &format!("lst_{}", "G".repeat(64)),
            &"0".repeat(68),
        ] {
            assert_eq!(Token::parse(text), Err(TokenError::Form), "{text}");
        }
    }

    #[test]
    fn a_line_that_is_none_is_named_and_not_repeated() {
        let hash = "a".repeat(64);
        for (line, part) in [
            ("operator alice".to_owned(), "three words"),
            (format!("root alice {hash}"), "none of trainer"),
            (format!("operator al/ice {hash}"), "the name"),
            ("operator alice lst_0123".to_owned(), "the hash"),
        ] {
            let error = Tokens::parse(&format!("\n{line}\n"), Path::new("people.tokens")).unwrap_err();
            assert!(
                error.contains("line 2 of people.tokens") && error.contains(part),
                "{error}"
            );
            assert!(!error.contains("lst_0123"), "{error}");
        }
    }
}
