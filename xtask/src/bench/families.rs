//! `bench families`: a small byte GPT with SGD under the four families of schedules of Kondo & Iiduka (arXiv 2508.03105), the
//! same number of samples for each: loss against samples, as a figure and a table, beside what the theory's sums say.
//!
//! Way of data: [`FAMILIES`] × seeds → `lockstep run examples/families.toml` → the losses of its steps by samples →
//! `families.csv` and `families.svg`. The two sums of the bound are added up from the rates and batches that the run had.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use plotters::prelude::*;

use super::step::{TEXT, folder};
use crate::demo::build;
use crate::failure::{Failure, on_path};
use crate::metrics::{Metrics, Summary};
use crate::process;
use crate::setup::setup;
use crate::workspace::Workspace;

const CONFIG: &str = "examples/families.toml";
/// Points of a drawn line: each is the mean over an equal part of the samples.
const POINTS: u64 = 60;

/// A family's name in the figure, and its `[schedule]`; what all share is in the config.
const FAMILIES: [(&str, &str); 6] = [
    (
        "(i) constant batch, constant rate",
        "{ family = \"constant-batch\", unit = \"samples\", batch = 128, rate = 0.1 }",
    ),
    (
        "(i) constant batch, cosine",
        "{ family = \"constant-batch\", unit = \"samples\", batch = 128, rate = 0.1, decay = \"cosine\" }",
    ),
    (
        "(ii) growing batch, constant rate",
        "{ family = \"growing-batch\", unit = \"samples\", batch = 8, every = 3840, batch_max = 4096, rate = 0.1 }",
    ),
    (
        "(ii) growing batch, cosine",
        "{ family = \"growing-batch\", unit = \"samples\", batch = 8, every = 3840, batch_max = 4096, rate = 0.1, decay = \"cosine\" }",
    ),
    (
        "(iii) growing batch, growing rate",
        "{ family = \"growing-rate\", unit = \"samples\", batch = 8, every = 3840, batch_max = 4096, rate = 0.1, rate_factor = 1.08, rate_max = 0.2 }",
    ),
    (
        "(iv) growing batch, warm-up, cosine",
        "{ family = \"warm-up\", unit = \"samples\", batch = 8, every = 3840, batch_max = 4096, rate = 0.1, rate_max = 0.2, warmup = 3840, warmup_every = 384, decay = \"cosine\" }",
    ),
];

const COLOURS: [RGBColor; 6] = [
    RGBColor(150, 150, 150),
    RGBColor(90, 90, 90),
    RGBColor(120, 180, 230),
    RGBColor(20, 100, 180),
    RGBColor(220, 130, 30),
    RGBColor(190, 40, 40),
];

/// Options of `bench families`.
#[derive(Args)]
pub(crate) struct Options {
    /// Seeds, each of which gives a run for every family.
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    seeds: Vec<u64>,
    /// Where `families.csv` and `families.svg` are written.
    #[arg(long, value_name = "FOLDER", default_value = "docs/families")]
    out: PathBuf,
}

/// What the runs of a family gave.
struct Line {
    name: &'static str,
    /// Samples and mean loss since the point before, over all seeds.
    points: Vec<(f64, f64)>,
    /// At the end, by seed.
    validations: Vec<f64>,
    steps: usize,
    /// Σ η and Σ η²/b.
    sums: (f64, f64),
}

/// Runs the benchmark, writes its files and prints its table.
pub(crate) fn families(workspace: &Workspace, options: &Options) -> Result<(), Failure> {
    setup(workspace, None)?;
    build(workspace)?;
    let place = folder(workspace).join("families");
    fs::create_dir_all(&place).map_err(on_path("create", &place))?;
    let data = place.join("data");
    let mut prepare = Command::new(workspace.program("lockstep"));
    prepare
        .args(["data", "prepare", "--tokenizer", "byte", "--out"])
        .arg(&data)
        .arg(workspace.root.join(TEXT));
    process::run("preparing the data", &mut prepare)?;
    let mut lines = Vec::new();
    for (name, schedule) in FAMILIES {
        let runs: Vec<(Metrics, Summary)> = options
            .seeds
            .iter()
            .map(|seed| run(workspace, &place, &data, schedule, *seed))
            .collect::<Result<_, _>>()?;
        lines.push(line(name, &runs)?);
    }
    let out = workspace.root.join(&options.out);
    fs::create_dir_all(&out).map_err(on_path("create", &out))?;
    let csv = out.join("families.csv");
    fs::write(&csv, table_of(&lines)).map_err(on_path("write", &csv))?;
    let svg = out.join("families.svg");
    draw(&lines, &svg).map_err(|why| Failure::work(format!("{} cannot be drawn: {why}", svg.display())))?;
    println!("\n{}", report(&lines));
    Ok(())
}

fn run(
    workspace: &Workspace,
    place: &Path,
    data: &Path,
    schedule: &str,
    seed: u64,
) -> Result<(Metrics, Summary), Failure> {
    let folder = place.join("runs").join("families");
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(on_path("remove", &folder))?;
    }
    // The whole section is another one: a key of the file's own family would be unknown to it.
    let config = workspace.root.join(CONFIG);
    let text = fs::read_to_string(&config).map_err(on_path("read", &config))?;
    let own = place.join("families.toml");
    fs::write(&own, with_schedule(&text, schedule)).map_err(on_path("write", &own))?;
    let mut command = Command::new(workspace.program("lockstep"));
    command.current_dir(place).arg("run").arg(&own).args(["-n", "1"]);
    command.args(["--set", &format!("data.path={}", data.display())]);
    command.args(["--set", &format!("run.seed={seed}")]);
    process::run("a family's run", &mut command)?;
    Ok((Metrics::read(&folder)?, Summary::read(&folder)?))
}

/// The config with another `[schedule]`.
fn with_schedule(text: &str, schedule: &str) -> String {
    let mut kept = Vec::new();
    let mut is_schedule = false;
    for line in text.lines() {
        if line.starts_with('[') {
            is_schedule = line == "[schedule]";
        }
        if !is_schedule {
            kept.push(line);
        }
    }
    // A key of the root stands before the first section.
    format!("schedule = {schedule}\n{}\n", kept.join("\n"))
}

fn line(name: &'static str, runs: &[(Metrics, Summary)]) -> Result<Line, Failure> {
    let Some((first, _)) = runs.first() else {
        return Err(Failure::input("name at least one seed".to_owned()));
    };
    let total = first.steps.last().map_or(1, |step| step.samples).max(1);
    let mut sums = vec![(0.0, 0_u64); POINTS as usize];
    for step in runs.iter().flat_map(|(metrics, _)| &metrics.steps) {
        let point = ((step.samples - 1) * POINTS / total).min(POINTS - 1) as usize;
        let batch = step.batch;
        sums[point] = (sums[point].0 + step.loss * batch as f64, sums[point].1 + batch);
    }
    let width = total as f64 / POINTS as f64;
    let points = sums.iter().enumerate().filter(|(_, (_, samples))| *samples > 0);
    let missing = || Failure::work(format!("a run of {name} left no validation loss"));
    Ok(Line {
        name,
        points: points
            .map(|(point, (loss, samples))| ((point + 1) as f64 * width, loss / *samples as f64))
            .collect(),
        validations: runs
            .iter()
            .map(|(_, summary)| summary.validation_loss.ok_or_else(missing))
            .collect::<Result<_, _>>()?,
        steps: first.steps.len(),
        sums: first.steps.iter().fold((0.0, 0.0), |(rates, squares), step| {
            (rates + step.lr, squares + step.lr * step.lr / step.batch as f64)
        }),
    })
}

fn table_of(lines: &[Line]) -> String {
    let mut text = "family,samples,loss\n".to_owned();
    for line in lines {
        for (samples, loss) in &line.points {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "\"{}\",{samples:.0},{loss:.4}", line.name);
        }
    }
    text
}

fn report(lines: &[Line]) -> String {
    let mut text = "| family | steps | validation loss at the end, mean (range) | 1/Σ η | (Σ η²/b)/Σ η |\n| --- | ---: | ---: | ---: | ---: |\n".to_owned();
    for line in lines {
        let least = line.validations.iter().copied().fold(f64::INFINITY, f64::min);
        let most = line.validations.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mean = line.validations.iter().sum::<f64>() / line.validations.len() as f64;
        let (rates, squares) = line.sums;
        let _ = writeln!(
            text,
            "| {} | {} | {mean:.3} ({least:.3}–{most:.3}) | {:.4} | {:.5} |",
            line.name,
            line.steps,
            1.0 / rates,
            squares / rates
        );
    }
    text
}

fn draw(lines: &[Line], svg: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let points = || {
        lines
            .iter()
            .flat_map(|line| &line.points)
            .filter(|(_, loss)| loss.is_finite())
    };
    let last = points().map(|(samples, _)| *samples).fold(1.0, f64::max);
    let low = points().map(|(_, loss)| *loss).fold(f64::INFINITY, f64::min);
    let high = points().map(|(_, loss)| *loss).fold(f64::NEG_INFINITY, f64::max);
    if low > high {
        return Err("no run has a finite loss".into());
    }
    let root = SVGBackend::new(svg, (900, 560)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("Training loss against samples", ("sans-serif", 20))
        .margin(14)
        .x_label_area_size(40)
        .y_label_area_size(54)
        .build_cartesian_2d(0.0..last, (low - 0.05)..(high + 0.05))?;
    chart
        .configure_mesh()
        .x_desc("samples")
        .y_desc("loss, nats a byte")
        .x_label_formatter(&|samples| format!("{samples:.0}"))
        .light_line_style(WHITE)
        .draw()?;
    for (line, colour) in lines.iter().zip(COLOURS) {
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)))?
            .label(line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_makes_a_valid_config_of_the_example() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let text = fs::read_to_string(root.join(CONFIG)).unwrap();
        for (name, schedule) in FAMILIES {
            let config = with_schedule(&text, schedule);
            if let Err(error) = lockstep_config::RunConfig::parse(&config, name, &[]) {
                panic!("{error}");
            }
        }
    }
}
