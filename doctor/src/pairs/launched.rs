//! Which rank of how many a process is, by the words of whoever started it.

/// Variables of a rank and of how many there are: Open MPI, MPICH and its kin, torchrun, Slurm. The first pair that is there
/// counts: under Slurm an mpirun is the nearer one. The script of a job of Slurm is no step of it, and no rank. A trainer reads
/// them in its own way, which must agree: a test in `trainer/src/facts.rs` holds both against each other.
const WORDS: [(&str, &str); 4] = [
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("RANK", "WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
];

/// The rank and the number of ranks.
pub fn place(environment: &dyn Fn(&str) -> Option<String>) -> Option<(u32, u32)> {
    let number = |name: &str| environment(name)?.trim().parse::<u32>().ok();
    let places = WORDS
        .iter()
        .filter_map(|(rank, size)| Some((number(rank)?, number(size)?)));
    places.into_iter().find(|(rank, size)| rank < size)
}

/// Variables of a rank among those of its host, and of how many these are.
const LOCAL_WORDS: [(&str, &str); 4] = [
    ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
];

/// The number among the ranks of this host, and how many these are, where that is said. Slurm says `2(x3)` or `2,1` of several
/// hosts: then the first number stands for all.
pub fn place_on_host(environment: &dyn Fn(&str) -> Option<String>) -> Option<(u32, Option<u32>)> {
    let number = |name: &str| {
        let said = environment(name)?;
        let first = said.trim().split(|letter: char| !letter.is_ascii_digit()).next();
        first?.parse::<u32>().ok()
    };
    LOCAL_WORDS
        .iter()
        .find_map(|(rank, size)| Some((number(rank)?, number(size))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_starter_says_it() {
        let of = |set: &[(&str, &str)]| {
            place(&|name| {
                let found = set.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(
            of(&[
                ("SLURM_PROCID", "0"),
                ("SLURM_STEP_NUM_TASKS", "1"),
                ("PMI_RANK", "3"),
                ("PMI_SIZE", "4")
            ]),
            Some((3, 4))
        );
        assert_eq!(of(&[("RANK", "1"), ("WORLD_SIZE", "2")]), Some((1, 2)));
        assert_eq!(of(&[("RANK", "2"), ("WORLD_SIZE", "2")]), None);
        assert_eq!(of(&[("PMI_RANK", "0")]), None);
    }

    #[test]
    fn slurm_counts_tasks_node_by_node() {
        let of = |tasks: &str| {
            place_on_host(&|name| match name {
                "SLURM_LOCALID" => Some("1".to_owned()),
                "SLURM_STEP_TASKS_PER_NODE" => Some(tasks.to_owned()),
                _ => None,
            })
        };
        assert_eq!(of("4"), Some((1, Some(4))));
        assert_eq!(of("2(x3)"), Some((1, Some(2))));
        assert_eq!(of("2,1"), Some((1, Some(2))));
        assert_eq!(of(""), Some((1, None)));
    }
}
