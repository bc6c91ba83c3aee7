//! The delta codecs by hand, for the benchmark `tests/corpus/bench.py`: one call for each process, so that its time and memory are known.
//!
//! ```text
//! delta encode tar-diff|wherry OLD.tar NEW.tar PATCH
//! delta decode tar-diff|wherry OLD-TREE OLD-DIFFID PATCH OUT|-
//! delta artifact tar-diff|wherry OLD.tar NEW.tar      what `wherry delta push` puts into a registry, to the byte;
//!                                                     a board pulls it
//! ```

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use wherry_delta::{tardiff, wherry};
use wherry_images::delta::Codec;
use wherry_images::manifest::{Descriptor, OCI_CONFIG, OCI_LAYER_ZSTD, OCI_MANIFEST};
use wherry_images::pull::{self, How, PullOptions};
use wherry_images::registry::{Client, Login, Options};
use wherry_images::store::Input;
use wherry_images::unpack::{Encoding, Limits};
use wherry_images::{DiffId, Hasher, Image, Platform, Reference, Store, cage, delta, serve};

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == cage::VERB) {
        return cage::main();
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["encode", codec, old, new, patch] => encode(codec, old, new, patch),
        ["artifact", codec, old, new] => artifact(codec, Path::new(old), Path::new(new)),
        ["decode", codec, tree, id, patch, out] => decode(codec, Path::new(tree), id, patch, out),
        _ => Err("usage: delta encode CODEC OLD NEW PATCH | decode CODEC TREE DIFFID PATCH OUT".into()),
    };
    match result {
        Ok(line) => {
            let _ = writeln!(io::stdout(), "{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "delta: {error}");
            ExitCode::FAILURE
        }
    }
}

fn encode(codec: &str, old: &str, new: &str, patch: &str) -> Result<String, Failure> {
    let (mut new, patch) = (File::open(new)?, File::create(patch)?);
    match codec {
        "tar-diff" => {
            let encoded = tardiff::Encoder::new(vec![File::open(old)?])?.encode(&mut new, patch)?;
            Ok(format!("{encoded:?}"))
        }
        "wherry" => {
            let mut hasher = Hasher::new();
            io::copy(&mut File::open(old)?, &mut hasher)?;
            let layers = vec![(*hasher.diff_id().bytes(), File::open(old)?)];
            let encoded =
                wherry::Encoder::new(layers)?.encode(&mut new, patch, &wherry::Options::default())?;
            Ok(format!("{encoded:?}"))
        }
        other => Err(format!("codec {other:?}: expected tar-diff or wherry").into()),
    }
}

fn decode(codec: &str, tree: &Path, id: &str, patch: &str, out: &str) -> Result<String, Failure> {
    let patch = File::open(patch)?;
    let sources: Vec<PathBuf> = vec![tree.to_owned()];
    let mut stream: Box<dyn Read> = match codec {
        "tar-diff" => Box::new(delta::tar_stream(patch, &sources)?),
        "wherry" => Box::new(delta::wherry_stream(patch, &sources, &[id.parse::<DiffId>()?])?),
        other => return Err(format!("codec {other:?}: expected tar-diff or wherry").into()),
    };
    let length = match out {
        "-" => io::copy(&mut stream, &mut io::sink())?,
        out => io::copy(&mut stream, &mut File::create(out)?)?,
    };
    Ok(format!("{length} bytes"))
}

/// The level of the layers' own blobs, which a patch has to beat.
const LEVEL: i32 = 12;
const TOKEN: &str = "local";

fn artifact(codec: &str, old: &Path, new: &Path) -> Result<String, Failure> {
    let codec = [Codec::TarDiff, Codec::Wherry]
        .into_iter()
        .find(|known| known.name() == codec);
    let root = std::env::temp_dir().join(format!("wherry-delta-{}", std::process::id()));
    fs::create_dir(&root)?;
    let published = publish(codec, old, new, &root);
    fs::remove_dir_all(&root)?;
    published
}

fn publish(codec: Option<Codec>, old: &Path, new: &Path, root: &Path) -> Result<String, Failure> {
    let store = Store::open(&root.join("publisher"))?;
    let images = [image(&store, old)?, image(&store, new)?];
    let options = serve::Options {
        listen: "127.0.0.1:0".parse()?,
        token: Some(TOKEN.into()),
        unix: None,
    };
    let server = serve::Server::bind(options, Store::open(&root.join("registry"))?)?;
    let target = Reference::parse(&format!("{}/bench:new", server.addr()?))?;
    let stopper = server.stopper();
    let login = Login::Password {
        user: "bench".into(),
        secret: TOKEN.into(),
    };
    let client = Client::new(Options {
        login: Some(login),
        docker_config: None,
        ..Options::default()
    });
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| server.run());
        let published = send(&store, &client, &images[1], &target).and_then(|()| {
            let published = delta::push(&store, &client, &images[0], &images[1], &target, codec)?;
            Ok((published, pulled(&root.join("board"), old, &client, &target)?))
        });
        stopper.stop();
        serving.join().map_err(|_| "the registry failed")??;
        let (published, pulled) = published?;
        if pulled != published.layers.first().and_then(|layer| layer.patch) {
            return Err(format!("a board pulled {pulled:?} bytes of delta").into());
        }
        let patch = published.layers.first().and_then(|layer| layer.patch);
        Ok(format!(
            "artifact {} patch {}",
            published.size,
            patch.unwrap_or(0)
        ))
    })
}

/// Pulls the new image onto a board that has the old one; the bytes of the delta that it applied, in the cage, if it did.
fn pulled(board: &Path, old: &Path, client: &Client, target: &Reference) -> Result<Option<u64>, Failure> {
    let board = Store::open(board)?;
    board.tag(&image(&board, old)?, &Reference::parse("bench.test/bench:old")?)?;
    let options = PullOptions {
        platform: Platform::new("linux", "arm64", None),
        ..PullOptions::default()
    };
    let pulled = pull::pull(&board, client, target, &options, &mut |_| {})?;
    let layer = pulled.layers.first().ok_or("the image has no layer")?;
    match (layer.how, &layer.reason) {
        (How::Delta, _) => Ok(Some(layer.bytes)),
        (_, Some(reason)) => Err(reason.clone().into()),
        (_, None) => Ok(None),
    }
}

/// An image of one layer.
fn image(store: &Store, tar: &Path) -> Result<Image, Failure> {
    let mut hasher = Hasher::new();
    io::copy(&mut File::open(tar)?, &mut hasher)?;
    let diff_id = hasher.diff_id();
    let blob = zstd::encode_all(File::open(tar)?, LEVEL)?;
    let layer = Descriptor::of(OCI_LAYER_ZSTD, &blob);
    store.put_blob(&layer.digest, layer.size, &mut &blob[..])?;
    let file = store.blob(&layer.digest)?.ok_or("the blob is gone")?;
    store.unpack_layer(
        &diff_id,
        Input::Blob(&file),
        &Encoding::Layer,
        &Limits::for_blob(layer.size),
    )?;
    let config = serde_json::json!({"architecture": "arm64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [diff_id]}});
    let config = serde_json::to_vec(&config)?;
    store.put_document(&config)?;
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": Descriptor::of(OCI_CONFIG, &config), "layers": [layer]});
    let digest = store.put_document(&serde_json::to_vec(&manifest)?)?;
    Ok(store.image(&digest)?)
}

fn send(store: &Store, client: &Client, image: &Image, target: &Reference) -> Result<(), Failure> {
    for blob in image.manifest.layers.iter().chain([&image.manifest.config]) {
        let mut file = store.blob(&blob.digest)?.ok_or("the blob is gone")?;
        client.put_blob(target, &blob.digest, blob.size, &mut file, &mut |_| {})?;
    }
    let bytes = store.document(&image.digest)?.ok_or("the manifest is gone")?;
    client.put_manifest(target, OCI_MANIFEST, &bytes, None)?;
    Ok(())
}
