//! `containers`: the image, built by a container engine, and the test that trains in such containers.
//!
//! Way of data: an [`engine`] that answers, or one that is started for this chore; the bases of `k8s/Containerfile`, pulled as
//! they are pinned or, where no registry is reached, made on this machine ([`base`]); the image, of its stages as they stand
//! there ([`containerfile`]); the test, which gets the name of the image.
//!
//! By itself the programs and libtorch are those of this machine, in the place of the stage that builds them: what is tested
//! is what the image adds to them (libraries, user, places, rights) and the objects of Kubernetes that start it. `--whole`
//! builds the stage that compiles too, as `docker build` of the file does, which takes as long as everything takes.

mod base;
mod containerfile;
mod engine;

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::failure::{Failure, on_path};
use crate::process;
use crate::setup::mpi;
use crate::workspace::Workspace;
use engine::Engine;

/// The image that is made.
const IMAGE: &str = "lockstep:containers";
/// Names it for the test.
const VARIABLE: &str = "LOCKSTEP_K8S_IMAGE";
const CONTAINERFILE: &str = "k8s/Containerfile";
const PROGRAMS: [&str; 3] = ["lockstep", "lockstep-coordinator", "lockstep-trainer"];

/// `cargo xtask containers`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Test this image instead of making one.
    #[arg(long)]
    image: Option<String>,
    /// Build on this image, instead of the pinned Debian.
    #[arg(long, value_name = "IMAGE", conflicts_with = "image")]
    base: Option<String>,
    /// Build the stage that compiles too, in a container.
    #[arg(long, conflicts_with = "image")]
    whole: bool,
}

/// Makes the image unless one is named, and runs the test.
pub(crate) fn containers(workspace: &Workspace, options: &Options) -> Result<(), Failure> {
    // The same members as the other chores, so that nothing is compiled a second time with other features.
    let members = mpi::members();
    let mut build = workspace.cargo();
    process::run("`cargo build`", build.args(["build", "--release"]).args(&members))?;
    let engine = Engine::find()?;
    let image = match &options.image {
        Some(image) => image.clone(),
        None => make_image(workspace, &engine, options)?,
    };
    let mut test = workspace.cargo();
    test.args(["test", "--release"]).args(&members);
    test.args(["--test", "k8s", "--", "--ignored", "--nocapture", "containers"]);
    engine.let_in(&mut test);
    process::run("`cargo test`", test.env(VARIABLE, image))
}

fn make_image(workspace: &Workspace, engine: &Engine, options: &Options) -> Result<String, Failure> {
    let path = workspace.root.join(CONTAINERFILE);
    let text = fs::read_to_string(&path).map_err(on_path("read", &path))?;
    let debian = match &options.base {
        Some(base) => base.clone(),
        None => base::debian(engine, pinned(&text, "DEBIAN")?)?,
    };
    match options.whole {
        true => {
            let rust = base::rust(engine, workspace, pinned(&text, "RUST")?)?;
            let stages = containerfile::stages_of_cpu(&text).ok_or_else(|| lacks("`build`, `base` and `cpu`"))?;
            let file = workspace.programs.with_file_name("Containerfile");
            fs::write(&file, stages).map_err(on_path("write", &file))?;
            let mut build = building(engine, &file, &debian);
            build.args(["--build-arg", &format!("RUST={rust}")]);
            process::run("`docker build`", build.arg(&workspace.root))?;
        }
        false => of_these_programs(workspace, engine, &text, &debian)?,
    }
    process::run("`docker image ls`", engine.docker().args(["image", "ls", IMAGE]))?;
    Ok(IMAGE.to_owned())
}

fn pinned<'a>(text: &'a str, argument: &str) -> Result<&'a str, Failure> {
    containerfile::base(text, argument)
        .ok_or_else(|| Failure::work(format!("{CONTAINERFILE} has no line `ARG {argument}=…`")))
}

/// `docker build` of a file. No file needs more than the oldest builder, which every engine has.
fn building(engine: &Engine, file: &Path, debian: &str) -> Command {
    let mut build = engine.docker();
    build.env("DOCKER_BUILDKIT", "0");
    build.args(["build", "--network", "host", "--tag", IMAGE, "--file"]);
    build.arg(file).args(["--build-arg", &format!("DEBIAN={debian}")]);
    build
}

/// The run-time stages around the programs and the libtorch of this machine.
fn of_these_programs(workspace: &Workspace, engine: &Engine, text: &str, debian: &str) -> Result<(), Failure> {
    let text = containerfile::run_time_stages(text).ok_or_else(|| lacks("`base` and `cpu`"))?;
    let context = workspace.programs.with_file_name("containers");
    remove(&context)?;
    let bin = context.join("image/bin");
    let third_party = context.join("image/third_party");
    for folder in [&bin, &third_party] {
        fs::create_dir_all(folder).map_err(on_path("create", folder))?;
    }
    for program in PROGRAMS {
        fs::copy(workspace.program(program), bin.join(program)).map_err(on_path("copy", &bin))?;
    }
    // As the stage `build` does it.
    let mut strip = Command::new("strip");
    strip
        .arg("--strip-debug")
        .args(PROGRAMS.map(|program| bin.join(program)));
    process::run("`strip`", &mut strip)?;
    let libtorch = workspace.third_party().join("libtorch");
    process::run("`cp`", Command::new("cp").arg("-aL").arg(libtorch).arg(&third_party))?;
    let headers = third_party.join("libtorch/torch/include");
    fs::remove_dir_all(&headers).map_err(on_path("remove", &headers))?;
    let file = context.join("Containerfile");
    fs::write(&file, text).map_err(on_path("write", &file))?;
    process::run("`docker build`", building(engine, &file, debian).arg(&context))?;
    remove(&context)
}

fn lacks(stages: &str) -> Failure {
    Failure::work(format!("{CONTAINERFILE} has not the stages {stages}"))
}

fn remove(folder: &Path) -> Result<(), Failure> {
    match folder.exists() {
        true => fs::remove_dir_all(folder).map_err(on_path("remove", folder)),
        false => Ok(()),
    }
}
