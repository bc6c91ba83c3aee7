//! `wherry pull`.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use argh::{ArgsInfo, FromArgs};
use serde_json::json;
use wherry_images::platform::Platform;
use wherry_images::pull::{self, How, LayerOutcome, Phase, Progress, PullOptions, Pulled, Source};
use wherry_images::registry::Client;
use wherry_images::{Digest, Reference, Store};

use super::ago;
use super::failure::{Failure, print};
use super::place::Place;
use super::registry;

/// How often a bar is drawn anew.
const DRAW_EVERY: Duration = Duration::from_millis(100);
/// The characters of a bar.
const BAR: u64 = 24;

/// fetch an image, going on where an earlier try was cut
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "pull",
    example = "wherry pull registry.example/iris:v1",
    example = "wherry pull --tls-verify=false 192.0.2.7:5000/iris:v1",
    example = "wherry pull --keep-blobs oci:./layout:v1",
    note = "A layer that is here is not fetched; of another one a delta from an image that is here, if the registry has one and it is smaller."
)]
pub struct Args {
    /// print the digest alone
    #[argh(switch, short = 'q')]
    pub quiet: bool,
    /// another platform than this board's: OS/ARCH[/VARIANT]
    #[argh(option, arg_name = "platform")]
    pub platform: Option<String>,
    /// keep the layers' blobs, as pushing and publishing deltas need them
    #[argh(switch)]
    pub keep_blobs: bool,
    /// fetch whole layers only
    #[argh(switch)]
    pub no_delta: bool,
    /// false for a registry without TLS, or with a certificate that proves nothing
    #[argh(option, arg_name = "bool", default = "true")]
    pub tls_verify: bool,
    /// the account: USER:PASSWORD, instead of docker's config.json
    #[argh(option, arg_name = "account")]
    pub creds: Option<String>,
    /// text, or json: one object a line
    #[argh(option, arg_name = "format", default = "String::from(\"text\")")]
    pub format: String,
    /// the image: NAME[:TAG][@DIGEST] or oci:DIR[:TAG]
    #[argh(positional)]
    pub image: String,
}

pub(super) fn run(args: Args, place: &Place) -> Result<ExitCode, Failure> {
    let mut show = match args.format.as_str() {
        "text" if args.quiet => Show::new(Style::Nothing, Box::new(io::stdout())),
        "text" if io::stdout().is_terminal() => Show::new(Style::Bars, Box::new(io::stdout())),
        "text" => Show::new(Style::Lines, Box::new(io::stdout())),
        "json" => Show::new(Style::Json, Box::new(io::stdout())),
        other => {
            return Err(Failure::new(format!(
                "format {other:?} is not supported; use text or json"
            )));
        }
    };
    let source = Source::parse(&args.image).map_err(|error| Failure::of(&error))?;
    let name = match &source {
        Source::Registry(reference) => reference.clone(),
        Source::Layout { name, .. } => name.clone(),
    };
    let platform = args
        .platform
        .as_deref()
        .map_or_else(|| Ok(Platform::host()), platform)?;
    let options = PullOptions {
        platform,
        keep_blobs: args.keep_blobs,
        use_deltas: !args.no_delta,
    };
    let store = place.store()?;
    let client = registry::client(args.tls_verify, args.creds.as_deref(), &name)?;
    let before = store.tagged(&name)?.map(|record| record.target.digest);
    let pulled = fetch(&store, &client, &source, &options, &mut show)?;
    if args.quiet {
        print(&format!("{}\n", pulled.digest))?;
    } else {
        show.end(&name, &pulled, before == Some(pulled.digest));
    }
    Ok(ExitCode::SUCCESS)
}

/// Pulls and shows it; a failure says what can be done.
pub(super) fn fetch(
    store: &Store,
    client: &Client,
    source: &Source,
    options: &PullOptions,
    show: &mut Show,
) -> Result<Pulled, Failure> {
    let pulled = pull::pull_from(store, client, source, options, &mut |progress| {
        show.progress(progress)
    });
    show.finish_bar();
    for warning in pulled.iter().flat_map(|pulled| &pulled.warnings) {
        let _ = writeln!(io::stderr(), "wherry: warning: {warning}");
    }
    pulled.map_err(|error| {
        let advice = match &error {
            pull::Error::Registry(error) => registry::advice(error),
            pull::Error::Store(error) | pull::Error::Layout(wherry_images::layout::Error::Store(error)) => {
                registry::store_advice(error)
            }
            pull::Error::Platform { .. } => "; choose another with --platform",
            _ => "",
        };
        let what = match source {
            Source::Registry(reference) => reference.familiar(),
            Source::Layout { folder, .. } => folder.display().to_string(),
        };
        let Failure { line, code } = Failure::of(&error);
        Failure {
            line: format!("cannot pull {what}: {line}{advice}"),
            code,
        }
    })
}

/// `linux/arm64` and the like.
pub(super) fn platform(text: &str) -> Result<Platform, Failure> {
    let mut parts = text.split('/');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(os), Some(architecture), variant, None) if !os.is_empty() && !architecture.is_empty() => {
            Ok(Platform::new(os, architecture, variant))
        }
        _ => Err(Failure::new(format!(
            "platform {text:?}: expected OS/ARCH[/VARIANT], such as linux/arm64"
        ))),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// One line that is drawn again and again, for people.
    Bars,
    /// A line for each step, for logs.
    Lines,
    /// The same as objects.
    Json,
    Nothing,
}

/// What a pull shows of itself.
pub(super) struct Show {
    style: Style,
    out: Box<dyn Write>,
    told: BTreeMap<usize, (Phase, How)>,
    drawn: Option<Drawn>,
}

/// The line that a bar stands on.
struct Drawn {
    layer: usize,
    at: Instant,
    began: Instant,
    offset: u64,
}

impl Show {
    fn new(style: Style, out: Box<dyn Write>) -> Self {
        Self {
            style,
            out,
            told: BTreeMap::new(),
            drawn: None,
        }
    }

    /// For a pull on the way to something else, whose own output standard output is.
    pub(super) fn on_stderr() -> Self {
        let style = if io::stderr().is_terminal() {
            Style::Bars
        } else {
            Style::Lines
        };
        Self::new(style, Box::new(io::stderr()))
    }

    /// Nobody minds a progress line that cannot be written.
    fn say(&mut self, text: &str) {
        let _ = self
            .out
            .write_all(text.as_bytes())
            .and_then(|()| self.out.flush());
    }

    fn progress(&mut self, progress: &Progress<'_>) {
        let step = (progress.phase, progress.how);
        let news = self.told.insert(progress.layer, step) != Some(step);
        let word = word(progress);
        match self.style {
            Style::Nothing => {}
            Style::Json if news => {
                let phase = match progress.phase {
                    Phase::Fetching => "fetching",
                    Phase::Unpacking => "unpacking",
                    Phase::Done => "done",
                };
                let object = json!({
                    "phase": phase,
                    "layer": progress.layer + 1,
                    "layers": progress.layers,
                    "digest": progress.digest,
                    "how": how(progress.how),
                    "offset": progress.offset,
                    "size": progress.size,
                });
                self.say(&format!("{object}\n"));
            }
            Style::Lines if news => self.say(&format!("{}: {word}\n", progress.digest.short())),
            Style::Bars => self.draw(progress, word, news),
            Style::Json | Style::Lines => {}
        }
    }

    fn draw(&mut self, progress: &Progress<'_>, word: &str, news: bool) {
        let now = Instant::now();
        let same = self
            .drawn
            .as_ref()
            .is_some_and(|drawn| drawn.layer == progress.layer);
        if !same {
            self.finish_bar();
            self.drawn = Some(Drawn {
                layer: progress.layer,
                at: now,
                began: now,
                offset: progress.offset,
            });
        }
        let Some(drawn) = &mut self.drawn else { return };
        if same && !news && now.duration_since(drawn.at) < DRAW_EVERY {
            return;
        }
        drawn.at = now;
        let mut line = format!("\r\x1b[K{}: {word}", progress.digest.short());
        if progress.phase == Phase::Fetching && progress.size > 0 {
            let filled =
                usize::try_from(progress.offset.min(progress.size) * BAR / progress.size).unwrap_or(0);
            let bar: String = (0..BAR as usize)
                .map(|at| if at < filled { '=' } else { ' ' })
                .collect();
            let seconds = now.duration_since(drawn.began).as_secs_f64();
            let rate = progress.offset.saturating_sub(drawn.offset) as f64 / seconds.max(0.001);
            line.push_str(&format!(
                " [{bar}] {}/{}",
                ago::size(progress.offset),
                ago::size(progress.size)
            ));
            if seconds >= 1.0 && rate >= 1.0 {
                let left = progress.size.saturating_sub(progress.offset) as f64 / rate;
                line.push_str(&format!("  {}/s  {}s left", ago::size(rate as u64), left.ceil()));
            }
        }
        self.say(&line);
    }

    /// Leaves the bar's line.
    fn finish_bar(&mut self) {
        if self.drawn.take().is_some() {
            self.say("\n");
        }
    }

    fn end(&mut self, name: &Reference, pulled: &Pulled, same: bool) {
        if self.style == Style::Json {
            let layers: Vec<_> = pulled.layers.iter().map(layer).collect();
            let object = json!({
                "phase": "pulled",
                "name": name,
                "digest": pulled.digest,
                "needed": pulled.needed,
                "wire": pulled.wire,
                "full": pulled.full,
                "layers": layers,
            });
            return self.say(&format!("{object}\n"));
        }
        for outcome in &pulled.layers {
            if let Some(reason) = &outcome.reason {
                self.say(&format!("{}: no delta: {reason}\n", outcome.digest.short()));
            }
        }
        let status = if same {
            "Image is up to date for"
        } else {
            "Downloaded newer image for"
        };
        self.say(&format!("Digest: {}\n", pulled.digest));
        // An image out of a layout crosses no link.
        if pulled.wire > 0 {
            let [needed, full, wire] = [pulled.needed, pulled.full, pulled.wire].map(ago::size);
            self.say(&format!(
                "Fetched: {needed} of {full} that a full pull needs, {wire} on the wire\n"
            ));
        }
        self.say(&format!("Status: {status} {}\n{name}\n", name.familiar()));
    }
}

fn word(progress: &Progress<'_>) -> &'static str {
    match (progress.phase, progress.how) {
        (_, How::Present) => "Already exists",
        (Phase::Fetching, How::Full) => "Downloading",
        (Phase::Fetching, How::Delta) => "Downloading a delta",
        (Phase::Unpacking, How::Full) => "Extracting",
        (Phase::Unpacking, How::Delta) => "Applying the delta",
        (Phase::Done, _) => "Pull complete",
    }
}

fn how(how: How) -> &'static str {
    match how {
        How::Present => "present",
        How::Full => "full",
        How::Delta => "delta",
    }
}

fn layer(outcome: &LayerOutcome) -> serde_json::Value {
    let LayerOutcome {
        diff_id,
        digest,
        how: came,
        bytes,
        reason,
    } = outcome;
    let digest: &Digest = digest;
    json!({ "diffId": diff_id, "digest": digest, "how": how(*came), "bytes": bytes, "reason": reason })
}
