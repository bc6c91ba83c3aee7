//! The fault proxy on the command line. It prints `READY ADDRESS`, obeys lines on standard input (`up`, `down`,
//! `stats`, `reset`) and ends, with the counters as its last line, when standard input does.

use std::io::BufRead as _;
use std::process::ExitCode;
use std::time::Duration;
use wherry_tests::flaky::{CutMode, Options, Proxy};

const USAGE: &str = "usage: flaky --upstream ADDRESS [--listen ADDRESS] [--seed N] [--cut BYTES[:MAX]]
       [--cut-mode rst|fin|stall] [--cut-first N] [--stall SECONDS] [--latency-ms N] [--rate BYTES]
       [--outage PERIOD:DOWN] [--flip BYTE]
A transparent TCP relay with faults. BYTES take k and m; --rate is downstream, in a second, over all connections;
--outage takes the link down for the last DOWN seconds of every PERIOD; --flip turns one bit of that downstream byte, once.
On standard input: up, down (the link), stats, reset (the counters); the end of it ends the proxy.";

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flaky: {error}");
            ExitCode::FAILURE
        }
    }
}

fn size(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'k') => (&text[..text.len() - 1], 1024),
        Some(b'm') => (&text[..text.len() - 1], 1024 * 1024),
        _ => (text, 1),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(unit))
        .ok_or_else(|| format!("{text:?} is no size"))
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|n| Duration::try_from_secs_f64(n).ok())
        .ok_or_else(|| format!("{text:?} is no time"))
}

fn options() -> Result<Options, String> {
    let mut args = std::env::args().skip(1);
    let mut upstream = None;
    let mut options = Options::good(([127, 0, 0, 1], 0).into());
    while let Some(flag) = args.next() {
        let value = args.next().ok_or(USAGE)?;
        let number = || {
            value
                .parse::<u64>()
                .map_err(|_| format!("{value:?} is no number"))
        };
        match flag.as_str() {
            "--listen" => options.listen.clone_from(&value),
            "--upstream" => upstream = Some(value.parse().map_err(|_| format!("{value:?} is no address"))?),
            "--seed" => options.seed = number()?,
            "--cut" => {
                let (least, most) = value.split_once(':').unwrap_or((&value, &value));
                options.cut = Some(size(least)?..=size(most)?);
            }
            "--cut-mode" => {
                options.cut_mode = match value.as_str() {
                    "rst" => CutMode::Rst,
                    "fin" => CutMode::Fin,
                    "stall" => CutMode::Stall,
                    _ => return Err(USAGE.to_owned()),
                }
            }
            "--cut-first" => options.cut_first = number()?,
            "--stall" => options.stall = seconds(&value)?,
            "--latency-ms" => options.latency = Duration::from_millis(number()?),
            "--rate" => options.rate = Some(size(&value)?),
            "--outage" => {
                let (period, down) = value.split_once(':').ok_or(USAGE)?;
                options.outage = Some((seconds(period)?, seconds(down)?));
            }
            "--flip" => options.flip = Some(size(&value)?),
            _ => return Err(USAGE.to_owned()),
        }
    }
    options.upstream = upstream.ok_or(USAGE)?;
    Ok(options)
}

fn serve() -> Result<(), String> {
    let proxy = Proxy::start(options()?).map_err(|error| format!("listen: {error}"))?;
    let stats = || serde_json::to_string(&proxy.counters()).unwrap_or_default();
    println!("READY {}", proxy.address());
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        match line.trim() {
            "up" => proxy.set_link(true),
            "down" => proxy.set_link(false),
            "reset" => proxy.reset_counters(),
            "stats" => println!("{}", stats()),
            "" => {}
            other => eprintln!("flaky: {other:?} is not one of up, down, stats, reset"),
        }
    }
    println!("{}", stats());
    Ok(())
}
