//! `lockstep k8s`: a run on Kubernetes, from its config. Nothing here talks to a cluster but kubectl.
//!
//! Way of data: the config and the flags ([`choice`]) become [`settings::Settings`], where everything is decided: names, image,
//! memory ([`memory`]), times, ports, and the config as pods read it ([`in_pods`]). [`manifests`] says it in the words of
//! Kubernetes, one value for each object. From there it goes out as one YAML stream (`render`), through kubectl ([`kubectl`]:
//! `apply`, `logs`, `delete`), or as a kustomize tree with a base, overlays and components ([`tree`]), in which every difference
//! between two renderings is a patch that was computed and not written. The repository's `k8s/` is that tree for one of the
//! examples. So nothing is said twice.

mod choice;
mod in_pods;
mod kubectl;
mod manifests;
mod memory;
mod names;
mod settings;
mod tree;
mod yaml;

use std::io::Write as _;

use lockstep_config::RunConfig;

use crate::cli::{K8sArguments, K8sCommand};
use crate::ending::Ending;
use choice::Choice;
use settings::Settings;

/// Carries out `lockstep k8s …`.
pub(crate) fn k8s(command: &K8sCommand) -> Result<(), Ending> {
    match command {
        K8sCommand::Render(arguments) => print(&stream(&settings(arguments)?)?),
        K8sCommand::Apply(arguments) => {
            let settings = settings(arguments)?;
            kubectl::apply(&settings, &stream(&settings)?)
        }
        K8sCommand::Logs { of, follow } => kubectl::logs(&settings(of)?, *follow),
        K8sCommand::Delete { of, volumes } => {
            let settings = settings(of)?;
            let objects = manifests::manifests(&settings);
            let kept = |object: &serde_json::Value| *volumes || object["kind"] != "PersistentVolumeClaim";
            let objects: Vec<_> = objects.into_iter().filter(kept).collect();
            kubectl::delete(&settings, &yaml::stream(&objects)?)
        }
        K8sCommand::Kustomize {
            config,
            ranks,
            image,
            sets,
            out,
        } => {
            let config = RunConfig::read(config, sets).map_err(Ending::bad_input)?;
            tree::write(&config, *ranks, image.as_deref(), out)
        }
    }
}

/// What is decided about a run, with what a person should know of it on stderr.
fn settings(arguments: &K8sArguments) -> Result<Settings, Ending> {
    let config = RunConfig::read(&arguments.config, &arguments.sets).map_err(Ending::bad_input)?;
    let choice = Choice {
        overlay: arguments.overlay,
        gpu: arguments.gpu,
        tls: arguments.tls,
        // Whom a right is given to is said with the namespace, so only a known one can have it.
        lease: arguments.namespace.is_some(),
        image: arguments.image.clone(),
        namespace: arguments.namespace.clone(),
        ranks: arguments.ranks,
    };
    let settings = Settings::of(&config, &choice)?;
    if !settings.tls && !config.security.insecure_bind {
        return Err(Ending::BadInput(
            "between pods the coordinator is reached by its network address, and without TLS everybody who reaches it may \
             watch, stop and join the run: say --tls (docs/kubernetes.md says how the certificates come into the cluster), or \
             say that this is wanted with --set security.insecure_bind=true, and only a NetworkPolicy keeps others away"
                .to_owned(),
        ));
    }
    for warning in settings.warnings() {
        eprintln!("warning: {warning}");
    }
    Ok(settings)
}

fn stream(settings: &Settings) -> Result<String, Ending> {
    Ok(format!(
        "{}{}",
        settings.heading(),
        yaml::stream(&manifests::manifests(settings))?
    ))
}

fn print(text: &str) -> Result<(), Ending> {
    // A reader that went away (a closed pipe) is no failure of ours.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}
