//! Debian's `docker-registry` on a free loopback port, with storage of its own.

use crate::stage::{Process, free_port, wait_for};
use std::io::Result;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// A running registry; dropping it ends it.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
    _process: Process,
}

impl Registry {
    /// Starts it with its files in `directory`, which is made.
    pub fn start(stage: &crate::stage::Stage, name: &str) -> Result<Self> {
        let directory = stage.private_directory(name)?;
        let address: SocketAddr = ([127, 0, 0, 1], free_port()?).into();
        let config = directory.join("config.yml");
        stage.write(&config, &configuration(address, &directory))?;
        let mut command = stage.command("docker-registry");
        command
            .arg("serve")
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none");
        let mut process = stage.start(name, command)?;
        wait_for("docker-registry answers", Duration::from_secs(20), || {
            if let Some(status) = process.ended() {
                return Some(Err(std::io::Error::other(format!(
                    "docker-registry: {status}: {}",
                    process.log()
                ))));
            }
            let answer = crate::http::get(address, "/v2/", None, Duration::from_secs(1));
            answer.is_ok_and(|answer| answer.status == 200).then_some(Ok(()))
        })??;
        Ok(Self {
            address,
            _process: process,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

fn configuration(address: SocketAddr, directory: &Path) -> String {
    format!(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    \
         enabled: true\nhttp:\n  addr: {address}\n",
        directory.join("storage").display()
    )
}

/// Runs skopeo with no policy and no credentials of the host.
pub fn skopeo(args: &[&str]) -> Result<String> {
    let output = Command::new("skopeo")
        .arg("--insecure-policy")
        .args(args)
        .output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
        return Err(std::io::Error::other(format!(
            "skopeo {}: {text}",
            args.join(" ")
        )));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
