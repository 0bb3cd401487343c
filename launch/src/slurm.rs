//! `lockstep slurm render`: the script of a job, for sbatch. Pure but for reading the config: the same words give the same
//! script.
//!
//! The script starts the trainers by `srun`, with the config; rank 0 hosts the coordinator. Some time before the time limit
//! Slurm signals the script, which has the run stopped in order; the run writes its checkpoint, and the job is queued again. Only
//! then: a run that an operator has stopped, bad input, and a job that has not made one step end as they are.

use std::fmt::Write as _;

use lockstep_config::{CollectiveBackend, Device, RunConfig};

use crate::cli::RenderArguments;
use crate::ending::Ending;
use crate::sibling;

/// Carries out `lockstep slurm render`.
pub(crate) fn render(arguments: &RenderArguments) -> Result<(), Ending> {
    let config = RunConfig::read(&arguments.config, &arguments.sets).map_err(Ending::bad_input)?;
    let is_mpi = config.collective.backend == CollectiveBackend::Mpi;
    let trainer = match &arguments.trainer {
        Some(trainer) => trainer.clone(),
        None if is_mpi => sibling::mpi_trainer()?,
        None => sibling::trainer()?,
    };
    let text = script(arguments, &config, &trainer.to_string_lossy()).map_err(Ending::BadInput)?;
    print!("{text}");
    Ok(())
}

/// The script.
fn script(arguments: &RenderArguments, config: &RunConfig, trainer: &str) -> Result<String, String> {
    check(arguments, config)?;
    let mut text = "#!/bin/bash\n".to_owned();
    for option in options(arguments, config) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "#SBATCH {option}");
    }
    let name = match arguments.array {
        Some(_) => format!("{}-$SLURM_ARRAY_TASK_ID", config.run.name),
        None => config.run.name.clone(),
    };
    let threads = config.run.intra_op_threads;
    // Under MPI a lost rank ends the world; else the others go on.
    let launch = match (config.collective.backend, config.run.device) {
        (CollectiveBackend::Mpi, _) => "--kill-on-bad-exit=1",
        (_, Device::Cpu) => "--mpi=none --kill-on-bad-exit=0",
        (_, Device::Cuda) => "--mpi=none --kill-on-bad-exit=0 --gpu-bind=none",
    };
    let mut words = vec![quoted(&arguments.config.to_string_lossy())];
    words.extend(arguments.sets.iter().map(|set| format!("--set {}", quoted(set))));
    words.extend(arguments.array.as_ref().map(|_| "--set \"run.name=$name\"".to_owned()));
    let trainer = quoted(trainer);
    let words = words.join(" ");
    let _ = write!(
        text,
        r#"
# Submit it where runs/ is to be, on a file system that all nodes share. Made by `lockstep slurm render`.
name="{name}"
summary="runs/$name/summary.json"
steps() {{ cat "runs/$name/metrics.jsonl" 2>/dev/null | wc -l; }}
# Which summary lies there; each end writes one, as a file of its own.
ending() {{ stat --format '%i %y' "$summary" 2>/dev/null; }}

# The time limit is near: the steps of this job are told to stop the run in order, which writes its checkpoint.
is_late=
late() {{
    is_late=1
    echo "the time limit is near: the run stops, and goes on in another turn"
    scancel --signal=TERM "$SLURM_JOB_ID"
}}
trap late USR1
# Of scancel, which tells the trainers too: they end first.
trap : TERM

# Nobody starts the coordinator again if the node of rank 0 is lost.
export LOCKSTEP_COORDINATOR_PATIENCE=60
before=$(steps) earlier=$(ending)
srun --label --cpus-per-task={threads} {launch} {trainer} {words} &
ranks=$!
wait "$ranks"
code=$?
# A signal ends the wait and not the ranks.
while kill -0 "$ranks" 2>/dev/null; do
    wait "$ranks"
    code=$?
done

# What the run says of its end counts, and not the code of a rank that was lost on the way.
if [ "$(ending)" != "$earlier" ]; then
    case $(sed -n 's/^ *"exit": "\(.*\)".*/\1/p' "$summary") in
        completed) code=0 ;;
        stopped) code=3 ;;
    esac
fi
if [ "$code" -eq 3 ] && [ -n "$is_late" ]; then
    if [ "$(steps)" -gt "$before" ]; then
        scontrol requeue "$SLURM_JOB_ID" && exit 0
        echo "the job cannot be queued again; submit it again to go on"
    else
        echo "this turn made no step, and another one would make none: give the job more time (--time), or less grace"
        code=1
    fi
fi
exit "$code"
"#
    );
    Ok(text)
}

/// Refuses what would fail only when the job has got its turn.
fn check(arguments: &RenderArguments, config: &RunConfig) -> Result<(), String> {
    let (ranks, lanes) = (arguments.ranks, config.run.lanes);
    if ranks > lanes {
        return Err(format!(
            "-n {ranks} is more than run.lanes, which is {lanes}: every rank needs a lane; lower -n, or raise run.lanes"
        ));
    }
    if let Some(nodes) = arguments.nodes.filter(|nodes| *nodes > ranks) {
        return Err(format!(
            "--nodes {nodes} is more than -n {ranks}: every node needs a rank; lower --nodes"
        ));
    }
    let bind = config.coordinator.bind;
    if arguments.nodes.is_some_and(|nodes| nodes > 1) && bind.ip().is_loopback() {
        return Err(format!(
            "--nodes {}, and coordinator.bind is {bind}, which only the node of rank 0 reaches; set it to 0.0.0.0:PORT, with a \
             certificate and who may call (docs/security.md), or on a network of your own with security.insecure_bind",
            arguments.nodes.unwrap_or_default()
        ));
    }
    let given = [
        &arguments.time,
        &arguments.partition,
        &arguments.account,
        &arguments.array,
        &arguments.mem,
    ];
    let given = given.into_iter().flatten().chain(&arguments.options);
    match given
        .into_iter()
        .find(|word| word.chars().any(char::is_control) || word.is_empty())
    {
        Some(word) => Err(format!(
            "{word:?} is no option of sbatch: it is empty, or has a line of its own"
        )),
        None => Ok(()),
    }
}

/// The options of sbatch, in one order.
fn options(arguments: &RenderArguments, config: &RunConfig) -> Vec<String> {
    let name = &config.run.name;
    // By itself a coordinator listens where only its own host reaches it.
    let nodes = arguments
        .nodes
        .or_else(|| config.coordinator.bind.ip().is_loopback().then_some(1));
    // The job of an array, and its index: every job writes a log of its own, and goes on with it in its next turn.
    let number = if arguments.array.is_some() { "%A_%a" } else { "%j" };
    let mut options = vec![
        format!("--job-name=lockstep-{name}"),
        format!("--ntasks={}", arguments.ranks),
    ];
    let mut say =
        |option: &str, value: Option<String>| options.extend(value.map(|value| format!("--{option}={value}")));
    say("nodes", nodes.map(|nodes| nodes.to_string()));
    say("cpus-per-task", Some(config.run.intra_op_threads.to_string()));
    say(
        "gpus-per-task",
        (config.run.device == Device::Cuda).then(|| "1".to_owned()),
    );
    say("mem", arguments.mem.clone());
    say("time", arguments.time.clone());
    say("partition", arguments.partition.clone());
    say("account", arguments.account.clone());
    say("array", arguments.array.clone());
    say("signal", Some(format!("B:USR1@{}", arguments.grace)));
    say("output", Some(format!("lockstep-{name}-{number}.log")));
    options.extend(["--open-mode=append".to_owned(), "--requeue".to_owned()]);
    options.extend(arguments.options.iter().cloned());
    options
}

/// A word for bash, as it is.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command, SlurmCommand};

    const CONFIG: &str = "[run]\nname = \"one\"\nsteps = 1\nlanes = 4\n[data]\npath = \"d\"\nsequence_length = 8\n[model]\nlayers = 1\nheads = 1\nwidth = 8\n[batch]\nmicro_batch = 1\nschedule = 8\n[learning_rate]\nschedule = 0.5\n";

    fn rendered(words: &str) -> Result<String, String> {
        let words = format!("lockstep slurm render run.toml {words}");
        let Command::Slurm {
            command: SlurmCommand::Render(arguments),
        } = Cli::try_parse_from(words.split_whitespace()).unwrap().command
        else {
            panic!("{words} is another command");
        };
        let config = RunConfig::parse(CONFIG, "run.toml", &arguments.sets).unwrap();
        script(&arguments, &config, "lockstep-trainer")
    }

    #[test]
    fn every_option_is_where_sbatch_reads_it() {
        let text = rendered("-n 4 --nodes 1 --time 1:00:00 --partition big --account me --mem 8G --sbatch --exclusive")
            .unwrap();
        let options: Vec<&str> = text.lines().take_while(|line| line.starts_with('#')).collect();
        for option in [
            "--ntasks=4",
            "--nodes=1",
            "--cpus-per-task=1",
            "--mem=8G",
            "--time=1:00:00",
            "--partition=big",
            "--account=me",
            "--signal=B:USR1@120",
            "--requeue",
            "--exclusive",
        ] {
            assert!(
                options.contains(&format!("#SBATCH {option}").as_str()),
                "{option}: {text}"
            );
        }
        assert!(!text.contains("gpu"), "{text}");
    }

    #[test]
    fn jobs_of_an_array_share_no_name() {
        let text = rendered("-n 2 --array 0-3").unwrap();
        for part in [
            "#SBATCH --array=0-3",
            "lockstep-one-%A_%a.log",
            "name=\"one-$SLURM_ARRAY_TASK_ID\"",
            "--set \"run.name=$name\"",
        ] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }

    #[test]
    fn what_would_fail_in_its_turn_is_refused_before() {
        for (words, part) in [
            ("-n 5", "run.lanes, which is 4"),
            ("-n 2 --nodes 3", "--nodes 3 is more than -n 2"),
            ("-n 2 --nodes 2", "coordinator.bind is 127.0.0.1:0"),
        ] {
            let sentence = rendered(words).unwrap_err();
            assert!(sentence.contains(part), "{sentence}");
        }
        let far = "-n 2 --nodes 2 --set coordinator.bind=0.0.0.0:7000 --set security.insecure_bind=true";
        assert!(rendered(far).unwrap().contains("--nodes=2"));
    }

    #[test]
    fn words_reach_the_trainer_as_they_are() {
        assert_eq!(quoted("run.steps=3"), "run.steps=3");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(quoted(""), "''");
    }
}
