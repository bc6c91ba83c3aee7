//! The delta codecs by hand, for the benchmark `tests/corpus/bench.py`: one call for each process, so that its time and memory are known.
//!
//! ```text
//! delta encode tar-diff|wherry OLD.tar NEW.tar PATCH
//! delta decode tar-diff|wherry OLD-TREE OLD-DIFFID PATCH OUT|-
//! ```

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use wherry_delta::{tardiff, wherry};
use wherry_images::{DiffId, Hasher, delta};

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["encode", codec, old, new, patch] => encode(codec, old, new, patch),
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
            let mut options = wherry::Options::default();
            if let Ok(frame) = std::env::var("FRAME") {
                options.frame = frame.parse()?;
            }
            let encoded = wherry::Encoder::new(layers)?.encode(&mut new, patch, &options)?;
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
