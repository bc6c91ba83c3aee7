//! `wherry pull`.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use argh::{ArgsInfo, FromArgs};
use serde_json::json;
use wherry_images::platform::Platform;
use wherry_images::pull::{self, How, LayerOutcome, Phase, Progress, PullOptions, Pulled, Source};
use wherry_images::registry::{Client, Limits};
use wherry_images::{Digest, Reference, Store};

use super::ago;
use super::failure::{Failure, print};
use super::place::Place;
use super::registry;

/// How often a bar is drawn anew.
const DRAW_EVERY: Duration = Duration::from_millis(100);
/// How often machines are told how far a layer is.
const SPEAK_EVERY: Duration = Duration::from_secs(1);
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
    /// the most bytes in a second, such as 500k
    #[argh(option, arg_name = "bytes")]
    pub limit_rate: Option<String>,
    /// the most bytes in all, such as 20m; what has arrived by then is kept
    #[argh(option, arg_name = "bytes")]
    pub budget: Option<String>,
    /// the hours of the day, UTC, in which the link may be used, such as 01:00-05:30
    #[argh(option, arg_name = "hours")]
    pub window: Option<String>,
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
    let platform = platform(args.platform.as_deref())?;
    let options = PullOptions {
        platform,
        keep_blobs: args.keep_blobs,
        use_deltas: !args.no_delta,
    };
    let store = place.store()?;
    let limits = limits(&args)?;
    let client = registry::limited(args.tls_verify, args.creds.as_deref(), &name, limits)?;
    let before = store.tagged(&name)?.map(|record| record.target.digest);
    let pulled = fetch(&store, &client, &source, &options, &mut show)?;
    if args.quiet {
        print(&format!("{}\n", pulled.digest))?;
    } else {
        show.end(&name, &pulled, before == Some(pulled.digest));
    }
    Ok(ExitCode::SUCCESS)
}

fn limits(args: &Args) -> Result<Limits, Failure> {
    let bytes = |flag: &str, value: &Option<String>| {
        let read = value
            .as_deref()
            .map(wherry_images::registry::parse_bytes)
            .transpose();
        read.map_err(|error| Failure::new(format!("{flag}: {error}")))
    };
    let window = args.window.as_deref().map(str::parse).transpose();
    Ok(Limits {
        rate: bytes("--limit-rate", &args.limit_rate)?,
        budget: bytes("--budget", &args.budget)?,
        window: window.map_err(|error: String| Failure::new(format!("--window: {error}")))?,
    })
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
        let what = match source {
            Source::Registry(reference) => reference.familiar(),
            Source::Layout { folder, .. } => folder.display().to_string(),
        };
        failure("pull", &what, &error)
    })
}

/// `cannot VERB WHAT: why; what to do`.
pub(super) fn failure(verb: &str, what: &str, error: &pull::Error) -> Failure {
    let advice = match error {
        pull::Error::Registry(error) => registry::advice(error),
        pull::Error::Store(error) | pull::Error::Layout(wherry_images::layout::Error::Store(error)) => {
            registry::store_advice(error)
        }
        pull::Error::Platform { .. } => "; choose another with --platform",
        pull::Error::NoRoom { .. } => "; free some space or choose another place with --root",
        _ => "",
    };
    let Failure { line, code } = Failure::of(error);
    Failure {
        line: format!("cannot {verb} {what}: {line}{advice}"),
        code,
    }
}

/// `linux/arm64` and the like; this board's where none is given.
pub(super) fn platform(text: Option<&str>) -> Result<Platform, Failure> {
    let Some(text) = text else {
        return Ok(Platform::host());
    };
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
    spoke: Option<Instant>,
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
            spoke: None,
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
            Style::Json if news || self.spoke.is_none_or(|spoke| spoke.elapsed() >= SPEAK_EVERY) => {
                self.spoke = Some(Instant::now());
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is shown of a pull of two layers, the second of which is there.
    fn shown(style: Style) -> String {
        let page = Page::default();
        let mut show = Show::new(style, Box::new(page.clone()));
        let digest = Digest::of(b"layer");
        let mut step = |layer, phase, offset, how| {
            show.progress(&Progress {
                phase,
                layer,
                layers: 2,
                digest: &digest,
                offset,
                size: 1_000_000,
                how,
            });
        };
        for offset in [0, 250_000, 500_000] {
            step(0, Phase::Fetching, offset, How::Full);
        }
        std::thread::sleep(DRAW_EVERY);
        step(0, Phase::Fetching, 750_000, How::Full);
        step(0, Phase::Unpacking, 1_000_000, How::Full);
        step(0, Phase::Done, 1_000_000, How::Full);
        step(1, Phase::Done, 1_000_000, How::Present);
        show.finish_bar();
        let bytes = page.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn logs_get_lines_terminals_bars_and_machines_objects() {
        let name = Digest::of(b"layer").short();
        let words = ["Downloading", "Extracting", "Pull complete", "Already exists"];
        let lines: String = words.iter().map(|word| format!("{name}: {word}\n")).collect();
        assert_eq!(shown(Style::Lines), lines);

        let bars = shown(Style::Bars);
        assert!(
            bars.contains(&format!(
                "\r\x1b[K{name}: Downloading [==================      ] 750kB/1MB"
            )),
            "{bars:?}"
        );
        // One line for each layer, which is left when the next begins.
        assert_eq!(bars.matches('\n').count(), 2, "{bars:?}");
        assert!(words.iter().all(|word| bars.contains(word)), "{bars:?}");

        let objects: Vec<serde_json::Value> = shown(Style::Json)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let told: Vec<_> = objects
            .iter()
            .map(|o| (o["phase"].as_str().unwrap(), o["layer"].as_u64().unwrap()))
            .collect();
        assert_eq!(
            told,
            [("fetching", 1), ("unpacking", 1), ("done", 1), ("done", 2)]
        );
        assert_eq!(
            (&objects[3]["how"], &objects[0]["size"]),
            (&json!("present"), &json!(1_000_000))
        );
        assert_eq!(shown(Style::Nothing), "");
    }
}
