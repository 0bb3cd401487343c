//! A coordinator process on loopback and members in this one: they join, take plans, report steps and renew their leases,
//! while an operator calls. All ranks report a step at the same moment, as those of a collective do.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use lockstep_config::RunConfig;
use lockstep_data::{Dataset, Options as DataOptions, TokenizerChoice, prepare};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};

use crate::member::{self, Crew, OPENED, Tally};
use crate::numbers::{ms, spread, table};
use crate::operator::{self, Calls};
use crate::process::{allow_files, memory_kib, processor_time};

/// Between two looks at what the members have come to.
const LOOK: Duration = Duration::from_millis(1);
/// The first steps warm everything up and are not counted.
const FIRST_COUNTED: u64 = 3;
/// What the coordinator prints, in the folder of the run.
const LOG: &str = "coordinator.log";
/// Lines of it that are shown where something went wrong.
const LAST_LINES: usize = 20;

/// Options of `scale load`.
#[derive(Args)]
pub(crate) struct Options {
    /// Members, each with a connection of its own.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    members: u32,
    /// Steps.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(6..=100_000))]
    steps: u64,
    /// Milliseconds of a step; 0: the next step begins as soon as every rank has made this one.
    #[arg(long, default_value_t = 1_000)]
    step_ms: u64,
    /// Calls of the operator a second.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    calls_per_second: u64,
    /// Threads of this process that members live in.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: u32,
    /// The coordinator's binary (default: the one beside this program).
    #[arg(long)]
    coordinator: Option<PathBuf>,
    /// A change of the run's config, as in `lockstep run --set`; repeat it for more.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Members do not say how they reach each other.
    #[arg(long)]
    without_transports: bool,
    /// Everything must be over in so many seconds.
    #[arg(long, default_value_t = 600)]
    limit_seconds: u64,
}

/// Ends the process by its id, however this one ends.
struct Coordinator(Child);

impl Drop for Coordinator {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _killed = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Runs the load and prints what was measured.
pub(crate) fn measure(options: &Options) -> anyhow::Result<()> {
    allow_files(options.members)?;
    let folder = tempfile::tempdir()?;
    measured(options, &folder).inspect_err(|_| {
        let text = std::fs::read_to_string(folder.path().join(LOG)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
        eprintln!("the last lines of the coordinator:\n{}", last.join("\n"));
    })
}

fn measured(options: &Options, folder: &TempDir) -> anyhow::Result<()> {
    let (config, data_hash) = write_inputs(folder.path(), options)?;
    let mut coordinator = start(folder.path(), &config, options)?;
    let pid = coordinator.0.id();
    let mut address = String::new();
    let out = coordinator.0.stdout.take().context("its output is read")?;
    BufReader::new(out).read_line(&mut address)?;
    let address = address.trim().to_owned();
    ensure!(
        !address.is_empty(),
        "the coordinator did not start; its lines above say why"
    );
    let (empty, _) = memory_kib(pid)?;

    let (release, released) = watch::channel(0);
    let crew = Arc::new(Crew {
        address: address.clone(),
        config_hash: RunConfig::read(&config, &options.sets)?.hash(),
        data_hash,
        members: options.members,
        transports: !options.without_transports,
        released,
        opening: Semaphore::new(OPENED),
        tally: Tally::default(),
    });
    let threads: Vec<_> = (0..options.threads)
        .map(|thread| {
            let (crew, step) = (crew.clone(), options.threads as usize);
            let own = (thread..options.members).step_by(step);
            std::thread::spawn(move || live(&crew, own))
        })
        .collect();
    let pace = Pace {
        crew: &crew,
        threads: &threads,
        until: Instant::now() + Duration::from_secs(options.limit_seconds),
    };

    let began = Instant::now();
    let tally = &crew.tally;
    pace.wait("the members to join", || {
        tally.joined.load(Ordering::Relaxed) == options.members
    })?;
    let joined = began.elapsed();
    pace.wait("every rank's plans", || {
        tally.planned.load(Ordering::Relaxed) == options.members
    })?;
    let formed = began.elapsed();
    let (trains, at_formation) = memory_kib(pid)?;

    let over = Arc::new(AtomicBool::new(false));
    let operator = {
        let (over, pause) = (over.clone(), Duration::from_secs(1) / options.calls_per_second as u32);
        std::thread::spawn(move || runtime()?.block_on(operator::call(address, pause, &over)))
    };
    let mut releases = Vec::new();
    let mut before = None;
    let steady = Instant::now();
    for step in 1..=options.steps {
        if step == FIRST_COUNTED {
            before = Some((
                Instant::now(),
                processor_time(pid)?,
                tally.messages.load(Ordering::Relaxed),
            ));
        }
        if step == options.steps {
            // The last step ends the run, and the operator's calls with it.
            over.store(true, Ordering::Relaxed);
        }
        let due = steady + Duration::from_millis(options.step_ms) * u32::try_from(step - 1)?;
        pace.wait("the next step", || {
            Instant::now() >= due && tally.plans.load(Ordering::Relaxed) >= step
        })?;
        if step == options.steps {
            break;
        }
        releases.push((step, Instant::now()));
        release.send_replace(step);
        let all = step * u64::from(options.members);
        pace.wait("every rank's report", || tally.reports.load(Ordering::Relaxed) >= all)?;
    }
    let committed = || {
        tally
            .committed
            .lock()
            .map_or(0, |all| all.last().map_or(0, |last| last.0))
    };
    pace.wait("the last but one commit", || committed() + 1 >= options.steps)?;
    let (since, spent, messages) = before.context("there were steps to count")?;
    let (counted, after) = (since.elapsed(), processor_time(pid)?);
    let messages = tally.messages.load(Ordering::Relaxed) - messages;
    let (trained, most) = memory_kib(pid)?;
    let calls = operator.join().map_err(|_| anyhow::anyhow!("the operator failed"))??;
    release.send_replace(options.steps);
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("the members failed"))??;
    }
    let ended = coordinator.0.wait()?;
    ensure!(ended.success(), "the coordinator ended with {ended}");

    let steps = options.steps - FIRST_COUNTED;
    let members = f64::from(options.members);
    let per_member = |kib: u64| kib.saturating_sub(empty) as f64 / members;
    println!(
        "{} members, {} steps of {} ms at least\n",
        options.members, options.steps, options.step_ms
    );
    println!(
        "joined after {} ms, with plans after {} ms\nmemory of the coordinator: {empty} KiB without members, {trains} KiB \
         when they train, {trained} KiB after the steps, {most} KiB at most ({at_formation} until they trained)\nmemory a \
         member: {:.1} KiB when they train, {:.1} after the steps, {:.1} at most",
        ms(joined),
        ms(formed),
        per_member(trains),
        per_member(trained),
        per_member(most),
    );
    let share = |time: Duration| 100.0 * time.as_secs_f64() / counted.as_secs_f64();
    let threads: Vec<String> = after
        .iter()
        .map(|(name, time)| (name, time.saturating_sub(spent.get(name).copied().unwrap_or_default())))
        .filter(|(_, time)| share(*time) >= 0.1)
        .map(|(name, time)| format!("{name} {:.1} %", share(time)))
        .collect();
    println!(
        "processor time of the coordinator: {}\nsteps: {:.2} a second, {:.0} reports and {:.0} messages to members a second",
        threads.join(", "),
        steps as f64 / counted.as_secs_f64(),
        steps as f64 * members / counted.as_secs_f64(),
        messages as f64 / counted.as_secs_f64(),
    );
    print_times(&releases, &crew, calls);
    Ok(())
}

/// From the release of a step to its commit at rank 0, and what calls took.
fn print_times(releases: &[(u64, Instant)], crew: &Crew, calls: Calls) {
    let committed = crew.tally.committed.lock().map(|all| all.clone()).unwrap_or_default();
    let heard = |step: u64| {
        committed
            .iter()
            .find(|(through, _)| *through >= step)
            .map(|(_, at)| *at)
    };
    let counted = releases.iter().filter(|(step, _)| *step >= FIRST_COUNTED);
    let mut commits: Vec<Duration> = counted
        .filter_map(|(step, at)| Some(heard(*step)?.saturating_duration_since(*at)))
        .collect();
    let row = |name: &str, times: &mut [Duration]| {
        let number = times.len().to_string();
        [vec![name.to_owned(), number], spread(times).to_vec()].concat()
    };
    let mut rows = vec![row("a step, from the ranks to its acknowledgement", &mut commits)];
    let mut all: Vec<Duration> = calls.times.values().flatten().copied().collect();
    rows.extend(calls.times.into_iter().map(|(name, mut times)| row(name, &mut times)));
    rows.push(row("all calls", &mut all));
    let header = ["", "number", "median, ms", "99 of 100, ms", "longest, ms"].map(str::to_owned);
    println!("\n{}", table(&header, &rows));
    for (name, (count, message)) in calls.failures {
        println!("{count} calls of {name} failed, the last one with: {message}");
    }
}

/// Waits for what the members come to.
struct Pace<'a> {
    crew: &'a Crew,
    threads: &'a [std::thread::JoinHandle<anyhow::Result<()>>],
    until: Instant,
}

impl Pace<'_> {
    fn wait(&self, what: &str, is_there: impl Fn() -> bool) -> anyhow::Result<()> {
        while !is_there() {
            let tally = &self.crew.tally;
            if Instant::now() >= self.until || self.threads.iter().any(std::thread::JoinHandle::is_finished) {
                bail!(
                    "waited in vain for {what}: {} members have joined, {} are ready, {} have plans, {} reports were made",
                    tally.joined.load(Ordering::Relaxed),
                    tally.ready.load(Ordering::Relaxed),
                    tally.planned.load(Ordering::Relaxed),
                    tally.reports.load(Ordering::Relaxed)
                );
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// The members of one thread.
fn live(crew: &Arc<Crew>, own: impl Iterator<Item = u32>) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let mut members = tokio::task::JoinSet::new();
        for index in own {
            let crew = crew.clone();
            members.spawn(async move { member::live(&crew, index).await });
        }
        while let Some(ended) = members.join_next().await {
            ended?.inspect_err(|error| eprintln!("{error:#}"))?;
        }
        Ok(())
    })
}

/// Data and config of a run that nobody trains. Its config file, and the hash of its data.
fn write_inputs(folder: &Path, options: &Options) -> anyhow::Result<(PathBuf, String)> {
    let (text, data) = (folder.join("text.txt"), folder.join("data"));
    std::fs::write(&text, "All the world's a stage. ".repeat(200))?;
    let prepared = DataOptions {
        inputs: vec![text],
        out: data.clone(),
        tokenizer: TokenizerChoice::Byte,
    };
    prepare(&prepared, &AtomicBool::new(false))?;
    let config = folder.join("config.toml");
    let text = format!(
        r#"
        [run]
        name = "scale"
        steps = {steps}
        lanes = {members}
        [data]
        path = {data:?}
        sequence_length = 16
        [model]
        kind = "gpt2"
        layers = 1
        heads = 1
        width = 8
        [batch]
        micro_batch = 1
        schedule = {members}
        [learning_rate]
        schedule = 0.5
        [optimizer]
        method = "muon"
        [validation]
        every = 0
        [fault]
        snapshot_every = 0
        [security]
        connections = 200000
        connections_per_address = 200000
        "#,
        steps = options.steps,
        members = options.members,
        data = data.display().to_string(),
    );
    std::fs::write(&config, text)?;
    Ok((config, Dataset::open(&data)?.manifest_hash()))
}

fn start(folder: &Path, config: &Path, options: &Options) -> anyhow::Result<Coordinator> {
    let program = match &options.coordinator {
        Some(program) => program.clone(),
        None => std::env::current_exe()?
            .parent()
            .and_then(Path::parent)
            .context("this program lies in a folder")?
            .join("lockstep-coordinator"),
    };
    let mut command = Command::new(&program);
    command
        .args(["--listen", "127.0.0.1:0", "--ranks", &options.members.to_string()])
        .arg("--config")
        .arg(config)
        .arg("--run-dir")
        .arg(folder.join("run"))
        // A line for every member that comes and goes would cost the terminal more than the members cost the coordinator.
        .stderr(std::fs::File::create(folder.join(LOG))?)
        .stdout(Stdio::piped());
    for set in &options.sets {
        command.args(["--set", set]);
    }
    let child = command.spawn().with_context(|| {
        let program = program.display();
        format!("{program} does not start: build it with `cargo build --release -p lockstep-coordinator`")
    })?;
    Ok(Coordinator(child))
}
