//! What of the store is in use: the images of all containers, running or not, and those that pods want or fall back to.
//!
//! Read without a lock and without looking at monitors: a collection asks while it holds the store's lock. A container that is being
//! made holds a lease on its image until its record is there.

use std::collections::BTreeMap;
use std::path::Path;

use wherry_images::store::{self, InUse};
use wherry_images::{Digest, Reference};
use wherry_sync::plan::Desired;

use super::directory::Directory;
use super::{Error, Id};
use crate::source::Remembered;

/// A container, for telling who uses an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its id.
    pub id: Id,
    /// Its name.
    pub name: String,
}

/// The containers of a state directory by the manifest that they are made of.
///
/// # Errors
/// When a record cannot be read: its container may use anything.
pub fn users(state: &Path) -> Result<BTreeMap<Digest, Vec<User>>, Error> {
    let root = state.join("containers");
    let mut users: BTreeMap<Digest, Vec<User>> = BTreeMap::new();
    let entries = match std::fs::read_dir(&root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(users),
        Err(error) => return Err(Error::io("list", &root, error)),
    };
    for entry in entries {
        let name = entry
            .map_err(|error| Error::io("list", &root, error))?
            .file_name();
        let Some(id) = name.to_str().and_then(Id::parse) else {
            continue;
        };
        match Directory::new(root.join(&name)).desired() {
            Ok(desired) => users.entry(desired.spec.image).or_default().push(User {
                id,
                name: desired.spec.name,
            }),
            Err(Error::Gone { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(users)
}

/// What a collection must leave alone.
///
/// # Errors
/// When a record cannot be read; then nothing must be collected.
pub fn in_use(state: &Path) -> Result<InUse, store::Error> {
    let unknown = |reason: &dyn std::error::Error| {
        store::Error::InUse(format!(
            "what is in use cannot be told: {}",
            crate::causes::line(reason)
        ))
    };
    let mut in_use = InUse {
        images: users(state).map_err(|e| unknown(&e))?.into_keys().collect(),
        ..InUse::default()
    };
    if !state.join("desired").exists() {
        return Ok(in_use);
    }
    // The node's name decides only what is taken over from a source.
    let (remembered, damaged) = Remembered::open(state, "").map_err(|e| unknown(&e))?;
    if let Some(record) = damaged.first() {
        return Err(store::Error::InUse(format!(
            "what is in use cannot be told: damaged record {record}"
        )));
    }
    for slot in remembered.slots() {
        for pod in std::iter::once(&slot.desired).chain(&slot.previous) {
            add(pod, &mut in_use);
        }
    }
    Ok(in_use)
}

fn add(pod: &Desired, in_use: &mut InUse) {
    let digest = pod
        .digest
        .as_ref()
        .and_then(|digest| digest.parse::<Digest>().ok());
    in_use.images.extend(digest);
    for container in &pod.pod.spec.containers {
        let Ok(name) = Reference::parse(&container.image) else {
            continue;
        };
        in_use.images.extend(name.digest());
        in_use.names.extend(digest.map(|digest| name.with_digest(digest)));
        in_use.names.insert(name);
    }
}

/// Whether a container has a monitor: then it runs, or is about to.
pub fn is_supervised(state: &Path, id: &Id) -> bool {
    let dir = Directory::new(state.join("containers").join(id.hex()));
    // What cannot be told is taken for running.
    dir.supervised().unwrap_or(true)
}
