//! The benchmarks.

use std::os::unix::process::CommandExt;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process_group};

use crate::tree::{Tree, text, wait_for};

#[test]
fn the_benchmark_runs_turn_about_and_prints_ratios() {
    let tree = Tree::new();
    let peer = [
        "--peer",
        "peer.py",
        "--python",
        "./python",
        "--peer-arg",
        "--muon",
        "--peer-arg",
        "sharded",
    ];
    let output = tree.xtask(&[&["bench", "train", "--runs", "2"][..], &peer].concat(), &[]);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    for (name, ratio) in [
        ("tokens/s", "2.00"),
        ("step, ms", "2.00"),
        ("forward, ms", "2.00"),
        ("memory", "2.00"),
    ] {
        let line = said
            .lines()
            .find(|line| line.contains(name) && line.starts_with("| "))
            .unwrap();
        assert!(line.trim_end_matches([' ', '|']).ends_with(ratio), "{line}");
    }
    let command = "1 -m torch.distributed.run --nproc_per_node 2 peer.py --muon sharded";
    let asked = tree.read("asked.txt");
    assert_eq!(asked.lines().filter(|line| *line == command).count(), 2, "{asked}");
    assert!(
        tree.path("target/bench/runs/bench-30m/metrics.jsonl").exists(),
        "runs lie below the target folder"
    );
}

#[test]
fn optimisers_run_turn_about_and_are_compared_with_the_first() {
    let tree = Tree::new();
    let asked = tree.path("asked.txt");
    let output = tree.xtask(
        &[
            "bench",
            "optimizer",
            "--methods",
            "muonadam,muonmax+momo",
            "--runs",
            "2",
            "--set",
            "run.steps=5",
        ],
        &[("ASKED", asked.to_str().unwrap())],
    );
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    let row = |name: &str| {
        said.lines()
            .filter(move |line| line.starts_with(&format!("| {name} ")))
            .collect::<Vec<_>>()
    };
    let words = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let steps: Vec<_> = row("step, ms").into_iter().map(words).collect();
    assert_eq!(
        steps[0][1..4],
        ["step, ms", "500.0 (500.0–500.0)", "500.0 (500.0–500.0)"]
    );
    assert_eq!(
        steps[1][1..4],
        ["step, ms", "1.000 (1.000–1.000)", "1.000 (1.000–1.000)"]
    );
    // Four ranks with the costs 1, 2, 3 and 4 and the states 10.5 to 13.5.
    let loads: Vec<_> = row("muonmax+momo").into_iter().map(words).collect();
    assert_eq!(loads.len(), 3, "1, 2 and 4 ranks");
    assert_eq!(loads[2][1..7], ["muonmax+momo", "4", "4.0", "1.600", "13.5", "1.125"]);

    let asked = tree.read("asked.txt");
    let runs: Vec<&str> = asked.lines().filter(|line| line.starts_with("run ")).collect();
    assert_eq!(runs.len(), 4, "{asked}");
    for (at, run) in runs.iter().enumerate() {
        assert_eq!(run.contains("optimizer.method=muonadam"), at % 2 == 0, "{run}");
        assert_eq!(
            run.contains("optimizer.momo={ lower_bound = 0.0 }"),
            at % 2 == 1,
            "{run}"
        );
        assert!(run.contains("-n 2 ") && run.ends_with("--set run.steps=5"), "{run}");
    }
}

/// Two rates and two seeds of `methods`; further words follow.
fn sweep<'a>(methods: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [
        &[
            "bench",
            "basin",
            "--methods",
            methods,
            "--rates",
            "1e-3,2e-3",
            "--out",
            "out",
        ][..],
        more,
    ]
    .concat()
}

#[test]
fn a_basin_is_swept_drawn_and_gone_on_with() {
    let tree = Tree::new();
    tree.write("examples/basin.toml", "[run]\n");
    let asked = tree.path("asked.txt");
    let environment = [("ASKED", asked.to_str().unwrap()), ("DIVERGE", "2e-3")];
    let output = tree.xtask(&sweep("muon", &[]), &environment);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    assert!(said.contains("| muon   | 2.150 (2.100–2.200) |    1e-3 |"), "{said}");
    assert!(said.contains("2 of 4"), "two runs of four diverged: {said}");
    let mut rows: Vec<String> = tree.read("out/basin.csv").lines().skip(1).map(str::to_owned).collect();
    rows.retain(|row| !row.starts_with('#'));
    rows.sort();
    assert_eq!(
        rows,
        [
            "muon,false,1e-3,1,2.1,false",
            "muon,false,1e-3,2,2.2,false",
            "muon,false,2e-3,1,,true",
            "muon,false,2e-3,2,,true"
        ]
    );
    assert!(tree.read("out/basin.svg").contains("muon"));

    // Another method is added, and nothing that is there is trained again.
    let output = tree.xtask(&sweep("muon,muonmax+momo", &["--jobs", "3"]), &environment);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    let asked = tree.read("asked.txt");
    assert_eq!(
        asked.lines().filter(|line| line.starts_with("run ")).count(),
        8,
        "{asked}"
    );
    assert!(said.contains("| muonmax+momo |"), "{said}");
    let left = std::fs::read_dir(tree.path("target/bench")).unwrap().count();
    assert_eq!(left, 0, "runs are removed once they are recorded");

    // Drawn from the record alone.
    std::fs::remove_file(tree.path("out/basin.svg")).unwrap();
    let output = tree.xtask(&["bench", "basin", "--draw", "--out", "out"], &[("FAIL", "data")]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(tree.read("out/basin.svg").contains("muonmax+momo"));

    // Results of another length do not belong to these.
    let output = tree.xtask(&sweep("muon", &["--steps", "100"]), &environment);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--fresh"), "{}", text(&output.stderr));
}

#[test]
fn a_run_that_fails_otherwise_stops_the_sweep_and_is_named() {
    let tree = Tree::new();
    tree.write("examples/basin.toml", "[run]\n");
    let output = tree.xtask(&sweep("muon", &["--jobs", "1"]), &[("BREAK", "2e-3")]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(
        said.contains("muon at 2e-3, seed 1") && said.contains("killed by signal 9"),
        "{said}"
    );
    let csv = tree.read("out/basin.csv");
    assert!(csv.ends_with("\nmuon,false,1e-3,1,2.1,false\n"), "{csv}");
}

#[test]
fn an_interrupted_sweep_ends_its_runs_and_goes_on_later() {
    let tree = Tree::new();
    tree.write("examples/basin.toml", "[run]\n");
    tree.write("marks/here", "");
    let marks = tree.path("marks");
    let names = ["muon-1e-3-seed-1", "muon-2e-3-seed-1"];
    let started = tree
        .command(&sweep("muon", &[]), &[("WAIT", marks.to_str().unwrap())])
        .process_group(0)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    for name in names {
        wait_for(&marks.join(format!("started-{name}")));
    }
    // As a terminal does on Ctrl-C: to the whole group of xtask, in which its runs are not.
    let group = Pid::from_raw(i32::try_from(started.id()).unwrap()).unwrap();
    kill_process_group(group, Signal::INT).unwrap();
    let output = started.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("4 of 4 runs missing"), "{said}");
    for name in names {
        assert!(marks.join(format!("stopped-{name}")).exists(), "{name} was left behind");
    }
    let output = tree.xtask(&sweep("muon", &[]), &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(
        text(&output.stdout).contains("4 runs, 0 of them in"),
        "{}",
        text(&output.stdout)
    );
}
