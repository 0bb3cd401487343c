//! Names and ports.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::mpsc::channel;
use std::time::Duration;

use serde::Serialize;

/// How long a name service may take.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Where a coordinator is to listen, and whether it can.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Bind {
    /// The address.
    pub address: SocketAddr,
    /// Why nobody can listen there now.
    pub refused: Option<(BindFault, String)>,
}

/// Why nobody can listen on an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BindFault {
    /// Somebody does already.
    Taken,
    /// It is not of this machine.
    Absent,
    /// This user may not.
    Forbidden,
    /// In the system's words.
    Other,
}

impl Bind {
    /// Listens there for a moment.
    pub fn look(address: SocketAddr) -> Bind {
        let refused = TcpListener::bind(address).err().map(|error| {
            let fault = match error.kind() {
                ErrorKind::AddrInUse => BindFault::Taken,
                ErrorKind::AddrNotAvailable => BindFault::Absent,
                // A machine without IPv6 has none of its addresses.
                _ if error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) => BindFault::Absent,
                ErrorKind::PermissionDenied => BindFault::Forbidden,
                _ => BindFault::Other,
            };
            (fault, error.to_string())
        });
        Bind { address, refused }
    }
}

/// A name and its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Name {
    /// The name.
    pub name: String,
    /// Its addresses, or why there are none.
    pub addresses: Result<Vec<IpAddr>, String>,
}

impl Name {
    /// Asks the system, and waits for it so long and no longer.
    pub fn look(name: &str, patience: Duration) -> Name {
        let (sender, answer) = channel();
        let asked = name.to_owned();
        // A name service that does not answer cannot be interrupted: its thread is left behind.
        let thread = std::thread::Builder::new().spawn(move || {
            let found = (asked.as_str(), 0u16).to_socket_addrs();
            let _ = sender.send(found.map(|found| found.map(|address| address.ip()).collect::<Vec<_>>()));
        });
        let addresses = match thread.map(|_| answer.recv_timeout(patience)) {
            Ok(Ok(Ok(found))) if !found.is_empty() => Ok(found),
            Ok(Ok(Ok(_))) => Err("it has no address".to_owned()),
            Ok(Ok(Err(error))) => Err(error.to_string()),
            Ok(Err(_)) => Err(format!("no name service answers within {} s", patience.as_secs())),
            Err(error) => Err(error.to_string()),
        };
        Name {
            name: name.to_owned(),
            addresses,
        }
    }
}

/// The name of this host.
pub fn own_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_taken_and_an_address_of_nobody_here_are_told_apart() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let fault = |address| Bind::look(address).refused.map(|(fault, _)| fault);
        assert_eq!(fault(taken.local_addr().unwrap()), Some(BindFault::Taken));
        assert_eq!(fault("192.0.2.1:0".parse().unwrap()), Some(BindFault::Absent));
        assert_eq!(fault("127.0.0.1:0".parse().unwrap()), None);
    }
}
