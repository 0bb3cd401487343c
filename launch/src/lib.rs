//! The command that people type.
//!
//! Way of data: [`cli`] says what can be typed; [`execute`] hands each command to its module: `run` starts and watches
//! a whole run, with or without an mpirun, `slurm` writes the script of a job, `control` talks to a live one, `orders` changes
//! it, `top` draws it, `page` writes it into a file, `ledger` reads what one has recorded, `schedule` previews one, `plan`
//! predicts what it takes, `doctor` looks at what one needs, `data` prepares text, `certs` makes certificates and tokens, `k8s`
//! lays a run over Kubernetes, `health` asks whether a coordinator serves, `sibling` becomes the
//! trainer binary for what needs libtorch. Each ends in an [`Ending`], whose code is the process's exit code and
//! whose sentence, if any, goes to stderr.

mod certs;
pub mod cli;
mod control;
mod data;
mod doctor;
mod ending;
mod health;
mod k8s;
mod ledger;
mod orders;
mod page;
mod plan;
mod run;
mod schedule;
mod sibling;
mod slurm;
mod top;

pub use ending::Ending;

use orders::Order;

/// Carries out a command.
///
/// # Errors
/// Anything but a good end, with the exit code and the sentence for it.
pub fn execute(command: cli::Command) -> Result<(), Ending> {
    match command {
        cli::Command::Run(arguments) => run::run(arguments),
        cli::Command::Mpirun(arguments) => run::mpirun(arguments),
        cli::Command::Slurm {
            command: cli::SlurmCommand::Render(arguments),
        } => slurm::render(&arguments),
        cli::Command::Tied { parent, folder, words } => Err(run::mpirun::tied(parent, &folder, &words)),
        cli::Command::Janitor { folder } => run::mpirun::scratch::janitor(&folder).map_err(Ending::failed),
        cli::Command::Status(target) => control::status(&target),
        cli::Command::Watch(target) => control::watch(&target),
        cli::Command::Doctor(arguments) => doctor::doctor(&arguments),
        cli::Command::Top(arguments) => top::top(&arguments),
        cli::Command::Page { run_dir, out } => page::page(&run_dir, out.as_deref()),
        cli::Command::Members(target) => control::members(&target),
        cli::Command::Pause(order) => orders::plain(&order.target, &order.conditions, Order::Pause),
        cli::Command::Resume(order) => orders::plain(&order.target, &order.conditions, Order::Resume),
        cli::Command::Stop(arguments) => orders::stop(&arguments),
        cli::Command::Checkpoint(order) => orders::plain(&order.target, &order.conditions, Order::Checkpoint),
        cli::Command::Set(arguments) => orders::set(&arguments),
        cli::Command::Extend(arguments) => orders::extend(&arguments),
        cli::Command::Skip(arguments) => orders::skip(&arguments),
        cli::Command::Rewind(arguments) => orders::rewind(&arguments),
        cli::Command::Drain(arguments) => orders::drain(&arguments),
        cli::Command::Data {
            command: cli::DataCommand::Prepare(arguments),
        } => data::prepare(arguments),
        cli::Command::Ledger { command } => ledger::ledger(&command),
        cli::Command::K8s { command } => k8s::k8s(&command),
        cli::Command::Health(arguments) => health::health(&arguments),
        cli::Command::Certs { command } => certs::certs(&command),
        cli::Command::Plan(arguments) => Err(plan::plan(&arguments)),
        cli::Command::Schedule(arguments) => schedule::schedule(&arguments),
        cli::Command::Generate { arguments } => Err(sibling::become_trainer("generate", &arguments)),
        cli::Command::Inspect { arguments } => Err(sibling::become_trainer("inspect", &arguments)),
    }
}
