//! `containers`: the image's run-time stages, built by a container engine, and the test that trains in such containers.
//!
//! The programs and libtorch are those of this machine, in the place of the stage that builds them: what is tested is what
//! the image adds to them (libraries, user, places, rights) and the objects of Kubernetes that start it. The stages are
//! taken from `k8s/Containerfile` as they stand there.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::failure::{Failure, on_path};
use crate::process;
use crate::workspace::Workspace;

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
}

/// Makes the image unless one is named, and runs the test.
pub(crate) fn containers(workspace: &Workspace, options: &Options) -> Result<(), Failure> {
    let mut build = workspace.cargo();
    build.args(["build", "--release"]);
    build.args(PROGRAMS.iter().flat_map(|program| ["--package", program]));
    process::run("`cargo build`", &mut build)?;
    let image = match &options.image {
        Some(image) => image.clone(),
        None => make_image(workspace, options.base.as_deref())?,
    };
    let mut test = workspace.cargo();
    test.args([
        "test",
        "--release",
        "--package",
        "lockstep",
        "--test",
        "k8s",
        "--",
        "--ignored",
        "containers",
    ]);
    process::run("`cargo test`", test.env(VARIABLE, image))
}

fn make_image(workspace: &Workspace, base: Option<&str>) -> Result<String, Failure> {
    let path = workspace.root.join(CONTAINERFILE);
    let text = fs::read_to_string(&path).map_err(on_path("read", &path))?;
    let text = run_time_stages(&text)
        .ok_or_else(|| Failure::work(format!("{CONTAINERFILE} has not the stages `base` and `cpu`")))?;
    let context = workspace.programs.with_file_name("containers");
    if context.exists() {
        fs::remove_dir_all(&context).map_err(on_path("remove", &context))?;
    }
    let bin = context.join("image/bin");
    let third_party = context.join("image/third_party");
    for folder in [&bin, &third_party] {
        fs::create_dir_all(folder).map_err(on_path("create", folder))?;
    }
    for program in PROGRAMS {
        fs::copy(workspace.program(program), bin.join(program)).map_err(on_path("copy", &bin))?;
    }
    let libtorch = workspace.third_party().join("libtorch");
    process::run("`cp`", Command::new("cp").arg("-aL").arg(libtorch).arg(&third_party))?;
    let headers = third_party.join("libtorch/torch/include");
    fs::remove_dir_all(&headers).map_err(on_path("remove", &headers))?;
    let file = context.join("Containerfile");
    fs::write(&file, text).map_err(on_path("write", &file))?;
    let mut build = Command::new("docker");
    build
        .args(["build", "--network", "host", "--tag", IMAGE, "--file"])
        .arg(&file);
    if let Some(base) = base {
        build.args(["--build-arg", &format!("DEBIAN={base}")]);
    }
    process::run("`docker build`", build.arg(&context).env("DOCKER_BUILDKIT", "0"))?;
    process::run("`docker image ls`", Command::new("docker").args(["image", "ls", IMAGE]))?;
    fs::remove_dir_all(&context).map_err(on_path("remove", &context))?;
    Ok(IMAGE.to_owned())
}

/// The stages of a container file, each with its name and its text, and what stands before the first.
fn stages(text: &str) -> (String, Vec<(String, String)>) {
    let (mut before, mut stages) = (String::new(), Vec::<(String, String)>::new());
    for line in text.lines() {
        if let Some(words) = line.strip_prefix("FROM ") {
            let name = words.rsplit(" AS ").next().unwrap_or_default().to_owned();
            stages.push((name, String::new()));
        }
        let place = stages.last_mut().map_or(&mut before, |(_, text)| text);
        place.push_str(line);
        place.push('\n');
    }
    (before, stages)
}

/// The container file with what runs, and with the programs of this machine in the place of the stage `build`.
fn run_time_stages(text: &str) -> Option<String> {
    let (before, stages) = stages(text);
    let stage = |name: &str| {
        stages
            .iter()
            .find(|(own, _)| own == name)
            .map(|(_, text)| text.as_str())
    };
    let debian = before.lines().find(|line| line.starts_with("ARG DEBIAN="))?;
    Some(format!(
        "{debian}\nFROM scratch AS build\nCOPY image /image\n{}{}\
         # They were linked at another place.\nENV LD_LIBRARY_PATH=/opt/lockstep/third_party/libtorch/torch/lib\n",
        stage("base")?,
        stage("cpu")?
    ))
}

/// What stands in the repository.
#[cfg(test)]
fn containerfile() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
    fs::read_to_string(root.join(CONTAINERFILE)).expect(CONTAINERFILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_that_the_container_file_speaks_of_is_a_stage_that_runs_as_nobody() {
        let text = containerfile();
        let (before, stages) = stages(&text);
        let row = |line: &str| {
            line.strip_prefix("# | `")?
                .split_once('`')
                .map(|(name, _)| name.to_owned())
        };
        let targets: Vec<String> = before.lines().filter_map(row).collect();
        assert_eq!(targets, ["cpu", "cuda", "mpi", "mpi-cuda"]);
        for target in targets {
            let (_, stage) = stages
                .iter()
                .find(|(name, _)| *name == target)
                .unwrap_or_else(|| panic!("{target}"));
            let last = stage.lines().rfind(|line| !line.is_empty() && !line.starts_with('#'));
            assert_eq!(last, Some("USER 65532:65532"), "{target}");
        }
        assert_eq!(
            stages.last().map(|(name, _)| name.as_str()),
            Some("cpu"),
            "what is made without --target"
        );
    }

    #[test]
    fn both_bases_are_pinned_by_digest_and_every_stage_stands_on_one_of_them() {
        let text = containerfile();
        let (before, stages) = stages(&text);
        for base in ["ARG RUST=", "ARG DEBIAN="] {
            let image = before.lines().find_map(|line| line.strip_prefix(base)).unwrap();
            let digest = image.split_once("@sha256:").map(|(_, digest)| digest).unwrap();
            assert!(
                digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()),
                "{image}"
            );
            assert!(!image.contains(":latest"), "{image}");
        }
        let mut known = vec!["${RUST}".to_owned(), "${DEBIAN}".to_owned()];
        for (name, stage) in stages {
            let from = stage.split_whitespace().nth(1).unwrap();
            assert!(known.iter().any(|one| one == from), "{name} is built on {from}");
            for copied in stage.split("--from=").skip(1) {
                let from = copied.split_whitespace().next().unwrap();
                assert!(known.iter().any(|one| one == from), "{name} copies from {from}");
            }
            known.push(name);
        }
    }

    #[test]
    fn what_runs_is_taken_as_it_stands() {
        let text = run_time_stages(&containerfile()).unwrap();
        for part in [
            "ARG DEBIAN=",
            "FROM scratch AS build",
            "useradd --system --uid 65532",
            "FROM base AS cpu",
            "COPY --from=build /image",
        ] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
        assert!(!text.contains("cargo") && !text.contains("FROM base-mpi"), "{text}");
        assert_eq!(run_time_stages("FROM a AS b\n"), None);
    }
}
