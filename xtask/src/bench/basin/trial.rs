//! The runs of a sweep: optimisers, each with the rates around its usual one, and seeds.

use std::fmt;
use std::str::FromStr;

use crate::bench::variant::Variant;
use crate::failure::Failure;

/// How an optimiser is swept.
struct Setting {
    variant: &'static str,
    /// `optimizer.hidden_scale`, where the method has hidden matrices.
    hidden_scale: Option<f64>,
    /// The peak learning rate in the middle of the grid, which holds the best one on `examples/basin.toml`.
    centre: f64,
}

const fn setting(variant: &'static str, hidden_scale: Option<f64>, centre: f64) -> Setting {
    Setting {
        variant,
        hidden_scale,
        centre,
    }
}

/// A method and its Momo variant have one grid, so that their curves lie over each other.
const SETTINGS: &[Setting] = &[
    setting("muonadam", Some(16.0), 1.2e-2),
    setting("muonadam+momo", Some(16.0), 1.2e-2),
    setting("scion", Some(4.0), 1.2e-2),
    setting("scion+momo", Some(4.0), 1.2e-2),
    setting("muonmax", Some(4.0), 1.2e-2),
    setting("muonmax+momo", Some(4.0), 1.2e-2),
    setting("polargrad", Some(64.0), 1.5e-3),
    setting("polargrad+momo", Some(64.0), 1.5e-3),
    setting("muon", Some(20.0), 6e-3),
    setting("adamw", None, 3e-3),
];

/// Part of the steps for which the rate rises.
const WARMUP: f64 = 0.05;
/// Last part of the steps, in which the rate falls to 0 in a straight line.
const DECAY: f64 = 0.5;

/// Rates that the user wants, for one optimiser or for all.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rates {
    variant: Option<Variant>,
    rates: Vec<f64>,
}

impl FromStr for Rates {
    type Err = String;

    fn from_str(text: &str) -> Result<Rates, String> {
        let (variant, rates) = match text.split_once('=') {
            Some((variant, rates)) => (Some(variant.parse()?), rates),
            None => (None, text),
        };
        let rates = rates.split(',').map(|word| {
            let rate = word.trim().parse::<f64>().ok();
            rate.filter(|rate| rate.is_finite() && *rate > 0.0)
                .ok_or_else(|| format!("{word:?} is not a learning rate, a number above 0"))
        });
        Ok(Rates {
            variant,
            rates: rates.collect::<Result<_, _>>()?,
        })
    }
}

/// One run.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Trial {
    pub(super) variant: Variant,
    /// Peak learning rate.
    pub(super) rate: f64,
    pub(super) seed: u64,
    steps: u64,
    hidden_scale: Option<f64>,
}

impl Trial {
    /// Also the name of the run's folder; no two runs of a sweep have one.
    pub(super) fn name(&self) -> String {
        format!("{}-{:e}-seed-{}", self.variant, self.rate, self.seed).replace('+', "-with-")
    }

    /// The changes of the config that make it.
    pub(super) fn sets(&self) -> Vec<String> {
        let warmup = (self.steps as f64 * WARMUP).round();
        let mut sets = vec![
            format!("run.name={}", self.name()),
            format!("run.seed={}", self.seed),
            format!("run.steps={}", self.steps),
            format!(
                "learning_rate.schedule={{ kind = \"warmup-stable-decay\", peak = {:e}, warmup = {warmup}, decay = {DECAY} }}",
                self.rate
            ),
        ];
        sets.extend(self.variant.sets());
        sets.extend(
            self.hidden_scale
                .map(|scale| format!("optimizer.hidden_scale={scale:?}")),
        );
        sets
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:e}, seed {}", self.variant, self.rate, self.seed)
    }
}

/// Centre times the powers of two from −`octaves` to `octaves`, rising.
fn grid(centre: f64, octaves: u32) -> Vec<f64> {
    let octaves = i32::try_from(octaves).unwrap_or(i32::MAX);
    // Powers of two multiply exactly, so a grid is the same whatever its size.
    (-octaves..=octaves).map(|octave| centre * 2f64.powi(octave)).collect()
}

/// All runs, the first seed's first, so that a sweep that is not finished shows all optimisers.
///
/// # Errors
/// A method that no setting is known for, or rates for one that is not swept.
pub(super) fn list(
    variants: &[Variant],
    seeds: &[u64],
    steps: u64,
    octaves: u32,
    given: &[Rates],
) -> Result<Vec<Trial>, Failure> {
    if let Some(stray) = given
        .iter()
        .filter_map(|rates| rates.variant.as_ref())
        .find(|v| !variants.contains(v))
    {
        return Err(Failure::input(format!(
            "--rates names {stray}, which is not among the --methods of this sweep"
        )));
    }
    let mut trials: Vec<Trial> = Vec::new();
    for &seed in seeds {
        for variant in variants {
            let setting = setting_of(variant)?;
            let own = given.iter().filter(|rates| rates.variant.as_ref() == Some(variant));
            let chosen = own.chain(given.iter().filter(|rates| rates.variant.is_none())).next();
            let rates = chosen.map_or_else(|| grid(setting.centre, octaves), |chosen| chosen.rates.clone());
            for rate in rates {
                let trial = Trial {
                    variant: variant.clone(),
                    rate,
                    seed,
                    steps,
                    hidden_scale: setting.hidden_scale,
                };
                if !trials.contains(&trial) {
                    trials.push(trial);
                }
            }
        }
    }
    Ok(trials)
}

/// What has to stay the same for results to belong together: of the whole sweep, and of each optimiser.
pub(super) fn settings(variants: &[Variant], sweep: &str) -> Result<Vec<(String, String)>, Failure> {
    let mut settings = vec![("sweep".to_owned(), sweep.to_owned())];
    for variant in variants {
        let text = match setting_of(variant)?.hidden_scale {
            Some(scale) => format!("hidden_scale {scale}"),
            None => "no hidden_scale".to_owned(),
        };
        settings.push((variant.to_string(), text));
    }
    Ok(settings)
}

fn setting_of(variant: &Variant) -> Result<&'static Setting, Failure> {
    let name = variant.to_string();
    SETTINGS.iter().find(|setting| setting.variant == name).ok_or_else(|| {
        let known: Vec<&str> = SETTINGS.iter().map(|setting| setting.variant).collect();
        Failure::input(format!(
            "the sweep has no learning rate for the method {name}; it knows {}",
            known.join(", ")
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variants(names: &[&str]) -> Vec<Variant> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn a_grid_doubles_around_its_centre_and_a_larger_one_holds_the_smaller() {
        assert_eq!(grid(4e-3, 1), [2e-3, 4e-3, 8e-3]);
        assert_eq!(grid(6e-3, 4).len(), 9);
        let (small, large) = (grid(6e-3, 2), grid(6e-3, 5));
        assert!(small.iter().all(|rate| large.contains(rate)));
    }

    #[test]
    fn every_setting_names_an_optimiser_once() {
        for setting in SETTINGS {
            assert_eq!(setting.variant.parse::<Variant>().unwrap().to_string(), setting.variant);
            assert_eq!(
                SETTINGS.iter().filter(|other| other.variant == setting.variant).count(),
                1
            );
        }
    }

    #[test]
    fn runs_are_listed_seed_by_seed_and_have_names_of_their_own() {
        let trials = list(&variants(&["muon", "muonmax+momo"]), &[7, 8], 300, 1, &[]).unwrap();
        assert_eq!(trials.len(), 12);
        assert!(trials[..6].iter().all(|trial| trial.seed == 7));
        let mut names: Vec<String> = trials.iter().map(Trial::name).collect();
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        assert!(
            names.iter().all(|name| name.len() <= 64 && name.chars().all(allowed)),
            "{names:?}"
        );
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 12);
    }

    #[test]
    fn a_run_is_said_in_changes_of_the_config() {
        let trials = list(&variants(&["muonmax+momo"]), &[7], 300, 0, &[]).unwrap();
        let sets = trials[0].sets();
        for set in [
            "run.seed=7",
            "run.steps=300",
            "optimizer.method=muonmax",
            "optimizer.momo={ lower_bound = 0.0 }",
            "optimizer.hidden_scale=4.0",
            "learning_rate.schedule={ kind = \"warmup-stable-decay\", peak = 1.2e-2, warmup = 15, decay = 0.5 }",
        ] {
            assert!(sets.iter().any(|other| other == set), "{set} is not among {sets:?}");
        }
        // AdamW has no hidden matrices, and its config no scale of theirs.
        let sets = list(&variants(&["adamw"]), &[7], 300, 0, &[]).unwrap()[0].sets();
        assert!(!sets.iter().any(|set| set.contains("hidden_scale")), "{sets:?}");
    }

    #[test]
    fn rates_of_the_user_take_the_place_of_the_grid() {
        let rates = |text: &str| text.parse::<Rates>();
        let given = [rates("1e-3,2e-3").unwrap(), rates("muonadam+momo=0.5").unwrap()];
        let trials = list(&variants(&["muon", "muonadam+momo"]), &[1], 300, 4, &given).unwrap();
        let of: Vec<(String, f64)> = trials.iter().map(|t| (t.variant.to_string(), t.rate)).collect();
        assert_eq!(
            of,
            [
                ("muon".to_owned(), 1e-3),
                ("muon".to_owned(), 2e-3),
                ("muonadam+momo".to_owned(), 0.5)
            ]
        );
        assert!(
            list(&variants(&["muon"]), &[1], 300, 4, &given).is_err(),
            "muonadam+momo is not swept"
        );
        for text in ["", "0", "-1", "nan", "muon=", "muon=1e-3,", "=1"] {
            assert!(rates(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_method_without_a_rate_is_refused_with_those_that_have_one() {
        let refused = list(&variants(&["sgd"]), &[1], 300, 4, &[]).unwrap_err().to_string();
        assert!(refused.contains("sgd") && refused.contains("muonmax+momo"), "{refused}");
    }
}
