//! An OCI bundle becomes a confined process.
//!
//! # The launch
//!
//! `create` makes three processes, each from the one before, and leaves two of them:
//!
//! ```text
//! creator ──clone──▶ mounter ──clone(PARENT)──▶ spawner ──clone(PARENT)──▶ init
//!    │ user, mount, network,    │                         │
//!    │ ipc, uts, cgroup         │                         │
//!    │ namespaces               │                         │
//!    ├─ maps the ids ─────────▶ │                         │
//!    │  (uid_map or newuidmap)  ├─ enters the namespaces that are joined
//!    │                          ├─ makes the tree private, mounts the root
//!    │                          ├─ the rest in the       ─┤ spawner: joins the Landlock domain, makes the pid
//!    │                          │  bundle's order         │ namespace; init: closes all descriptors, waits
//!    │                          ├─ procfs, as soon as init is there to show
//!    ├─ hooks ◀──────────────── ├─ devices, masks         │
//!    │  prestart, createRuntime │                         │
//!    │                          ├─ createContainer, pivots
//!    │ ◀── pids ─────────────── ┴─ ends, lets init go on ▶│
//!    │ ◀────────────────────────────────────────── ready ─┤ found its program
//!    ├─ records the container                             │
//!    ├─ commit ───────────────▶ spawner: lets go of everything but exec.sock
//!    ┴─ ends                                              │
//!  start ─────────────────────▶ spawner ──── start ─────▶ │ startContainer, ids, capabilities, seccomp, exec
//!  exec ──────────────────────▶ spawner ── forks another one, with the same confinement
//! ```
//!
//! Why a spawner: Landlock domains nest and siblings can neither signal nor trace one another, so whatever `exec` makes
//! has to be born inside init's domain; and it stays outside of the pid namespace, so that the container never sees it.
//! `run` records the container as soon as init is named and has it start by itself, so nothing waits for the creator once the
//! mounts are there. Until *commit*, the end of the creator's socket ends the others: a creator that is killed leaves nothing that runs.
//! The creator is single-threaded, so a fork is all that it takes; nothing is executed again and no copy of the binary
//! is made where Landlock keeps it out of reach (`seal` makes one where it does not).
//!
//! The cgroup is made and limited by the creator before anything else; init alone is in it, and what `exec` makes: they are
//! born there (`cgroup`). A new cgroup namespace is therefore init's to make. It goes back to the mounter, which needs it for
//! the mounts that show it, and stays with the spawner for `exec`.
//!
//! # What is a library's
//!
//! `landlock` and `caps` enforce what `policy` decided; `libcontainer` applies AppArmor's profile. Its mounts, ids and
//! hooks are not used: they work in init, after the pid namespace and before its own order of confinement, while here
//! the mounter does them in front of it, beneath a descriptor of the root (`resolve`) and with ids that 32-bit ARM gets
//! right; its seccomp needs a C library. Filters are compiled here (`seccomp`), which costs no start any time.

mod attributes;
pub mod cgroup;
pub mod config;
mod confine;
mod error;
mod foreground;
pub mod forward;
mod hooks;
mod launch;
pub mod monitor;
pub mod network;
pub mod policy;
mod resolve;
mod seal;
mod seccomp;
mod state;
mod sys;
pub mod verbs;
mod wire;

pub use error::{Class, Error};
pub use launch::check;
pub use state::Root;
