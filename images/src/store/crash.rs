//! The crash proof: whatever is done to the store, it may be cut off anywhere, and what a disk may then hold is a store that
//! opens, in which every name means what it meant before or what it was to mean, and nothing is called what it is not.
//!
//! The disk calls of an operation are written down (`disk::record`), and for every beginning of that list the
//! [`model`] makes the disks that there may be: all of it there (a kill), and for a power cut what was not synced
//! kept, lost, torn or zeroed in many combinations. Each is put on a real file system, opened, read through, and the operation
//! is done again on it. That the list is complete is itself checked: replayed to its end it must give what is really there.

mod model;
mod scenarios;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use self::model::{Fate, Journal, State};
use super::collect::{InUse, Scope};
use super::{Image, Store};
use crate::digest::{DiffId, Digest};
use crate::disk::record;

thread_local! {
    /// The boot that this thread believes to be in.
    pub(super) static BOOT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// How thorough it is: `make test` takes a part, `WHERRY_CRASH_ALL` all of it.
#[derive(Clone, Copy)]
struct Effort {
    /// Pending changes that are taken one by one; of more than that the latest.
    singles: usize,
    /// Random combinations for each beginning.
    random: u64,
    /// Every how many states the operation is done again: that is most of the time.
    redo_every: u64,
}

impl Effort {
    fn wanted() -> Self {
        match std::env::var_os("WHERRY_CRASH_ALL") {
            None => Self {
                singles: 10,
                random: 3,
                redo_every: 10,
            },
            Some(_) => Self {
                singles: 24,
                random: 6,
                redo_every: 1,
            },
        }
    }
}

/// What may be under a name.
type Meanings = BTreeMap<&'static str, BTreeSet<Option<Digest>>>;

/// What has to hold, whenever it was cut off.
struct Promise {
    /// What each name may mean.
    names: Meanings,
    /// What each name means when it was done to its end.
    end: BTreeMap<&'static str, Option<Digest>>,
    /// Every layer that may be there, as it has to look.
    layers: BTreeMap<DiffId, Vec<String>>,
}

/// How many were tried.
#[derive(Debug, Default, Clone, Copy)]
struct Tried {
    steps: usize,
    states: u64,
    redone: u64,
}

/// What a layer's directory looks like.
fn layer_picture(store: &Store, diff_id: &DiffId) -> Vec<String> {
    model::read(&store.layers_dir().join(diff_id.hex())).picture()
}

/// A directory where syncing costs nothing.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

#[track_caller]
fn assert_same(got: &[String], want: &[String], what: &str) {
    let lacking: Vec<_> = want.iter().filter(|line| !got.contains(line)).take(5).collect();
    let extra: Vec<_> = got.iter().filter(|line| !want.contains(line)).take(5).collect();
    assert!(
        lacking.is_empty() && extra.is_empty(),
        "{what}: lacking {lacking:#?}, instead {extra:#?}"
    );
}

/// Does `act` to the store in `root` while writing down what it does to the disk, and tries every way of cutting it off.
fn prove(what: &str, root: &Path, act: &dyn Fn(&Path), promise: &Promise) -> Tried {
    BOOT.with(|boot| *boot.borrow_mut() = Some("the first".into()));
    let start = model::read(root);
    let ((), ops) = record::recorded(|| act(root));
    let journal = Journal::new(root, start, &ops);
    let replayed = journal.state(journal.len(), |_| Fate::Kept).picture();
    let real = model::read(root).picture();
    let context = format!("{what}: the record does not tell all that was done");
    assert_same(&replayed, &real, &context);
    let mut tried = Tried {
        steps: journal.len(),
        ..Tried::default()
    };
    let mut seen = BTreeSet::new();
    let effort = Effort::wanted();
    for steps in 0..=journal.len() {
        for (how, state) in cuts(&journal, steps, effort) {
            let killed = how == "killed";
            if !seen.insert((killed, state.fingerprint())) {
                continue;
            }
            tried.states += 1;
            let redo = tried.states.is_multiple_of(effort.redo_every) || steps == journal.len();
            tried.redone += u64::from(redo);
            let boot = if killed { "the first" } else { "the second" };
            BOOT.with(|to| *to.borrow_mut() = Some(boot.into()));
            let dir = scratch();
            let copy = dir.path().join("state");
            fs::create_dir(&copy).unwrap();
            state.write(&copy);
            let context = format!("{what}, cut off after step {steps} of {}, {how}", journal.len());
            check(&copy, promise, &context);
            if redo {
                act(&copy);
                check_end(&copy, promise, &context);
            }
        }
    }
    BOOT.with(|boot| *boot.borrow_mut() = None);
    eprintln!(
        "crash proof of {what}: {} steps, {} different states, {} of them gone on from",
        tried.steps, tried.states, tried.redone
    );
    tried
}

/// The disks that there may be when the power goes, or the process is killed, after so many steps.
fn cuts(journal: &Journal, steps: usize, effort: Effort) -> Vec<(String, State)> {
    let pending = journal.pending(steps);
    let mut found = vec![
        ("killed".into(), journal.state(steps, |_| Fate::Kept)),
        ("all written".into(), journal.state(steps, |_| Fate::Kept)),
        ("nothing written".into(), journal.state(steps, |_| Fate::Lost)),
    ];
    let mut add = |how: String, fate: &dyn Fn(usize) -> Fate| found.push((how, journal.state(steps, fate)));
    let kept_if = |kept: bool| if kept { Fate::Kept } else { Fate::Lost };
    add("names without contents".into(), &|at| {
        kept_if(journal.is_name(at))
    });
    add("contents without names".into(), &|at| {
        kept_if(!journal.is_name(at))
    });
    add("names, contents zeros".into(), &|at| {
        if journal.is_write(at) {
            Fate::Zeros
        } else {
            Fate::Kept
        }
    });
    for one in pending.iter().rev().take(effort.singles).copied() {
        add(format!("step {one} lost"), &|at| kept_if(at != one));
        add(format!("step {one} alone"), &|at| kept_if(at == one));
        add(format!("names up to step {one}"), &|at| {
            kept_if(at <= one && journal.is_name(at))
        });
        if journal.is_write(one) {
            for fate in [Fate::Torn, Fate::Zeros] {
                add(format!("step {one} {fate:?}"), &|at| {
                    if at == one { fate } else { Fate::Kept }
                });
            }
        }
    }
    if pending.len() > 2 {
        for round in 0..effort.random {
            add(format!("random {round}"), &|at| {
                use std::hash::{Hash, Hasher};
                let mut hasher = std::hash::DefaultHasher::new();
                (at, steps, round).hash(&mut hasher);
                match hasher.finish() % 6 {
                    0 | 1 => Fate::Lost,
                    2 if journal.is_write(at) => Fate::Torn,
                    3 if journal.is_write(at) => Fate::Zeros,
                    _ => Fate::Kept,
                }
            });
        }
    }
    found
}

/// Opens what a cut left and reads all of it.
#[track_caller]
fn check(root: &Path, promise: &Promise, context: &str) {
    let store = Store::open(root).unwrap_or_else(|e| panic!("{context}: {e}"));
    for entry in fs::read_dir(store.blob_dir()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let digest = Digest::from_hex(&name).unwrap_or_else(|| panic!("{context}: blob {name:?}"));
        let bytes = fs::read(entry.path()).unwrap();
        assert_eq!(Digest::of(&bytes), digest, "{context}: a lie about a digest");
    }
    for diff_id in store.layers().unwrap() {
        let wanted = promise.layers.get(&diff_id);
        let wanted = wanted.unwrap_or_else(|| panic!("{context}: unknown layer {diff_id}"));
        let found = layer_picture(&store, &diff_id);
        assert_same(&found, wanted, &format!("{context}: layer {diff_id}"));
        assert!(
            store.layer_info(&diff_id).unwrap().is_some(),
            "{context}: {diff_id}"
        );
    }
    for name in fs::read_dir(store.image_dir()).unwrap() {
        let name = name.unwrap().file_name().into_string().unwrap();
        assert!(
            name.ends_with(".json") || name.starts_with('.'),
            "{context}: {name}"
        );
    }
    let visible = fs::read_dir(store.image_dir()).unwrap();
    let visible = visible.filter(|e| {
        !e.as_ref()
            .unwrap()
            .file_name()
            .as_encoded_bytes()
            .starts_with(b".")
    });
    assert_eq!(
        store.tags().unwrap().len(),
        visible.count(),
        "{context}: a damaged record"
    );
    for (name, meanings) in &promise.names {
        let found = meaning(&store, name, context);
        assert!(meanings.contains(&found), "{context}: {name} means {found:?}");
    }
}

/// What a name means, which has to be whole.
#[track_caller]
fn meaning(store: &Store, name: &str, context: &str) -> Option<Digest> {
    let record = store.tagged(&name.parse().unwrap()).unwrap()?;
    let image: Image = store
        .image_of(&record)
        .unwrap_or_else(|e| panic!("{context}: {name}: {e}"))
        .unwrap_or_else(|| panic!("{context}: {name} is a name of nothing"));
    let missing = store.missing_layers(&image);
    assert!(missing.is_empty(), "{context}: {name} lacks {missing:?}");
    Some(image.digest)
}

/// After it was done again: what was wanted, and no trace of the first try.
#[track_caller]
fn check_end(root: &Path, promise: &Promise, context: &str) {
    let context = format!("{context}, done again");
    check(root, promise, &context);
    let store = Store::open(root).unwrap();
    for (name, wanted) in &promise.end {
        assert_eq!(meaning(&store, name, &context), *wanted, "{context}: {name}");
    }
    let done = store
        .collect(Scope::All(&|_| false), &mut || Ok(InUse::default()))
        .unwrap();
    assert_eq!(done.damaged, None, "{context}");
    check(root, promise, &context);
    for dir in ["layers", "partial", "leases", "images", "blobs/sha256"] {
        for entry in fs::read_dir(root.join(dir)).into_iter().flatten() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            // A half-written record is overwritten by the next of its name; anything else would be a leak.
            let allowed = dir == "images" || (!name.starts_with('.') && !matches!(dir, "partial" | "leases"));
            assert!(allowed, "{context}: {dir}/{name} is left");
        }
    }
}
