//! What is known of each pod that is not in a container's directory: `STATE/pods/<uid>.json`, and the pod's own
//! volumes in `STATE/pods/<uid>/volumes/`.
//!
//! ```json
//! {"version": 1, "uid": "...", "namespace": "default", "name": "iris", "pull": {...} | null, "status": {...}}
//! ```
//!
//! `status` is the Pod's status as it was derived last: a final phase survives a restart in it, and so do the times of
//! its conditions. `pull` is what fetching the image took. A record is written when it changes, so an idle board
//! writes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use wherry_sync::plan::Desired;
use wherry_sync::status;

use crate::container;

const VERSION: u64 = 1;
const MAX_RECORD: u64 = 1 << 20;

/// The records of all pods that are desired or not quite gone.
#[derive(Debug)]
pub(super) struct Records {
    root: PathBuf,
    known: BTreeMap<String, Value>,
}

impl Records {
    /// Reads `STATE/pods`. A record that cannot be read counts as none: everything in it is derived again.
    pub(super) fn open(state: &Path) -> Result<Self, container::Error> {
        let root = state.join("pods");
        container::make_directory(&root)?;
        let failed = |error| container::Error::io("list", &root, error);
        let mut known = BTreeMap::new();
        for entry in fs::read_dir(&root).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let uid = path
                .file_name()
                .and_then(|name| name.to_str())
                .and_then(|name| name.strip_suffix(".json"));
            let Some(uid) = uid.filter(|uid| !uid.starts_with('.')) else {
                continue;
            };
            let Ok(Some(bytes)) = container::read_bounded(&path, MAX_RECORD) else {
                continue;
            };
            match serde_json::from_slice::<Value>(&bytes) {
                Ok(record) if record["version"] == VERSION && record["uid"] == *uid => {
                    known.insert(uid.to_owned(), record);
                }
                _ => {}
            }
        }
        Ok(Self { root, known })
    }

    /// The pods that have ended for good.
    pub(super) fn finished(&self) -> BTreeSet<String> {
        let over =
            |(uid, record): (&String, &Value)| status::is_final(&record["status"]).then(|| uid.clone());
        self.known.iter().filter_map(over).collect()
    }

    /// The status that was derived last.
    pub(super) fn status(&self, uid: &str) -> Option<&Value> {
        self.known
            .get(uid)
            .map(|record| &record["status"])
            .filter(|status| !status.is_null())
    }

    /// Remembers a status. Answers whether it is another than before.
    pub(super) fn set_status(&mut self, pod: &Desired, status: Value) -> Result<bool, container::Error> {
        self.set(pod, "status", status)
    }

    /// Remembers what fetching the image took.
    pub(super) fn set_pull(&mut self, pod: &Desired, pull: Value) -> Result<bool, container::Error> {
        self.set(pod, "pull", pull)
    }

    fn set(&mut self, pod: &Desired, field: &str, value: Value) -> Result<bool, container::Error> {
        let meta = &pod.pod.metadata;
        let mut record = self.known.get(&pod.uid).cloned().unwrap_or_else(|| {
            json!({
                "version": VERSION,
                "uid": pod.uid,
                "namespace": meta.namespace,
                "name": meta.name,
                "pull": null,
                "status": null,
            })
        });
        if record[field] == value {
            return Ok(false);
        }
        record[field] = value;
        let path = self.root.join(format!("{}.json", pod.uid));
        let bytes =
            serde_json::to_vec(&record).map_err(|error| container::Error::io("write", &path, error))?;
        container::write_durably(&path, &bytes)?;
        self.known.insert(pod.uid.clone(), record);
        Ok(true)
    }

    /// Where the pod's own volumes are.
    pub(super) fn volumes(&self, uid: &str) -> PathBuf {
        self.root.join(uid).join("volumes")
    }

    /// Forgets every pod that `keep` does not name, its volumes included.
    pub(super) fn retain(&mut self, keep: impl Fn(&str) -> bool) -> Result<(), container::Error> {
        let gone: Vec<String> = self.known.keys().filter(|uid| !keep(uid)).cloned().collect();
        for uid in gone {
            container::remove_tree(&self.root.join(&uid))?;
            let path = self.root.join(format!("{uid}.json"));
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(container::Error::io("remove", &path, error));
                }
                _ => {}
            }
            self.known.remove(&uid);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wherry_sync::manifest;

    fn desired() -> Desired {
        let text =
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: i:1}]}\n";
        Desired {
            uid: "u-1".into(),
            pod: manifest::parse(text.as_bytes()).unwrap().remove(0),
            digest: None,
        }
    }

    #[test]
    fn records_survive_and_are_written_only_when_they_change() {
        let state = tempfile::tempdir().unwrap();
        let mut records = Records::open(state.path()).unwrap();
        assert!(
            records
                .set_status(&desired(), json!({"phase": "Running"}))
                .unwrap()
        );
        assert!(
            !records
                .set_status(&desired(), json!({"phase": "Running"}))
                .unwrap()
        );
        assert!(records.set_pull(&desired(), json!({"wire": 3})).unwrap());
        assert_eq!(records.finished(), BTreeSet::new());
        assert!(
            records
                .set_status(&desired(), json!({"phase": "Failed"}))
                .unwrap()
        );
        let again = Records::open(state.path()).unwrap();
        assert_eq!(again.finished(), BTreeSet::from(["u-1".to_owned()]));
        assert_eq!(again.known["u-1"]["pull"]["wire"], 3);
    }

    #[test]
    fn what_is_gone_is_forgotten_with_its_volumes() {
        let state = tempfile::tempdir().unwrap();
        let mut records = Records::open(state.path()).unwrap();
        records.set_status(&desired(), json!({})).unwrap();
        fs::create_dir_all(records.volumes("u-1").join("v")).unwrap();
        records.retain(|_| false).unwrap();
        assert_eq!(fs::read_dir(state.path().join("pods")).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_record_counts_as_none() {
        let state = tempfile::tempdir().unwrap();
        Records::open(state.path()).unwrap();
        fs::write(state.path().join("pods/u-1.json"), "{\"version\":1").unwrap();
        fs::write(
            state.path().join("pods/u-2.json"),
            "{\"version\":1,\"uid\":\"u-3\"}",
        )
        .unwrap();
        assert!(Records::open(state.path()).unwrap().known.is_empty());
    }
}
