//! The container file as stages, read as it stands in the repository.

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
pub(super) fn run_time_stages(text: &str) -> Option<String> {
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

/// The container file with the stages of `cpu` only: builders without BuildKit build every stage that stands before the one
/// that is asked for, those for GPUs among them.
pub(super) fn stages_of_cpu(text: &str) -> Option<String> {
    let (before, stages) = stages(text);
    let stage = |name: &str| {
        stages
            .iter()
            .find(|(own, _)| own == name)
            .map(|(_, text)| text.as_str())
    };
    Some(format!(
        "{before}{}{}{}",
        stage("build")?,
        stage("base")?,
        stage("cpu")?
    ))
}

/// The image that an argument of the file stands for, if nobody says another.
pub(super) fn base<'a>(text: &'a str, argument: &str) -> Option<&'a str> {
    let is_it = |line: &'a str| line.strip_prefix("ARG ")?.strip_prefix(argument)?.strip_prefix('=');
    text.lines().find_map(is_it)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stands in the repository.
    fn containerfile() -> String {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        std::fs::read_to_string(root.join("k8s/Containerfile")).unwrap()
    }

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
        for argument in ["RUST", "DEBIAN"] {
            let image = base(&before, argument).unwrap();
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
        assert_eq!(base(&text, "NOBODY"), None);
        let whole = stages_of_cpu(&containerfile()).unwrap();
        assert!(
            whole.contains("cargo build --release --locked") && !whole.contains("setup --cuda"),
            "{whole}"
        );
    }
}
