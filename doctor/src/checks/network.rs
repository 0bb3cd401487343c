//! Names, ports, certificates, and the coordinator that was named.

use std::time::{Duration, SystemTime};

use crate::catalogue::Id;
use crate::facts::certificates::Certificates;
use crate::facts::coordinator::{Answer, CertificateFault, Coordinator, Fault};
use crate::facts::network::BindFault;
use crate::facts::{Facts, Said};
use crate::finding::Finding;
use crate::wanted::Wanted;

/// Clocks that differ by less disturb nothing.
pub(super) const SKEW: f64 = 2.0;

/// This machine's side: where the coordinator would listen, its certificate, this host's name.
pub(super) fn own(facts: &Facts, wanted: Option<&Wanted>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(bind) = &facts.bind
        && let Some((fault, reason)) = &bind.refused
    {
        let (id, remedy) = match fault {
            BindFault::Taken => (
                Id::PortTaken,
                "stop who listens there (`ss -ltnp`), or choose another coordinator.bind; port 0 takes a free one",
            ),
            BindFault::Absent => (
                Id::AddressAbsent,
                "choose an address of this machine (`ip address`), or 0.0.0.0 with what [security] asks for",
            ),
            BindFault::Forbidden | BindFault::Other => (Id::PortForbidden, "choose a port from 1024 on"),
        };
        let what = format!("nobody can listen on coordinator.bind = \"{}\": {reason}", bind.address);
        findings.push(Finding::new(id, bind.address, what, remedy));
    }
    if let Some(certificates) = &facts.certificates {
        let days = wanted.map_or(14, |wanted| wanted.certificate_days);
        findings.extend(certificate(certificates, days));
    }
    if let Some(name) = &facts.own_name
        && let Err(reason) = &name.addresses
        && wanted.is_some_and(Wanted::uses_shm)
    {
        let what = format!(
            "this host calls itself {:?}, and no address is found for that: {reason}",
            name.name
        );
        let remedy = "add it to /etc/hosts or to the name service";
        findings.push(Finding::new(Id::OwnNameUnresolved, &name.name, what, remedy));
    }
    findings
}

fn certificate(certificates: &Certificates, days: u64) -> Vec<Finding> {
    let place = certificates.certificate.display();
    let renew = "make a new set (`lockstep certs new`), or have the authority renew it; a live coordinator reads it within a second";
    if let Some(reason) = &certificates.unusable {
        let remedy = "name a certificate, its own key and the authority, all PEM, as `lockstep certs new` makes them";
        return vec![Finding::new(Id::CertificateUnusable, place, reason, remedy)];
    }
    let (Some(valid), Some(now)) = (certificates.valid, certificates.now) else {
        return Vec::new();
    };
    let (from, until) = (moment(valid.from), moment(valid.until));
    let finding = |id, what: String| vec![Finding::new(id, &place, what, renew)];
    match () {
        () if now > valid.until => finding(Id::CertificateExpired, format!("it was valid until {until}")),
        () if now < valid.from => vec![Finding::new(
            Id::CertificateEarly,
            &place,
            format!("it is valid from {from} on, and here it is {}", moment(now)),
            "set this machine's clock, or make the set anew",
        )],
        () if now + Duration::from_secs(days * 86_400) > valid.until => finding(
            Id::CertificateSoon,
            format!("it is valid until {until}, which is in less than {days} days"),
        ),
        () => Vec::new(),
    }
}

fn moment(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// The other side: who answers, whether it is believed and lets this caller in, and whether it is the right one.
pub(super) fn coordinator(facts: &Facts, wanted: Option<&Wanted>) -> Vec<Finding> {
    let Some(coordinator) = &facts.coordinator else {
        return Vec::new();
    };
    let mut findings = match &coordinator.answer {
        Ok(answer) => answered(coordinator, answer),
        Err(fault) => vec![failed(coordinator, fault)],
    };
    if let Some(said) = &facts.run {
        findings.extend(run(coordinator, said, wanted));
    }
    findings
}

fn answered(coordinator: &Coordinator, answer: &Answer) -> Vec<Finding> {
    let url = &coordinator.url;
    if !answer.is_coordinator {
        let what = format!(
            "what answers at {url} is no coordinator (HTTP status {})",
            answer.status
        );
        let remedy =
            "correct the port; the coordinator prints its address, and `coordinator.json` in the run's folder has it";
        return vec![Finding::new(Id::CoordinatorNone, url, what, remedy)];
    }
    let skew = answer.clock_ahead.filter(|ahead| ahead.abs() > SKEW);
    skew.map(|ahead| Finding::new(Id::ClockSkew, url, differ("the coordinator's", ahead), CLOCK))
        .into_iter()
        .collect()
}

pub(super) const CLOCK: &str = "set both clocks (`chronyc tracking`, `timedatectl`), and keep them set by NTP";

/// How another clock differs from this machine's.
pub(super) fn differ(whose: &str, ahead: f64) -> String {
    let how = if ahead > 0.0 { "ahead of" } else { "behind" };
    format!("{whose} clock is {:.1} s {how} this machine's", ahead.abs())
}

fn failed(coordinator: &Coordinator, fault: &Fault) -> Finding {
    let url = &coordinator.url;
    let finding = |id, what: String, remedy: &str| Finding::new(id, url, what, remedy);
    match fault {
        Fault::Address(reason) => finding(
            Id::CoordinatorUnreachable,
            format!("{url} is no address of a coordinator: {reason}"),
            "write http://127.0.0.1:PORT or https://HOST:PORT",
        ),
        Fault::Credentials(reason) => finding(
            Id::CoordinatorRefuses,
            format!("what is to be trusted or shown cannot be used: {reason}"),
            "name the authority with --ca or LOCKSTEP_CA, and certificate and key with --cert and --key",
        ),
        Fault::Unresolved(reason) => finding(
            Id::NameUnresolved,
            format!("the host of {url} has no address: {reason}"),
            "correct the name, or add it to the name service or /etc/hosts; in Kubernetes see that the headless Service exists",
        ),
        Fault::Unreachable(reason) => finding(
            Id::CoordinatorUnreachable,
            format!("nobody is reached at {url}: {reason}"),
            "see that the coordinator lives and listens on an address that is reached from here (coordinator.bind), and that no firewall or NetworkPolicy is between",
        ),
        Fault::Tls { there: true } => finding(
            Id::CoordinatorTls,
            format!("{url} talks TLS"),
            "write https:// and name its authority with --ca or LOCKSTEP_CA",
        ),
        Fault::Tls { there: false } => finding(
            Id::CoordinatorTls,
            format!("{url} does not talk TLS"),
            "write http://, or give the coordinator a certificate (security.certificate, security.key)",
        ),
        Fault::Certificate(kind, reason) => {
            let (id, remedy) = match kind {
                CertificateFault::Expired => (
                    Id::CertificateExpired,
                    "renew the coordinator's certificate (`lockstep certs new`), and check this machine's clock",
                ),
                CertificateFault::Early => (
                    Id::CertificateEarly,
                    "set this machine's clock, or wait until it is valid",
                ),
                CertificateFault::Name => (
                    Id::CertificateName,
                    "call the coordinator by a name in its certificate, or make one for this name (`lockstep certs new --host NAME`)",
                ),
                CertificateFault::Authority => (
                    Id::CertificateAuthority,
                    "name the authority that has signed it (--ca, LOCKSTEP_CA): ca.pem of the same `lockstep certs new`",
                ),
                CertificateFault::Other => (Id::CertificateUnusable, "make a new set with `lockstep certs new`"),
            };
            finding(
                id,
                format!("the certificate of {url} is not believed: {reason}"),
                remedy,
            )
        }
        Fault::Refused(reason) => finding(
            Id::CoordinatorRefuses,
            format!("{url} closes the connection: {reason}"),
            LET_IN,
        ),
        Fault::Silent(reason) => finding(
            Id::CoordinatorNone,
            format!("what listens at {url} does not answer as a coordinator: {reason}"),
            "correct the port, or see why the coordinator does not answer (`lockstep status`)",
        ),
    }
}

const LET_IN: &str = "show a certificate (--cert, --key) or a token (--token-file) that it takes, of the right role";

fn run(coordinator: &Coordinator, said: &Said, wanted: Option<&Wanted>) -> Vec<Finding> {
    let url = &coordinator.url;
    let finding = match said {
        Said::Run { name, .. } => {
            let other = wanted.filter(|wanted| wanted.run != *name);
            other.map(|wanted| {
                let what = format!("{url} coordinates the run {name:?}, and run.name is {:?}", wanted.run);
                let remedy = "name the coordinator of this run, or the config of that one";
                Finding::new(Id::CoordinatorOtherRun, url, what, remedy)
            })
        }
        Said::Refused(reason) => Some(Finding::new(
            Id::CoordinatorRefuses,
            url,
            format!("{url} does not let this caller in: {reason}"),
            LET_IN,
        )),
        Said::OtherProtocol(reason) => Some(Finding::new(
            Id::CoordinatorVersion,
            url,
            format!("{url} speaks another protocol: {reason}"),
            "use programs of one version on all hosts",
        )),
        Said::Failed(reason) => Some(Finding::new(
            Id::CoordinatorUnreachable,
            url,
            format!("{url} could not answer: {reason}"),
            "see the coordinator's log; ask again in a moment",
        )),
    };
    finding.into_iter().collect()
}
