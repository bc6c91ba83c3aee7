//! Writes the iris sample's two versions as one OCI image layout with the tags `v1` and `v2`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use wherry_tests::sample::{Layout, application, iris_config, userland};

const USAGE: &str = "usage: iris-image --programs DIR --target TRIPLE --measurements CSV --out DIR
DIR/VERSION/TRIPLE/release holds iris-server and iris-train of each version, v1 and v2.";

fn main() -> ExitCode {
    match write() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("iris-image: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write() -> Result<(), String> {
    let (mut programs, mut target, mut measurements, mut out) = (None, None, None, None);
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let value = Some(PathBuf::from(args.next().ok_or(USAGE)?));
        match flag.as_str() {
            "--programs" => programs = value,
            "--target" => target = value,
            "--measurements" => measurements = value,
            "--out" => out = value,
            _ => return Err(USAGE.to_owned()),
        }
    }
    let (programs, target) = (programs.ok_or(USAGE)?, target.ok_or(USAGE)?);
    let (measurements, out) = (measurements.ok_or(USAGE)?, out.ok_or(USAGE)?);
    layout(&programs, &target, &measurements, &out).map_err(|error| error.to_string())
}

fn layout(programs: &Path, target: &Path, measurements: &Path, out: &Path) -> std::io::Result<()> {
    let mut layout = Layout::create(out)?;
    let base = layout.layer(&userland()?)?;
    println!("lower layer: {} bytes", base.descriptor["size"]);
    for version in ["v1", "v2"] {
        let built = programs.join(version).join(target).join("release");
        let tree = application(
            &built.join("iris-server"),
            &built.join("iris-train"),
            measurements,
        )?;
        let upper = layout.layer(&tree)?;
        println!("{version}: upper layer {} bytes", upper.descriptor["size"]);
        let digest = layout.image(version, &[base.clone(), upper], iris_config())?;
        println!("{version}: {digest}");
    }
    Ok(())
}
