//! What an image says about running it, and what the caller says instead.

use wherry_images::Image;
use wherry_images::manifest::ImageConfig;

use super::Error;
use crate::container::{Limits, Network, Owner, Signal, Spec};

/// Seconds between the stop signal and `SIGKILL`: docker's.
const STOP_GRACE: u32 = 10;

impl Spec {
    /// A container that does what its image says, in a private network. `image_name` is shown as the image's name;
    /// `entrypoint` and `args` follow [`argv`].
    pub fn from_image(
        image: &Image,
        image_name: &str,
        entrypoint: Option<&[String]>,
        args: &[String],
    ) -> Result<Self, Error> {
        let config = &image.config.config;
        let refused = |what: String| Error::Image {
            image: image_name.into(),
            what,
        };
        let stop_signal = match config.stop_signal.as_str() {
            "" => Signal::TERM,
            text => Signal::parse(text).map_err(|error| refused(error.to_string()))?,
        };
        if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
            return Err(refused(format!(
                "working directory {:?} is not absolute",
                config.working_dir
            )));
        }
        let args = argv(&image.config, entrypoint, args);
        if args.is_empty() {
            return Err(Error::NoCommand(image_name.into()));
        }
        Ok(Self {
            name: String::new(),
            image: image.digest,
            image_name: image_name.into(),
            args,
            env: config.env.iter().map(|line| split(line)).collect(),
            cwd: config.working_dir.clone(),
            user: config.user.clone(),
            hostname: String::new(),
            mounts: Vec::new(),
            ports: Vec::new(),
            network: Network::Private,
            tty: false,
            open_stdin: false,
            readonly_root: false,
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            extra_hosts: Vec::new(),
            labels: config.labels.clone(),
            owner: Owner::Cli,
            auto_remove: false,
            stop_signal,
            stop_grace: STOP_GRACE,
            limits: Limits::default(),
            devices: Vec::new(),
            security: super::Security::default(),
        })
    }
}

/// The final argument vector: docker's rule, which is Kubernetes' with `command` and `args`. Another entry point drops
/// the image's default arguments; an empty list leaves the arguments alone.
pub fn argv(config: &ImageConfig, entrypoint: Option<&[String]>, args: &[String]) -> Vec<String> {
    let image = &config.config;
    let (head, tail): (&[String], &[String]) = match (entrypoint, args) {
        (Some(entrypoint), args) => (entrypoint, args),
        (None, []) => (&image.entrypoint, &image.cmd),
        (None, args) => (&image.entrypoint, args),
    };
    head.iter().chain(tail).cloned().collect()
}

/// Puts `changes` over an environment: a known name keeps its place and gets the new value.
pub fn merge_env(env: &mut Vec<(String, String)>, changes: impl IntoIterator<Item = (String, String)>) {
    for (name, value) in changes {
        match env.iter_mut().find(|(known, _)| *known == name) {
            Some(known) => known.1 = value,
            None => env.push((name, value)),
        }
    }
}

fn split(line: &str) -> (String, String) {
    let (name, value) = line.split_once('=').unwrap_or((line, ""));
    (name.into(), value.into())
}

/// Reads docker's `--env-file`: `NAME=value` lines taken as they are, `#` comments, and bare names whose value
/// `lookup` knows. `Err` is the number of the line that is none of these.
pub fn parse_env_file(
    text: &str,
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<Vec<(String, String)>, (usize, &'static str)> {
    let mut env = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.split_once('=') {
            Some(("", _)) => return Err((number + 1, "the variable has no name")),
            Some((name, _)) if name.contains(char::is_whitespace) => {
                return Err((number + 1, "the variable's name contains white space"));
            }
            Some((name, value)) => env.push((name.into(), value.into())),
            None if line.contains(char::is_whitespace) => {
                return Err((number + 1, "the variable's name contains white space"));
            }
            None => env.extend(lookup(line).map(|value| (line.into(), value))),
        }
    }
    Ok(env)
}
