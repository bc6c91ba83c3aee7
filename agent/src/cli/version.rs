//! `wherry version`.

use std::process::{Command, ExitCode, Stdio};

use argh::{ArgsInfo, FromArgs};
use serde_json::json;
use wherry_images::Platform;

use super::failure::{Failure, print};
use super::place::{Place, find_runtime};
use super::table::clean;

/// print the versions of wherry, its runtime and the kernel, and the platform that images are chosen for
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(subcommand, name = "version", example = "wherry version --format json")]
pub struct Args {
    /// table, or json
    #[argh(option, arg_name = "format", default = "String::from(\"table\")")]
    pub format: String,
}

pub(super) fn run(args: &Args, _place: &Place) -> Result<ExitCode, Failure> {
    let as_json = super::images::is_json(&args.format)?;
    let version = env!("CARGO_PKG_VERSION");
    let runtime = find_runtime().ok().map(|path| {
        let output = Command::new(&path).arg("--version").stdin(Stdio::null()).output();
        let output = output
            .ok()
            .filter(|output| output.status.success())
            .map(|output| output.stdout);
        let text = output
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default();
        let told = text
            .lines()
            .next()
            .map(clean)
            .unwrap_or_else(|| "tells no version".into());
        (path, told)
    });
    let names = rustix::system::uname();
    let kernel = format!(
        "{} {}",
        names.release().to_string_lossy(),
        names.machine().to_string_lossy()
    );
    let platform = Platform::host().to_string();
    let (path, told) = match &runtime {
        Some((path, told)) => (path.display().to_string(), told.as_str()),
        None => (String::new(), "not found"),
    };
    let text = if as_json {
        let object = json!({
            "wherry": version,
            "runtime": { "version": told, "path": path },
            "kernel": kernel,
            "platform": platform,
        });
        format!("{object}\n")
    } else {
        let runtime = if path.is_empty() {
            told.to_owned()
        } else {
            format!("{told} ({path})")
        };
        format!("wherry    {version}\nruntime   {runtime}\nkernel    {kernel}\nplatform  {platform}\n")
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}
