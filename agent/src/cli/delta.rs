//! `wherry delta`.

use std::process::ExitCode;

use argh::{ArgsInfo, FromArgs};
use serde_json::json;
use wherry_images::Reference;
#[cfg(feature = "publish")]
use wherry_images::delta::Published;
use wherry_images::delta::{self, Envelope};

use super::ago;
use super::failure::{Failure, print};
use super::place::Place;
use super::{registry, table};

/// publish and show the differences between images
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "delta",
    example = "wherry delta push registry.example/iris:v1 registry.example/iris:v2",
    example = "wherry delta show registry.example/iris:v2"
)]
pub struct Args {
    /// what to do
    #[argh(subcommand)]
    pub verb: Verb,
}

/// The verbs of `wherry delta`.
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(subcommand)]
#[allow(missing_docs)]
pub enum Verb {
    Push(PushArgs),
    Show(ShowArgs),
}

/// publish what makes one image out of another, beside the other in its registry
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "push",
    example = "wherry delta push registry.example/iris:v1 registry.example/iris:v2",
    note = "Both images must be here with their layers' blobs (pull them with --keep-blobs), and the newer one in the registry."
)]
pub struct PushArgs {
    /// false for a registry without TLS, or with a certificate that proves nothing
    #[argh(option, arg_name = "bool", default = "true")]
    pub tls_verify: bool,
    /// the account: USER:PASSWORD, instead of docker's config.json
    #[argh(option, arg_name = "account")]
    pub creds: Option<String>,
    /// the boards' platform, OS/ARCH[/VARIANT]: both images must be for it (pull them with the same --platform)
    #[argh(option, arg_name = "platform")]
    pub platform: Option<String>,
    /// how layers are patched: auto (what is smaller), tar-diff (other tools apply it, too), or wherry
    #[argh(option, arg_name = "codec", default = "String::from(\"auto\")")]
    pub codec: String,
    /// text, or json
    #[argh(option, arg_name = "format", default = "String::from(\"text\")")]
    pub format: String,
    /// the image that boards have
    #[argh(positional, arg_name = "old")]
    pub old: String,
    /// the image that they shall have
    #[argh(positional, arg_name = "new")]
    pub new: String,
}

/// list the deltas that lead to an image
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "show",
    example = "wherry delta show registry.example/iris:v2"
)]
pub struct ShowArgs {
    /// false for a registry without TLS, or with a certificate that proves nothing
    #[argh(option, arg_name = "bool", default = "true")]
    pub tls_verify: bool,
    /// the account: USER:PASSWORD, instead of docker's config.json
    #[argh(option, arg_name = "account")]
    pub creds: Option<String>,
    /// table, or json
    #[argh(option, arg_name = "format", default = "String::from(\"table\")")]
    pub format: String,
    /// the image, which must be here or be named by its digest
    #[argh(positional)]
    pub image: String,
}

pub(super) fn run(args: Args, place: &Place) -> Result<ExitCode, Failure> {
    match args.verb {
        #[cfg(feature = "publish")]
        Verb::Push(args) => push(&args, place),
        #[cfg(not(feature = "publish"))]
        Verb::Push(_) => Err(Failure::new(
            "this is a board's build of wherry, which cannot make deltas: use a publisher's (built with the feature publish)",
        )),
        Verb::Show(args) => show(&args, place),
    }
}

fn failed(what: &str, error: &delta::Error) -> Failure {
    let advice = match error {
        delta::Error::Registry(error) => registry::advice(error),
        delta::Error::Store(error) => registry::store_advice(error),
        _ => "",
    };
    let Failure { line, code } = Failure::of(error);
    Failure {
        line: format!("{what}: {line}{advice}"),
        code,
    }
}

#[cfg(feature = "publish")]
fn push(args: &PushArgs, place: &Place) -> Result<ExitCode, Failure> {
    let as_json = match args.format.as_str() {
        "json" => true,
        "text" => false,
        other => {
            return Err(Failure::new(format!(
                "format {other:?} is not supported; use text or json"
            )));
        }
    };
    let codec = match args.codec.as_str() {
        "auto" => None,
        "tar-diff" => Some(delta::Codec::TarDiff),
        "wherry" => Some(delta::Codec::Wherry),
        other => {
            return Err(Failure::new(format!(
                "codec {other:?} is not supported; use auto, tar-diff or wherry"
            )));
        }
    };
    let target = Reference::parse(&args.new)?;
    let store = place.store()?;
    let (old, new) = (store.resolve(&args.old)?, store.resolve(&args.new)?);
    if let Some(platform) = args.platform.as_deref() {
        let asked = super::pull::platform(Some(platform))?;
        for (name, image) in [(&args.old, &old), (&args.new, &new)] {
            let found = image.config.platform();
            if !asked.runs(&found) {
                return Err(Failure::new(format!(
                    "delta push: {name} is here for {found}, not for {asked}; pull it with --platform {asked}"
                )));
            }
        }
    }
    let client = registry::publisher(args.tls_verify, args.creds.as_deref(), &target)?;
    let published = delta::push(&store, &client, &old, &new, &target, codec).map_err(|error| {
        failed(
            &format!("cannot publish a delta to {}", target.familiar()),
            &error,
        )
    })?;
    let Published {
        artifact,
        size,
        full,
        layers,
    } = &published;
    if as_json {
        let layer = |l: &delta::PublishedLayer| {
            let codec = l.codec.map(delta::Codec::name);
            json!({ "layer": l.layer, "full": l.full, "patch": l.patch, "codec": codec })
        };
        let layers: Vec<_> = layers.iter().map(layer).collect();
        print(&format!(
            "{}\n",
            json!({ "artifact": artifact, "size": size, "full": full, "layers": layers })
        ))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::new();
    for layer in layers {
        let patch = layer.patch.map_or_else(
            || "in full, which is smaller".into(),
            |patch| {
                let codec = layer.codec.map_or("", delta::Codec::name);
                format!("{codec} delta {}", ago::size(patch))
            },
        );
        text.push_str(&format!(
            "{}: {patch} for {}\n",
            layer.layer.short(),
            ago::size(layer.full)
        ));
    }
    let share = if *full == 0 {
        0.0
    } else {
        *size as f64 * 100.0 / *full as f64
    };
    text.push_str(&format!(
        "{artifact}\ndelta: {} for {}, {share:.1} %\n",
        ago::size(*size),
        ago::size(*full)
    ));
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn show(args: &ShowArgs, place: &Place) -> Result<ExitCode, Failure> {
    let as_json = super::images::is_json(&args.format)?;
    let reference = Reference::parse(&args.image)?;
    let target = match reference.digest() {
        Some(digest) => *digest,
        None => place.store()?.resolve(&args.image)?.digest,
    };
    let client = registry::client(args.tls_verify, args.creds.as_deref(), &reference)?;
    let deltas = delta::list(&client, &reference, &target).map_err(|error| {
        failed(
            &format!("cannot list the deltas to {}", reference.familiar()),
            &error,
        )
    })?;
    if as_json {
        let layer = |layer: &delta::Layer| {
            let codec = layer.codec().map(delta::Codec::name);
            json!({ "to": layer.to, "blob": layer.blob.digest, "size": layer.blob.size, "codec": codec })
        };
        let line = |(artifact, envelope): &(wherry_images::Digest, Envelope)| {
            let object = json!({
                "artifact": artifact,
                "source": envelope.source,
                "sourceConfig": envelope.source_config,
                "target": envelope.target,
                "size": envelope.size,
                "layers": envelope.layers.iter().map(layer).collect::<Vec<_>>(),
            });
            format!("{object}\n")
        };
        print(&deltas.iter().map(line).collect::<String>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let row = |(artifact, envelope): &(wherry_images::Digest, Envelope)| {
        let source = envelope
            .source
            .map_or_else(|| "<unknown>".into(), |digest| digest.short());
        let (config, layers) = (envelope.source_config.short(), envelope.layers.len().to_string());
        [artifact.short(), source, config, layers, ago::size(envelope.size)]
    };
    let rows: Vec<_> = deltas.iter().map(row).collect();
    print(&table::columns(
        ["DELTA", "FROM", "FROM IMAGE ID", "LAYERS", "SIZE"],
        &rows,
    ))?;
    Ok(ExitCode::SUCCESS)
}
