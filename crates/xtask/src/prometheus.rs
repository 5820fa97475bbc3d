//! A real Prometheus that reads the product's metrics, from Debian's package.

use std::{
    fs,
    io::Write as _,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::shell::{self, capture, step};

const PACKAGE: &str = "prometheus";
const READY: Duration = Duration::from_secs(30);

/// The folder of `prometheus` and `promtool`. The package is unpacked into the cache and not installed: that would start a
/// service on this machine.
pub fn installed() -> Result<PathBuf> {
    let home = shell::cache_dir()?.join("tools").join(PACKAGE);
    let folder = home.join("usr/bin");
    if !folder.join("prometheus").is_file() {
        step("Unpack Debian's prometheus", || {
            let partial = home.with_extension(format!("partial-{}", std::process::id()));
            let download = tempfile::tempdir()?;
            let apt = |words: &[&str]| capture(Command::new("apt-get").args(words).current_dir(&download));
            if apt(&["download", PACKAGE]).is_err() {
                apt(&["update", "--quiet"])?;
                apt(&["download", PACKAGE])?;
            }
            let package = fs::read_dir(&download)?.next().context("apt-get downloaded no package")??;
            capture(Command::new("dpkg-deb").arg("-x").arg(package.path()).arg(&partial))?;
            // Another run may have been faster; its copy is as good.
            if fs::rename(&partial, &home).is_err() {
                fs::remove_dir_all(&partial)?;
            }
            Ok(())
        })?;
    }
    Ok(folder)
}

/// A Prometheus under way; dropping it ends it.
pub struct Prometheus {
    programs: PathBuf,
    process: Child,
    address: SocketAddr,
    folder: TempDir,
}

impl Prometheus {
    /// Starts `prometheus` of `programs`, which reads `/metrics` of every target each second.
    pub fn start(programs: PathBuf, targets: &[SocketAddr]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("prometheus.yml");
        // JSON is YAML.
        let targets: Vec<_> = targets.iter().map(SocketAddr::to_string).collect();
        let scrape = json!({"job_name": "gqla", "static_configs": [{"targets": targets}]});
        let text = json!({"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]});
        fs::write(&config, text.to_string())?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let process = Command::new(programs.join("prometheus"))
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stderr(fs::File::create(folder.path().join("log"))?)
            .spawn()
            .context("cannot start prometheus")?;
        let prometheus = Self { programs, process, address, folder };
        let (start, ready) = (Instant::now(), format!("http://{address}/-/ready"));
        while ureq::get(&ready).call().is_err() {
            if start.elapsed() > READY {
                let log = fs::read_to_string(prometheus.folder.path().join("log"))?;
                bail!("prometheus is not ready after {} s:\n{log}", READY.as_secs());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(prometheus)
    }

    /// The sum of the series that `expression` selects; none where it selects none.
    pub fn sum(&self, expression: &str) -> Result<Option<f64>> {
        let url = format!("http://{}/api/v1/query", self.address);
        let mut response = ureq::get(&url).query("query", format!("sum({expression})")).call()?;
        let answer: Value = serde_json::from_str(&response.body_mut().read_to_string()?)?;
        ensure!(answer["status"] == "success", "prometheus answers `{expression}` with {answer}");
        let number = answer["data"]["result"][0]["value"][1].as_str();
        Ok(number.map(str::parse).transpose()?)
    }

    /// Has `promtool` read a page of metrics, and fails with what it holds against them.
    pub fn check(&self, page: &str) -> Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
        file.write_all(page.as_bytes())?;
        let output = Command::new(self.programs.join("promtool"))
            .args(["check", "metrics"])
            .stdin(file.reopen()?)
            .output()
            .context("cannot start promtool")?;
        ensure!(output.status.success(), "promtool: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It writes nothing that anybody reads afterwards.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
