//! What system tests set up again and again: a stage with a state directory, images in it, an agent on it.

use crate::sample::{Layout, toolbox};
use crate::stage::{Process, Stage, free_port, wait_for};
use serde_json::Value;
use std::io::{Error, Result};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The name of the small test image once it is in a board's store.
pub const BOX: &str = "localhost/box:1";
/// What writes to a served store need.
pub const TOKEN: &str = "test-write-token";

/// A stage with one state directory.
#[derive(Debug)]
pub struct Board {
    /// The state directory.
    pub root: PathBuf,
    /// The directory that an agent watches.
    pub pods: PathBuf,
    /// Everything around it.
    pub stage: Stage,
}

impl Board {
    /// An empty board.
    pub fn new() -> Result<Self> {
        let stage = Stage::new()?;
        Ok(Self {
            root: stage.private_directory("board")?,
            pods: stage.private_directory("pods")?,
            stage,
        })
    }

    /// A board that has the small test image as [`BOX`].
    pub fn with_box() -> Result<Self> {
        let board = Self::new()?;
        let layout = board.stage.directory().join("box");
        toolbox(
            &mut Layout::create(&layout)?,
            "box",
            &board.stage.program("tracer"),
        )?;
        board.import(&layout, "box", BOX)?;
        Ok(board)
    }

    /// Takes an image of a layout into the store under a name.
    pub fn import(&self, layout: &Path, tag: &str, name: &str) -> Result<()> {
        import(&self.stage, &self.root, layout, tag, name)
    }

    /// `wherry ARGS...`, which must succeed.
    pub fn must(&self, args: &[&str]) -> Result<String> {
        self.stage.must(&self.root, args)
    }

    /// The one line that `wherry ARGS...` fails with, and its exit code. More than one line is an error here.
    pub fn refused(&self, args: &[&str]) -> Result<(i32, String)> {
        refusal(&self.stage, &self.root, args)
    }

    /// `wherry inspect` of one container.
    pub fn inspect(&self, container: &str) -> Result<Value> {
        let text = self.must(&["inspect", container])?;
        let mut all: Value = serde_json::from_str(&text)?;
        Ok(all[0].take())
    }

    /// Starts the agent on this board and waits until it is up. `more` follows `--watch PODS`.
    pub fn agent(&self, log: &str, more: &[&str]) -> Result<Process> {
        let pods = self.pods.to_string_lossy();
        let mut args = vec!["agent", "--watch", &pods];
        args.extend_from_slice(more);
        let mut agent = self.stage.start(log, self.stage.wherry(&self.root, &args))?;
        wait_for("the agent is up", Duration::from_secs(20), || {
            if let Some(status) = agent.ended() {
                return Some(Err(Error::other(format!(
                    "the agent ended, {status}: {}",
                    agent.log()
                ))));
            }
            agent.log().contains("agent started").then_some(Ok(()))
        })??;
        Ok(agent)
    }
}

/// Takes an image of a layout into a store under a name.
pub fn import(stage: &Stage, root: &Path, layout: &Path, tag: &str, name: &str) -> Result<()> {
    let pulled = stage.must(
        root,
        &[
            "pull",
            "-q",
            "--keep-blobs",
            &format!("oci:{}:{tag}", layout.display()),
        ],
    )?;
    let local = pulled.trim();
    stage.must(root, &["tag", local, name])?;
    Ok(())
}

/// The one line that `wherry` fails with, and its exit code. Success, or more than one line, is an error here.
pub fn refusal(stage: &Stage, root: &Path, args: &[&str]) -> Result<(i32, String)> {
    let output = stage.run(root, args)?;
    let text = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
    let what = format!(
        "wherry {}: {}, standard error {text:?}",
        args.join(" "),
        output.status
    );
    match output.status.code() {
        Some(0) => Err(Error::other(format!("{what}: expected a refusal"))),
        Some(code) if text.lines().count() == 1 => Ok((code, text)),
        _ => Err(Error::other(format!(
            "{what}: expected one line and an exit code"
        ))),
    }
}

/// `wherry serve` over a store of its own.
#[derive(Debug)]
pub struct Serve {
    /// Where it listens.
    pub address: SocketAddr,
    _process: Process,
}

impl Serve {
    /// Serves the store at `root`, writes with [`TOKEN`].
    pub fn start(stage: &Stage, name: &str, root: &Path) -> Result<Self> {
        let address: SocketAddr = ([127, 0, 0, 1], free_port()?).into();
        let token = stage.directory().join(format!("{name}-token"));
        stage.write(&token, TOKEN)?;
        let token = token.to_string_lossy().into_owned();
        Self::start_with(stage, name, root, address, &["--token-file", &token])
    }

    /// Serves the store at `root` on `address` with these options of the command line.
    pub fn start_with(
        stage: &Stage,
        name: &str,
        root: &Path,
        address: SocketAddr,
        options: &[&str],
    ) -> Result<Self> {
        let listen = address.to_string();
        let words = [&["serve", "--listen", &listen], options].concat();
        let command = stage.wherry(root, &words);
        let mut process = stage.start(name, command)?;
        wait_for("wherry serve answers", Duration::from_secs(10), || {
            if let Some(status) = process.ended() {
                return Some(Err(Error::other(format!(
                    "wherry serve: {status}: {}",
                    process.log()
                ))));
            }
            // It asks for a login; reading needs none.
            let answer = crate::http::get(address, "/v2/", None, Duration::from_secs(1)).ok()?;
            matches!(answer.status, 200 | 401).then_some(Ok(()))
        })??;
        Ok(Self {
            address,
            _process: process,
        })
    }
}
