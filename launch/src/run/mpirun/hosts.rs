//! Where the ranks of an mpirun are, and at what address they reach the coordinator in this process. Pure; what is asked of the
//! system comes in.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _, UdpSocket};

/// Where the ranks are to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Where {
    /// On this host only.
    Here,
    /// On others too, which reach this one by this name.
    Far {
        /// A name or an address.
        name: String,
    },
}

/// What decides it.
pub(crate) struct Known<'a> {
    /// The hosts of the hostfile; none without one.
    pub(crate) hosts: &'a [String],
    /// Hosts that a resource manager has given, where there is no hostfile.
    pub(crate) allocated: u32,
    /// `coordinator.bind`.
    pub(crate) bind: SocketAddr,
    /// The name of this host that is given.
    pub(crate) advertise: Option<&'a str>,
    /// This host's own name.
    pub(crate) own_name: &'a str,
}

/// Where the ranks run; `is_here` tells names of this host from others.
///
/// # Errors
/// Others could not reach the coordinator: what to set.
pub(crate) fn place(known: &Known<'_>, is_here: impl Fn(&str) -> bool) -> Result<Where, String> {
    let other = known.hosts.iter().find(|host| !is_here(host));
    let is_far = other.is_some() || known.hosts.is_empty() && known.allocated > 1;
    if !is_far {
        return Ok(Where::Here);
    }
    let ip = known.bind.ip();
    if ip.is_loopback() {
        let who = match other {
            Some(other) => format!("the hostfile names other hosts than this one ({other})"),
            None => format!("this job has {} hosts", known.allocated),
        };
        return Err(format!(
            "{who}, and the coordinator listens on {}, which only this host reaches; set coordinator.bind to an address that \
             the others reach (--set coordinator.bind=0.0.0.0:0 takes all of this host's), with a certificate and who may call \
             (`lockstep certs new` and docs/security.md), or on a network of your own --set security.insecure_bind=true",
            known.bind
        ));
    }
    let listed = || {
        known
            .hosts
            .iter()
            .find(|host| is_here(host) && !is_loopback(host))
            .cloned()
    };
    let name = match (known.advertise, ip.is_unspecified()) {
        (Some(name), _) => name.to_owned(),
        (None, true) => listed().unwrap_or_else(|| known.own_name.to_owned()),
        (None, false) => ip.to_string(),
    };
    Ok(Where::Far { name })
}

impl Where {
    /// The coordinator's address for the ranks, which says of itself that it is `url`.
    pub(crate) fn url(&self, url: &str) -> String {
        match (self, url.split_once("://"), url.rsplit_once(':')) {
            (Where::Far { name }, Some((scheme, _)), Some((_, port))) if name.contains(':') => {
                format!("{scheme}://[{name}]:{port}")
            }
            (Where::Far { name }, Some((scheme, _)), Some((_, port))) => format!("{scheme}://{name}:{port}"),
            _ => url.to_owned(),
        }
    }

    /// Whether other hosts take part.
    pub(crate) fn is_far(&self) -> bool {
        matches!(self, Where::Far { .. })
    }
}

/// Whether a name leads to this very host wherever it is said.
fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// Whether a name is this host's: its own, or one that leads to an address of it.
pub(crate) fn is_here(host: &str, own_name: &str) -> bool {
    let short = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    let is_own = !own_name.is_empty() && (host == own_name || !host.contains('.') && host == short(own_name));
    let leads_here = || {
        let addresses = (host, 0).to_socket_addrs();
        // The system lets one listen at its own addresses only.
        addresses.is_ok_and(|mut addresses| addresses.any(|address| UdpSocket::bind(address).is_ok()))
    };
    is_loopback(host) || is_own || leads_here()
}

/// The hosts that Slurm has given to this job; one where there is no such job.
pub(crate) fn allocated() -> u32 {
    let said = std::env::var("SLURM_JOB_NUM_NODES").ok();
    said.and_then(|word| word.trim().parse().ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn of(hosts: &[&str], bind: &str, advertise: Option<&str>) -> Result<Where, String> {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let known = Known {
            hosts: &hosts,
            allocated: 1,
            bind: bind.parse().unwrap(),
            advertise,
            own_name: "own",
        };
        place(&known, |host| ["localhost", "own", "a"].contains(&host))
    }

    fn far(name: &str) -> Result<Where, String> {
        Ok(Where::Far { name: name.to_owned() })
    }

    #[test]
    fn without_other_hosts_the_ranks_reach_it_where_it_listens() {
        for hosts in [&[][..], &["localhost"], &["a", "own"]] {
            let there = of(hosts, "127.0.0.1:0", None).unwrap();
            assert_eq!(there, Where::Here);
            assert_eq!(there.url("http://127.0.0.1:7000"), "http://127.0.0.1:7000");
        }
    }

    #[test]
    fn other_hosts_reach_it_by_the_address_or_name_that_leads_there() {
        assert_eq!(
            of(&["a", "b"], "0.0.0.0:0", None),
            far("a"),
            "as the hostfile calls this one"
        );
        assert_eq!(of(&["localhost", "b"], "0.0.0.0:0", None), far("own"));
        assert_eq!(of(&["b"], "10.0.0.7:7000", None), far("10.0.0.7"));
        assert_eq!(of(&["b"], "10.0.0.7:7000", Some("c")), far("c"));
        let url = |there: Result<Where, String>, url: &str| there.unwrap().url(url);
        assert_eq!(url(far("a"), "https://127.0.0.1:7000"), "https://a:7000");
        assert_eq!(url(far("fd00::1"), "http://[::1]:7000"), "http://[fd00::1]:7000");
    }

    #[test]
    fn an_address_that_others_cannot_reach_is_refused_with_what_to_set() {
        let sentence = of(&["a", "b"], "127.0.0.1:0", None).unwrap_err();
        for part in [
            "(b)",
            "127.0.0.1:0",
            "--set coordinator.bind=0.0.0.0:0",
            "lockstep certs new",
        ] {
            assert!(sentence.contains(part), "{part} is missing in: {sentence}");
        }
        let known = Known {
            hosts: &[],
            allocated: 2,
            bind: "127.0.0.1:0".parse().unwrap(),
            advertise: None,
            own_name: "own",
        };
        assert!(place(&known, |_| true).unwrap_err().contains("this job has 2 hosts"));
    }

    #[test]
    fn this_host_is_known_by_its_names_and_addresses() {
        for host in ["localhost", "127.0.0.1", "::1", "node-1", "node-1.example.org"] {
            assert!(is_here(host, "node-1.example.org"), "{host}");
        }
        // An address for documentation only, which nobody has.
        assert!(!is_here("203.0.113.7", "node-1"));
    }
}
