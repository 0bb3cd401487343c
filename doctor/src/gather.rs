//! All that is looked at for one report, in one place: who asks says how deep.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use lockstep_config::RunConfig;
use lockstep_security::CredentialArguments;

use crate::checks::{CHECKPOINTS, RUN};
use crate::facts::certificates::Certificates;
use crate::facts::coordinator::Coordinator;
use crate::facts::data::{Data, SAMPLE};
use crate::facts::disk::Disk;
use crate::facts::gpus::Gpus;
use crate::facts::libraries::{Search, libtorch_version};
use crate::facts::limits::Limits;
use crate::facts::memory::Memory;
use crate::facts::network::{self, Bind, Name};
use crate::facts::processors::Processors;
use crate::facts::programs::Program;
use crate::facts::{Facts, Places};
use crate::wanted::Wanted;

/// What is written to a disk to see how fast it is.
const WRITTEN: u64 = 16 << 20;
/// In the short form only whether it can be written.
const WRITTEN_IN_SHORT: u64 = 4 << 10;
/// How long a coordinator may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where programs are, or should be.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The trainer.
    pub trainer: PathBuf,
    /// The one that is linked with MPI.
    pub mpi_trainer: PathBuf,
    /// What starts that.
    pub mpirun: PathBuf,
}

/// Who asks, and for what.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// What the run wants, if there is a config.
    pub wanted: Option<&'a Wanted>,
    /// The config.
    pub config: Option<&'a RunConfig>,
    /// Where programs are.
    pub programs: &'a Programs,
    /// The version of this build.
    pub build: &'a str,
    /// Where the system tells of itself.
    pub places: &'a Places,
    /// Variables of the environment.
    pub environment: &'a dyn Fn(&str) -> Option<String>,
    /// The coordinator that is named, and what is shown to it.
    pub coordinator: Option<(&'a str, &'a CredentialArguments)>,
    /// Whether all data is hashed.
    pub deep: bool,
}

impl Asked<'_> {
    /// Everything but what the trainer and the coordinator's run say of themselves, and the ways between ranks.
    pub fn all(&self) -> Facts {
        let search = Search::of(self.places, self.environment);
        let now = SystemTime::now();
        let over_mpi = self.wanted.is_some_and(|wanted| wanted.backend == "mpi");
        let trainer = Program::look(&self.programs.trainer, &search).asked();
        let mpi_trainer = Program::look(&self.programs.mpi_trainer, &search);
        let own = network::own_name();
        Facts {
            disks: self.disks(WRITTEN),
            mpirun: Some(Program::look(&self.programs.mpirun, &search))
                .filter(|_| over_mpi || mpi_trainer.is_there)
                .map(Program::asked),
            mpi_trainer: Some(mpi_trainer).filter(|program| over_mpi || program.is_there).map(
                |program| match over_mpi {
                    true => program.asked(),
                    false => program,
                },
            ),
            own_name: Some(Name::look(&own, network::PATIENCE)),
            bind: self
                .wanted
                .filter(|_| self.coordinator.is_none())
                .map(|wanted| Bind::look(wanted.bind)),
            certificates: self.config.and_then(|config| Certificates::look(&config.security, now)),
            coordinator: self
                .coordinator
                .map(|(url, credentials)| Coordinator::look(url, credentials, PATIENCE)),
            data: self.data(now),
            ..self.small(&search, Some(trainer))
        }
    }

    /// What takes no time: before each run, by the launcher, which has read the data, tried the port, and heard what mpirun
    /// says of itself, if one is used.
    pub fn short(&self, mpirun_says: Option<String>) -> Facts {
        let search = Search::of(self.places, self.environment);
        let over_mpi = self.wanted.is_some_and(|wanted| wanted.backend == "mpi");
        let look = |path: &Path| Program::look(path, &search);
        let trainer = (!over_mpi).then(|| look(&self.programs.trainer).asked_in_doubt());
        let own = self.of_launcher();
        Facts {
            disks: own.disks,
            certificates: own.certificates,
            mpi_trainer: over_mpi.then(|| look(&self.programs.mpi_trainer).asked_in_doubt()),
            mpirun: over_mpi.then(|| Program {
                version: mpirun_says.map(Ok),
                ..look(&self.programs.mpirun)
            }),
            ..self.small(&search, trainer)
        }
    }

    /// The same of a launcher whose ranks are on other machines, too: what is here says nothing of these.
    pub fn of_launcher(&self) -> Facts {
        let now = SystemTime::now();
        Facts {
            host: network::own_name(),
            build: self.build.to_owned(),
            disks: self.disks(WRITTEN_IN_SHORT),
            certificates: self.config.and_then(|config| Certificates::look(&config.security, now)),
            ..Facts::default()
        }
    }

    /// Cores and binding only: of a rank beside which another one of its host looks at the rest.
    pub fn processors_only(&self) -> Facts {
        Facts {
            host: network::own_name(),
            build: self.build.to_owned(),
            processors: Some(Processors::look(self.places, self.environment)),
            ..Facts::default()
        }
    }

    fn small(&self, search: &Search, trainer: Option<Program>) -> Facts {
        let linked = trainer.as_ref().and_then(|trainer| trainer.linked.as_ref());
        let folders = linked.map(|linked| linked.folders()).unwrap_or_default();
        let libtorch = linked.and_then(|linked| linked.place_of("libtorch_cpu")?.parent().map(Path::to_owned));
        let folder = (self.environment)("LIBTORCH").map(PathBuf::from);
        Facts {
            memory: Some(Memory::look(self.places)),
            limits: Some(Limits::look(self.places)),
            gpus: Some(Gpus::look(self.places, search, &folders, self.environment)),
            libtorch: libtorch.map(|folder| (folder.clone(), libtorch_version(&folder))),
            libtorch_folder: folder.map(|folder| (folder.clone(), folder.join("lib/libtorch_cpu.so").is_file())),
            trainer,
            ..self.processors_only()
        }
    }

    fn disks(&self, bytes: u64) -> Vec<Disk> {
        let Some(wanted) = self.wanted else {
            return vec![Disk::look("current folder", Path::new("."), bytes)];
        };
        let checkpoints = wanted.checkpoints.as_ref();
        let mut disks = vec![Disk::look(RUN, &wanted.folder, bytes)];
        disks.extend(checkpoints.map(|folder| Disk::look(CHECKPOINTS, folder, bytes)));
        disks
    }

    fn data(&self, now: SystemTime) -> Vec<Data> {
        let sample = if self.deep { u64::MAX } else { SAMPLE };
        let folders = self.wanted.map(|wanted| wanted.data.as_slice()).unwrap_or_default();
        folders.iter().map(|folder| Data::look(folder, sample, now)).collect()
    }
}
