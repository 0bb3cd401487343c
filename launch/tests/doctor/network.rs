//! Ports, names, and the coordinator that is asked.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;

use crate::stage::{Running, wait_until};
use crate::ward::{Report, Ward, may};

/// A run whose trainers never come: its coordinator serves.
pub(crate) fn coordinator(ward: &Ward, words: &str) -> (Running, String) {
    let mut command = ward.command(&format!("run run.toml -n 1 {words}"));
    let mut run = ward.stage.start(command.env("LOCKSTEP_DOCTOR", "off"));
    let mut url = None;
    wait_until("the coordinator serves", || {
        assert!(run.is_running(), "{}{}", run.out(), run.err());
        let text = std::fs::read_to_string(ward.path("runs/first/coordinator.json")).unwrap_or_default();
        let json = serde_json::from_str::<serde_json::Value>(&text);
        url = json.ok().and_then(|json| Some(json["url"].as_str()?.to_owned()));
        url.is_some()
    });
    (run, url.unwrap())
}

fn ask(ward: &Ward, url: &str) -> Report {
    ward.examine(&format!("run.toml -n 1 --coordinator {url}"))
}

/// Says this to whoever connects, until the test ends.
fn says(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    url
}

#[test]
fn a_port_that_is_taken_and_an_address_of_another_machine() {
    let ward = Ward::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let report = ward.examine(&format!("run.toml -n 1 --set coordinator.bind={address}"));
    report.found("port-taken", &[&address.to_string(), "ss -ltnp"]);
    let words = "run.toml -n 1 --set coordinator.bind=192.0.2.1:7000 --set security.insecure_bind=true";
    ward.examine(words)
        .found("address-absent", &["192.0.2.1:7000", "ip address"]);
}

#[test]
fn a_port_that_is_for_root() {
    let ward = Ward::new();
    let least = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    let starter = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--bounding-set=-all",
        "--inh-caps=-all",
    ];
    let binary = env!("CARGO_BIN_EXE_lockstep");
    if least.trim() != "1024" || !may(&[&starter[..], &["test", "-x", binary]].concat()) {
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(ward.path(""), std::fs::Permissions::from_mode(0o777)).unwrap();
    let report = ward.examine_under(&starter, "run.toml -n 1 --set coordinator.bind=127.0.0.1:81");
    report.found("port-forbidden", &["127.0.0.1:81", "1024"]);
}

#[test]
fn names_that_nobody_knows() {
    let ward = Ward::new();
    ask(&ward, "http://coordinator.invalid:7000")
        .found("name-unresolved", &["coordinator.invalid", "headless Service"]);
    if !may(&["unshare", "--uts", "true"]) {
        return;
    }
    ward.program(
        "no-mpi-trainer",
        &std::fs::read_to_string(ward.path("trainer")).unwrap(),
    );
    let mpirun = ward.program("mpirun", "#!/bin/sh\necho 'mpirun (Open MPI) 4.1.4'\n");
    let script = "hostname nowhere.invalid; exec \"$@\"";
    let mut command = ward.under(
        &["unshare", "--uts", "sh", "-c", script, "sh"],
        "doctor --json run.toml -n 2 --backend mpi",
    );
    let output = command.env("LOCKSTEP_MPIRUN", mpirun).output().unwrap();
    let text = crate::stage::said(&output);
    assert!(
        text.contains("\"id\":\"own-name-unresolved\"") && text.contains("nowhere.invalid"),
        "{text}"
    );
}

#[test]
fn nobody_or_somebody_else_listens_there() {
    let ward = Ward::new();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    ask(&ward, &format!("http://{free}")).found("coordinator-unreachable", &["Connection refused", "coordinator.bind"]);
    ask(&ward, "ftp://host").found("coordinator-unreachable", &["no address"]);
    let page = says("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n<title>Grafana</title>");
    ask(&ward, &page).found("coordinator-none", &["HTTP status 200", "coordinator.json"]);
    let ssh = says("SSH-2.0-OpenSSH_9.2\r\n");
    ask(&ward, &ssh).found("coordinator-none", &["does not answer as a coordinator"]);
}

#[test]
fn the_coordinator_of_this_run_is_fine_and_that_of_another_one_is_not() {
    let ward = Ward::new();
    let (_run, url) = coordinator(&ward, "");
    let report = ask(&ward, &url);
    assert_eq!(report.ids(), [""; 0], "{report:?}");
    let report = ward.examine(&format!("run.toml -n 1 --set run.name=second --coordinator {url}"));
    report.found("coordinator-other-run", &["first", "second"]);
    ask(&ward, &url.replace("http://", "https://")).found("coordinator-refuses", &["--ca"]);
}

/// Something that moves the clock of a process by so many seconds.
fn moved_clock(ward: &Ward, seconds: i64) -> Option<PathBuf> {
    let source = format!(
        "#define _GNU_SOURCE\n#include <time.h>\n#include <unistd.h>\n#include <sys/syscall.h>\nint clock_gettime(clockid_t c, struct timespec *t) {{ long r = syscall(SYS_clock_gettime, c, t); if (c == CLOCK_REALTIME) t->tv_sec += {seconds}; return (int)r; }}\n"
    );
    ward.compiled("clock.so", &source, "-shared -fPIC")
}

#[test]
fn a_clock_that_differs_from_the_coordinator_s() {
    let ward = Ward::new();
    let (_run, url) = coordinator(&ward, "");
    for (seconds, words) in [(300, "behind this machine's"), (-45, "ahead of this machine's")] {
        let Some(clock) = moved_clock(&ward, seconds) else {
            return;
        };
        let words_of = format!("run.toml -n 1 --coordinator {url}");
        let report = ward.examine_with(&words_of, &[("LD_PRELOAD", clock.to_str().unwrap())]);
        report.found("clock-skew", &[words, "NTP"]);
    }
}

#[test]
fn a_coordinator_that_asks_who_calls() {
    let ward = Ward::new();
    let output = ward
        .stage
        .lockstep("certs token --role operator --name alice --tokens tokens");
    assert!(output.status.success(), "{}", crate::stage::said(&output));
    let token = String::from_utf8(output.stdout).unwrap();
    let (_run, url) = coordinator(&ward, "--set security.tokens=tokens");
    ask(&ward, &url).found("coordinator-refuses", &["--token-file"]);
    let words = format!("run.toml -n 1 --coordinator {url}");
    let report = ward.examine_with(&words, &[("LOCKSTEP_TOKEN", token.trim())]);
    assert_eq!(report.ids(), [""; 0], "{report:?}");
}

/// Has the page of a coordinator, and refuses every call with these words.
fn refusing(status: &'static str, words: &'static str) -> String {
    use tonic::codegen::http::{Method, Response};
    use tonic::transport::server::TcpIncoming;

    let answer = move |method: Method| async move {
        let response = Response::builder();
        match method {
            Method::GET => response.body("<title>Lockstep</title>".to_owned()),
            _ => response
                .header("content-type", "application/grpc")
                .header("grpc-status", status)
                .header("grpc-message", words)
                .body(String::new()),
        }
        .unwrap()
    };
    let (sender, address) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async move {
            let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            sender.send(incoming.local_addr().unwrap()).unwrap();
            let routes = tonic::service::Routes::default().into_axum_router().fallback(answer);
            let server = tonic::transport::Server::builder().accept_http1(true);
            server
                .clone()
                .add_routes(routes.into())
                .serve_with_incoming(incoming)
                .await
        })
    });
    format!("http://{}", address.recv().unwrap())
}

#[test]
fn a_coordinator_of_another_version() {
    let ward = Ward::new();
    let (precondition, unimplemented) = ("9", "12");
    let url = refusing(precondition, "this message speaks protocol version 1");
    ask(&ward, &url).found("coordinator-version", &["protocol version 1", "one version"]);
    let url = refusing(unimplemented, "");
    ask(&ward, &url).found("coordinator-version", &["it does not know the call"]);
}

#[test]
fn a_coordinator_that_is_cut_off_does_not_hold_up_the_report() {
    let ward = Ward::new();
    // It accepts and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let kept = std::thread::spawn(move || {
        silent
            .incoming()
            .take(2)
            .map_while(Result::ok)
            .collect::<Vec<TcpStream>>()
    });
    ask(&ward, &url).found("coordinator-none", &["does not answer"]);
    drop(kept);
}
