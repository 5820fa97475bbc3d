//! The admin server as a kubelet and a Prometheus see it: over a socket.
#![expect(clippy::unwrap_used, reason = "a test helper that fails should fail the test")]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use gqla_telemetry::{AdminError, AdminServer, Health, Probe, prometheus};

struct Loading;

impl Health for Loading {
    fn live(&self) -> Probe {
        Probe::Ok
    }

    fn ready(&self) -> Probe {
        Probe::NotOk("the model is loading".to_owned())
    }

    fn started(&self) -> Probe {
        Probe::NotOk("read 3 of 30 layers".to_owned())
    }
}

fn start() -> AdminServer {
    let registry = prometheus::Registry::new();
    let counter = prometheus::IntCounter::new("vllm:things_total", "Things.").unwrap();
    counter.inc_by(7);
    registry.register(Box::new(counter)).unwrap();
    AdminServer::start(SocketAddr::from(([127, 0, 0, 1], 0)), Arc::new(Loading), registry).unwrap()
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    write!(socket, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn probes_answer_with_their_reason() {
    let admin = start();
    for (path, status, body) in [
        ("/livez", "200", "ok\n"),
        ("/readyz", "503", "the model is loading\n"),
        ("/startupz", "503", "read 3 of 30 layers\n"),
    ] {
        let answer = get(admin.address(), path);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
        assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{path}: {answer}");
    }
    assert!(get(admin.address(), "/other").starts_with("HTTP/1.1 404"));
}

#[test]
fn metrics_are_prometheus_text() {
    let admin = start();
    let answer = get(admin.address(), "/metrics");
    assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
    assert!(answer.contains("# TYPE vllm:things_total counter\nvllm:things_total 7\n"), "{answer}");
}

#[test]
fn answers_while_a_busy_runtime_runs_nothing_else() {
    let admin = start();
    let address = admin.address();
    let asked = std::thread::spawn(move || get(address, "/livez"));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let answer = runtime.block_on(async move {
        while !asked.is_finished() {
            std::hint::spin_loop();
        }
        asked.join().unwrap()
    });
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn a_taken_port_is_named() {
    let admin = start();
    let error =
        AdminServer::start(admin.address(), Arc::new(Loading), prometheus::Registry::new()).err().unwrap();
    assert!(matches!(error, AdminError::Listen { .. }));
    assert!(error.to_string().contains(&admin.address().to_string()), "{error}");
}

#[test]
fn dropping_it_frees_the_port_soon() {
    let admin = start();
    let address = admin.address();
    let began = Instant::now();
    drop(admin);
    assert!(began.elapsed() < Duration::from_secs(3));
    assert!(TcpStream::connect(address).is_err());
}
