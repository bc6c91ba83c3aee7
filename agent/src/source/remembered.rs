//! The last good desired state, on disk: `STATE/desired/<hash of namespace/name>.json`, one file for each pod.
//!
//! ```json
//! {"version": 1, "key": "default/iris", "origin": "iris.yaml",
//!  "desired": {"uid": "...", "digest": "sha256:...", "pod": {...}}, "previous": null}
//! ```
//!
//! `digest` is what the image's tag stood for when the pod was changed; `previous` is the pod that runs until this one
//! can take over. Version 1 is the only one so far; a newer one is refused and left alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use wherry_images::Digest;
use wherry_sync::plan::{Desired, Slot};
use wherry_sync::{Pod, manifest};

use super::{Error, Reading};
use crate::container;

const VERSION: u64 = 1;
/// Two pods of at most 1 MiB each as JSON, escapes included.
const MAX_RECORD: u64 = 16 << 20;

/// What a reading changed, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A pod that was not there before.
    Added {
        /// `namespace/name`.
        key: String,
        /// The identity of its content.
        uid: String,
    },
    /// Other content under the same name.
    Updated {
        /// `namespace/name`.
        key: String,
        /// The identity of its content.
        uid: String,
    },
    /// No origin names it any more.
    Removed {
        /// `namespace/name`.
        key: String,
    },
    /// Left out, and why.
    LeftOut {
        /// `namespace/name`.
        key: String,
        /// The origin whose pod is left out.
        origin: String,
        /// Why.
        why: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    origin: String,
    slot: Slot,
}

/// The desired state as it was last known to be good.
#[derive(Debug)]
pub struct Remembered {
    root: PathBuf,
    node: String,
    entries: BTreeMap<String, Entry>,
    /// What was left out last time, so that it is reported once.
    left_out: Vec<Change>,
}

impl Remembered {
    /// Reads `STATE/desired`. Also answers the records that are damaged and were passed over.
    ///
    /// # Errors
    /// When it cannot be read, or was written by a newer version.
    pub fn open(state: &Path, node: &str) -> Result<(Self, Vec<String>), Error> {
        let root = state.join("desired");
        container::make_directory(&root)?;
        let mut entries = BTreeMap::new();
        let mut damaged = Vec::new();
        let failed = |source| Error::Directory {
            path: root.clone(),
            source,
        };
        for item in fs::read_dir(&root).map_err(failed)? {
            let path = item.map_err(failed)?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let Some(bytes) = container::read_bounded(&path, MAX_RECORD)? else {
                continue;
            };
            match parse(&bytes) {
                Ok(entry) => {
                    entries.insert(entry.slot.desired.pod.key(), entry);
                }
                Err(Problem::Newer(version)) => {
                    let version = u32::try_from(version).unwrap_or(u32::MAX);
                    return Err(container::Error::Newer { path, version }.into());
                }
                Err(Problem::Damaged(reason)) => damaged.push(format!("{}: {reason}", path.display())),
            }
        }
        Ok((
            Self {
                root,
                node: node.to_owned(),
                entries,
                left_out: Vec::new(),
            },
            damaged,
        ))
    }

    /// What shall run.
    pub fn slots(&self) -> Vec<Slot> {
        self.entries.values().map(|entry| entry.slot.clone()).collect()
    }

    /// The slots and the origins they come from.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Slot)> {
        self.entries
            .values()
            .map(|entry| (entry.origin.as_str(), &entry.slot))
    }

    /// The pod with this UID, desired or previous.
    pub fn pod(&self, uid: &str) -> Option<&Desired> {
        let slots = self.entries.values().map(|entry| &entry.slot);
        slots
            .flat_map(|slot| std::iter::once(&slot.desired).chain(&slot.previous))
            .find(|pod| pod.uid == uid)
    }

    /// Takes over what a source said: durable first, then in force.
    ///
    /// # Errors
    /// When a record cannot be written; what was taken over before that stays.
    pub fn adopt(&mut self, reading: &Reading) -> Result<Vec<Change>, Error> {
        let mut changes = Vec::new();
        let mut left_out = Vec::new();
        let mut found: BTreeMap<String, (&str, &Pod)> = BTreeMap::new();
        for (origin, content) in reading {
            for pod in content.iter().flatten() {
                let key = pod.key();
                let other_node = pod.spec.node_name.as_ref().filter(|node| **node != self.node);
                let why = match (found.get(&key), other_node) {
                    (Some((first, _)), _) => format!("{first} has a pod of that name already"),
                    (_, Some(node)) => format!("spec.nodeName is {node}, this node is {}", self.node),
                    (None, None) => {
                        found.insert(key, (origin, pod));
                        continue;
                    }
                };
                left_out.push(Change::LeftOut {
                    key,
                    origin: origin.clone(),
                    why,
                });
            }
        }
        for (key, (origin, pod)) in &found {
            let change = self.take(key, origin, pod)?;
            changes.extend(change);
        }
        let refused = |origin: &str| reading.get(origin).is_some_and(Result::is_err);
        let gone = |(key, entry): (&String, &Entry)| {
            (!found.contains_key(key) && !refused(&entry.origin)).then(|| key.clone())
        };
        let gone: Vec<String> = self.entries.iter().filter_map(gone).collect();
        for key in gone {
            let path = self.path(&key);
            fs::remove_file(&path).or_else(|error| match error.kind() {
                std::io::ErrorKind::NotFound => Ok(()),
                _ => Err(container::Error::io("remove", &path, error)),
            })?;
            container::sync_directory(&self.root)?;
            self.entries.remove(&key);
            changes.push(Change::Removed { key });
        }
        if left_out != self.left_out {
            changes.extend(left_out.iter().cloned());
            self.left_out = left_out;
        }
        Ok(changes)
    }

    fn take(&mut self, key: &str, origin: &str, pod: &Pod) -> Result<Option<Change>, Error> {
        let Some(old) = self.entries.get(key) else {
            let desired = Desired {
                uid: identity(&self.node, origin, pod),
                pod: pod.clone(),
                digest: None,
            };
            let uid = desired.uid.clone();
            self.store(Entry {
                origin: origin.to_owned(),
                slot: Slot {
                    desired,
                    previous: None,
                },
            })?;
            return Ok(Some(Change::Added {
                key: key.to_owned(),
                uid,
            }));
        };
        if old.slot.desired.pod == *pod {
            if old.origin != origin {
                self.store(Entry {
                    origin: origin.to_owned(),
                    slot: old.slot.clone(),
                })?;
            }
            return Ok(None);
        }
        let slot = succeed(&old.slot, pod, identity(&self.node, origin, pod));
        let uid = slot.desired.uid.clone();
        self.store(Entry {
            origin: origin.to_owned(),
            slot,
        })?;
        Ok(Some(Change::Updated {
            key: key.to_owned(),
            uid,
        }))
    }

    /// Remembers the digest of a pod's image.
    ///
    /// # Errors
    /// When the record cannot be written; then the digest is not in force either.
    pub fn pin(&mut self, uid: &str, digest: &str) -> Result<(), Error> {
        self.change(uid, |desired| desired.digest = Some(digest.to_owned()))
    }

    fn change(&mut self, uid: &str, change: impl Fn(&mut Desired)) -> Result<(), Error> {
        let owner = |entry: &&Entry| {
            entry.slot.desired.uid == uid || entry.slot.previous.as_ref().is_some_and(|pod| pod.uid == uid)
        };
        let Some(mut entry) = self.entries.values().find(owner).cloned() else {
            return Ok(());
        };
        for pod in std::iter::once(&mut entry.slot.desired).chain(&mut entry.slot.previous) {
            if pod.uid == uid {
                change(pod);
            }
        }
        self.store(entry)
    }

    /// Drops the pod that ran before.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn forget_previous(&mut self, key: &str) -> Result<(), Error> {
        let Some(mut entry) = self.entries.get(key).cloned() else {
            return Ok(());
        };
        entry.slot.previous = None;
        self.store(entry)
    }

    fn path(&self, key: &str) -> PathBuf {
        let hash = Digest::of(key.as_bytes()).hex();
        self.root
            .join(format!("{}.json", hash.get(..32).unwrap_or(&hash)))
    }

    fn store(&mut self, entry: Entry) -> Result<(), Error> {
        let key = entry.slot.desired.pod.key();
        let record = json!({
            "version": VERSION,
            "key": key,
            "origin": entry.origin,
            "desired": pod_record(&entry.slot.desired),
            "previous": entry.slot.previous.as_ref().map(pod_record),
        });
        let path = self.path(&key);
        let bytes = serde_json::to_vec_pretty(&record)
            .map_err(|error| container::Error::io("write", &path, error))?;
        container::write_durably(&path, &bytes)?;
        self.entries.insert(key, entry);
        Ok(())
    }
}

/// The slot after its pod's content has changed to `pod`.
///
/// What runs until then is the pod that had got as far as an image; a change back to it before the switch finds it
/// with its digest.
fn succeed(old: &Slot, pod: &Pod, uid: String) -> Slot {
    if let Some(previous) = old.previous.as_ref().filter(|previous| previous.pod == *pod) {
        return Slot {
            desired: previous.clone(),
            previous: None,
        };
    }
    let running = match &old.previous {
        Some(previous) => Some(previous),
        None => Some(&old.desired).filter(|pod| pod.digest.is_some()),
    };
    let desired = Desired {
        uid,
        pod: pod.clone(),
        digest: None,
    };
    Slot {
        desired,
        previous: running.cloned(),
    }
}

/// A UID that is the same for the same pod from the same origin on the same board, as the kubelet derives those of
/// its static pods.
fn identity(node: &str, origin: &str, pod: &Pod) -> String {
    let content = pod.to_json().map(|json| json.to_string()).unwrap_or_default();
    let hash = Digest::of(format!("{node}\0{origin}\0{content}").as_bytes()).hex();
    let part = |from: usize, to: usize| hash.get(from..to).unwrap_or_default();
    // Version 8: made of something that is nobody else's business.
    format!(
        "{}-{}-8{}-8{}-{}",
        part(0, 8),
        part(8, 12),
        part(13, 16),
        part(17, 20),
        part(20, 32)
    )
}

fn pod_record(desired: &Desired) -> Value {
    json!({
        "uid": desired.uid,
        "digest": desired.digest,
        "pod": desired.pod.to_json().unwrap_or(Value::Null),
    })
}

enum Problem {
    Newer(u64),
    Damaged(String),
}

fn parse(bytes: &[u8]) -> Result<Entry, Problem> {
    let damaged = |reason: &str| Problem::Damaged(reason.to_owned());
    let record: Value = serde_json::from_slice(bytes).map_err(|error| Problem::Damaged(error.to_string()))?;
    match record["version"].as_u64() {
        Some(VERSION) => {}
        Some(version) if version > VERSION => return Err(Problem::Newer(version)),
        _ => return Err(damaged("no version")),
    }
    let pod = |value: &Value| -> Result<Desired, Problem> {
        let bytes = value["pod"].to_string();
        let pods = manifest::parse(bytes.as_bytes()).map_err(|problems| {
            Problem::Damaged(problems.first().map(ToString::to_string).unwrap_or_default())
        })?;
        let [pod] = <[Pod; 1]>::try_from(pods).map_err(|_| damaged("not one pod"))?;
        let uid = value["uid"]
            .as_str()
            .filter(|uid| safe_uid(uid))
            .ok_or_else(|| damaged("no uid"))?;
        let digest = value["digest"].as_str().map(str::to_owned);
        Ok(Desired {
            uid: uid.to_owned(),
            pod,
            digest,
        })
    };
    let desired = pod(&record["desired"])?;
    let previous = match &record["previous"] {
        Value::Null => None,
        previous => Some(pod(previous)?),
    };
    let origin = record["origin"].as_str().ok_or_else(|| damaged("no origin"))?;
    Ok(Entry {
        origin: origin.to_owned(),
        slot: Slot { desired, previous },
    })
}

/// A UID becomes a file's name.
fn safe_uid(uid: &str) -> bool {
    uid.len() == 36 && uid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::super::Refusal;
    use super::*;

    fn pod(name: &str, image: &str) -> Pod {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, image: '{image}'}}]}}\n"
        );
        manifest::parse(text.as_bytes()).unwrap().remove(0)
    }

    fn reading(origins: &[(&str, Result<Vec<Pod>, Refusal>)]) -> Reading {
        origins
            .iter()
            .map(|(origin, content)| ((*origin).to_owned(), content.clone()))
            .collect()
    }

    fn open(state: &Path) -> Remembered {
        let (remembered, damaged) = Remembered::open(state, "edge1").unwrap();
        assert_eq!(damaged, [""; 0]);
        remembered
    }

    #[test]
    fn an_update_keeps_what_runs_until_it_is_forgotten() {
        let state = tempfile::tempdir().unwrap();
        let mut remembered = open(state.path());
        let adopt = |remembered: &mut Remembered, image: &str| {
            remembered
                .adopt(&reading(&[("a.yaml", Ok(vec![pod("a", image)]))]))
                .unwrap()
        };
        assert!(matches!(
            adopt(&mut remembered, "i:1")[..],
            [Change::Added { .. }]
        ));
        assert_eq!(adopt(&mut remembered, "i:1"), []);
        let first = remembered.slots()[0].desired.uid.clone();
        remembered.pin(&first, "sha256:1").unwrap();
        assert!(matches!(
            adopt(&mut remembered, "i:2")[..],
            [Change::Updated { .. }]
        ));
        assert!(matches!(
            adopt(&mut remembered, "i:3")[..],
            [Change::Updated { .. }]
        ));
        let slot = remembered.slots().remove(0);
        assert_eq!(
            slot.previous.as_ref().map(|pod| pod.uid.as_str()),
            Some(first.as_str())
        );
        assert_eq!(slot.previous.unwrap().digest.as_deref(), Some("sha256:1"));
        assert_eq!(
            open(state.path()).slots(),
            remembered.slots(),
            "the same after a restart"
        );
        adopt(&mut remembered, "i:1");
        let slot = remembered.slots().remove(0);
        assert_eq!(
            (slot.desired.uid.as_str(), slot.desired.digest.as_deref()),
            (first.as_str(), Some("sha256:1"))
        );
        assert_eq!(slot.previous, None);
        adopt(&mut remembered, "i:2");
        assert!(remembered.slots()[0].previous.is_some());
        remembered.forget_previous("default/a").unwrap();
        assert_eq!(open(state.path()).slots()[0].previous, None);
        adopt(&mut remembered, "i:3");
        assert_eq!(
            remembered.slots()[0].previous,
            None,
            "i:2 never had an image, so it never ran"
        );
    }

    #[test]
    fn a_bad_file_keeps_its_pods_and_a_missing_one_loses_them() {
        let state = tempfile::tempdir().unwrap();
        let mut remembered = open(state.path());
        let both = [
            ("a.yaml", Ok(vec![pod("a", "i:1")])),
            ("b.yaml", Ok(vec![pod("b", "i:1")])),
        ];
        remembered.adopt(&reading(&both)).unwrap();
        let changes = remembered
            .adopt(&reading(&[("a.yaml", Err(Refusal::Empty))]))
            .unwrap();
        assert_eq!(
            changes,
            [Change::Removed {
                key: "default/b".into()
            }]
        );
        assert_eq!(open(state.path()).slots(), remembered.slots());
        assert_eq!(remembered.slots().len(), 1);
        let before = remembered.slots();
        assert_eq!(
            remembered
                .adopt(&reading(&[("c.yaml", Ok(vec![pod("a", "i:1")]))]))
                .unwrap(),
            []
        );
        assert_eq!(remembered.slots(), before, "a renamed file is not a new pod");
        assert_eq!(remembered.iter().next().unwrap().0, "c.yaml");
    }

    #[test]
    fn doubles_and_pods_of_other_nodes_are_left_out_and_reported_once() {
        let state = tempfile::tempdir().unwrap();
        let mut remembered = open(state.path());
        let mut elsewhere = pod("e", "i:1");
        elsewhere.spec.node_name = Some("edge2".into());
        let reading = reading(&[
            ("a.yaml", Ok(vec![pod("a", "i:1"), elsewhere])),
            ("b.yaml", Ok(vec![pod("a", "i:2")])),
        ]);
        let why = |change: &Change| match change {
            Change::LeftOut { origin, why, .. } => format!("{origin}: {why}"),
            Change::Added { key, .. } => key.clone(),
            _ => String::new(),
        };
        assert_eq!(
            remembered
                .adopt(&reading)
                .unwrap()
                .iter()
                .map(why)
                .collect::<Vec<_>>(),
            [
                "default/a",
                "a.yaml: spec.nodeName is edge2, this node is edge1",
                "b.yaml: a.yaml has a pod of that name already",
            ]
        );
        assert_eq!(remembered.adopt(&reading).unwrap(), []);
        assert_eq!(remembered.slots()[0].desired.pod.spec.containers[0].image, "i:1");
    }

    #[test]
    fn damaged_records_are_passed_over_and_newer_ones_refused() {
        let state = tempfile::tempdir().unwrap();
        let mut remembered = open(state.path());
        remembered
            .adopt(&reading(&[("a.yaml", Ok(vec![pod("a", "i:1")]))]))
            .unwrap();
        let path = remembered.path("default/a");
        let good = fs::read_to_string(&path).unwrap();
        for (from, to) in [
            ("\"version\": 1", "\"version\": 0"),
            ("\"uid\": \"", "\"uid\": \"../"),
            ("\"image\"", "\"imge\""),
            ("{", "["),
        ] {
            fs::write(&path, good.replacen(from, to, 1)).unwrap();
            let (remembered, damaged) = Remembered::open(state.path(), "edge1").unwrap();
            assert_eq!((remembered.slots().len(), damaged.len()), (0, 1), "{to}");
        }
        let newer = good.replacen("\"version\": 1", "\"version\": 2", 1);
        fs::write(&path, &newer).unwrap();
        assert!(
            Remembered::open(state.path(), "edge1")
                .unwrap_err()
                .to_string()
                .contains("newer")
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), newer);
    }

    #[test]
    fn identities_differ_with_content_origin_and_node() {
        let base = identity("n", "o", &pod("a", "i:1"));
        assert_eq!(base, identity("n", "o", &pod("a", "i:1")));
        assert!(safe_uid(&base), "{base}");
        for other in [
            identity("m", "o", &pod("a", "i:1")),
            identity("n", "p", &pod("a", "i:1")),
            identity("n", "o", &pod("a", "i:2")),
        ] {
            assert_ne!(base, other);
        }
    }
}
