//! The double of the Kubernetes API on the command line: prints `READY ADDRESS` and a kubeconfig for each node, logs
//! each answered request, and ends when standard input does.

use std::io::Read as _;
use std::process::ExitCode;
use std::time::Duration;
use wherry_tests::kube::Double;

const USAGE: &str = "usage: kube-double [--listen ADDRESS] [--admin-token TOKEN] [--node NAME]...
A stateful double of the Kubernetes API for nodes, over plain HTTP. A node's token is NAME-token.";

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kube-double: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), String> {
    let (mut listen, mut admin, mut nodes) = ("127.0.0.1:0".to_owned(), "admin-token".to_owned(), Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let value = args.next().ok_or(USAGE)?;
        match flag.as_str() {
            "--listen" => listen = value,
            "--admin-token" => admin = value,
            "--node" => nodes.push((value.clone(), format!("{value}-token"))),
            _ => return Err(USAGE.to_owned()),
        }
    }
    let pairs: Vec<(&str, &str)> = nodes
        .iter()
        .map(|(name, token)| (name.as_str(), token.as_str()))
        .collect();
    let double =
        Double::start(&listen, &admin, &pairs).map_err(|error| format!("listen on {listen}: {error}"))?;
    println!("READY {}", double.address());
    for (name, token) in &nodes {
        println!("{name}: {}", double.kubeconfig(double.address(), token));
    }
    std::thread::scope(|scope| {
        let ended = scope.spawn(|| std::io::stdin().read_to_end(&mut Vec::new()));
        let mut shown = 0;
        while !ended.is_finished() {
            let served = double.served();
            for request in &served[shown..] {
                println!(
                    "{} {} {} {} {:?}",
                    request.status, request.method, request.path, request.user, request.warnings
                );
            }
            shown = served.len();
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    Ok(())
}
