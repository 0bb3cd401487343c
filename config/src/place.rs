//! Which rank of how many this process is, as the environment says: of Open MPI, of MPICH and its kin (Hydra), of anything
//! that speaks PMIx, of torchrun, of Slurm. Pure: names in, a [`Place`] out.
//!
//! Several may have left their words, since one starts another: `mpirun` in a job of Slurm, `torchrun` under `srun`. Then
//! the inner one counts, the one that started this process: an MPI before torchrun, torchrun before Slurm. Where that cannot
//! be told, or the words of one contradict each other, it is refused, with the names.

/// Whose words say where this process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Starter {
    /// Open MPI's mpirun.
    OpenMpi,
    /// The mpirun of MPICH, Intel MPI, MVAPICH.
    Hydra,
    /// Anything else that speaks PMI or PMIx.
    Pmi,
    /// torchrun, or somebody who sets the same.
    Torchrun,
    /// srun.
    Slurm,
}

/// Where this process stands among those that were started together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Who says so.
    pub starter: Starter,
    /// Its number, from 0.
    pub rank: u32,
    /// How many there are, where that is said.
    pub size: Option<u32>,
    /// Its number among those on this host.
    pub local_rank: Option<u32>,
    /// How many are on this host.
    pub local_size: Option<u32>,
    /// What tells this job from every other, where the starter says it: the same word in all of its processes.
    pub job: Option<String>,
}

impl Place {
    /// Whether all are on this host; where it is not said, nobody knows.
    pub fn is_on_one_host(&self) -> Option<bool> {
        Some(self.size? == self.local_size?)
    }
}

/// The names under which a starter says where a process stands.
struct Words {
    starter: Starter,
    rank: &'static str,
    size: Option<&'static str>,
    local_rank: &'static str,
    local_size: &'static str,
    /// Together they tell one job from every other; those that are not set are left out.
    job: &'static [&'static str],
}

const OPEN_MPI: Words = Words {
    starter: Starter::OpenMpi,
    rank: "OMPI_COMM_WORLD_RANK",
    size: Some("OMPI_COMM_WORLD_SIZE"),
    local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
    local_size: "OMPI_COMM_WORLD_LOCAL_SIZE",
    job: &["PMIX_NAMESPACE", "OMPI_MCA_orte_precondition_transports"],
};
const HYDRA: Words = Words {
    starter: Starter::Hydra,
    rank: "PMI_RANK",
    size: Some("PMI_SIZE"),
    local_rank: "MPI_LOCALRANKID",
    local_size: "MPI_LOCALNRANKS",
    job: &[],
};
const PMI: Words = Words {
    starter: Starter::Pmi,
    size: Some("PMI_SIZE"),
    rank: "PMI_RANK",
    local_rank: "",
    local_size: "",
    job: &["PMI_JOBID"],
};
const PMIX: Words = Words {
    starter: Starter::Pmi,
    rank: "PMIX_RANK",
    size: None,
    local_rank: "",
    local_size: "",
    job: &["PMIX_NAMESPACE"],
};
const TORCHRUN: Words = Words {
    starter: Starter::Torchrun,
    rank: "RANK",
    size: Some("WORLD_SIZE"),
    local_rank: "LOCAL_RANK",
    local_size: "LOCAL_WORLD_SIZE",
    job: &[
        "TORCHELASTIC_RUN_ID",
        "TORCHELASTIC_RESTART_COUNT",
        "MASTER_ADDR",
        "MASTER_PORT",
    ],
};
const SLURM: Words = Words {
    starter: Starter::Slurm,
    rank: "SLURM_PROCID",
    size: Some("SLURM_STEP_NUM_TASKS"),
    local_rank: "SLURM_LOCALID",
    local_size: "",
    job: &["SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"],
};

/// An environment.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Where the process of this environment stands; none where nobody has started it together with others.
///
/// # Errors
/// Words that contradict each other, or are no numbers: a sentence with their names.
pub fn place(get: Environment<'_>) -> Result<Option<Place>, String> {
    let get = &|name: &str| {
        get(name)
            .map(|word| word.trim().to_owned())
            .filter(|word| !word.is_empty())
    };
    let slurm = match get("SLURM_STEP_ID") {
        // The script of a job has a rank too, and is none.
        None => None,
        Some(_) => read(&SLURM, get)?.map(|place| Place {
            // `2` on one node, `2(x3)` or `2,1` on several: the first number is all of them only on one.
            local_size: get("SLURM_STEP_TASKS_PER_NODE").and_then(|word| leading_number(&word)),
            ..place
        }),
    };
    let open_mpi = read(&OPEN_MPI, get)?;
    // Slurm speaks PMI too; what sets the number on the host as well is Hydra.
    let hydra = match get(HYDRA.local_rank) {
        Some(_) => read(&HYDRA, get)?,
        None => None,
    };
    if let (Some(one), Some(other)) = (&open_mpi, &hydra)
        && one.rank != other.rank
    {
        return Err(disagreement(&OPEN_MPI, one.rank, &HYDRA, other.rank));
    }
    let torchrun = read(&TORCHRUN, get)?;
    let mpi = open_mpi
        .map(|place| (&OPEN_MPI, place))
        .or(hydra.map(|place| (&HYDRA, place)));
    // Only torchrun itself sets this; RANK alone may be left from anything outside.
    if let (Some((words, one)), Some(other), Some(_)) = (&mpi, &torchrun, get("TORCHELASTIC_RUN_ID"))
        && one.rank != other.rank
    {
        return Err(disagreement(words, one.rank, &TORCHRUN, other.rank));
    }
    if let Some(place) = mpi.map(|(_, place)| place).or(torchrun) {
        return Ok(Some(place));
    }
    let pmi = match read(&PMI, get)? {
        Some(place) => Some((&PMI, place)),
        None => read(&PMIX, get)?.map(|place| (&PMIX, place)),
    };
    match (pmi, slurm) {
        // Slurm's own PMI: its other words say more.
        (Some((words, one)), Some(other)) => match one.rank == other.rank {
            true => Ok(Some(other)),
            false => Err(disagreement(words, one.rank, &SLURM, other.rank)),
        },
        (pmi, slurm) => Ok(pmi.map(|(_, place)| place).or(slurm)),
    }
}

fn leading_number(word: &str) -> Option<u32> {
    word.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn disagreement(one: &Words, rank: u32, other: &Words, other_rank: u32) -> String {
    format!(
        "the environment says {} = {rank} and {} = {other_rank}: one launcher seems to have started another, and which of them \
         counts cannot be told; unset the variables of the one that does not, or give --coordinator and --member",
        one.rank, other.rank
    )
}

/// What one starter says, if it says anything.
fn read(words: &Words, get: Environment<'_>) -> Result<Option<Place>, String> {
    let number = |name: &str| -> Result<Option<u32>, String> {
        get(name)
            .map(|word| {
                let parsed = word.parse::<u32>();
                parsed.map_err(|_| format!("the environment says {name} = {word}, which is no whole number"))
            })
            .transpose()
    };
    let Some(rank) = number(words.rank)? else {
        return Ok(None);
    };
    let size = words.size.map_or(Ok(None), &number)?;
    // torchrun's names are anybody's; without the other one they say nothing.
    if words.starter == Starter::Torchrun && size.is_none() {
        return Ok(None);
    }
    if let (Some(size), Some(name)) = (size, words.size)
        && rank >= size
    {
        return Err(format!(
            "the environment says {} = {rank} and {name} = {size}, but ranks count from 0; unset what is left of another job",
            words.rank
        ));
    }
    let local_rank = number(words.local_rank)?;
    if let Some(local) = local_rank.filter(|local| *local > rank) {
        return Err(format!(
            "the environment says {} = {rank} and {} = {local}, but no rank has more ranks before it on its host than in all; \
             unset what is left of another job",
            words.rank, words.local_rank
        ));
    }
    let job: Vec<String> = words.job.iter().filter_map(|name| get(name)).collect();
    Ok(Some(Place {
        starter: words.starter,
        rank,
        size,
        local_rank,
        local_size: number(words.local_size)?,
        job: Some(job.join(" ")).filter(|job| !job.is_empty()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The place in an environment of these words, `NAME=WORD …`.
    fn of(words: &str) -> Result<Option<Place>, String> {
        let words: Vec<(&str, &str)> = words
            .split_whitespace()
            .filter_map(|word| word.split_once('='))
            .collect();
        place(&|name| {
            let found = words.iter().find(|(one, _)| *one == name);
            found.map(|(_, word)| (*word).to_owned())
        })
    }

    fn numbers(words: &str) -> (Starter, u32, Option<u32>, Option<u32>, Option<u32>) {
        let place = of(words).unwrap().unwrap();
        (
            place.starter,
            place.rank,
            place.size,
            place.local_rank,
            place.local_size,
        )
    }

    const OPEN_MPI_4: &str = "OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=1 \
                              OMPI_COMM_WORLD_LOCAL_SIZE=2 PMIX_RANK=3 PMIX_NAMESPACE=1398145025 \
                              OMPI_MCA_orte_precondition_transports=0113-1b04";
    const OPEN_MPI_5: &str = "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=1 OMPI_COMM_WORLD_LOCAL_RANK=0 \
                              OMPI_COMM_WORLD_LOCAL_SIZE=1 PMIX_RANK=0 PMIX_NAMESPACE=prterun-vm-16304@1";
    const MPICH: &str = "PMI_FD=6 PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=2";
    const TORCHELASTIC: &str = "RANK=2 WORLD_SIZE=4 LOCAL_RANK=0 LOCAL_WORLD_SIZE=2 TORCHELASTIC_RUN_ID=none \
                                TORCHELASTIC_RESTART_COUNT=0 MASTER_ADDR=a MASTER_PORT=1";
    /// Of a task that srun has started.
    const SRUN: &str = "SLURM_JOB_ID=7 SLURM_STEP_ID=0 SLURM_PROCID=1 SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2 SLURM_LOCALID=1 \
                        SLURM_STEP_TASKS_PER_NODE=2";
    /// Of the script of a job.
    const SBATCH: &str = "SLURM_JOB_ID=7 SLURM_PROCID=0 SLURM_NTASKS=4 SLURM_LOCALID=0 SLURM_TASKS_PER_NODE=4";

    #[test]
    fn each_starter_is_understood() {
        for (words, expected) in [
            (OPEN_MPI_4, (Starter::OpenMpi, 3, Some(4), Some(1), Some(2))),
            (OPEN_MPI_5, (Starter::OpenMpi, 0, Some(1), Some(0), Some(1))),
            (MPICH, (Starter::Hydra, 1, Some(2), Some(1), Some(2))),
            (TORCHELASTIC, (Starter::Torchrun, 2, Some(4), Some(0), Some(2))),
            (SRUN, (Starter::Slurm, 1, Some(2), Some(1), Some(2))),
            ("PMI_RANK=1 PMI_SIZE=3", (Starter::Pmi, 1, Some(3), None, None)),
            ("PMIX_RANK=1", (Starter::Pmi, 1, None, None, None)),
        ] {
            assert_eq!(numbers(words), expected, "{words}");
        }
    }

    #[test]
    fn nobody_has_started_a_process_by_hand_nor_the_script_of_a_job() {
        for words in [
            "",
            "PATH=/bin",
            SBATCH,
            "RANK=3",
            "WORLD_SIZE=3",
            "OMPI_COMM_WORLD_RANK=",
        ] {
            assert_eq!(of(words), Ok(None), "{words}");
        }
    }

    #[test]
    fn of_several_the_inner_one_counts() {
        let starter = |words: String| numbers(&words).0;
        assert_eq!(
            starter(format!("{SBATCH} {OPEN_MPI_4}")),
            Starter::OpenMpi,
            "mpirun in a script of Slurm"
        );
        // orted is a task of srun, and so has a rank of its own.
        let daemon = SRUN
            .replace("SLURM_PROCID=1", "SLURM_PROCID=0")
            .replace("LOCALID=1", "LOCALID=0");
        assert_eq!(starter(format!("{daemon} {OPEN_MPI_4}")), Starter::OpenMpi);
        assert_eq!(starter(format!("{daemon} {MPICH}")), Starter::Hydra);
        assert_eq!(
            starter(format!("{daemon} {TORCHELASTIC}")),
            Starter::Torchrun,
            "torchrun by srun"
        );
        assert_eq!(
            starter(format!("RANK=0 WORLD_SIZE=1 {MPICH}")),
            Starter::Hydra,
            "RANK is anybody's word"
        );
        assert_eq!(
            starter(format!("{SRUN} PMI_RANK=1 PMI_SIZE=2 PMIX_RANK=1")),
            Starter::Slurm,
            "srun --mpi=pmi2"
        );
    }

    #[test]
    fn what_contradicts_is_refused_by_name() {
        for (words, names) in [
            (
                "OMPI_COMM_WORLD_RANK=4 OMPI_COMM_WORLD_SIZE=4",
                ["OMPI_COMM_WORLD_RANK = 4", "OMPI_COMM_WORLD_SIZE = 4"],
            ),
            (
                "OMPI_COMM_WORLD_RANK=x OMPI_COMM_WORLD_SIZE=4",
                ["OMPI_COMM_WORLD_RANK = x", "no whole number"],
            ),
            (
                "PMI_RANK=0 PMI_SIZE=2 MPI_LOCALRANKID=1",
                ["PMI_RANK = 0", "MPI_LOCALRANKID = 1"],
            ),
            ("RANK=-1 WORLD_SIZE=4", ["RANK = -1", "no whole number"]),
        ] {
            let sentence = of(words).unwrap_err();
            for name in names {
                assert!(sentence.contains(name), "{name} is missing in: {sentence}");
            }
        }
        for (words, names) in [
            (
                format!("{OPEN_MPI_4} {MPICH}"),
                ["OMPI_COMM_WORLD_RANK = 3", "PMI_RANK = 1"],
            ),
            (
                format!("{OPEN_MPI_4} {TORCHELASTIC}"),
                ["OMPI_COMM_WORLD_RANK = 3", " RANK = 2"],
            ),
            (
                format!("{SRUN} PMI_RANK=0 PMI_SIZE=2"),
                ["PMI_RANK = 0", "SLURM_PROCID = 1"],
            ),
        ] {
            let sentence = of(&words).unwrap_err();
            for name in names {
                assert!(sentence.contains(name), "{name} is missing in: {sentence}");
            }
        }
    }

    #[test]
    fn a_job_is_told_from_every_other_where_its_starter_says_so() {
        let job = |words: &str| of(words).unwrap().unwrap().job;
        assert_eq!(job(OPEN_MPI_4).as_deref(), Some("1398145025 0113-1b04"));
        assert_eq!(job(OPEN_MPI_5).as_deref(), Some("prterun-vm-16304@1"));
        assert_eq!(job(MPICH), None);
        assert_eq!(job(SRUN).as_deref(), Some("7 0"));
        assert_eq!(
            job(&format!("{SRUN} SLURM_RESTART_COUNT=2")).as_deref(),
            Some("7 0 2"),
            "another life of it"
        );
        assert_eq!(of(OPEN_MPI_4).unwrap().unwrap().is_on_one_host(), Some(false));
        assert_eq!(of(MPICH).unwrap().unwrap().is_on_one_host(), Some(true));
        assert_eq!(of("PMIX_RANK=1").unwrap().unwrap().is_on_one_host(), None);
        assert_eq!(of(SRUN).unwrap().unwrap().is_on_one_host(), Some(true));
        let nodes = SRUN
            .replace("NUM_TASKS=2", "NUM_TASKS=4")
            .replace("PER_NODE=2", "PER_NODE=2(x2)");
        assert_eq!(of(&nodes).unwrap().unwrap().is_on_one_host(), Some(false));
    }
}
