//! The server as a process of its own, on the stand-in for libcuda.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use gqla_fakecuda::{Config, testing::library_path};
use serde_json::json;

/// Weights, kernels and their trials, on a machine that does much else.
const STARTS: Duration = Duration::from_secs(120);

/// Well below the minute that a liveness probe takes.
const ENDS: Duration = Duration::from_secs(20);

struct Server {
    process: Child,
    api: SocketAddr,
    admin: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    fn start(command: &mut Command) -> Self {
        let address = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (api, admin) = (address(), address());
        let process = command
            .args(["--listen", &api.to_string(), "--admin-listen", &admin.to_string()])
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self { process, api, admin }
    }

    fn wait_until_ready(&mut self) {
        let start = Instant::now();
        while !ask(self.admin, "GET /readyz HTTP/1.1\r\n", "")
            .is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
        {
            if let Some(status) = self.process.try_wait().unwrap() {
                panic!("{status}: {}", self.said());
            }
            assert!(start.elapsed() < STARTS, "not ready");
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn wait_for_end(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < ENDS, "still there");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// All that it said, once it has ended.
    fn said(&mut self) -> String {
        let mut text = String::new();
        self.process.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        self.process.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }
}

/// The whole answer, if there is one.
fn ask(address: SocketAddr, request: &str, body: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    let length = body.len();
    write!(
        stream,
        "{request}Host: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .ok()?;
    let mut answer = Vec::new();
    BufReader::new(stream).read_until(0, &mut answer).ok()?;
    String::from_utf8(answer).ok()
}

/// The server of a tiny model on a GPU, and where its libraries are.
fn on(device: &str, libraries: &str) -> Command {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama_a/llama_gqla_a");
    let mut command = Command::new(env!("CARGO_BIN_EXE_gqla-server"));
    command
        .arg("--model")
        .arg(model)
        .args(["--device", "cuda", "--decode-path", "gqa", "--served-model-name", "tiny"])
        .args(["--max-model-len", "64"])
        .env("LD_LIBRARY_PATH", libraries)
        .env(Config::DEVICES_ENV, device);
    command
}

/// Why a process ended, of all that it said.
fn reason(said: &str) -> &str {
    said.lines().rfind(|line| line.starts_with("Error: ")).unwrap_or_default()
}

/// A T4 has no kernel: whoever put the server there learns it in the planner's words, not by what no image of a kernel loads for.
#[test]
fn a_card_that_is_too_old_ends_the_start_with_the_planners_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(&mut on("T4", &library_path(folder.path(), false)));
    let status = server.wait_for_end();
    let said = server.said();
    assert_eq!(status.code(), Some(1), "{said}");
    let sentence =
        "the card has compute capability 7.5, and kernels need 8.0 or higher: use the CPU or another GPU";
    assert!(reason(&said).ends_with(sentence), "{said}");
}

/// A GPU that touched memory of nobody answers nothing more in this process, so the process ends at once and says why, and who
/// was being answered hears of it.
#[test]
fn an_error_of_the_gpu_ends_the_process_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let fault = folder.path().join("fault");
    let mut server =
        Server::start(on("H20", &library_path(folder.path(), true)).env(Config::FAULT_ENV, &fault));
    server.wait_until_ready();
    let body = json!({"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 2}).to_string();
    let complete = || ask(server.api, "POST /v1/completions HTTP/1.1\r\n", &body).unwrap();
    assert!(complete().starts_with("HTTP/1.1 200"), "{}", complete());
    fs::write(&fault, "").unwrap();
    let answer = complete();
    assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
    assert!(!answer.contains("CUDA_ERROR"), "clients only learn that something failed: {answer}");
    let status = server.wait_for_end();
    let said = server.said();
    assert_eq!(status.code(), Some(1), "{said}");
    let last = reason(&said);
    assert!(
        last.contains("the engine failed, and only a new process helps")
            && last.contains("CUDA_ERROR_ILLEGAL_ADDRESS"),
        "{said}"
    );
}
