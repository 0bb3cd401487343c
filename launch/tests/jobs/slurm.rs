//! The script that `lockstep slurm render` writes, run by a real Slurm of one node: its programs are started here with a
//! configuration of their own, and end with the test.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::stage::{Stage, said, send, wait_at_most, wait_until};
use crate::{SETS, SLOW, STEPS, calm, hashes, lines, on_path, program, ranks, summary};

/// A job may wait for its turn.
const PATIENCE: Duration = Duration::from_secs(180);

/// Where Debian and others put daemons, besides the search path.
const FOLDERS: [&str; 2] = ["/usr/sbin", "/usr/local/sbin"];

fn daemon(name: &str) -> PathBuf {
    let elsewhere = || {
        FOLDERS
            .iter()
            .map(|folder| PathBuf::from(folder).join(name))
            .find(|path| path.is_file())
    };
    let there = on_path(name).or_else(elsewhere);
    there.unwrap_or_else(|| panic!("{name} is not there; install Slurm, or set LOCKSTEP_WITHOUT_SLURM"))
}

/// Whether there is no Slurm here; says so.
pub(crate) fn left_out() -> bool {
    let reason = match (
        std::env::var_os("LOCKSTEP_WITHOUT_SLURM"),
        rustix::process::geteuid().is_root(),
    ) {
        (Some(_), _) => "LOCKSTEP_WITHOUT_SLURM is set",
        (None, false) => "only root can start Slurm's programs",
        (None, true) => return false,
    };
    println!("left out: {reason}");
    true
}

/// A Slurm with this host as its only node.
pub(crate) struct Slurm {
    folder: tempfile::TempDir,
    daemons: Vec<Child>,
}

impl Slurm {
    pub(crate) fn start() -> Slurm {
        let mut slurm = Slurm {
            folder: tempfile::tempdir().unwrap(),
            daemons: Vec::new(),
        };
        let folder = slurm.folder.path().to_owned();
        // munge wants a folder that everybody may enter.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["state", "spool"] {
            fs::create_dir(folder.join(name)).unwrap();
        }
        fs::write(folder.join("munge.key"), vec![7_u8; 64]).unwrap();
        fs::set_permissions(folder.join("munge.key"), fs::Permissions::from_mode(0o600)).unwrap();
        let ports = [0, 1]
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .map(|one| one.local_addr().unwrap().port());
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let place = folder.display();
        let text = format!(
            "ClusterName=test\nSlurmctldHost={host}(127.0.0.1)\nSlurmctldPort={}\nSlurmdPort={}\nSlurmUser=root\nSlurmdUser=root\n\
             AuthType=auth/munge\nAuthInfo=socket={place}/munge.sock\nCredType=cred/munge\nStateSaveLocation={place}/state\n\
             SlurmdSpoolDir={place}/spool\nSlurmctldPidFile={place}/slurmctld.pid\nSlurmdPidFile={place}/slurmd.pid\n\
             ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nMpiDefault=none\nReturnToService=2\n\
             SchedulerType=sched/builtin\nSelectType=select/cons_tres\nSelectTypeParameters=CR_CPU\n\
             SlurmdParameters=config_overrides\nJobAcctGatherType=jobacct_gather/none\n\
             AccountingStorageType=accounting_storage/none\nSwitchType=switch/none\nKillWait=10\n\
             NodeName={host} NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN\n\
             PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n",
            ports[0], ports[1]
        );
        fs::write(folder.join("slurm.conf"), text).unwrap();
        let file = |name: &str| folder.join(name).display().to_string();
        slurm.daemon(
            "munged",
            &[
                "--foreground",
                "--force",
                &format!("--socket={}", file("munge.sock")),
                &format!("--key-file={}", file("munge.key")),
                &format!("--pid-file={}", file("munge.pid")),
                &format!("--seed-file={}", file("munge.seed")),
            ],
        );
        wait_until("munge listens", || folder.join("munge.sock").exists());
        slurm.daemon("slurmctld", &["-D", "-f", &file("slurm.conf")]);
        slurm.daemon("slurmd", &["-D", "-N", &host, "-f", &file("slurm.conf")]);
        wait_until("the node is idle", || {
            said(&slurm.ask("sinfo", "-h -o %T")).trim() == "idle"
        });
        slurm
    }

    /// Its configuration's file.
    pub(crate) fn config(&self) -> PathBuf {
        self.folder.path().join("slurm.conf")
    }

    /// Waits until no job is left.
    pub(crate) fn wait_for_all(&self) {
        wait_at_most(PATIENCE, "no job is left", &mut || {
            let output = self.ask("squeue", "-h");
            output.status.success() && said(&output).trim().is_empty()
        });
    }

    fn daemon(&mut self, name: &str, words: &[&str]) {
        let log = fs::File::create(self.folder.path().join(format!("{name}.log"))).unwrap();
        let child = Command::new(daemon(name))
            .args(words)
            .env("SLURM_CONF", self.config())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        self.daemons.push(child.unwrap());
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("SLURM_CONF", self.config());
        command
    }

    fn ask(&self, program: &str, words: &str) -> Output {
        self.command(program).args(words.split_whitespace()).output().unwrap()
    }

    /// Submits a script from a stage; the number of the job.
    fn submit(&self, stage: &Stage, script: &str, drill: Option<&str>) -> u32 {
        let mut command = self.command("sbatch");
        command.args(["--parsable", script]).current_dir(stage.path(""));
        command
            .env_remove("LOCKSTEP_DRILL")
            .envs(drill.map(|drill| ("LOCKSTEP_DRILL", drill)));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        said(&output).trim().parse().unwrap()
    }

    /// What is known of a job, `Key=Value …` for each of an array.
    fn show(&self, job: u32) -> String {
        said(&self.ask("scontrol", &format!("show job {job} -o")))
    }

    /// Waits until a job has ended for good; its state, exit code and restarts. One that is queued again need not wait.
    fn ended(&self, job: u32, log: impl Fn() -> String) -> (String, String, u32) {
        let mut last = String::new();
        wait_at_most(PATIENCE, "the job has ended", &mut || {
            last = self.show(job);
            let states = values(&last, "JobState");
            if states.iter().any(|state| state == "PENDING")
                && values(&last, "Reason").contains(&"BeginTime".to_owned())
            {
                self.ask("scontrol", &format!("update JobId={job} StartTime=now"));
            }
            !states.is_empty()
                && states
                    .iter()
                    .all(|state| !["PENDING", "RUNNING", "COMPLETING"].contains(&state.as_str()))
        });
        let first = |key: &str| {
            values(&last, key)
                .first()
                .cloned()
                .unwrap_or_else(|| panic!("{last}{}", log()))
        };
        (first("JobState"), first("ExitCode"), first("Restarts").parse().unwrap())
    }
}

fn values(text: &str, key: &str) -> Vec<String> {
    let words = text.split_whitespace().filter_map(|word| word.split_once('='));
    words
        .filter(|(name, _)| *name == key)
        .map(|(_, value)| value.to_owned())
        .collect()
}

impl Drop for Slurm {
    fn drop(&mut self) {
        self.ask("scancel", "--user=root");
        for daemon in self.daemons.iter_mut().rev() {
            send(daemon.id(), Signal::TERM);
            // Each ends within a moment; what does not is killed.
            for _ in 0..100 {
                if daemon.try_wait().is_ok_and(|status| status.is_some()) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

/// Writes the script of a run.
fn render(stage: &Stage, name: &str, words: &str) -> String {
    let trainer = program("lockstep-trainer").display().to_string();
    let words = format!("slurm render run.toml -n 2 {SETS} --set run.name={name} --trainer {trainer} {words}");
    let output = stage.lockstep(&words);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let script = format!("{name}.sh");
    fs::write(stage.path(&script), &output.stdout).unwrap();
    script
}

fn log_of(stage: &Stage, name: &str, job: u32) -> String {
    fs::read_to_string(stage.path(&format!("lockstep-{name}-{job}.log"))).unwrap_or_default()
}

#[test]
fn a_job_runs_to_its_end_stops_for_an_operator_and_is_never_queued_again_for_bad_input() {
    if left_out() {
        return;
    }
    let stage = Stage::new();
    let calm = calm(&stage);
    let slurm = Slurm::start();

    let job = slurm.submit(&stage, &render(&stage, "whole", ""), None);
    let log = || log_of(&stage, "whole", job);
    assert_eq!(
        slurm.ended(job, log),
        ("COMPLETED".to_owned(), "0:0".to_owned(), 0),
        "{}",
        log()
    );
    assert!(hashes(&stage, "whole") == calm, "a job made other bits");
    assert!(
        log().contains("1: ") && log().contains("0: "),
        "each line has its rank: {}",
        log()
    );

    let job = slurm.submit(&stage, &render(&stage, "bad", "--set data.path=nowhere"), None);
    let log = || log_of(&stage, "bad", job);
    assert_eq!(
        slurm.ended(job, log),
        ("FAILED".to_owned(), "2:0".to_owned(), 0),
        "{}",
        log()
    );

    let job = slurm.submit(&stage, &render(&stage, "steered", ""), Some("slow@1*60"));
    let log = || log_of(&stage, "steered", job);
    wait_until("the job trains", || lines(&stage, "steered").len() >= 5);
    assert!(stage.lockstep("stop steered").status.success());
    assert_eq!(
        slurm.ended(job, log),
        ("FAILED".to_owned(), "3:0".to_owned(), 0),
        "{}",
        log()
    );

    let job = slurm.submit(&stage, &render(&stage, "many", "--array 0-1"), None);
    let (state, _, _) = slurm.ended(job, String::new);
    assert_eq!(state, "COMPLETED");
    for index in [0, 1] {
        assert!(
            hashes(&stage, &format!("many-{index}")) == calm,
            "job {index} of the array"
        );
    }
    wait_until("every process has ended", || stage.processes().is_empty());
}

#[test]
fn before_the_time_limit_it_stops_in_order_and_goes_on_in_another_turn_to_the_same_hashes() {
    if left_out() {
        return;
    }
    let stage = Stage::new();
    let script = render(&stage, "late", "--time 1 --grace 45");
    let slurm = Slurm::start();
    // Longer than Slurm waits with its signal, which comes up to a minute before its time.
    let job = slurm.submit(&stage, &script, Some("slow@1*600"));
    let log = || log_of(&stage, "late", job);
    let (state, code, restarts) = slurm.ended(job, log);
    assert_eq!((state.as_str(), code.as_str()), ("COMPLETED", "0:0"), "{}", log());
    assert!(restarts >= 1 && log().contains("the time limit is near"), "{}", log());
    assert_eq!(lines(&stage, "late").len(), STEPS);
    assert!(hashes(&stage, "late") == calm(&stage), "the turns made other bits");
    wait_until("every process has ended", || stage.processes().is_empty());
}

#[test]
fn a_killed_rank_does_not_end_a_job_and_a_cancelled_one_stops_in_order() {
    if left_out() {
        return;
    }
    let stage = Stage::new();
    let calm = calm(&stage);
    let slurm = Slurm::start();
    let job = slurm.submit(&stage, &render(&stage, "killed", ""), Some(SLOW.1));
    let log = || log_of(&stage, "killed", job);
    wait_until("the job trains", || lines(&stage, "killed").len() >= 12);
    // Rank 0's coordinator is its child, and younger than both ranks.
    let rank_of = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let is_second = environment
            .split(|byte| *byte == 0)
            .any(|word| word == b"SLURM_PROCID=1");
        is_second.then_some(*pid)
    };
    send(ranks(&stage).iter().find_map(rank_of).unwrap(), Signal::KILL);
    assert_eq!(
        slurm.ended(job, log),
        ("COMPLETED".to_owned(), "0:0".to_owned(), 0),
        "the run's word counts, not that of the lost rank: {}",
        log()
    );
    let worlds: Vec<_> = lines(&stage, "killed")
        .iter()
        .filter_map(|line| line["ranks"].as_u64())
        .collect();
    assert_eq!((worlds[0], worlds[STEPS - 1]), (2, 1), "{worlds:?}");
    assert!(hashes(&stage, "killed") == calm, "the survivor made other bits");

    let job = slurm.submit(&stage, &render(&stage, "cancelled", ""), Some(SLOW.1));
    let log = || log_of(&stage, "cancelled", job);
    wait_until("the job trains", || lines(&stage, "cancelled").len() >= 5);
    let output = slurm.ask("scancel", &job.to_string());
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(slurm.ended(job, log).0, "CANCELLED", "{}", log());
    wait_until("every process has ended", || stage.processes().is_empty());
    assert_eq!(summary(&stage, "cancelled")["exit"], "stopped", "{}", log());
    let job = slurm.submit(&stage, "cancelled.sh", None);
    assert_eq!(slurm.ended(job, log).0, "COMPLETED");
    assert!(hashes(&stage, "cancelled") == calm, "it went on to other bits");
    wait_until("every process has ended", || stage.processes().is_empty());
}
