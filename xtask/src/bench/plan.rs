//! `bench plan`: what `lockstep plan` predicts beside what runs take: memory of the rank that needs most, milliseconds of a step.
//! Shapes × ranks × precision, none of which a calibration has run: those have fewer layers.

use clap::Args;
use serde_json::Value;

use super::markdown::table;
use super::step::{Bench, machine};
use crate::failure::Failure;
use crate::workspace::Workspace;

/// Tokenizer, layers, width, heads, sequence, micro-batch, lanes, batch, ranks, precision, method.
type Shape = (
    &'static str,
    u32,
    u32,
    u32,
    u32,
    u32,
    u32,
    u32,
    u32,
    &'static str,
    &'static str,
);

const CONFIGS: &[Shape] = &[
    ("byte", 6, 256, 4, 256, 4, 2, 8, 1, "fp32", "muon"),
    ("byte", 6, 256, 4, 256, 4, 2, 8, 2, "fp32", "muon"),
    ("gpt2", 6, 256, 4, 64, 4, 2, 8, 2, "fp32", "muonmax"),
    ("byte", 8, 192, 6, 128, 8, 4, 32, 2, "fp32", "muonmax"),
    ("byte", 8, 192, 6, 128, 8, 4, 32, 1, "bf16", "muon"),
    ("byte", 12, 128, 4, 128, 8, 8, 64, 2, "fp32", "adamw"),
    ("byte", 12, 128, 4, 128, 8, 8, 64, 2, "bf16", "muonadam"),
    ("byte", 4, 384, 6, 256, 2, 2, 8, 2, "bf16", "muon"),
    ("gpt2", 4, 384, 6, 64, 2, 2, 8, 1, "fp32", "adamw"),
    ("byte", 5, 320, 5, 192, 3, 3, 9, 2, "fp32", "muonmax"),
    ("byte", 10, 256, 8, 64, 16, 4, 64, 2, "fp32", "scion"),
    ("byte", 7, 224, 7, 512, 1, 6, 6, 2, "bf16", "muon"),
];

/// Options of `bench plan`.
#[derive(Args)]
pub(crate) struct Options {
    /// At most so many configs.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=12))]
    configs: u32,
    /// Steps of each run.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(6..=1000))]
    steps: u32,
    /// Begin with this config.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=12))]
    from: u32,
}

fn sets(shape: &Shape, steps: u32) -> Vec<String> {
    let (tokenizer, layers, width, heads, sequence, micro_batch, lanes, batch, _, precision, method) = shape;
    vec![
        format!("model.vocab={}", if *tokenizer == "byte" { 256 } else { 50304 }),
        format!("model.layers={layers}"),
        format!("model.width={width}"),
        format!("model.heads={heads}"),
        format!("data.sequence_length={sequence}"),
        format!("batch.micro_batch={micro_batch}"),
        format!("batch.schedule={batch}"),
        format!("run.lanes={lanes}"),
        format!("run.precision={precision}"),
        format!("run.steps={steps}"),
        format!("optimizer.method={method}"),
        // What is rare is no part of a median step; the memory of snapshots is there from the second one on.
        "fault.drift_every=0".to_owned(),
        "fault.snapshot_every=10".to_owned(),
        "validation.every=0".to_owned(),
    ]
}

/// Predicts, trains, and prints both.
pub(crate) fn plan(workspace: &Workspace, options: &Options) -> Result<(), Failure> {
    let bench = [Bench::prepare(workspace)?, Bench::prepare_bytes(workspace)?];
    let mut rows = Vec::new();
    let (mut memory_well, mut time_well) = (0, 0);
    let from = options.from as usize - 1;
    let chosen = &CONFIGS[from..(from + options.configs as usize).min(CONFIGS.len())];
    for (at, shape) in chosen.iter().enumerate() {
        let (tokenizer, layers, width, .., ranks, precision, method) = shape;
        let bench = &bench[usize::from(*tokenizer == "byte")];
        let sets = sets(shape, options.steps);
        println!("\n== config {} of {}: {}", from + at + 1, CONFIGS.len(), sets.join(" "));
        let text = bench.plan(*ranks, &sets)?;
        let predicted: Value = serde_json::from_str(&text)
            .map_err(|error| Failure::work(format!("lockstep plan printed what is no JSON ({error}): {text}")))?;
        let world = &predicted["worlds"][0];
        let of = |name: &str| world[name].as_f64().unwrap_or(f64::NAN);
        let (memory, step) = (of("memory_bytes") / f64::from(1 << 20), of("step_ms"));
        let measured = bench.run(*ranks, &sets)?;
        let (memory_ratio, step_ratio) = (memory / measured.memory_mib, step / measured.step_ms);
        memory_well += u32::from((memory_ratio - 1.0).abs() <= 0.10);
        time_well += u32::from((step_ratio - 1.0).abs() <= 0.15);
        rows.push(vec![
            format!("{layers} × {width}, {tokenizer}, {precision}, {method}"),
            ranks.to_string(),
            format!("{memory:.0}"),
            format!("{:.0}", measured.memory_mib),
            format!("{memory_ratio:.2}"),
            format!("{step:.1}"),
            format!("{:.1}", measured.step_ms),
            format!("{step_ratio:.2}"),
        ]);
        println!("{}", rows[at].join(" | "));
    }
    println!("\n{}\n", machine());
    let heads = [
        "layers × width",
        "ranks",
        "MiB predicted",
        "measured",
        "ratio",
        "ms predicted",
        "measured",
        "ratio",
    ];
    println!("{}", table(&heads.map(str::to_owned), &rows));
    println!(
        "\nof {} configs {memory_well} within 10 % in memory, {time_well} within 15 % in time",
        chosen.len()
    );
    Ok(())
}
