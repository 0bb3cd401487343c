//! Lists of the hosts of a job: a hostfile in the words of Open MPI or of MPICH, and the list that Slurm gives. Pure. The first
//! host is where rank 0 is, and so the coordinator that it hosts.

/// The hosts of a hostfile, in its order: `NAME slots=N` or `NAME:N` a line.
pub fn hosts_of_hostfile(text: &str) -> Vec<String> {
    text.lines().filter_map(host_of_line).collect()
}

/// The host that a line of a hostfile names; none where it names none.
fn host_of_line(line: &str) -> Option<String> {
    let line = line.split('#').next().unwrap_or_default();
    let word = line.split_whitespace().next()?;
    // `user@host` is for ssh; an address of version 6 has more than one colon, and no number of slots behind it.
    let word = word.rsplit('@').next().unwrap_or(word);
    let name = match word.split_once(':') {
        Some((name, slots)) if !slots.contains(':') => name,
        _ => word,
    };
    Some(name.to_owned()).filter(|name| !name.is_empty())
}

/// The first host of a list as Slurm writes it: `gpu[03-07,11],login`.
pub fn first_host_of_slurm(list: &str) -> Option<String> {
    // Up to the first comma that is not inside of brackets.
    let mut depth = 0_u32;
    let end = list.find(|c| {
        match c {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    });
    let mut rest = list[..end.unwrap_or(list.len())].trim();
    let mut name = String::new();
    // There may be several pairs of brackets: `rack[1-2]node[01-16]`.
    while let Some((before, inside)) = rest.split_once('[') {
        let (numbers, after) = inside.split_once(']')?;
        name.push_str(before);
        name.push_str(numbers.split([',', '-']).next()?);
        rest = after;
    }
    name.push_str(rest);
    Some(name).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostfile_of_either_mpi_has_a_first_host() {
        for (text, host) in [
            ("a slots=2\nb slots=2\n", Some("a")),
            ("# comment\n\n  node-1.example.org:4\nb:4", Some("node-1.example.org")),
            ("alice@10.0.0.7 slots=8 # fast", Some("10.0.0.7")),
            ("fd00::7 slots=2", Some("fd00::7")),
            ("# nothing\n", None),
            ("", None),
        ] {
            assert_eq!(hosts_of_hostfile(text).first().map(String::as_str), host, "{text:?}");
        }
        assert_eq!(hosts_of_hostfile("a slots=2\n#b\nc:4\na\n"), ["a", "c", "a"]);
    }

    #[test]
    fn slurms_list_has_a_first_host() {
        for (list, host) in [
            ("login", Some("login")),
            ("a,b", Some("a")),
            ("gpu[03-07,11],login", Some("gpu03")),
            ("rack[1,2]node[01-16]", Some("rack1node01")),
            ("gpu[03-04]-ib,x", Some("gpu03-ib")),
            ("gpu[03", None),
            ("", None),
        ] {
            assert_eq!(first_host_of_slurm(list).as_deref(), host, "{list:?}");
        }
    }
}
