//! The `metadata` file beside a tree: one JSON object a line for each entry that the tree shows otherwise than the tar said.
//!
//! An image whose files belong to 0:0 and have no attributes has an empty one. A later line for the same path replaces an
//! earlier one (a directory may be listed twice). Names are written with every byte outside `!`..`~`, and `%`, as `%XX`: file
//! names are bytes, not text.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::disk::Output;

use super::tar::{Entry, Kind};

/// A device node that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// `char` or `block`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The major number.
    pub major: u32,
    /// The minor number.
    pub minor: u32,
}

/// One line: what the tar said and the tree does not show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Note {
    /// The entry, relative to the tree, `%XX`-escaped; empty for the tree itself.
    pub path: String,
    /// The owner.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub uid: u32,
    /// The group.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gid: u32,
    /// The permission bits, where the tree has more of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// The device node that the tree lacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,
    /// Extended attributes, names escaped as paths are, values in base64.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub xattrs: BTreeMap<String, String>,
}

fn is_zero(id: &u32) -> bool {
    *id == 0
}

/// Reads one line of a `metadata` file.
pub fn parse_note(line: &[u8]) -> Result<Note, serde_json::Error> {
    serde_json::from_slice(line)
}

impl Note {
    /// What has to be written down about an entry; `kept_mode` is the mode that the tree gives it.
    pub(super) fn of(entry: &Entry, path: &[u8], kept_mode: u32) -> Option<Self> {
        let device = |kind: &str| Device {
            kind: kind.into(),
            major: entry.device.0,
            minor: entry.device.1,
        };
        let device = match entry.kind {
            Kind::CharDevice => Some(device("char")),
            Kind::BlockDevice => Some(device("block")),
            _ => None,
        };
        let mode = (device.is_some() || kept_mode != entry.mode) && entry.kind != Kind::Symlink;
        let note = Self {
            path: escape(path),
            uid: entry.uid,
            gid: entry.gid,
            mode: mode.then_some(entry.mode),
            device,
            xattrs: entry
                .xattrs
                .iter()
                .map(|(name, value)| (escape(name), BASE64.encode(value)))
                .collect(),
        };
        let needed = (note.uid, note.gid) != (0, 0)
            || note.mode.is_some()
            || note.device.is_some()
            || !note.xattrs.is_empty();
        needed.then_some(note)
    }
}

fn escape(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'%' | 0..=b' ' | 0x7f.. => {
                // Writing into a String cannot fail.
                let _ = write!(text, "%{byte:02X}");
            }
            _ => text.push(char::from(*byte)),
        }
    }
    text
}

/// The file being written.
pub(super) struct Writer(BufWriter<Output>);

impl Writer {
    pub(super) fn new(file: File) -> Self {
        Self(BufWriter::new(Output::new(file)))
    }

    pub(super) fn write(&mut self, note: &Note) -> io::Result<()> {
        serde_json::to_writer(&mut self.0, note)?;
        self.0.write_all(b"\n")
    }

    pub(super) fn finish(self) -> io::Result<()> {
        self.0.into_inner().map(|_| ()).map_err(|e| e.into_error())
    }
}
