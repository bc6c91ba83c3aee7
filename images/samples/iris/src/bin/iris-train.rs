//! `iris-train < iris.csv > model`: trains this release's forest. Version 2 has more and deeper trees.

use iris::forest::{Forest, Training};
use std::io::{Read as _, Write as _};
use std::process::ExitCode;

const TRAINING: Training = if cfg!(feature = "v2") {
    Training {
        version: 2,
        trees: 15,
        depth: 4,
        seed: 20_261,
    }
} else {
    Training {
        version: 1,
        trees: 9,
        depth: 3,
        seed: 1_936,
    }
};

fn main() -> ExitCode {
    match train() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("iris-train: {error}");
            ExitCode::FAILURE
        }
    }
}

fn train() -> Result<(), String> {
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .map_err(|error| format!("read the measurements: {error}"))?;
    let flowers = iris::measurements::parse(&text)?;
    let model = Forest::train(&flowers, TRAINING).to_text();
    std::io::stdout()
        .write_all(model.as_bytes())
        .map_err(|error| format!("write the model: {error}"))
}
