//! A run and its processes: one coordinator, trainers that come and go, and what is seen of them.
//!
//! Everything here goes by what the run commits. [`World::until`] is the one place that waits: it takes in new steps, and
//! notices processes that ended without having been asked to.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::chaos::network::Hosts;
use crate::chaos::process::Process;
use crate::chaos::steps::{Step, Steps};
use crate::chaos::store::Store;
use crate::chaos::trainer::{Fate, Trainer};
use crate::failure::{Failure, on_path};
use crate::process::Interrupts;

/// The run's folder inside its place.
pub(super) const RUN: &str = "runs/chaos";
/// How long a run may take to come out of anything, and a process to end.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
/// How often the world is looked at.
pub(super) const LOOK: Duration = Duration::from_millis(5);
const COORDINATOR: &str = "coordinator";
/// The variable that orders drills.
pub(super) const DRILL: &str = "LOCKSTEP_DRILL";
/// Samples from one that no step can be made with to the next, and how many there are.
const BAD_EVERY: u64 = 2400;
const BAD_SAMPLES: u64 = 400;

/// Where a run takes place.
pub(super) struct Place<'a> {
    /// The folder of the programs.
    pub(super) programs: &'a Path,
    /// The S3 server, where checkpoints lie in one.
    pub(super) bucket_double: &'a Path,
    /// An own folder, with `run.toml` and its data.
    pub(super) folder: PathBuf,
    /// Trainers that begin.
    pub(super) ranks: u32,
    pub(super) interrupts: &'a Interrupts,
}

pub(super) struct World<'a> {
    place: &'a Place<'a>,
    address: SocketAddr,
    pub(super) coordinator: Process,
    trainers: Vec<Trainer>,
    /// After the processes, as they are dropped after them.
    hosts: Option<Hosts>,
    store: Store,
    /// Trainers that were ever started.
    started: u32,
    pub(super) steps: Steps,
    /// Where the coordinator's log ended at the moment of the fault.
    moment: u64,
    /// Trainers in whose memory a bit was changed: process id, and the array in the words of the ledger.
    drilled: Vec<(u32, &'static str)>,
    /// What should not have happened.
    pub(super) oddities: Vec<String>,
}

impl<'a> World<'a> {
    /// Starts a run and waits for its first step. With `hosts`, trainers are on either of them in turn.
    pub(super) fn begin(place: &'a Place<'a>, mut hosts: Option<Hosts>, store: Store) -> Result<World<'a>, Failure> {
        // Nobody else takes it in the moment in which it is free: ports of closed listeners are not given out at once.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.map_err(|error| Failure::work(format!("no port is free: {error}")))?;
        if let Some(hosts) = &mut hosts {
            hosts.relay(address.port())?;
        }
        let coordinator = start_coordinator(place, hosts.as_ref(), &store, address)?;
        let steps = Steps::new(&place.folder.join(RUN));
        let mut world = World {
            place,
            hosts,
            store,
            address,
            coordinator,
            trainers: Vec::new(),
            started: 0,
            steps,
            moment: 0,
            drilled: Vec::new(),
            oddities: Vec::new(),
        };
        world.until_coordinator_serves(0)?;
        for _ in 0..place.ranks {
            world.start_trainer()?;
        }
        world.until("the first step is committed", |world| Ok(world.steps.count() > 0))?;
        Ok(world)
    }

    /// Waits until `holds`; what it waited for names the failure.
    pub(super) fn until(
        &mut self,
        what: &str,
        holds: impl FnMut(&mut World<'a>) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        self.until_looking_every(LOOK, what, holds)
    }

    /// As [`World::until`], for what must be seen sooner.
    pub(super) fn until_looking_every(
        &mut self,
        look: Duration,
        what: &str,
        mut holds: impl FnMut(&mut World<'a>) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let since = Instant::now();
        loop {
            self.look()?;
            if holds(self)? {
                return Ok(());
            }
            if since.elapsed() > PATIENCE {
                return Err(Failure::work(format!(
                    "waited {} s until {what}; step {} is the newest, {} trainers live; the coordinator said last:\n    {}",
                    PATIENCE.as_secs(),
                    self.steps.count(),
                    self.trainers.len(),
                    self.coordinator.last_words()
                )));
            }
            std::thread::sleep(look);
        }
    }

    /// Lets time go by.
    pub(super) fn let_pass(&mut self, time: Duration) -> Result<(), Failure> {
        let since = Instant::now();
        self.until("time has gone by", |_| Ok(since.elapsed() >= time))
    }

    fn look(&mut self) -> Result<(), Failure> {
        if self.place.interrupts.raised() {
            return Err(Failure::work("interrupted"));
        }
        self.steps.look()?;
        if let Some(status) = self.coordinator.ended()? {
            return Err(Failure::work(format!(
                "the coordinator ended ({status}) after step {}; it said last:\n    {}",
                self.steps.count(),
                self.coordinator.last_words()
            )));
        }
        self.reap()
    }

    /// Forgets trainers that have ended.
    fn reap(&mut self) -> Result<(), Failure> {
        let mut index = 0;
        while index < self.trainers.len() {
            let trainer = &mut self.trainers[index];
            let Some(status) = trainer.process.ended()? else {
                index += 1;
                continue;
            };
            if let Some(asked) = trainer.should_not_have_ended(status) {
                self.oddities.push(format!(
                    "{} {asked}ended ({status}) after step {}; it said last:\n    {}",
                    trainer.process.name,
                    self.steps.count(),
                    trainer.process.last_words()
                ));
            }
            self.trainers.remove(index);
        }
        Ok(())
    }

    pub(super) fn start_trainer(&mut self) -> Result<(), Failure> {
        self.start_one(Fate::Trains, None).map(drop)
    }

    /// Starts a trainer whose memory changes as `drill` says; its name. `array` is what the ledger will say.
    pub(super) fn start_drilled(&mut self, drill: String, array: &'static str) -> Result<String, Failure> {
        let name = self.start_one(Fate::IsDrilled, Some(drill))?;
        let pid = self.trainers.last().map_or(0, |trainer| trainer.process.pid());
        self.drilled.push((pid, array));
        Ok(name)
    }

    /// Starts a trainer whose device thread will hang; its name.
    pub(super) fn start_that_hangs(&mut self, drill: String) -> Result<String, Failure> {
        self.start_one(Fate::IsAway, Some(drill))
    }

    /// Kills a trainer, and forgets it.
    pub(super) fn end_one(&mut self, name: &str) {
        // Dropped, and so killed and waited for.
        self.trainers.retain(|trainer| trainer.process.name != name);
    }

    fn start_one(&mut self, fate: Fate, drill: Option<String>) -> Result<String, Failure> {
        let name = format!("trainer-{}", self.started);
        let host = self.started as usize % 2;
        self.started += 1;
        let (url, inside) = match &self.hosts {
            None => (format!("http://{}", self.address), Vec::new()),
            Some(hosts) => (
                hosts.coordinator_seen_from(host, self.address.port()),
                hosts.entering(host),
            ),
        };
        let mut words = inside;
        words.push(self.place.programs.join("lockstep-trainer").display().to_string());
        words.extend(["train", "--coordinator", &url, "--member", &name, "--run-dir", RUN].map(str::to_owned));
        if let Some(hosts) = &self.hosts {
            words.extend(["--advertise".to_owned(), hosts.address(host).to_owned()]);
        }
        let orders = [bad_samples(), drill.unwrap_or_default()].join(",");
        let variables = [self.store.variables(), &[(DRILL.to_owned(), orders)]].concat();
        let process = Process::start(&name, &self.place.folder, &words, &variables)?;
        self.trainers.push(Trainer { process, fate, host });
        Ok(name)
    }

    /// The trainer of that name, if it has not ended.
    pub(super) fn trainer(&self, name: &str) -> Option<&Trainer> {
        self.trainers.iter().find(|trainer| trainer.process.name == name)
    }

    /// The most trainers that the run may have.
    pub(super) fn most(&self) -> u32 {
        self.place.ranks
    }

    /// Trainers that are not away, were not asked to go, and whose memory stays as it is.
    pub(super) fn living(&self) -> u32 {
        let living = |trainer: &&Trainer| trainer.fate == Fate::Trains;
        self.trainers.iter().filter(living).count() as u32
    }

    pub(super) fn on_host(&self, host: usize) -> u32 {
        let there = |trainer: &&Trainer| trainer.fate == Fate::Trains && trainer.host == host;
        self.trainers.iter().filter(there).count() as u32
    }

    /// The trainer that has this number among those that live.
    pub(super) fn living_one(&mut self, number: u64) -> Option<&mut Trainer> {
        let number = number as usize % (self.living().max(1) as usize);
        let mut living = self.trainers.iter_mut().filter(|trainer| trainer.fate == Fate::Trains);
        living.nth(number)
    }

    pub(super) fn all_trainers(&mut self) -> &mut Vec<Trainer> {
        &mut self.trainers
    }

    /// Kills one of those that live.
    pub(super) fn kill_one(&mut self, number: u64) -> Option<String> {
        let trainer = self.living_one(number)?;
        trainer.process.kill();
        let name = trainer.process.name.clone();
        self.trainers.retain(|trainer| trainer.process.name != name);
        Some(name)
    }

    /// Asks one of those that live to go.
    pub(super) fn ask_one_to_go(&mut self, number: u64) -> Option<String> {
        let trainer = self.living_one(number)?;
        trainer.fate = Fate::Goes;
        trainer.process.signal(Signal::TERM);
        Some(trainer.process.name.clone())
    }

    /// Waits until a step is committed that all those make who live, and nobody else.
    pub(super) fn settle(&mut self) -> Result<(), Failure> {
        let from = self.steps.made();
        self.until("all trainers that live make a step together", |world| {
            let is_new = world.steps.made() > from;
            let all_are_there = |step: &Step| is_new && step.ranks == world.living();
            Ok(world.trainers.len() == world.living() as usize && world.steps.newest().is_some_and(all_are_there))
        })
    }

    pub(super) fn kill_coordinator(&mut self) {
        self.coordinator.kill();
    }

    /// Kills all processes before any of them can do anything about it.
    pub(super) fn kill_everything(&mut self) {
        self.coordinator.signal(Signal::KILL);
        for trainer in &self.trainers {
            trainer.process.signal(Signal::KILL);
        }
        self.coordinator.kill();
        // Dropped, and so waited for.
        self.trainers.clear();
    }

    pub(super) fn start_coordinator_again(&mut self) -> Result<(), Failure> {
        let said = self.coordinator.log_end();
        self.coordinator = start_coordinator(self.place, self.hosts.as_ref(), &self.store, self.address)?;
        self.until_coordinator_serves(said)?;
        self.steps.begin_anew();
        self.steps.look()?;
        match self.steps.are_whole() {
            true => Ok(()),
            false => Err(Failure::work(format!(
                "the coordinator that was started again knows {} committed steps, and there were more",
                self.steps.count()
            ))),
        }
    }

    /// Waits until it has said its address; the run's files are as the ledger has them then.
    fn until_coordinator_serves(&mut self, said: u64) -> Result<(), Failure> {
        let since = Instant::now();
        while !self
            .coordinator
            .log_since(said)
            .lines()
            .any(|line| line.starts_with("http://"))
        {
            if let Some(status) = self.coordinator.ended()? {
                return Err(Failure::work(format!(
                    "the coordinator did not start ({status}); it said:\n    {}",
                    self.coordinator.last_words()
                )));
            }
            if since.elapsed() > PATIENCE || self.place.interrupts.raised() {
                return Err(Failure::work("the coordinator does not serve"));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// The fault happens now.
    pub(super) fn begin_fault(&mut self) -> Instant {
        self.moment = self.coordinator.log_end();
        Instant::now()
    }

    /// What the coordinator has said since then.
    pub(super) fn said_of_fault(&self) -> String {
        self.coordinator.log_since(self.moment)
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    pub(super) fn store_mut(&mut self) -> &mut Store {
        &mut self.store
    }

    pub(super) fn hosts(&self) -> Option<&Hosts> {
        self.hosts.as_ref()
    }

    /// Stops the run in order, and waits for all that it consists of.
    pub(super) fn stop(mut self) -> Result<Ended, Failure> {
        // A run of as many steps, which nobody stops, goes back as often.
        self.until("the run is far from a bad sample", |world| {
            Ok(is_far_from_bad_samples(world.steps.consumed()))
        })?;
        self.coordinator.signal(Signal::TERM);
        let since = Instant::now();
        for trainer in &mut self.trainers {
            trainer.fate = Fate::Goes;
        }
        let mut coordinator = None;
        while coordinator.is_none() || !self.trainers.is_empty() {
            coordinator = self.coordinator.ended()?;
            self.reap()?;
            if since.elapsed() > PATIENCE || self.place.interrupts.raised() {
                let left: Vec<&str> = self
                    .trainers
                    .iter()
                    .map(|trainer| trainer.process.name.as_str())
                    .collect();
                return Err(Failure::work(format!(
                    "the run was to stop, and {} s later {left:?} live; the coordinator said last:\n    {}",
                    since.elapsed().as_secs(),
                    self.coordinator.last_words()
                )));
            }
            std::thread::sleep(LOOK);
        }
        let code = coordinator.and_then(|status| status.code());
        if code != Some(3) {
            self.oddities.push(format!(
                "the run was stopped, and the coordinator ended with exit code {code:?}; it said last:\n    {}",
                self.coordinator.last_words()
            ));
        }
        self.steps.look()?;
        Ok(Ended {
            steps: self.steps,
            drilled: self.drilled,
            oddities: self.oddities,
        })
    }
}

/// The order that makes the loss of some samples NaN, in every trainer of every run: before each of them the run goes back.
pub(super) fn bad_samples() -> String {
    let orders = (1..=BAD_SAMPLES).map(|number| format!("nan-sample@{}", number * BAD_EVERY));
    orders.collect::<Vec<_>>().join(",")
}

/// Whether the run has passed the steps that it was at when it came to a bad sample, and will not come to the next one soon.
fn is_far_from_bad_samples(consumed: u64) -> bool {
    (BAD_EVERY / 4..BAD_EVERY * 2 / 3).contains(&(consumed % BAD_EVERY))
}

/// What a run leaves that was stopped.
pub(super) struct Ended {
    pub(super) steps: Steps,
    pub(super) drilled: Vec<(u32, &'static str)>,
    pub(super) oddities: Vec<String>,
}

fn start_coordinator(
    place: &Place,
    hosts: Option<&Hosts>,
    store: &Store,
    address: SocketAddr,
) -> Result<Process, Failure> {
    let run = place.folder.join(RUN);
    fs::create_dir_all(&run).map_err(on_path("create", &run))?;
    let mut words = hosts.map_or_else(Vec::new, |hosts| hosts.entering(0));
    words.push(place.programs.join("lockstep-coordinator").display().to_string());
    let (ranks, listen) = (place.ranks.to_string(), address.to_string());
    let more = [
        "--config",
        "run.toml",
        "--ranks",
        &ranks,
        "--listen",
        &listen,
        "--run-dir",
        RUN,
    ];
    words.extend(more.map(str::to_owned));
    Process::start(COORDINATOR, &place.folder, &words, store.variables())
}
