//! The name of a run's objects. Kubernetes allows less in a name than a run does.

/// So much may be added to the name of a run, by us (`-coordinator`) and by controllers (`-0-12345-abcde`), before it is too
/// long for the name of a host, which has at most 63 characters.
const LONGEST: usize = 36;
/// Digits of the hash that keeps two runs apart whose names differ in what is lost only.
const DIGITS: usize = 6;

/// The name of the objects of a run: its own where Kubernetes allows that, else the nearest one with digits of a hash.
pub(crate) fn object_name(run: &str) -> String {
    let lower = run.to_ascii_lowercase().replace(['.', '_'], "-");
    let trimmed = lower.trim_matches('-');
    // Names of Services begin with a letter.
    let begins = trimmed.starts_with(|first: char| first.is_ascii_lowercase());
    let near = if begins {
        trimmed.to_owned()
    } else {
        format!("run-{trimmed}")
    };
    if near == run && near.len() <= LONGEST {
        return near;
    }
    let hash = fingerprint(run.as_bytes());
    let short: String = near.chars().take(LONGEST - DIGITS - 1).collect();
    format!("{}-{}", short.trim_end_matches('-'), &hash[..DIGITS])
}

/// Whether this can be the name of a namespace.
pub(crate) fn is_namespace(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with('-') && !name.ends_with('-')
}

/// Sixteen digits that change when a text does: FNV-1a, the same on every machine and of no use against an attacker.
pub(crate) fn fingerprint(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_kubernetes_allows_stays_and_others_are_kept_apart() {
        assert_eq!(object_name("shakespeare"), "shakespeare");
        for run in [
            "Shakespeare",
            "a.b",
            "a_b",
            "a-b.",
            "7b",
            "x".repeat(64).as_str(),
            "...",
            "A",
        ] {
            let name = object_name(run);
            assert!(is_namespace(&name) && name.len() <= LONGEST, "{run}: {name}");
            assert!(
                name.starts_with(|first: char| first.is_ascii_lowercase()),
                "{run}: {name}"
            );
        }
        let alike = ["a.b", "a_b", "A-b", "a-b"].map(object_name);
        for (index, name) in alike.iter().enumerate() {
            assert!(!alike[index + 1..].contains(name), "{alike:?}");
        }
    }

    #[test]
    fn namespaces_are_labels() {
        assert!(is_namespace("team-1"));
        for name in ["", "-a", "a-", "A", "a.b", &"x".repeat(64)] {
            assert!(!is_namespace(name), "{name}");
        }
    }
}
