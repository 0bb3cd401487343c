//! An optimiser as the benchmarks name it: a method of the config, with or without Momo.

use std::fmt;
use std::str::FromStr;

/// What follows the method's name where Momo bounds its steps.
const MOMO: &str = "+momo";

/// `muonmax`, or `muonmax+momo`: the method with `optimizer.momo = { lower_bound = 0.0 }`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Variant {
    /// `optimizer.method`.
    pub(crate) method: String,
    /// Whether Momo is on.
    pub(crate) momo: bool,
}

impl Variant {
    /// The changes of the config that choose it.
    pub(crate) fn sets(&self) -> Vec<String> {
        let mut sets = vec![format!("optimizer.method={}", self.method)];
        if self.momo {
            sets.push("optimizer.momo={ lower_bound = 0.0 }".to_owned());
        }
        sets
    }
}

impl FromStr for Variant {
    type Err = String;

    fn from_str(text: &str) -> Result<Variant, String> {
        let (method, momo) = match text.strip_suffix(MOMO) {
            Some(method) => (method, true),
            None => (text, false),
        };
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if method.is_empty() || !method.chars().all(allowed) {
            return Err(format!(
                "{text:?} is not the name of a method, such as muonmax, or one with {MOMO} behind it"
            ));
        }
        Ok(Variant {
            method: method.to_owned(),
            momo,
        })
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `pad` keeps the width that a caller asks for.
        f.pad(&format!("{}{}", self.method, if self.momo { MOMO } else { "" }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_and_without_momo_are_read_and_written_alike() {
        for text in ["muonadam", "momo-adam", "muonmax+momo"] {
            assert_eq!(text.parse::<Variant>().unwrap().to_string(), text);
        }
        let variant: Variant = "muonmax+momo".parse().unwrap();
        assert_eq!(
            variant.sets(),
            ["optimizer.method=muonmax", "optimizer.momo={ lower_bound = 0.0 }"]
        );
        for text in ["", "+momo", "muon+max", "muon momo", "a,b"] {
            assert!(text.parse::<Variant>().is_err(), "{text:?}");
        }
    }
}
