//! A stage whose trainer is a stand-in, and ways to break its surroundings.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::stage::{Stage, said};

/// Says what a trainer of this version says.
const TRAINER: &str = concat!(
    "#!/bin/sh\ncase \"$1\" in\n--version) echo lockstep-trainer ",
    env!("CARGO_PKG_VERSION"),
    " ;;\nfacts) echo '{\"version\":1,\"libraries\":\"none\",\"instruction_set\":\"any\",\"cuda\":\"none\",\"gpus\":0,\"nccl\":null,\"mpi\":null,\"memory\":[]}' ;;\n*) exec sleep 600 ;;\nesac\n"
);

/// What is in the environment of this test and would be found.
const CLEARED: [&str; 16] = [
    "LIBTORCH",
    "LD_LIBRARY_PATH",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_THREAD_LIMIT",
    "OMP_PROC_BIND",
    "OMP_PLACES",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "CUDA_VISIBLE_DEVICES",
    "LOCKSTEP_TOKEN",
    "LOCKSTEP_CA",
    "LOCKSTEP_CERT",
    "LOCKSTEP_KEY",
    "LOCKSTEP_TOKEN_FILE",
    "LOCKSTEP_MPIRUN",
];

pub(crate) struct Ward {
    pub(crate) stage: Stage,
}

/// What `lockstep doctor --json` has said.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) json: Value,
    pub(crate) code: i32,
    #[allow(dead_code, reason = "shown by Debug when a test fails")]
    pub(crate) error: String,
}

impl Report {
    /// The findings' names, in order.
    pub(crate) fn ids(&self) -> Vec<&str> {
        let findings = self.json["findings"].as_array().unwrap();
        findings.iter().map(|finding| finding["id"].as_str().unwrap()).collect()
    }

    /// Just this one was found, with these words in what it says, and the exit code fits.
    pub(crate) fn found(&self, id: &str, parts: &[&str]) {
        assert_eq!(self.ids(), [id], "{self:#?}");
        let finding = &self.json["findings"][0];
        let text = finding.to_string();
        for part in parts {
            assert!(text.contains(part), "{part:?} is missing in {text}");
        }
        for key in ["what", "why", "do", "where"] {
            assert!(!finding[key].as_str().unwrap().is_empty(), "{key}: {text}");
        }
        let code = i32::from(finding["severity"] == "error");
        assert_eq!(self.code, code, "{self:#?}");
    }
}

impl Ward {
    /// In fp32, and with a stand-in as the trainer, so that what is found is what a test has broken.
    pub(crate) fn new() -> Ward {
        let ward = Ward { stage: Stage::new() };
        let config = ward
            .stage
            .read("run.toml")
            .replace("[data]", "[alerts]\ndisk_mib = 1\n\n[data]");
        fs::write(ward.stage.path("run.toml"), config).unwrap();
        ward.program("trainer", TRAINER);
        ward
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.stage.path(name)
    }

    /// A program in the stage's folder.
    pub(crate) fn program(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// `lockstep` with these words.
    pub(crate) fn command(&self, words: &str) -> Command {
        let mut command = self.stage.command(words);
        self.clear(&mut command);
        command
    }

    fn clear(&self, command: &mut Command) {
        CLEARED.iter().for_each(|name| {
            command.env_remove(name);
        });
        command
            .current_dir(self.path(""))
            .env("LOCKSTEP_TRAINER", self.path("trainer"))
            .env("LOCKSTEP_TRAINER_MPI", self.path("no-mpi-trainer"));
    }

    /// `lockstep doctor --json` with these words.
    pub(crate) fn examine(&self, words: &str) -> Report {
        report(self.command(&format!("doctor --json {words}")).output().unwrap())
    }

    /// The same with more in the environment.
    pub(crate) fn examine_with(&self, words: &str, environment: &[(&str, &str)]) -> Report {
        let mut command = self.command(&format!("doctor --json {words}"));
        report(command.envs(environment.iter().copied()).output().unwrap())
    }

    /// The same, started by another program: its words come first.
    pub(crate) fn examine_under(&self, starter: &[&str], words: &str) -> Report {
        report(self.under(starter, &format!("doctor --json {words}")).output().unwrap())
    }

    /// `lockstep` with these words, started by another program.
    pub(crate) fn under(&self, starter: &[&str], words: &str) -> Command {
        let mut command = Command::new(starter[0]);
        command
            .args(&starter[1..])
            .arg(env!("CARGO_BIN_EXE_lockstep"))
            .args(words.split_whitespace());
        self.clear(&mut command);
        command
    }

    /// The same after a script has changed what is mounted, for it alone. None, and a line that says so, where this is not
    /// allowed.
    pub(crate) fn examine_inside(&self, script: &str, words: &str) -> Option<Report> {
        self.inside(script, &format!("doctor --json {words}"), &[]).map(report)
    }

    /// `lockstep` with these words after a script has changed what is mounted, for it alone.
    pub(crate) fn inside(&self, script: &str, words: &str, environment: &[(&str, &str)]) -> Option<Output> {
        if !may(&["unshare", "--mount", "true"]) {
            return None;
        }
        let script = format!("set -e; {script}; exec \"$@\"");
        let starter = ["unshare", "--mount", "sh", "-c", &script, "sh"];
        let mut command = self.under(&starter, words);
        Some(command.envs(environment.iter().copied()).output().unwrap())
    }

    /// A program or library made from C; none, and a line that says so, where there is no compiler.
    pub(crate) fn compiled(&self, name: &str, source: &str, options: &str) -> Option<PathBuf> {
        if !may(&["cc", "--version"]) {
            return None;
        }
        let file = self.path(&format!("{}.c", name.replace('/', "-")));
        fs::write(&file, source).unwrap();
        let path = self.path(name);
        let mut compiler = Command::new("cc");
        compiler
            .arg("-o")
            .arg(&path)
            .arg(&file)
            .args(options.split_whitespace());
        let output = compiler.current_dir(self.path("")).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        Some(path)
    }
}

fn report(output: Output) -> Report {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let json = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {}", said(&output)));
    Report {
        json,
        code: output.status.code().unwrap(),
        error: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Whether a program is there and does this; says what is left out where not.
pub(crate) fn may(words: &[&str]) -> bool {
    let can = Command::new(words[0]).args(&words[1..]).output();
    let can = can.is_ok_and(|output| output.status.success());
    if !can {
        println!("not checked: `{}` is not possible here", words.join(" "));
    }
    can
}

/// A control group of this test's own, gone when dropped.
pub(crate) struct Group(PathBuf);

impl Group {
    /// One of a controller, with a file that says how much; none, and a line that says so, where none can be made.
    pub(crate) fn new(controller: &str, settings: &[(&str, &str)]) -> Option<Group> {
        let name = format!("lockstep-doctor-{}-{controller}", std::process::id());
        let root = Path::new("/sys/fs/cgroup");
        let roots = [root.join(controller), root.to_owned()];
        for (version, root) in (1..).zip(roots) {
            let group = Group(root.join(&name));
            let _ = fs::remove_dir(&group.0);
            if fs::create_dir(&group.0).is_err() {
                continue;
            }
            let mut files = settings
                .iter()
                .filter(|(file, _)| version == if is_second(file) { 2 } else { 1 })
                .peekable();
            if files.peek().is_some() && files.all(|(file, value)| fs::write(group.0.join(file), value).is_ok()) {
                return Some(group);
            }
        }
        println!("not checked: no control group of {controller} can be made here");
        None
    }

    /// A shell that enters it and becomes what follows.
    pub(crate) fn entering(&self) -> [String; 4] {
        let script = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", self.0.display());
        ["sh".to_owned(), "-c".to_owned(), script, "sh".to_owned()]
    }
}

/// Whether a file is of version 2 of control groups.
fn is_second(file: &str) -> bool {
    matches!(file, "cpu.max" | "memory.max")
}

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..50 {
            // What was in it may be on its way out.
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}
