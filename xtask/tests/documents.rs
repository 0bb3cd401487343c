//! The examples and docs/config.md keep up with the config: every example is valid, every key is documented.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use lockstep_config::RunConfig;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap()
}

#[test]
fn every_example_is_a_valid_config() {
    let mut seen = 0;
    for entry in std::fs::read_dir(repository().join("examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let config = RunConfig::read(&path, &[]).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(
                Some(config.run.name.as_str()),
                path.file_stem().unwrap().to_str(),
                "named as its file"
            );
            seen += 1;
        }
    }
    assert_eq!(seen, 5);
}

/// Together these have every key of a schedule.
const SCHEDULES: &[&str] = &[
    "{ kind = \"warmup-stable-decay\", peak = 1e-3, warmup = 1, floor = 0.1, decay = 0.5, decay_kind = \"polynomial\" }",
    "{ kind = \"constant\", peak = 1.0, warmup = 5, warmup_from = 0.1, warmup_kind = \"exponential\" }",
    "{ kind = \"power\", peak = 1.0, exponent = 0.7, scale = 9, problem = \"holder\", gamma = 0.5, unit = \"samples\" }",
    "{ kind = \"growth\", start = 1.0, factor = 1.5, every = 9, max = 2.0 }",
    "{ kind = \"growth\", start = 1.0, factor = 0.5, every = 9, min = 0.1 }",
    "{ kind = \"piecewise\", points = [[0, 1.0]], between = \"linear\" }",
    "{ kind = \"sequence\", parts = [{ kind = \"constant\", peak = 1.0, for = 3 }, { kind = \"linear\", start = 1.0, end = 0.5, over = 4 }] }",
    "{ kind = \"product\", factors = [{ kind = \"constant\", peak = 1.0 }] }",
];

#[test]
fn every_key_and_no_other_is_documented() {
    let sets: Vec<String> = [
        "checkpoint.store=elsewhere",
        "model.vocab=512",
        "model.context=256",
        "data.validation=elsewhere",
        "fault.max_ranks=2",
        "batch.adaptive={ most = 4096 }",
        "learning_rate.couple=sqrt",
        "learning_rate.base_batch=8",
        "momentum.schedule={ kind = \"linear\", start = 0.8, end = 0.9, over = 10, unit = \"epochs\" }",
        "weight_decay.schedule=0.1",
        "security.certificate=c.pem",
        "security.key=k.pem",
        "security.client_ca=ca.pem",
        "security.tokens=tokens",
        "telemetry.otlp=http://127.0.0.1:4318",
    ]
    .map(str::to_owned)
    .into();
    // Keys that belong to some methods only: together these have all of them.
    let optimizers = [
        "[optimizer]\nclip_norm = 1.0",
        "[optimizer]\nmethod = \"muonmax\"\nmomo = {}\nhidden = [{ match = \"a\", split = 3 }]\ngroups = [{ match = \"a\", weight_decay = 0.0 }]",
        "[optimizer]\ndescent = \"constrained\"\nproduct = \"l2\"\nother = \"sign\"",
        "[optimizer]\nmethod = \"sgd\"",
        "[optimizer]\npolar = { method = \"newton-schulz\" }",
        "[optimizer]\npolar = { method = \"gram\" }",
    ];
    let example = read("examples/shakespeare.toml");
    let before = &example[..example.find("[optimizer]").unwrap()];
    // All but one of the lengths are never in a resolved config, and a schedule may be a plain number.
    let mut known = ["samples", "tokens", "epochs", "schedule", "webhook", "webhook_file"]
        .map(str::to_owned)
        .to_vec();
    for optimizer in optimizers {
        // Momo has no momentum that may change.
        let is_fixed = |set: &&String| set.starts_with("momentum.") && optimizer.contains("momo");
        let sets: Vec<String> = sets.iter().filter(|set| !is_fixed(set)).cloned().collect();
        let config = RunConfig::parse(&format!("{before}{optimizer}"), "the example", &sets).unwrap();
        let table: toml::Table = config.to_toml().parse().unwrap();
        keys(&toml::Value::Table(table), &mut known);
    }
    let (text, schedules) = (read("docs/config.md"), read("docs/schedules.md"));
    for schedule in SCHEDULES {
        let set = [format!("learning_rate.schedule={schedule}")];
        let config = RunConfig::parse(&example, "the example", &set).unwrap();
        let table: toml::Table = config.to_toml().parse().unwrap();
        let mut in_schedule = Vec::new();
        keys(&table["learning_rate"]["schedule"], &mut in_schedule);
        for key in in_schedule {
            // Some stand in an example only.
            let explained = schedules.contains(&format!("`{key}`")) || schedules.contains(&format!("{key} = "));
            assert!(explained, "docs/schedules.md does not explain {key}");
        }
    }
    for key in &known {
        let page = [&text, &schedules];
        let explained = page.iter().any(|text| {
            text.contains(&format!("`{key}`"))
                || text.contains(&format!("## `[{key}]`"))
                || text.contains(&format!(" and `[{key}]`"))
        });
        // Keys inside of a schedule have a page of their own.
        let explained = explained || schedules.contains(&format!("{key} = "));
        assert!(explained, "docs/config.md does not explain {key}");
    }
    for key in first_cells(&text) {
        assert!(known.contains(&key), "docs/config.md explains {key}, which is no key");
    }
}

/// The names of all keys and sections, wherever they stand.
fn keys(value: &toml::Value, names: &mut Vec<String>) {
    if let Some(table) = value.as_table() {
        for (name, inner) in table {
            names.push(name.clone());
            keys(inner, names);
        }
    }
    for inner in value.as_array().into_iter().flatten() {
        keys(inner, names);
    }
}

/// The words in backquotes in the first cells of the tables' rows.
fn first_cells(text: &str) -> Vec<String> {
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    cells
        .flat_map(|cell| {
            cell.split('`')
                .skip(1)
                .step_by(2)
                // A word in quotes is a value, in a table of values.
                .filter(|word| !word.starts_with('"'))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Whether a page has a heading with this anchor: its words in small letters, with hyphens between them.
fn has_heading(text: &str, anchor: &str) -> bool {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchors = headings.map(|line| {
        let words = line.trim_start_matches('#').trim().to_lowercase();
        let kept = words
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>()
    });
    anchors.into_iter().any(|one| one == anchor)
}

#[test]
fn every_link_and_every_named_file_exists() {
    let pages = [
        "README.md",
        "CHANGELOG.md",
        "PERFORMANCE.md",
        "docs/architecture.md",
        "docs/checkpoints.md",
        "docs/config.md",
        "docs/doctor.md",
        "docs/gpu.md",
        "docs/polar.md",
        "docs/schedules.md",
        "docs/steering.md",
        "docs/troubleshooting.md",
        "docs/security.md",
        "docs/scale.md",
        "docs/watching.md",
        "docs/reliability.md",
        "docs/elastic.md",
        "docs/kubernetes.md",
        "docs/ledger.md",
        "docs/mpi.md",
        "docs/mpirun.md",
        "docs/slurm.md",
        "docs/environment.md",
        "docs/collectives.md",
        "docs/basin/README.md",
        "docs/families/README.md",
    ];
    let mut seen = 0;
    for page in pages.map(Path::new) {
        let text = read(page.to_str().unwrap());
        let here = repository().join(page.parent().unwrap());
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (file, heading) = link.split_once('#').map_or((link, None), |(file, at)| (file, Some(at)));
            let target = if file.is_empty() {
                repository().join(page)
            } else {
                here.join(file)
            };
            let is_there = match heading {
                None => target.exists(),
                Some(heading) => std::fs::read_to_string(&target).is_ok_and(|text| has_heading(&text, heading)),
            };
            assert!(is_there, "{} links to {link}, which is not there", page.display());
            seen += 1;
        }
        // Files and folders of the repository are named from its root, in backquotes.
        let roots = [
            "proto/",
            "config/",
            "data/",
            "doctor/",
            "coordinator/",
            "trainer/",
            "launch/",
            "xtask/",
            "examples/",
            "docs/",
            "k8s/",
        ];
        for name in text
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|name| roots.iter().any(|root| name.starts_with(root)))
        {
            let name = name.split_whitespace().next().unwrap();
            // Of a pattern the folder.
            let name = name
                .split_once('*')
                .map_or(name, |(before, _)| before.rsplit_once('/').unwrap().0);
            assert!(
                repository().join(name).exists(),
                "{} names {name}, which is not there",
                page.display()
            );
            seen += 1;
        }
    }
    assert!(seen > 30, "{seen} links and files were found");
}
