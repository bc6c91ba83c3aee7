//! Where things are: the state directory and the runtime.

use std::env;
use std::path::{Path, PathBuf};

use rustix::fs::Access;
use wherry_images::Store;

use super::failure::Failure;
use crate::container::Containers;

/// The name of the runtime's program.
const RUNTIME: &str = "wherry-runtime";

/// Where this call works.
#[derive(Debug)]
pub(super) struct Place {
    root: Option<PathBuf>,
}

impl Place {
    /// With the state directory of the command line, if one was given.
    pub(super) fn new(root: Option<PathBuf>) -> Self {
        Self { root }
    }

    /// The state directory: `--root`, `WHERRY_ROOT`, or the user's data directory.
    pub(super) fn root(&self) -> Result<PathBuf, Failure> {
        let set = |name| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        if let Some(root) = self.root.clone().or_else(|| set("WHERRY_ROOT")) {
            return std::path::absolute(&root).map_err(|error| Failure::about(root.display(), &error));
        }
        let data = set("XDG_DATA_HOME").filter(|path| path.is_absolute());
        let home = || {
            set("HOME")
                .filter(|path| path.is_absolute())
                .map(|home| home.join(".local/share"))
        };
        let data = data.or_else(home);
        let data =
            data.ok_or_else(|| Failure::new("no state directory: HOME is not set; give --root DIR"))?;
        // The store makes the last part; those above it are made as any program makes them.
        std::fs::create_dir_all(&data)
            .map_err(|error| Failure::about(format!("cannot make {}", data.display()), &error))?;
        Ok(data.join("wherry"))
    }

    /// The images.
    pub(super) fn store(&self) -> Result<Store, Failure> {
        Ok(Store::open(&self.root()?)?.with_budget(crate::budget::of_environment()))
    }

    /// The containers.
    pub(super) fn containers(&self) -> Result<Containers, Failure> {
        Ok(Containers::open(self.store()?, &find_runtime()?)?)
    }
}

/// The runtime: `WHERRY_RUNTIME`, the one beside this program, or that in `PATH`.
pub(super) fn find_runtime() -> Result<PathBuf, Failure> {
    let runs = |path: &Path| path.is_file() && rustix::fs::access(path, Access::EXEC_OK).is_ok();
    if let Some(path) = env::var_os("WHERRY_RUNTIME")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
    {
        let absolute = std::path::absolute(&path).unwrap_or_else(|_| path.clone());
        return match runs(&absolute) {
            true => Ok(absolute),
            false => Err(Failure::new(format!(
                "WHERRY_RUNTIME={}: not a program; correct or unset it",
                path.display()
            ))),
        };
    }
    let beside = env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join(RUNTIME)));
    let path = env::var_os("PATH").unwrap_or_default();
    let in_path = env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(RUNTIME));
    beside
        .into_iter()
        .chain(in_path)
        .find(|path| runs(path))
        .ok_or_else(|| {
            Failure::new(format!(
                "{RUNTIME}: not found beside wherry nor in PATH; install it or set WHERRY_RUNTIME"
            ))
        })
}
