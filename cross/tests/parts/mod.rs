//! What the tests of whole boards set up again and again.

#![allow(dead_code, reason = "each test program uses its part")]

use std::io::Result;

use wherry_cross::{Board, Disk, Pi, payload};

pub(crate) const AARCH64: &str = "aarch64-unknown-linux-musl";
pub(crate) const ARMV7: &str = "armv7-unknown-linux-musleabihf";
/// The name of the payload's image once it is in the board's store.
pub(crate) const BOX: &str = "localhost/box:1";

/// Runs a script as the ordinary user, with the board's programs in its path.
pub(crate) fn user(pi: &mut Pi, script: &str) -> Result<String> {
    pi.as_user(&format!("export PATH=/opt/wherry:$PATH\n{script}"))?
        .ok()
}

/// As [`user`], with what it wrote to standard error after what it wrote to standard output.
pub(crate) fn user_all(pi: &mut Pi, script: &str) -> Result<String> {
    user(pi, &format!("{{ {script}\n}} 2>&1"))
}

/// Looks until a command of the ordinary user succeeds; a guest that never gets there fails with what `last` says.
pub(crate) fn until(pi: &mut Pi, condition: &str, last: &str) -> Result<()> {
    let script = format!(
        "left=1200\nuntil {condition}; do\n  left=$((left - 1))\n  [ $left -gt 0 ] || {{ echo 'never: {}'; {last}; exit 1; }}\n  usleep 100000\ndone",
        condition.replace('\'', "")
    );
    user_all(pi, &script).map(drop)
}

/// A board that is on and has the image as [`BOX`].
pub(crate) fn with_box(board: &Board, triple: &str, disk: &Disk) -> Result<Pi> {
    let mut pi = board.boot(&payload(triple)?, disk)?;
    user(
        &mut pi,
        &format!("name=$(wherry pull -q oci:/opt/wherry/box:box) && wherry tag \"$name\" {BOX}"),
    )?;
    Ok(pi)
}

/// Starts the agent on `~/pods`; it goes on when the script has ended.
pub(crate) fn start_agent(pi: &mut Pi) -> Result<()> {
    user(
        pi,
        ": >>agent.log && before=$(grep -c 'agent started' agent.log)\n\
         setsid wherry agent --watch pods >>agent.log 2>&1 &\n\
         until [ $(grep -c 'agent started' agent.log) -gt $before ]; do kill -0 $! || { cat agent.log; exit 1; }; usleep 50000; done",
    )
    .map(drop)
}

/// A Pod's file. `more` is what its container has besides image and command.
pub(crate) fn pod(name: &str, command: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
         - name: main\n    image: {BOX}\n    command: {command}\n{more}"
    )
}

/// Puts a file into `~/pods`.
pub(crate) fn desire(pi: &mut Pi, name: &str, text: &str) -> Result<()> {
    user(
        pi,
        &format!("mkdir -p pods && cat >pods/.{name} <<'END'\n{text}\nEND\nmv pods/.{name} pods/{name}.yaml"),
    )
    .map(drop)
}
