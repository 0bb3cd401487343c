//! The config as pods read it: its paths are theirs; and what it names outside of the run.

use std::path::{Path, PathBuf};

use lockstep_config::RunConfig;

/// Where things are in a pod.
pub(crate) const DATA: &str = "/data";
/// Another data folder, for validation.
pub(crate) const VALIDATION: &str = "/validation";
/// What coordinator and trainers share: checkpoints and final weights.
pub(crate) const SHARED: &str = "/shared";
/// What is the coordinator's alone: the ledger.
pub(crate) const LEDGER: &str = "/ledger";
/// The config.
pub(crate) const CONFIG: &str = "/etc/lockstep/run";
/// Certificates and other secrets.
pub(crate) const SECRET: &str = "/etc/lockstep/secret";

/// The config with the paths of pods, and without those of this machine.
pub(super) fn in_pods(config: &RunConfig, has_object_store: bool) -> RunConfig {
    let mut config = config.clone();
    config.data.path = PathBuf::from(DATA);
    config.data.validation = config.data.validation.map(|_| PathBuf::from(VALIDATION));
    if !has_object_store {
        config.checkpoint.store = Some(format!("{SHARED}/runs/{}/checkpoints", config.run.name));
    }
    // The address and who is let in are said on the command line of the coordinator, together.
    config.coordinator.bind = ([127, 0, 0, 1], 0).into();
    config.security.certificate = None;
    config.security.key = None;
    config.security.client_ca = None;
    config.security.tokens = None;
    config.security.insecure_bind = false;
    let in_secret = |name: &str| Path::new(SECRET).join(name);
    config.alerts.webhook_file = config.alerts.webhook_file.map(|_| in_secret("webhook"));
    config
}

/// TCP ports of what the config names outside of the run.
pub(super) fn outside(config: &RunConfig, has_object_store: bool) -> Vec<u16> {
    let addresses = [config.alerts.webhook.as_deref(), config.telemetry.otlp.as_deref()];
    let mut ports: Vec<u16> = addresses.into_iter().flatten().filter_map(port_of).collect();
    // Their addresses are secret, or come from the environment: the usual port.
    if config.alerts.webhook_file.is_some() || has_object_store {
        ports.push(443);
    }
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// The port of an `http://` or `https://` address.
fn port_of(address: &str) -> Option<u16> {
    let (scheme, rest) = address.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let after = authority.rsplit_once(']').map_or(authority, |(_, after)| after);
    match (after.rsplit_once(':'), scheme) {
        (Some((_, port)), _) => port.parse().ok(),
        (None, "https") => Some(443),
        (None, _) => Some(80),
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// A small run of six lanes.
    pub(in crate::k8s) fn config(sets: &[&str]) -> RunConfig {
        let text = "[run]\nname = \"a\"\nsteps = 1\nlanes = 6\n[data]\npath = \"unused\"\nsequence_length = 16\n\
                    [model]\nkind = \"gpt2\"\nlayers = 2\nheads = 2\nwidth = 32\nvocab = 61\n[batch]\nmicro_batch = 1\n\
                    schedule = 6\n[learning_rate]\nschedule = 0.5\n";
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        RunConfig::parse(text, "settings.toml", &sets).unwrap()
    }

    #[test]
    fn ports_outside_are_those_of_the_addresses() {
        assert!(outside(&config(&[]), false).is_empty());
        let sets = [
            "alerts.webhook=https://a.example.org/b",
            "telemetry.otlp=http://[::1]:4318",
        ];
        assert_eq!(outside(&config(&sets), false), [443, 4318]);
        assert_eq!(outside(&config(&["telemetry.otlp=http://a"]), true), [80, 443]);
    }

    #[test]
    fn the_config_of_pods_names_nothing_of_this_machine() {
        let sets = [
            "data.validation=elsewhere",
            "checkpoint.store=here",
            "security.insecure_bind=true",
            "alerts.webhook_file=secret-address",
            "coordinator.bind=\"127.0.0.1:9\"",
        ];
        let text = in_pods(&config(&sets), false).to_toml();
        for own in [
            "unused",
            "elsewhere",
            "here",
            "secret-address",
            "insecure_bind = true",
            ":9",
        ] {
            assert!(!text.contains(own), "{own} is left in {text}");
        }
        RunConfig::parse(&text, "in-pods.toml", &[]).unwrap();
        let store = "checkpoint.store=s3://bucket/prefix";
        assert!(
            in_pods(&config(&[store]), true)
                .to_toml()
                .contains("s3://bucket/prefix")
        );
    }
}
