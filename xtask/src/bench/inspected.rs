//! Reading the loads of the ranks from what `lockstep inspect CONFIG -n RANKS` prints.

/// What one rank has to compute and to keep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RankLoad {
    /// Σ max(m, n)·min(m, n)² over the hidden matrices m × n that it owns.
    pub(crate) polar_cost: f64,
    /// Masters and optimiser state, in MiB.
    pub(crate) state_mib: f64,
}

/// The rows of the table that begins with `rank`; none where there is no such table or a row that cannot be read.
pub(crate) fn rank_loads(text: &str) -> Option<Vec<RankLoad>> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with("rank "));
    // Columns are at least two spaces apart, and their names have single ones.
    let columns: Vec<&str> = lines
        .next()?
        .split("  ")
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect();
    let place = |name: &str| columns.iter().position(|column| *column == name);
    let (cost, state) = (place("polar cost")?, place("master + state")?);
    let rows = lines.take_while(|line| line.starts_with(|c: char| c.is_ascii_digit()));
    let loads: Option<Vec<RankLoad>> = rows.map(|row| load(row, cost, state)).collect();
    loads.filter(|loads| !loads.is_empty())
}

fn load(row: &str, cost: usize, state: usize) -> Option<RankLoad> {
    let words: Vec<&str> = row.split_whitespace().collect();
    // A size is a number and its unit; no other column has two words.
    (words.get(state + 1) == Some(&"MiB")).then_some(())?;
    Some(RankLoad {
        polar_cost: words.get(cost)?.parse().ok()?,
        state_mib: words.get(state)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
run bench-30m: 29994240 parameters in 45 tensors, 3 buckets, 400 blocks

tensor                   shape          role       treated   copy  owners (rank: elements)
wte.weight               [50304, 384]   embedding  adamw     bf16  0: 9658368, 1: 9658368

rank  lanes   polar cost   share  other elements  master + state
0     0..1    1358954496   51.0%  9707136         166.4 MiB
1     1..2    1305870336   49.0%  9707136         165.8 MiB

memory of each rank, without activations:
  working copies            57.2 MiB
";

    #[test]
    fn costs_and_states_are_read_from_the_table_of_the_ranks() {
        let load = |polar_cost, state_mib| RankLoad { polar_cost, state_mib };
        assert_eq!(
            rank_loads(TEXT).unwrap(),
            [load(1_358_954_496.0, 166.4), load(1_305_870_336.0, 165.8)]
        );
    }

    #[test]
    fn another_table_is_not_taken_for_it() {
        for text in [
            "",
            "rank  lanes   polar cost\n0     0..1    5\n",
            &TEXT.replace("polar cost", "cost"),
            &TEXT.replace("MiB", "GiB"),
            &TEXT.replace("1305870336", "many"),
            &TEXT.replace("\n0  ", "\n\n0  "),
        ] {
            assert_eq!(rank_loads(text), None, "{text}");
        }
    }
}
