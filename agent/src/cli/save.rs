//! `wherry save`.

use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use argh::{ArgsInfo, FromArgs};
use wherry_images::archive::{self, Saved};
use wherry_images::{Image, Reference, Store};

use super::failure::Failure;
use super::place::Place;

/// write images to an archive that wherry, docker, podman and skopeo load
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "save",
    example = "wherry save -o iris.tar registry.example/iris:v1",
    example = "wherry save iris:v1 | ssh board wherry load",
    note = "Digests are never changed: wherry load gives each image the manifest it had. Layers whose blobs were dropped are written uncompressed."
)]
pub struct Args {
    /// the file, instead of standard output
    #[argh(option, short = 'o', arg_name = "file")]
    pub output: Option<PathBuf>,
    /// names, or beginnings of ids
    #[argh(positional, arg_name = "image")]
    pub first: String,
    /// more of them
    #[argh(positional, arg_name = "more")]
    pub more: Vec<String>,
}

pub(super) fn run(args: &Args, place: &Place) -> Result<ExitCode, Failure> {
    let store = place.store()?.leased()?;
    let mut images: Vec<(Image, Vec<Reference>)> = Vec::new();
    for text in std::iter::once(&args.first).chain(&args.more) {
        let image = store.resolve(text)?;
        let names: Vec<Reference> = image
            .reference
            .iter()
            .filter(|_| is_name(text, &image))
            .cloned()
            .collect();
        match images.iter_mut().find(|(other, _)| other.digest == image.digest) {
            Some((_, known)) => known.extend(names),
            None => images.push((image, names)),
        }
    }
    let saved = match &args.output {
        Some(path) => to_file(&store, &images, path)?,
        None if io::stdout().is_terminal() => {
            return Err(Failure::new(
                "an archive is nothing for a terminal; give -o FILE or redirect the output",
            ));
        }
        None => {
            let mut out = BufWriter::new(io::stdout().lock());
            let saved = archive::save(&store, &images, &mut out).map_err(|error| failed(&error))?;
            out.flush()
                .map_err(|error| Failure::about("cannot write to standard output", &error))?;
            saved
        }
    };
    if saved.remade > 0 {
        let _ = writeln!(
            io::stderr(),
            "wherry: {} layers are in the archive uncompressed: their blobs were dropped when they were unpacked (pull --keep-blobs keeps them)",
            saved.remade
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether the person wrote a name: by its id an image is saved without one, as docker does it.
fn is_name(text: &str, image: &Image) -> bool {
    let id = text.strip_prefix("sha256:").unwrap_or(text);
    !image.config_digest.hex().starts_with(id) && !image.digest.hex().starts_with(id)
}

/// Whole or not at all.
fn to_file(store: &Store, images: &[(Image, Vec<Reference>)], path: &Path) -> Result<Saved, Failure> {
    let name = path
        .file_name()
        .ok_or_else(|| Failure::new(format!("{}: not the name of a file", path.display())))?;
    let temporary = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let about = |error: io::Error| Failure::about(format!("cannot write {}", path.display()), &error);
    let write = || -> Result<Saved, Failure> {
        let file = File::create(&temporary).map_err(about)?;
        let mut out = BufWriter::new(file);
        let saved = archive::save(store, images, &mut out).map_err(|error| failed(&error))?;
        let file = out.into_inner().map_err(|error| about(error.into_error()))?;
        file.sync_all().map_err(about)?;
        fs::rename(&temporary, path).map_err(about)?;
        Ok(saved)
    };
    write().inspect_err(|_| drop(fs::remove_file(&temporary)))
}

fn failed(error: &archive::Error) -> Failure {
    let mut failure = Failure::of(error);
    if let archive::Error::NoLayer { .. } = error {
        failure.line.push_str("; pull it with --keep-blobs");
    }
    failure
}
