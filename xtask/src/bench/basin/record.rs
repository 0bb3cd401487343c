//! `basin.csv`: a row for each run, added as it ends. Lines that begin with `#` say under which settings, so that rows
//! of another config or number of steps are never mixed in.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::trial::Trial;
use crate::bench::variant::Variant;
use crate::failure::{Failure, on_path};

const HEADER: &str = "method,momo,learning_rate,seed,validation_loss,diverged";

/// The result of a run.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) variant: Variant,
    /// Peak learning rate.
    pub(super) rate: f64,
    pub(super) seed: u64,
    /// Validation loss at the end, in nats a byte; none: the run diverged.
    pub(super) loss: Option<f64>,
}

impl Row {
    /// The row of a run that ended with `loss`.
    pub(super) fn of(trial: &Trial, loss: Option<f64>) -> Row {
        Row {
            variant: trial.variant.clone(),
            rate: trial.rate,
            seed: trial.seed,
            loss,
        }
    }

    fn line(&self) -> String {
        let Variant { method, momo } = &self.variant;
        let loss = self.loss.map_or_else(String::new, |loss| loss.to_string());
        format!(
            "{method},{momo},{:e},{},{loss},{}",
            self.rate,
            self.seed,
            self.loss.is_none()
        )
    }

    fn parse(line: &str) -> Option<Row> {
        let cells: Vec<&str> = line.split(',').map(str::trim).collect();
        let &[method, momo, rate, seed, loss, diverged] = &cells[..] else {
            return None;
        };
        let variant = Variant {
            momo: momo.parse().ok()?,
            ..method.parse().ok()?
        };
        let above_0 = |text: &str| text.parse().ok().filter(|x: &f64| x.is_finite() && *x > 0.0);
        Some(Row {
            variant,
            rate: above_0(rate)?,
            seed: seed.parse().ok()?,
            loss: match (loss, diverged) {
                ("", "true") => None,
                (loss, "false") => Some(above_0(loss)?),
                _ => return None,
            },
        })
    }
}

/// The file and what is in it.
pub(super) struct Record {
    path: PathBuf,
    /// Name and text of each line that begins with `#`.
    settings: Vec<(String, String)>,
    rows: Vec<Row>,
}

impl Record {
    /// Reads the file.
    ///
    /// # Errors
    /// It is not there, or a line cannot be read, which is named.
    pub(super) fn read(path: &Path) -> Result<Record, Failure> {
        let text = fs::read_to_string(path).map_err(on_path("read", path))?;
        let mut record = Record {
            path: path.to_owned(),
            settings: Vec::new(),
            rows: Vec::new(),
        };
        for (line, number) in text.lines().zip(1..) {
            if let Some(setting) = line.strip_prefix("# ") {
                record.settings.extend(
                    setting
                        .split_once(": ")
                        .map(|(name, text)| (name.to_owned(), text.to_owned())),
                );
            } else if line != HEADER && !line.is_empty() {
                record.rows.push(Row::parse(line).ok_or_else(|| {
                    Failure::input(format!(
                        "line {number} of {} is no row of {HEADER}; take it out, and its run is made again",
                        path.display()
                    ))
                })?);
            }
        }
        // Further rows go on a line of their own.
        if !text.is_empty() && !text.ends_with('\n') {
            return Err(Failure::input(format!(
                "the last line of {} has no end, so it may lack something; take it out, and its run is made again",
                path.display()
            )));
        }
        Ok(record)
    }

    /// Opens the file for further rows under `settings`, or begins it.
    ///
    /// # Errors
    /// As [`Record::read`]; or the file was made under other settings.
    pub(super) fn open(path: &Path, settings: &[(String, String)]) -> Result<Record, Failure> {
        if !path.exists() {
            fs::write(path, format!("{HEADER}\n")).map_err(on_path("write", path))?;
        }
        let mut record = Record::read(path)?;
        for (name, text) in settings {
            match record.settings.iter().find(|(other, _)| other == name) {
                Some((_, other)) if other == text => {}
                Some((_, other)) => {
                    return Err(Failure::input(format!(
                        "{} has {name} with {other}, and this is {text}: choose another folder with --out, or begin anew with --fresh",
                        path.display()
                    )));
                }
                None => {
                    record.append(&format!("# {name}: {text}"))?;
                    record.settings.push((name.clone(), text.clone()));
                }
            }
        }
        Ok(record)
    }

    /// Whether the run was made.
    pub(super) fn has(&self, trial: &Trial) -> bool {
        let same = |row: &Row| row.variant == trial.variant && row.rate == trial.rate && row.seed == trial.seed;
        self.rows.iter().any(same)
    }

    /// Adds a row to the file.
    pub(super) fn add(&mut self, row: Row) -> Result<(), Failure> {
        self.append(&row.line())?;
        self.rows.push(row);
        Ok(())
    }

    /// All rows, in the order in which the runs ended.
    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    fn append(&self, line: &str) -> Result<(), Failure> {
        let opened: std::io::Result<File> = OpenOptions::new().append(true).open(&self.path);
        opened
            .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()))
            .map_err(on_path("write", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(sweep: &str) -> Vec<(String, String)> {
        vec![
            ("sweep".to_owned(), sweep.to_owned()),
            ("muonmax+momo".to_owned(), "hidden_scale 4".to_owned()),
        ]
    }

    fn row(rate: f64, loss: Option<f64>) -> Row {
        Row {
            variant: "muonmax+momo".parse().unwrap(),
            rate,
            seed: 2,
            loss,
        }
    }

    #[test]
    fn rows_come_back_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("basin.csv");
        let mut record = Record::open(&path, &settings("300 steps")).unwrap();
        let rows = [row(6e-3 / 8.0, Some(2.0613)), row(0.1 + 0.2, None)];
        for row in &rows {
            record.add(row.clone()).unwrap();
        }
        assert_eq!(Record::read(&path).unwrap().rows(), rows);
        assert_eq!(Record::open(&path, &settings("300 steps")).unwrap().rows(), rows);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            format!(
                "{HEADER}\n# sweep: 300 steps\n# muonmax+momo: hidden_scale 4\n\
                 muonmax,true,7.5e-4,2,2.0613,false\nmuonmax,true,3.0000000000000004e-1,2,,true\n"
            )
        );
    }

    #[test]
    fn rows_of_other_settings_are_not_mixed_in() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("basin.csv");
        Record::open(&path, &settings("300 steps")).unwrap();
        let before = fs::read_to_string(&path).unwrap();
        let refused = Record::open(&path, &settings("100 steps")).err().unwrap().to_string();
        assert!(
            refused.contains("300 steps") && refused.contains("100 steps"),
            "{refused}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), before);
        // Another optimiser may come later.
        let more = [
            settings("300 steps"),
            vec![("adamw".to_owned(), "no hidden_scale".to_owned())],
        ]
        .concat();
        Record::open(&path, &more).unwrap();
        assert!(
            fs::read_to_string(&path)
                .unwrap()
                .ends_with("# adamw: no hidden_scale\n")
        );
    }

    #[test]
    fn a_line_that_is_no_row_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("basin.csv");
        for line in [
            "muon,false,1e-3,1,2.0",
            "muon,no,1e-3,1,2.0,false",
            "muon,false,1e-3,1,,false",
            "muon,false,1e-3,1,2.0,true",
            "muon,false,1e-3,1,NaN,false",
            "muon,false,-1,1,2.0,false",
            "mu on,false,1e-3,1,2.0,false",
            "muon,false,1e-3,1.5,2.0,false",
        ] {
            fs::write(&path, format!("{HEADER}\nmuon,false,1e-3,1,2.0,false\n{line}\n")).unwrap();
            let refused = Record::read(&path).err().unwrap().to_string();
            assert!(refused.contains("line 3 of"), "{line}: {refused}");
        }
        fs::write(&path, format!("{HEADER}\nmuon,false,1e-3,1,2.0,false")).unwrap();
        assert!(Record::read(&path).err().unwrap().to_string().contains("last line"));
    }
}
