//! `wherry plan`.

use std::process::ExitCode;

use argh::{ArgsInfo, FromArgs};
use serde_json::json;
use wherry_images::Reference;
use wherry_images::pull::{self, How, Plan, PullOptions};

use super::ago;
use super::failure::{Failure, print};
use super::place::Place;
use super::pull as pulling;
use super::registry;

/// say what a pull would fetch and need, before anything moves
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "plan",
    example = "wherry plan registry.example/iris:v1",
    example = "wherry plan --format json registry.example/iris:v1",
    note = "Only the image's manifest and config are fetched, and kept for the pull. Disk at least takes a layer to unpack to no less than its compressed size, which is all that a manifest tells; a pull that does not fit by that figure is refused, and plan exits with 1. The rate is that of the last pulls from the same registry."
)]
pub struct Args {
    /// another platform than this board's: OS/ARCH[/VARIANT]
    #[argh(option, arg_name = "platform")]
    pub platform: Option<String>,
    /// as a pull that keeps the layers' blobs
    #[argh(switch)]
    pub keep_blobs: bool,
    /// as a pull of whole layers only
    #[argh(switch)]
    pub no_delta: bool,
    /// false for a registry without TLS, or with a certificate that proves nothing
    #[argh(option, arg_name = "bool", default = "true")]
    pub tls_verify: bool,
    /// the account: USER:PASSWORD, instead of docker's config.json
    #[argh(option, arg_name = "account")]
    pub creds: Option<String>,
    /// text, or json
    #[argh(option, arg_name = "format", default = "String::from(\"text\")")]
    pub format: String,
    /// the image: NAME[:TAG][@DIGEST]
    #[argh(positional)]
    pub image: String,
}

pub(super) fn run(args: &Args, place: &Place) -> Result<ExitCode, Failure> {
    let as_json = match args.format.as_str() {
        "text" => false,
        "json" => true,
        other => {
            let line = format!("format {other:?} is not supported; use text or json");
            return Err(Failure::new(line));
        }
    };
    let reference = Reference::parse(&args.image)?;
    let options = PullOptions {
        platform: pulling::platform(args.platform.as_deref())?,
        keep_blobs: args.keep_blobs,
        use_deltas: !args.no_delta,
    };
    let store = place.store()?;
    let client = registry::client(args.tls_verify, args.creds.as_deref(), &reference)?;
    let plan = pull::plan(&store, &client, &reference, &options)
        .map_err(|error| pulling::failure("plan", &reference.familiar(), &error))?;
    if as_json {
        print(&format!("{}\n", object(&reference, &plan)))?;
    } else {
        print(&text(&reference, &plan))?;
    }
    Ok(if plan.fits() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn how(how: How) -> &'static str {
    match how {
        How::Present => "present",
        How::Full => "full",
        How::Delta => "delta",
    }
}

fn object(reference: &Reference, plan: &Plan) -> serde_json::Value {
    let layers = plan.layers.iter().map(|layer| {
        json!({"digest": layer.digest, "size": layer.size, "how": how(layer.how), "fetch": layer.fetch})
    });
    json!({
        "name": reference,
        "digest": plan.digest,
        "fetch": plan.fetch,
        "diskLeast": plan.disk_least,
        "diskLikely": plan.disk_likely,
        "diskFree": plan.disk_free,
        "memory": plan.memory,
        "bytesPerSecond": plan.rate,
        "seconds": plan.time().map(|time| time.as_secs_f64()),
        "fits": plan.fits(),
        "layers": layers.collect::<Vec<_>>(),
    })
}

fn text(reference: &Reference, plan: &Plan) -> String {
    let mut text = String::new();
    for layer in &plan.layers {
        let [fetch, size] = [layer.fetch, layer.size].map(ago::size);
        let line = match layer.how {
            How::Present => "already here".to_owned(),
            How::Full => format!("{fetch} of {size} to fetch"),
            How::Delta => format!("{fetch} to fetch as a delta, instead of {size}"),
        };
        text.push_str(&format!("{}: {line}\n", layer.digest.short()));
    }
    let [fetch, least, likely, free, memory] = [
        plan.fetch,
        plan.disk_least,
        plan.disk_likely,
        plan.disk_free,
        plan.memory,
    ]
    .map(ago::size);
    let time = match (plan.time(), plan.rate) {
        (Some(time), Some(rate)) => {
            let seconds = time.as_secs_f64().ceil();
            format!(
                "{seconds}s at {}/s, as the last pulls from {} had it",
                ago::size(rate),
                reference.registry()
            )
        }
        _ => format!("not known: nothing was pulled from {} yet", reference.registry()),
    };
    let fits = if plan.fits() { "" } else { "; it cannot fit" };
    text.push_str(&format!(
        "Digest: {}\nFetch:  {fetch}\nDisk:   at least {least}, likely {likely}; {free} free{fits}\nMemory: {memory}\nTime:   {time}\n",
        plan.digest
    ));
    text
}
