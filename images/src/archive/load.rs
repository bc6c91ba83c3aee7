//! Reading an archive: unpacked in the cage into a directory of its own, then taken from there piece by piece.
//!
//! The archive is hostile: nothing in its tree is opened through a symbolic link that leads out of it, every document is bounded,
//! every layer is proved by its diffID, and a blob is dropped as soon as it was used, so that the archive is not on the disk twice.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::{DOCKER_LIST, DockerImage, Error, FULL_NAME, LAYOUT_LIST, OWN_LIST, blob_name};
use crate::Hasher;
use crate::digest::{DiffId, Digest};
use crate::layout::REF_NAME;
use crate::manifest::{
    self, Descriptor, Document, ImageConfig, MAX_DOCUMENT, Manifest, OCI_CONFIG, OCI_INDEX, OCI_LAYER,
    OCI_LAYER_GZIP, OCI_LAYER_ZSTD, OCI_MANIFEST,
};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::store::{Image, Input, Loading, Store};
use crate::unpack::{Encoding, Limits};

/// Symbolic links that are followed on the way to one file: docker's older archives have one.
const MAX_LINKS: usize = 4;
/// More images than anybody saves at once.
const MAX_IMAGES: usize = 1000;

/// How to load.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Which image of an index.
    pub platform: Platform,
    /// Whether the layers' blobs stay beside the unpacked layers.
    pub keep_blobs: bool,
}

/// An image that was loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// It.
    pub image: Image,
    /// The names that it has now.
    pub names: Vec<Reference>,
}

/// Loads every image of an archive, plain or compressed with gzip or zstd, and gives each the names that it has there.
pub fn load(store: &Store, archive: &mut dyn Read, options: &LoadOptions) -> Result<Vec<Loaded>, Error> {
    let store = &store.leased()?;
    let loading = store.unpack_archive(Input::Stream(archive))?;
    let files = Files {
        root: loading.tree()?,
    };
    let load = Load {
        store,
        files: &files,
        loading: &loading,
        options,
    };
    let listed = match files.document(OWN_LIST)? {
        Some(list) => Some(list),
        None => files.document(LAYOUT_LIST)?,
    };
    let loaded = match (listed, files.document(DOCKER_LIST)?) {
        (Some(list), _) => load.layout(&list),
        (None, Some(list)) => load.docker(&list),
        (None, None) => Err(Error::Archive(format!(
            "it holds neither {LAYOUT_LIST} nor {DOCKER_LIST}: not an image archive"
        ))),
    }?;
    if loaded.is_empty() {
        return Err(Error::Archive("it holds no image".into()));
    }
    Ok(loaded)
}

struct Load<'a> {
    store: &'a Store,
    files: &'a Files,
    loading: &'a Loading,
    options: &'a LoadOptions,
}

impl Load<'_> {
    /// The images of an OCI layout's list.
    fn layout(&self, list: &[u8]) -> Result<Vec<Loaded>, Error> {
        let Document::Index(index) = Document::parse(list, Some(OCI_INDEX))? else {
            return Err(Error::Archive("its list is not an index".into()));
        };
        let mut names: BTreeMap<Digest, Vec<Reference>> = BTreeMap::new();
        let mut order: Vec<Descriptor> = Vec::new();
        for descriptor in index.manifests.iter().take(MAX_IMAGES) {
            let found = names.entry(descriptor.digest).or_default();
            found.extend(name_of(descriptor));
            if !order.iter().any(|d| d.digest == descriptor.digest) {
                order.push(descriptor.clone());
            }
        }
        let mut loaded = Vec::new();
        for descriptor in order {
            let (bytes, manifest) = self.manifest(&descriptor)?;
            let config = self.blob_document(&manifest.config.digest)?;
            let names = names.remove(&descriptor.digest).unwrap_or_default();
            let layers = |layer: &Descriptor, diff_id: &DiffId| {
                // As it was fetched, or made again.
                [
                    blob_name(&layer.digest),
                    format!("blobs/sha256/{}", diff_id.hex()),
                ]
                .to_vec()
            };
            loaded.push(self.image(&bytes, &manifest, &config, names, &layers)?);
        }
        Ok(loaded)
    }

    /// A manifest, out of an index where the descriptor is one's.
    fn manifest(&self, descriptor: &Descriptor) -> Result<(Vec<u8>, Manifest), Error> {
        let mut descriptor = descriptor.clone();
        for _ in 0..3 {
            let bytes = self.blob_document(&descriptor.digest)?;
            match Document::parse(&bytes, Some(&descriptor.media_type))? {
                Document::Manifest(manifest) => return Ok((bytes, manifest)),
                Document::Index(index) => descriptor = self.options.platform.select(&index)?.clone(),
            }
        }
        Err(Error::Archive("its indexes are nested too deep".into()))
    }

    fn blob_document(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let name = blob_name(digest);
        let bytes = self
            .files
            .document(&name)?
            .ok_or_else(|| Error::Archive(format!("{name} is listed but missing")))?;
        let got = Digest::of(&bytes);
        if got != *digest {
            return Err(Error::Archive(format!(
                "{name}: its {} bytes are {got}",
                bytes.len()
            )));
        }
        Ok(bytes)
    }

    /// The images of docker's list, which names no manifests: each gets the one that its config and its layers, as they are, make.
    fn docker(&self, list: &[u8]) -> Result<Vec<Loaded>, Error> {
        let list: Vec<DockerImage> =
            serde_json::from_slice(list).map_err(|e| Error::Archive(format!("{DOCKER_LIST}: {e}")))?;
        let mut loaded = Vec::new();
        for entry in list.into_iter().take(MAX_IMAGES) {
            let config = self
                .files
                .document(&entry.config)?
                .ok_or_else(|| Error::Archive(format!("{:?} is listed but missing", entry.config)))?;
            let paths = entry.layers.unwrap_or_default();
            let mut layers = Vec::new();
            for path in paths.iter().take(manifest::MAX_LAYERS + 1) {
                layers.push(self.descriptor(path)?);
            }
            let manifest = Manifest {
                layers,
                ..docker_manifest(&config)
            };
            let bytes = serde_json::to_vec(&manifest).map_err(|e| Error::Archive(e.to_string()))?;
            let names = entry.repo_tags.unwrap_or_default();
            let names = names
                .iter()
                .map(|name| Reference::parse(name))
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| Error::Archive(format!("{DOCKER_LIST}: {e}")))?;
            let digests: Vec<Digest> = manifest.layers.iter().map(|layer| layer.digest).collect();
            let path = |layer: &Descriptor, _: &DiffId| {
                let same = digests.iter().zip(&paths).filter(|(d, _)| **d == layer.digest);
                same.map(|(_, path)| path.clone()).collect()
            };
            loaded.push(self.image(&bytes, &manifest, &config, names, &path)?);
        }
        Ok(loaded)
    }

    /// A layer's file as a manifest describes it.
    fn descriptor(&self, path: &str) -> Result<Descriptor, Error> {
        let failed = |source| Error::Read {
            path: path.into(),
            source,
        };
        let mut file = self.files.open(path)?.ok_or_else(|| missing(path))?;
        let mut first = Vec::new();
        (&mut file).take(4).read_to_end(&mut first).map_err(failed)?;
        let media_type = match first.as_slice() {
            [0x1f, 0x8b, ..] => OCI_LAYER_GZIP,
            [0x28, 0xb5, 0x2f, 0xfd] => OCI_LAYER_ZSTD,
            _ => OCI_LAYER,
        };
        let mut hasher = Hasher::new();
        hasher.update(&first);
        let rest = io::copy(&mut file, &mut hasher).map_err(failed)?;
        Ok(Descriptor::new(
            media_type,
            hasher.digest(),
            first.len() as u64 + rest,
        ))
    }

    fn image(
        &self,
        bytes: &[u8],
        manifest: &Manifest,
        config: &[u8],
        names: Vec<Reference>,
        paths: &dyn Fn(&Descriptor, &DiffId) -> Vec<String>,
    ) -> Result<Loaded, Error> {
        manifest.check_image()?;
        self.options
            .platform
            .admit(&ImageConfig::parse(config)?, &Platform::host())?;
        self.store.put_document(config)?;
        let digest = self.store.put_document(bytes)?;
        let image = self.store.image(&digest)?;
        for (layer, diff_id) in image.manifest.layers.iter().zip(&image.diff_ids) {
            self.layer(layer, diff_id, &paths(layer, diff_id))?;
        }
        for name in &names {
            self.store.tag(&image, name)?;
        }
        Ok(Loaded { image, names })
    }

    fn layer(&self, layer: &Descriptor, diff_id: &DiffId, paths: &[String]) -> Result<(), Error> {
        let kept = !self.options.keep_blobs || self.store.has_blob(&layer.digest);
        if self.store.has_layer(diff_id) && kept {
            return Ok(());
        }
        for path in paths {
            let Some(mut file) = self.files.open(path)? else {
                continue;
            };
            let failed = |source| Error::Read {
                path: path.into(),
                source,
            };
            let as_fetched = *path == blob_name(&layer.digest) || !path.starts_with("blobs/sha256/");
            if self.options.keep_blobs && as_fetched {
                let mut again = file.try_clone().map_err(failed)?;
                self.store.put_blob(&layer.digest, layer.size, &mut again)?;
                io::Seek::rewind(&mut file).map_err(failed)?;
            }
            let limits = Limits::of(&file);
            self.store
                .unpack_layer(diff_id, Input::Blob(&file), &Encoding::Layer, &limits)?;
            // Best effort: all of it goes at the end.
            self.loading.release(path);
            return Ok(());
        }
        Err(paths
            .first()
            .map_or_else(|| missing("a layer"), |path| missing(path)))
    }
}

fn missing(path: &str) -> Error {
    Error::Archive(format!("{path:?} is listed but missing"))
}

fn docker_manifest(config: &[u8]) -> Manifest {
    Manifest {
        schema_version: 2,
        media_type: Some(OCI_MANIFEST.into()),
        artifact_type: None,
        config: Descriptor::of(OCI_CONFIG, config),
        layers: Vec::new(),
        subject: None,
        annotations: BTreeMap::new(),
    }
}

/// The name that a layout's entry carries: the whole one, or a tag that is one. A bare tag names nothing by itself.
fn name_of(descriptor: &Descriptor) -> Option<Reference> {
    let note = |key: &str| descriptor.annotations.get(key);
    let short = || note(REF_NAME).filter(|name| name.contains(['/', ':']));
    Reference::parse(note(FULL_NAME).or_else(short)?).ok()
}

/// The unpacked archive, of which nothing outside can be reached.
struct Files {
    root: OwnedFd,
}

impl Files {
    /// A document, whole; `None` where there is none of that name.
    fn document(&self, path: &str) -> Result<Option<Vec<u8>>, Error> {
        let Some(file) = self.open(path)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        let read = file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes);
        read.map_err(|source| Error::Read {
            path: path.into(),
            source,
        })?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(Error::Archive(format!("{path:?} is longer than any document")));
        }
        Ok(Some(bytes))
    }

    /// A regular file. Symbolic links are read and resolved within the archive; one that leads out is refused.
    fn open(&self, path: &str) -> Result<Option<File>, Error> {
        let mut path = PathBuf::from(path);
        for _ in 0..=MAX_LINKS {
            match self.step(&path)? {
                Step::File(file) => return Ok(Some(file)),
                Step::Nothing => return Ok(None),
                Step::Link(target) => path = target,
            }
        }
        Err(Error::Archive(format!("{path:?}: too many symbolic links")))
    }

    fn step(&self, path: &Path) -> Result<Step, Error> {
        let failed = |e: rustix::io::Errno| Error::Read {
            path: path.to_owned(),
            source: e.into(),
        };
        let outside = || Error::Archive(format!("{path:?} leads out of it"));
        let mut names: Vec<&std::ffi::OsStr> = Vec::new();
        for part in path.components() {
            match part {
                std::path::Component::Normal(name) => names.push(name),
                std::path::Component::CurDir => {}
                std::path::Component::ParentDir => drop(names.pop().ok_or_else(outside)?),
                _ => return Err(outside()),
            }
        }
        let Some((last, parents)) = names.split_last() else {
            return Ok(Step::Nothing);
        };
        let mut dir: Option<OwnedFd> = None;
        for name in parents {
            let at = dir.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(at, *name, flags, Mode::empty()) {
                Ok(opened) => dir = Some(opened),
                Err(rustix::io::Errno::NOENT) => return Ok(Step::Nothing),
                Err(e) => return Err(failed(e)),
            }
        }
        let at = dir.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::openat(at, *last, flags, Mode::empty()) {
            Ok(file) => {
                let file = File::from(file);
                match file.metadata() {
                    Ok(meta) if meta.is_file() => Ok(Step::File(file)),
                    _ => Err(Error::Archive(format!("{path:?} is not a file"))),
                }
            }
            Err(rustix::io::Errno::NOENT) => Ok(Step::Nothing),
            Err(rustix::io::Errno::LOOP) => {
                let target = rustix::fs::readlinkat(at, *last, Vec::new()).map_err(failed)?;
                let target = PathBuf::from(std::ffi::OsString::from(target.to_string_lossy().into_owned()));
                let above: PathBuf = parents.iter().collect();
                Ok(Step::Link(above.join(target)))
            }
            Err(e) => Err(failed(e)),
        }
    }
}

enum Step {
    File(File),
    Link(PathBuf),
    Nothing,
}
