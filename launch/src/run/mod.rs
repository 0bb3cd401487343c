//! `lockstep run` and `lockstep mpirun`: a whole run, from config to final weights, with the coordinator in this process.
//!
//! Way of data: [`check`] reads config and data and refuses what does not fit, before anything is made, and so does
//! [`doctor`] with what the machine lacks; [`folder`] claims the run's folder; [`serve`] starts the coordinator inside this
//! process; [`trainers`] starts the trainer processes, or one [`mpirun`] that starts them; then events of the run, exits of
//! trainers, signals and the clock go into [`supervisor`], which decides, and to [`show`], which tells. Whatever happens, every
//! trainer is reaped and `coordinator.json` is gone at the end.

pub(crate) mod check;
pub(crate) mod folder;
pub(crate) mod mpirun;
mod serve;
pub(crate) mod show;
mod supervisor;
mod trainers;

use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use lockstep_config::{Device, RunConfig, hosts_of_hostfile};
use lockstep_coordinator::plan::{Planner, warnings};
use serde_json::json;

use crate::cli::{MpirunArguments, Ranks, RunArguments, TrainingArguments};
use crate::doctor;
use crate::ending::Ending;
use crate::run::check::{Checked, check};
use crate::run::folder::{RUNS, RunFolder};
use crate::run::mpirun::Mpirun;
use crate::run::mpirun::flavour::{Flavour, check_words};
use crate::run::mpirun::hosts::{self, Known, Where};
use crate::run::serve::{Message, Serving};
use crate::run::show::Screen;
use crate::run::supervisor::{Action, Input, Process, Supervisor, Verdict};
use crate::run::trainers::{Start, Trainers, log_path, log_tail};
use crate::sibling;

/// How often trainers are looked after.
const GLANCE: Duration = Duration::from_millis(25);

/// Carries out `lockstep run`.
pub(crate) fn run(arguments: RunArguments) -> Result<(), Ending> {
    launch(&arguments.training, arguments.ranks, |checked| {
        match backend_of(checked) {
            "mpi" => {
                let trainer = sibling::mpi_trainer()?;
                let program = sibling::mpirun()?;
                let mpirun = Mpirun {
                    flavour: Flavour::of(&program),
                    program,
                    place: Where::Here,
                    hostfile: None,
                    survives: false,
                    arguments: Vec::new(),
                };
                Ok((trainer, Some(mpirun)))
            }
            _ => Ok((sibling::trainer()?, None)),
        }
    })
}

/// Carries out `lockstep mpirun`.
pub(crate) fn mpirun(arguments: MpirunArguments) -> Result<(), Ending> {
    let (hostfile, advertise, words) = (arguments.hostfile, arguments.advertise, arguments.arguments);
    launch(&arguments.training, Ranks::Exactly(arguments.ranks), |checked| {
        check_words(&words).map_err(Ending::BadInput)?;
        let is_mpi = backend_of(checked) == "mpi";
        let trainer = if is_mpi {
            sibling::mpi_trainer()?
        } else {
            sibling::trainer()?
        };
        let program = sibling::mpirun()?;
        let hosts = match &hostfile {
            Some(path) => read_hosts(path)?,
            None => Vec::new(),
        };
        let own_name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let known = Known {
            hosts: &hosts,
            allocated: hosts::allocated(),
            bind: checked.config.coordinator.bind,
            advertise: advertise.as_deref(),
            own_name: &own_name,
        };
        let place = hosts::place(&known, |host| hosts::is_here(host, &own_name)).map_err(Ending::BadInput)?;
        let mpirun = Mpirun {
            flavour: Flavour::of(&program),
            program,
            place,
            hostfile,
            survives: !is_mpi,
            arguments: words,
        };
        Ok((trainer, Some(mpirun)))
    })
}

fn backend_of(checked: &Checked) -> &'static str {
    checked.config.backend_name(checked.ranks)
}

fn read_hosts(path: &Path) -> Result<Vec<String>, Ending> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Ending::BadInput(format!("cannot read the hostfile {}: {error}", path.display())))?;
    let hosts = hosts_of_hostfile(&text);
    match hosts.is_empty() {
        false => Ok(hosts),
        true => Err(Ending::BadInput(format!(
            "the hostfile {} names no host; write one a line",
            path.display()
        ))),
    }
}

/// A whole run; `programs` finds the trainer, and the mpirun that starts it if one does.
fn launch(
    asked: &TrainingArguments,
    ranks: Ranks,
    programs: impl FnOnce(&Checked) -> Result<(PathBuf, Option<Mpirun>), Ending>,
) -> Result<(), Ending> {
    let mut sets = asked.sets.clone();
    sets.extend(asked.backend.map(|backend| backend.as_set().to_owned()));
    let config = RunConfig::read(&asked.config, &sets).map_err(Ending::bad_input)?;
    let checked = check(config, ranks)?;
    let programs = programs(&checked)?;
    serve::check_bind(&checked.config)?;
    let doubts = doctor::before_run(&checked, programs.1.as_ref())?;
    let planner = Planner::new(&checked.config, checked.training_samples).map_err(Ending::bad_input)?;
    let folder = RunFolder::claim(Path::new(RUNS), &checked.config.run.name, asked.resume)?;
    let (serving, messages) = match Serving::start(&checked, folder.path(), asked.resume) {
        Ok(started) => started,
        Err(ending) => {
            folder.undo();
            return Err(ending);
        }
    };

    let mut screen = Screen::new(asked.json, planner.total_steps());
    announce(
        &mut screen,
        &checked,
        &planner,
        &serving,
        folder.path(),
        programs.1.as_ref(),
    );
    doctor::warn(&doubts, &mut screen);
    let verdict = train(&checked, &programs, (&serving, &messages), folder.path(), &mut screen);
    screen.close();
    serving.shut_down(folder.path());
    conclude(verdict?, &checked.config.run.name, folder.path(), &mut screen)
}

fn announce(
    screen: &mut Screen,
    checked: &Checked,
    planner: &Planner,
    serving: &Serving,
    folder: &Path,
    mpirun: Option<&Mpirun>,
) {
    let Checked { config, ranks, .. } = checked;
    let backend = backend_of(checked);
    screen.say(&format!(
        "run {}: {} steps, {} samples, {ranks} rank{} ({backend}) on {} lanes, folder {}",
        config.run.name,
        planner.total_steps(),
        planner.total_samples(),
        if *ranks == 1 { "" } else { "s" },
        config.run.lanes,
        folder.display()
    ));
    if !config.coordinator.bind.ip().is_loopback() && config.security.insecure_bind {
        screen.say(&format!(
            "warning: the coordinator listens on {}, and security.insecure_bind lets in who is not known",
            config.coordinator.bind
        ));
    }
    screen.tell(&format!("page     {}/", serving.url()));
    if let Some(mpirun) = mpirun {
        screen.tell(&format!("mpirun   {} ({})", mpirun.program.display(), mpirun.flavour));
        if let Flavour::Other(_) = mpirun.flavour {
            screen.say("warning: this mpirun is neither Open MPI's nor MPICH's, and is told nothing of lost ranks");
        }
    }
    planner.roundings().iter().for_each(|rounding| screen.say(rounding));
    warnings(config)
        .iter()
        .for_each(|warning| screen.say(&format!("warning: {warning}")));
    screen.fact(&json!({
        "event": "started", "run": config.run.name, "folder": folder, "coordinator": serving.url(),
        "pid": std::process::id(), "ranks": ranks, "lanes": config.run.lanes, "backend": backend,
        "total_steps": planner.total_steps(), "total_samples": planner.total_samples(),
    }));
}

/// Starts the trainers and sees the run through. When this returns, no trainer is left.
fn train(
    checked: &Checked,
    (trainer, mpirun): &(PathBuf, Option<Mpirun>),
    (serving, messages): (&Serving, &Receiver<Message>),
    folder: &Path,
    screen: &mut Screen,
) -> Result<Verdict, Ending> {
    let security = &checked.config.security;
    let mpirun = mpirun.as_ref();
    let url = mpirun.map_or_else(|| serving.url().to_owned(), |mpirun| mpirun.place.url(serving.url()));
    let start = Start {
        binary: trainer,
        mpirun,
        ranks: checked.ranks,
        coordinator: &url,
        token: serving.trainers_token(),
        // Usually one authority for all; else the chain in the certificate's file.
        authority: security.client_ca.as_deref().or(security.certificate.as_deref()),
        threads: checked.config.run.intra_op_threads,
        gpu: checked.config.run.device == Device::Cuda,
        folder,
        logs: folder.join("logs"),
    };
    let mut trainers = Trainers::start(&start)?;
    for (process, pid) in trainers.pids() {
        let log = log_path(&start.logs, process);
        screen.fact(&match process {
            Process::Rank(rank) => json!({ "event": "trainer", "rank": rank, "pid": pid, "log": log }),
            Process::Mpirun => json!({ "event": "mpirun", "pid": pid, "log": log }),
        });
    }
    // A rank that mpirun has started is not started again: of MPI's world it ends the world, else the others go on.
    let supervisor = Supervisor::new(trainers.pids());
    let mut supervisor = match start.mpirun {
        Some(_) => supervisor,
        None => supervisor.with_restarts(checked.config.fault.max_restarts),
    };
    let verdict = supervise(&mut supervisor, (&mut trainers, &start), (serving, messages), screen);
    if let Verdict::Failed {
        process: Some(process), ..
    } = verdict
    {
        let tail = log_tail(&start.logs, process);
        screen.say(&format!(
            "last lines of {}:\n{tail}",
            log_path(&start.logs, process).display()
        ));
    }
    Ok(verdict)
}

fn supervise(
    supervisor: &mut Supervisor,
    (trainers, start): (&mut Trainers, &Start<'_>),
    (serving, messages): (&Serving, &Receiver<Message>),
    screen: &mut Screen,
) -> Verdict {
    let began = Instant::now();
    loop {
        let mut inputs = match messages.recv_timeout(GLANCE) {
            Ok(message) => input_of(message, screen),
            // The sender lives as long as `serving`: only the time can be up.
            Err(_) => Vec::new(),
        };
        for exited in trainers.poll() {
            let (pid, exit) = (exited.pid, exited.exit.to_string());
            screen.fact(&match exited.process {
                Process::Rank(rank) => json!({ "event": "trainer-exit", "rank": rank, "pid": pid, "exit": exit }),
                Process::Mpirun => json!({ "event": "mpirun-exit", "pid": pid, "exit": exit }),
            });
            inputs.push(Input::Exited(exited));
        }
        inputs.push(Input::Clock);
        for input in inputs {
            for action in supervisor.on(input, began.elapsed()) {
                match action {
                    Action::Say(sentence) => screen.say(&sentence),
                    Action::AskStop => serving.ask_stop(),
                    Action::Restart(process) => match trainers.restart(start, process) {
                        Ok(pid) => {
                            supervisor.restarted(process, pid);
                            if let Process::Rank(rank) = process {
                                let log = log_path(&start.logs, process);
                                screen.fact(&json!({ "event": "trainer", "rank": rank, "pid": pid, "log": log }));
                            }
                        }
                        Err(sentence) => screen.say(&sentence),
                    },
                    Action::KillAll => trainers.kill_all(),
                }
            }
        }
        if let Some(verdict) = supervisor.verdict(began.elapsed()) {
            return verdict;
        }
    }
}

/// Shows a message and says what it means for the supervisor.
fn input_of(message: Message, screen: &mut Screen) -> Vec<Input> {
    match message {
        Message::Event(event) => {
            screen.event(&event);
            match *event {
                lockstep_proto::domain::RunEvent::Ended(end) => vec![Input::Ended(end)],
                lockstep_proto::domain::RunEvent::Step(_) => vec![Input::Stepped],
                _ => Vec::new(),
            }
        }
        Message::Interrupt => vec![Input::Interrupt],
        Message::EventsLost => vec![Input::EventsLost],
    }
}

/// The last lines: where everything is.
fn conclude(verdict: Verdict, name: &str, folder: &Path, screen: &mut Screen) -> Result<(), Ending> {
    let (exit, ending) = match verdict {
        Verdict::Completed => (0, Ok(())),
        Verdict::Stopped => (3, Err(Ending::Stopped)),
        Verdict::Failed { reason, .. } => (1, Err(Ending::Failed(format!("run {name} failed: {reason}")))),
    };
    let mut files = serde_json::Map::new();
    for (what, file) in [
        ("weights", "final"),
        ("summary", "summary.json"),
        ("metrics", "metrics.jsonl"),
        ("logs", "logs"),
    ] {
        let path = folder.join(file);
        if path.exists() {
            screen.tell(&format!("{what:<8} {}", path.display()));
            files.insert(what.to_owned(), json!(path));
        }
    }
    screen.fact(&json!({ "event": "exit", "code": exit, "files": files }));
    ending
}
