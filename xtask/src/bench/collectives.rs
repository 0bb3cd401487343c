//! `bench collectives`: what communication costs. 64 MiB between two ranks over our host transport, over MPI (ours and
//! Open MPI's own calls) and over Gloo, where there is one, turn about; then whole steps of `bench train` with one kind of
//! communication and another.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use clap::Args;
use serde_json::Value;

use super::columns::{Column, ratios, times};
use super::markdown;
use super::step::{Bench, Measured, Spread, machine, median};
use crate::demo::build;
use crate::failure::Failure;
use crate::process;
use crate::setup::setup;
use crate::workspace::Workspace;

/// The payload of the comparison, in bytes.
const BYTES: u64 = 64 << 20;

/// Steps with these changes of the config are compared; the first is what runs have by themselves.
const STEPS: &[(&str, &[&str])] = &[
    ("invariant", &[]),
    ("fast", &["run.reduction=fast"]),
    ("without overlap", &["collective.overlap=false"]),
    ("bf16 wire", &["collective.wire=bf16"]),
    ("over tcp", &["collective.transport=tcp"]),
];

/// Phases in which the device thread waits for data of other ranks.
const EXPOSED: &[&str] = &["reduce_ms", "gather_wait_ms", "slots_ms"];

/// Options of `bench collectives`.
#[derive(Args)]
pub(crate) struct Options {
    /// How many rounds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// A Python with PyTorch, to measure Gloo beside.
    #[arg(long)]
    python: Option<PathBuf>,
    /// Leave whole steps out.
    #[arg(long)]
    only_calls: bool,
    /// Leave the calls out.
    #[arg(long, conflicts_with = "only_calls")]
    only_steps: bool,
    /// A change of the steps' config, as in `lockstep run --set`; repeat it for more.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

/// A call of somebody's, with its median of each round in milliseconds.
struct Row {
    whose: &'static str,
    call: String,
    rounds: Vec<f64>,
}

/// Runs the benchmark and prints its tables.
pub(crate) fn collectives(workspace: &Workspace, options: &Options) -> Result<(), Failure> {
    setup(workspace, None)?;
    build(workspace)?;
    if !options.only_steps {
        calls(workspace, options)?;
    }
    if !options.only_calls {
        steps(workspace, options)?;
    }
    Ok(())
}

/// Single calls.
fn calls(workspace: &Workspace, options: &Options) -> Result<(), Failure> {
    let mut rows: Vec<Row> = Vec::new();
    let mut note = |whose: &'static str, call: &str, ms: f64| match rows
        .iter_mut()
        .find(|row| row.whose == whose && row.call == call)
    {
        Some(row) => row.rounds.push(ms),
        None => rows.push(Row {
            whose,
            call: call.to_owned(),
            rounds: vec![ms],
        }),
    };
    let mpi = workspace.program("lockstep-trainer-mpi").is_file();
    for round in 1..=options.rounds {
        println!("\n== round {round} of {}", options.rounds);
        let mut host = Command::new(workspace.program("lockstep-trainer"));
        host.args(["bench", "collectives", "--json", "--rounds", "9"]);
        for line in json_lines(&process::text_of("measuring the host transport", &mut host)?) {
            let (call, bytes) = (line["call"].as_str().unwrap_or_default(), line["bytes"].as_u64());
            let ms = line["median_us"].as_f64().unwrap_or(f64::NAN) / 1e3;
            match bytes {
                Some(BYTES) => note("host", call, ms),
                Some(8) if call == "exchange_slots" => note("host", "exchange_slots, 8 bytes", ms),
                _ => {}
            }
        }
        if mpi {
            let mut mpi = workspace.cargo();
            mpi.args([
                "run",
                "--release",
                "--quiet",
                "-p",
                "lockstep-trainer-mpi",
                "--example",
                "bench",
                "--",
                "9",
            ]);
            let text = process::text_of("measuring MPI", &mut mpi)?;
            for line in json_lines(&text) {
                for (call, ms) in line["median_ms"].as_object().into_iter().flatten() {
                    note("mpi", call, ms.as_f64().unwrap_or(f64::NAN));
                }
            }
        }
        if let Some(python) = &options.python {
            let port = TcpListener::bind("127.0.0.1:0")
                .and_then(|listener| listener.local_addr())
                .map_err(|error| Failure::work(format!("no free port on the loopback interface: {error}")))?
                .port();
            let mut gloo = Command::new(python);
            gloo.arg(workspace.root.join("xtask/src/bench/gloo.py"))
                .args(["9", &port.to_string()]);
            for line in json_lines(&process::text_of("measuring Gloo", &mut gloo)?) {
                match line["median_ms"].as_f64() {
                    Some(ms) => note("gloo", line["call"].as_str().unwrap_or_default(), ms),
                    None => println!("gloo refuses {}: {}", line["call"], line["refused"]),
                }
            }
        }
    }
    if !mpi {
        println!("lockstep-trainer-mpi is not built, so MPI was not measured");
    }
    println!("\n{}", machine());
    println!(
        "{} rounds, turn about, 2 ranks, 64 MiB unless said otherwise: median of the rounds' medians (range), ms\n\n{}",
        options.rounds,
        table(&rows)
    );
    Ok(())
}

/// Times, and how many times ours they are.
fn table(rows: &[Row]) -> String {
    let ours = |call: &str| rows.iter().find(|row| row.whose == "host" && row.call == call);
    let like = |call: &str| match call {
        "all_gather" | "MPI_Allgather" | "all_gather_v" => Some("all_gather_v"),
        "reduce_scatter" | "all_reduce" | "MPI_Reduce_scatter_block" | "reduce_lanes" => Some("reduce_lanes"),
        _ => None,
    };
    let header = ["whose", "call", "ms", "÷ host"].map(str::to_owned);
    let lines: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let ratio = like(&row.call)
                .and_then(ours)
                .filter(|_| row.whose != "host")
                .and_then(|ours| {
                    let ratios: Vec<f64> = row.rounds.iter().zip(&ours.rounds).map(|(a, b)| a / b).collect();
                    Spread::of(&ratios)
                })
                .map_or_else(String::new, |spread| spread.shown(2));
            let decimals = if median(row.rounds.iter().copied()) < 0.1 { 4 } else { 2 };
            let time = Spread::of(&row.rounds).map_or_else(String::new, |spread| spread.shown(decimals));
            vec![row.whose.to_owned(), row.call.clone(), time, ratio]
        })
        .collect();
    markdown::table(&header, &lines)
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

/// Whole steps.
fn steps(workspace: &Workspace, options: &Options) -> Result<(), Failure> {
    let bench = Bench::prepare(workspace)?;
    let mut columns: Vec<Column> = STEPS
        .iter()
        .map(|(name, _)| Column {
            name: (*name).to_owned(),
            runs: Vec::new(),
        })
        .collect();
    for round in 1..=options.rounds {
        for (column, (_, own)) in columns.iter_mut().zip(STEPS) {
            println!("\n== round {round} of {}: {}", options.rounds, column.name);
            let own = own.iter().map(|set| (*set).to_owned());
            let sets: Vec<String> = options.sets.iter().cloned().chain(own).collect();
            let mut run = bench.run(2, &sets)?;
            let exposed = exposed(&run);
            run.phases
                .insert("not hidden, %_ms".to_owned(), 100.0 * exposed / run.step_ms);
            column.runs.push(run);
        }
    }
    println!("\n{}", machine());
    println!(
        "{} runs each, turn about, 2 ranks × 1 thread: median of the runs' medians (range). Not hidden: waits for \
         reductions, gathers and slots, in percent of the step\n\n{}",
        options.rounds,
        times(&columns)
    );
    println!(
        "\nRatio to {} in the same round, median (range)\n\n{}",
        STEPS[0].0,
        ratios(&columns)
    );
    Ok(())
}

/// Milliseconds of a step in which the device thread waits for other ranks' data.
fn exposed(run: &Measured) -> f64 {
    EXPOSED.iter().filter_map(|phase| run.phases.get(*phase)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::columns::cells;

    fn row(whose: &'static str, call: &str, rounds: &[f64]) -> Row {
        Row {
            whose,
            call: call.to_owned(),
            rounds: rounds.to_vec(),
        }
    }

    #[test]
    fn others_are_compared_with_the_like_call_of_ours_in_the_same_round() {
        let text = table(&[
            row("host", "reduce_lanes", &[2.0, 4.0]),
            row("host", "exchange_slots, 8 bytes", &[0.0005, 0.0007]),
            row("gloo", "reduce_scatter", &[20.0, 44.0]),
        ]);
        assert_eq!(
            cells(&text, "gloo"),
            ["gloo", "reduce_scatter", "32.00 (20.00–44.00)", "10.50 (10.00–11.00)"]
        );
        assert!(text.contains("0.0006 (0.0005–0.0007)"), "{text}");
    }

    #[test]
    fn what_is_not_json_is_passed_over() {
        let lines = json_lines("a table\n{\"call\":\"reduce_lanes\",\"bytes\":8}\n");
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0]["bytes"], 8);
    }
}
