//! The objects, their one counter, and their whole history: every version is kept, so a list at an old revision and a
//! watch from one are answered from here.

use serde_json::Value;
use std::collections::BTreeMap;

/// An object's place: ordered as the server lists, by namespace and name within a resource.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// The plural name: `pods`.
    pub(super) resource: String,
    /// Empty for what lives in none.
    pub(super) namespace: String,
    /// The object's name.
    pub(super) name: String,
}

/// One change.
#[derive(Debug, Clone)]
pub(super) struct Change {
    /// The counter after it.
    pub(super) revision: u64,
    /// Whose change.
    pub(super) key: Key,
    /// The object before, none when it was created.
    pub(super) before: Option<Value>,
    /// The object after; with `deleted` its last state.
    pub(super) object: Value,
    /// Whether the object is gone with this change.
    pub(super) deleted: bool,
}

/// All objects.
#[derive(Debug, Default)]
pub(super) struct Store {
    revision: u64,
    oldest: u64,
    objects: BTreeMap<Key, Value>,
    history: Vec<Change>,
}

/// The resourceVersion of an object.
pub(super) fn version_of(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"]
        .as_str()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

impl Store {
    /// The counter: the version of the last change.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// Lets the counter go on from `revision`, as other writers' changes do. It never goes back.
    pub(super) fn advance(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
    }

    /// The oldest revision that a watch or an exact list may start from.
    pub(super) fn oldest(&self) -> u64 {
        self.oldest
    }

    /// Forgets what was before `revision`, as a restart of the server does.
    pub(super) fn compact(&mut self, revision: u64) {
        self.oldest = self.oldest.max(revision);
    }

    /// The object as it is now.
    pub(super) fn get(&self, key: &Key) -> Option<&Value> {
        self.objects.get(key)
    }

    /// All objects of a resource as they are now, in order.
    pub(super) fn list(&self, resource: &str) -> impl Iterator<Item = (&Key, &Value)> {
        self.objects
            .iter()
            .filter(move |(key, _)| key.resource == resource)
    }

    /// All objects of a resource as they were at `revision`, in order.
    pub(super) fn list_at(&self, resource: &str, revision: u64) -> Vec<(Key, Value)> {
        let mut objects = BTreeMap::new();
        for change in self.history.iter().filter(|change| change.revision <= revision) {
            if change.key.resource == resource {
                if change.deleted {
                    objects.remove(&change.key);
                } else {
                    objects.insert(change.key.clone(), change.object.clone());
                }
            }
        }
        objects.into_iter().collect()
    }

    /// The changes after `revision`.
    pub(super) fn since(&self, revision: u64) -> &[Change] {
        let start = self.history.partition_point(|change| change.revision <= revision);
        &self.history[start..]
    }

    /// Stores a new version under the next number, and returns it as stored.
    pub(super) fn put(&mut self, key: Key, mut object: Value) -> Value {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = Value::String(self.revision.to_string());
        let before = self.objects.insert(key.clone(), object.clone());
        self.history.push(Change {
            revision: self.revision,
            key,
            before,
            object: object.clone(),
            deleted: false,
        });
        object
    }

    /// Removes the object under the next number, and returns its last state with that number.
    pub(super) fn remove(&mut self, key: &Key) -> Option<Value> {
        let before = self.objects.remove(key)?;
        self.revision += 1;
        let mut object = before.clone();
        object["metadata"]["resourceVersion"] = Value::String(self.revision.to_string());
        self.history.push(Change {
            revision: self.revision,
            key: key.clone(),
            before: Some(before),
            object: object.clone(),
            deleted: true,
        });
        Some(object)
    }
}
