//! Registries as people meet them: logging in, credential helpers, proxies, forecasts, and other people's tools against
//! `wherry serve`.

use std::io::{BufRead as _, BufReader, Error, Result, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use wherry_tests::board::{BOX, Board, Serve, TOKEN};
use wherry_tests::http::{Answer, Response, Server};
use wherry_tests::sample::digest_of;
use wherry_tests::stage::{free_port, skip};

const ACCOUNTS: &str = "maker:maker-secret\nboard:board-secret:ro\n";

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A `wherry serve` with accounts, over a store of its own.
fn with_accounts(board: &Board) -> Result<Serve> {
    let root = board.stage.private_directory("served")?;
    let accounts = board.stage.directory().join("home/accounts");
    board.stage.write(&accounts, ACCOUNTS)?;
    std::fs::set_permissions(&accounts, std::fs::Permissions::from_mode(0o600))?;
    let address = ([127, 0, 0, 1], free_port()?).into();
    let accounts = text(&accounts);
    Serve::start_with(
        &board.stage,
        "serve",
        &root,
        address,
        &["--accounts-file", &accounts],
    )
}

/// Runs to its end with something on standard input.
fn fed(mut command: Command, input: &str) -> Result<Output> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    child.wait_with_output()
}

/// Its output, which must be good.
fn good(what: &str, output: &Output) -> Result<String> {
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    if !output.status.success() {
        let error = said(&output.stderr);
        return Err(Error::other(format!("{what}: {}: {error}", output.status)));
    }
    Ok(said(&output.stdout))
}

#[test]
fn a_login_is_tried_kept_used_and_forgotten() -> Result<()> {
    let board = Board::with_box()?;
    let serve = with_accounts(&board)?;
    let registry = serve.address.to_string();
    let target = format!("{registry}/lab/box:1");
    let config = board.stage.directory().join("home/.docker/config.json");
    let login = |user: &str, secret: &str| {
        let words = ["login", "-u", user, "--password-stdin", &registry];
        fed(board.stage.wherry(&board.root, &words), &format!("{secret}\n"))
    };

    let (code, line) = board.refused(&["push", "-q", BOX, &target])?;
    assert!(
        code == 1 && line.contains("denies access") && line.contains("config.json"),
        "{line}"
    );
    let wrong = login("maker", "wrong-secret")?;
    let line = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(
        wrong.status.code() == Some(1) && line.contains("check the name and the password"),
        "{line}"
    );
    assert!(!config.exists() && !line.contains("wrong-secret"));

    assert_eq!(
        good("login", &login("board", "board-secret")?)?,
        "Login Succeeded"
    );
    assert_eq!(std::fs::metadata(&config)?.permissions().mode() & 0o777, 0o600);
    let (_, line) = board.refused(&["push", "-q", BOX, &target])?;
    assert!(line.contains("denies access"), "{line}");
    good("login", &login("maker", "maker-secret")?)?;
    board.must(&["push", "-q", BOX, &target])?;
    board.must(&["pull", "-q", &target])?;
    assert!(
        board
            .must(&["logout", &registry])?
            .starts_with("Removing login credentials")
    );
    assert!(board.must(&["logout", &registry])?.starts_with("Not logged in"));
    let (_, line) = board.refused(&["pull", "-q", &format!("{registry}/lab/other:1")])?;
    assert!(line.contains("denies access"), "{line}");
    for words in [
        &["login", "--password-stdin", "reg.example"][..],
        &["login", "-u", "a", "-p", "b", "--password-stdin", "reg.example"],
        &["login", "-u", "a", "a b"],
        &["login", "reg.example"],
    ] {
        assert_eq!(board.refused(words)?.0, 1, "{words:?}");
    }
    Ok(())
}

#[test]
fn a_credential_helper_keeps_the_login() -> Result<()> {
    let board = Board::with_box()?;
    let serve = with_accounts(&board)?;
    let registry = serve.address.to_string();
    let home = board.stage.directory().join("home");
    // It keeps what it is given in a file, one for all registries, and notes who asked for what.
    let helper = home.join("docker-credential-drawer");
    let script = "#!/bin/sh\ncd \"$HOME\" || exit 1\nread -r line\necho \"$1 $line\" >>asked\ncase $1 in\n\
        store) echo \"$line\" >drawer ;;\nerase) rm -f drawer ;;\n\
        get) if [ -e drawer ]; then cat drawer; else echo 'credentials not found in native keychain'; exit 1; fi ;;\nesac\n";
    board.stage.write(&helper, script)?;
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755))?;
    let docker = board.stage.private_directory("home/.docker")?;
    board
        .stage
        .write(&docker.join("config.json"), "{\"credsStore\":\"drawer\"}")?;
    let wherry = |words: &[&str]| {
        let mut command = board.stage.wherry(&board.root, words);
        command.env("PATH", format!("{}:/usr/bin:/bin", home.display()));
        command
    };
    let target = format!("{registry}/lab/box:1");
    let push = || wherry(&["push", "-q", BOX, &target]).output();
    let line = String::from_utf8_lossy(&push()?.stderr).into_owned();
    assert!(
        line.contains("credential helper \"drawer\", which has no login for it"),
        "{line}"
    );
    let login = wherry(&["login", "-u", "maker", "--password-stdin", &registry]);
    assert_eq!(good("login", &fed(login, "maker-secret")?)?, "Login Succeeded");
    let config = std::fs::read_to_string(docker.join("config.json"))?;
    assert!(
        config.contains(&registry) && !config.contains("\"auth\""),
        "{config}"
    );
    good("push", &push()?)?;
    good("logout", &wherry(&["logout", &registry]).output()?)?;
    assert!(!push()?.status.success() && !home.join("drawer").exists());
    let asked = std::fs::read_to_string(home.join("asked"))?;
    assert!(
        asked.contains(&format!("get {registry}")) && asked.contains("store {"),
        "{asked}"
    );
    // A helper that is not there is named, not passed over.
    let mut without = board.stage.wherry(&board.root, &["push", "-q", BOX, &target]);
    without.env("PATH", "/usr/bin:/bin");
    let line = String::from_utf8_lossy(&without.output()?.stderr).into_owned();
    assert!(line.contains("docker-credential-drawer: No such file"), "{line}");
    Ok(())
}

/// A proxy that connects whoever asks for any host to `upstream`, and remembers what was asked for.
fn proxy(upstream: SocketAddr) -> Result<(SocketAddr, Arc<Mutex<Vec<String>>>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = Arc::clone(&asked);
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let log = Arc::clone(&log);
            std::thread::spawn(move || relay(client, upstream, &log));
        }
    });
    Ok((address, asked))
}

fn relay(client: TcpStream, upstream: SocketAddr, log: &Mutex<Vec<String>>) -> Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        head.push(line.trim().to_owned());
    }
    let first = head.first().cloned().unwrap_or_default();
    let login = head
        .iter()
        .find(|line| line.to_ascii_lowercase().starts_with("proxy-authorization"));
    if let Ok(mut log) = log.lock() {
        log.push(format!("{first} {}", login.map_or("", String::as_str)));
    }
    let server = TcpStream::connect(upstream)?;
    (&client).write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let (mut from, mut to) = (server.try_clone()?, client);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Both);
    });
    let _ = std::io::copy(&mut reader, &mut &server);
    let _ = server.shutdown(std::net::Shutdown::Both);
    Ok(())
}

#[test]
fn a_proxy_is_used_as_the_environment_says() -> Result<()> {
    let board = Board::with_box()?;
    let root = board.stage.private_directory("served")?;
    let serve = Serve::start(&board.stage, "serve", &root)?;
    let (proxy, asked) = proxy(serve.address)?;
    let creds = format!("any:{TOKEN}");
    let push = |variables: &[(&str, String)], target: &str| {
        let words = ["push", "-q", "--tls-verify=false", "--creds", &creds, BOX, target];
        let mut command = board.stage.wherry(&board.root, &words);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        command.output()
    };
    let through = || asked.lock().map(|log| log.clone()).unwrap_or_default();
    let named = "registry.test:5000/lab/box:1";
    let at = ("http_proxy", format!("http://me:secret@{proxy}"));
    // Nobody knows the name but the proxy.
    good("push", &push(std::slice::from_ref(&at), named)?)?;
    let log = through();
    let wanted = "CONNECT registry.test:5000 HTTP/1.1";
    assert!(
        log.iter().all(|line| line.starts_with(wanted)) && !log.is_empty(),
        "{log:?}"
    );
    // me:secret
    assert!(
        log.iter().all(|line| line.ends_with("Basic bWU6c2VjcmV0")),
        "{log:?}"
    );
    let passed = push(&[at.clone(), ("no_proxy", "registry.test".to_owned())], named)?;
    let line = String::from_utf8_lossy(&passed.stderr).into_owned();
    assert!(
        !passed.status.success() && line.contains("its name does not resolve"),
        "{line}"
    );
    // What stays on this machine goes past it.
    good("push", &push(&[at], &format!("{}/lab/box:2", serve.address))?)?;
    assert_eq!(through(), log);
    Ok(())
}

#[test]
fn a_pull_that_cannot_fit_is_refused_with_its_numbers() -> Result<()> {
    let board = Board::new()?;
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let architecture = wherry_tests::sample::architecture();
    let config = serde_json::json!({"architecture": architecture, "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest_of(b"x")]}})
    .to_string();
    let huge: u64 = 1 << 50;
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": kind,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(config.as_bytes()), "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest_of(b"y"), "size": huge}]})
    .to_string();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let (log, of_config) = (
        Arc::clone(&asked),
        format!("/blobs/{}", digest_of(config.as_bytes())),
    );
    let server = Server::start("127.0.0.1:0", move |request| {
        if let Ok(mut log) = log.lock() {
            log.push(request.path.clone());
        }
        Answer::Whole(match request.path.as_str() {
            path if path.ends_with("/manifests/1") => Response::new(200, kind, manifest.clone()),
            path if path.ends_with(&of_config) => {
                Response::new(200, "application/octet-stream", config.clone())
            }
            _ => Response::new(404, "application/json", "{}"),
        })
    })?;
    let name = format!("{}/lab/huge:1", server.address());
    let (code, line) = board.refused(&["pull", "-q", &name])?;
    for part in [
        "cannot fit",
        &huge.to_string(),
        "bytes are free",
        "free some space",
    ] {
        assert!(line.contains(part), "{line}");
    }
    let plan = board
        .stage
        .run(&board.root, &["plan", "--format", "json", &name])?;
    assert_eq!((code, plan.status.code()), (1, Some(1)));
    let plan: serde_json::Value = serde_json::from_slice(&plan.stdout)?;
    assert_eq!(
        (&plan["fits"], plan["fetch"].as_u64()),
        (&serde_json::json!(false), Some(huge))
    );
    let told = board.stage.run(&board.root, &["plan", &name])?;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(
        told.contains("it cannot fit") && told.contains("Time:   not known"),
        "{told}"
    );
    // The layer itself was never asked for.
    let layer = digest_of(b"y");
    assert!(
        asked
            .lock()
            .is_ok_and(|log| log.iter().all(|path| !path.contains(&layer)))
    );
    Ok(())
}

#[test]
fn limits_of_the_command_line_are_kept_and_nonsense_is_refused() -> Result<()> {
    let board = Board::with_box()?;
    let root = board.stage.private_directory("served")?;
    let serve = Serve::start(&board.stage, "serve", &root)?;
    let target = format!("{}/lab/box:1", serve.address);
    board.must(&["push", "-q", "--creds", &format!("any:{TOKEN}"), BOX, &target])?;
    let other = board.stage.private_directory("other")?;
    let refused = |words: &[&str]| wherry_tests::board::refusal(&board.stage, &other, words);
    let (_, line) = refused(&["pull", "-q", "--budget", "100k", &target])?;
    assert!(
        line.contains("the budget of 100000 bytes is used up") && line.contains("is kept"),
        "{line}"
    );
    for (flag, value) in [
        ("--limit-rate", "fast"),
        ("--budget", "0"),
        ("--window", "night"),
        ("--window", "01:00"),
    ] {
        let (code, line) = refused(&["pull", "-q", flag, value, &target])?;
        assert!(
            code == 1 && line.contains(flag) && line.contains("expected"),
            "{line}"
        );
    }
    board.stage.must(
        &other,
        &[
            "pull",
            "-q",
            "--limit-rate",
            "20m",
            "--window",
            "00:00-23:59",
            &target,
        ],
    )?;
    Ok(())
}

/// podman or skopeo, ended after a minute.
fn tool(board: &Board, name: &str) -> Command {
    let mut command = board.stage.command("timeout");
    command.args(["--foreground", "--kill-after=5", "60", name]);
    command
}

#[test]
fn skopeo_and_podman_log_in_push_and_pull() -> Result<()> {
    let board = Board::with_box()?;
    let serve = with_accounts(&board)?;
    let registry = serve.address.to_string();
    let home = board.stage.directory().join("home");
    let authority = text(&home.join("auth.json"));

    // skopeo: in, listed, out again.
    let skopeo = |words: &[&str]| {
        let mut command = tool(&board, "skopeo");
        command
            .arg("--insecure-policy")
            .args(words)
            .env("REGISTRY_AUTH_FILE", &authority);
        command
    };
    let layout = format!("oci:{}:box", board.stage.directory().join("box").display());
    let there = format!("docker://{registry}/lab/box:1");
    let early = skopeo(&["copy", "--dest-tls-verify=false", &layout, &there]).output()?;
    assert!(!early.status.success());
    let login = skopeo(&[
        "login",
        "--tls-verify=false",
        "-u",
        "maker",
        "--password-stdin",
        &registry,
    ]);
    good("skopeo login", &fed(login, "maker-secret")?)?;
    let wrong = skopeo(&[
        "login",
        "--tls-verify=false",
        "-u",
        "maker",
        "--password-stdin",
        &registry,
    ]);
    assert!(!fed(wrong, "other-secret")?.status.success());
    good(
        "skopeo copy",
        &skopeo(&["copy", "--dest-tls-verify=false", &layout, &there]).output()?,
    )?;
    let tags = good(
        "skopeo list-tags",
        &skopeo(&["list-tags", "--tls-verify=false", there.trim_end_matches(":1")]).output()?,
    )?;
    assert!(tags.contains("\"1\""), "{tags}");
    let digest = |name: &str| {
        let words = ["inspect", "--tls-verify=false", "--format", "{{.Digest}}", name];
        good("skopeo inspect", &skopeo(&words).output()?)
    };
    let first = digest(&there)?;
    let out = format!("dir:{}", text(&home.join("out")));
    good(
        "skopeo copy",
        &skopeo(&["copy", "--src-tls-verify=false", &there, &out]).output()?,
    )?;
    let second = format!("docker://{registry}/lab/again:1");
    let across = [
        "copy",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        &there,
        &second,
    ];
    good("skopeo copy", &skopeo(&across).output()?)?;
    assert_eq!(digest(&second)?, first);
    good(
        "skopeo delete",
        &skopeo(&["delete", "--tls-verify=false", &second]).output()?,
    )?;
    assert!(digest(&second).is_err());

    // podman: out, under another name in again, and what it pushed is ours to pull.
    if !Path::new("/usr/bin/podman").exists() {
        skip("skopeo_and_podman_log_in_push_and_pull", "the package podman");
        return Ok(());
    }
    let place = |name: &str| -> PathBuf { board.stage.directory().join(name) };
    let podman = |words: &[&str]| {
        let mut command = tool(&board, "podman");
        command
            .args([
                "--storage-driver",
                "vfs",
                "--cgroup-manager",
                "cgroupfs",
                "--events-backend",
                "file",
            ])
            .args([
                "--root",
                &text(&place("home/storage")),
                "--runroot",
                &text(&place("run/storage")),
            ])
            .args(["--tmpdir", &text(&place("run/tmp"))])
            .args(words)
            .env("REGISTRY_AUTH_FILE", &authority);
        command
    };
    let image = format!("{registry}/lab/box:1");
    let third = format!("{registry}/lab/third:1");
    let result = (|| {
        good("podman logout", &podman(&["logout", &registry]).output()?)?;
        let login = podman(&[
            "login",
            "--tls-verify=false",
            "-u",
            "maker",
            "--password-stdin",
            &registry,
        ]);
        good("podman login", &fed(login, "maker-secret")?)?;
        good(
            "podman pull",
            &podman(&["pull", "--quiet", "--tls-verify=false", &image]).output()?,
        )?;
        good("podman tag", &podman(&["tag", &image, &third]).output()?)?;
        good(
            "podman push",
            &podman(&["push", "--quiet", "--tls-verify=false", &third]).output()?,
        )?;
        let login = board.stage.wherry(
            &board.root,
            &["login", "-u", "board", "--password-stdin", &registry],
        );
        good("login", &fed(login, "board-secret")?)?;
        board.must(&["pull", "-q", &third])
    })();
    // Its store has files of other ids: podman's to remove.
    let _ = podman(&["rmi", "--force", "--all"]).output();
    let _ = podman(&["system", "migrate"]).output();
    assert!(result?.starts_with("sha256:"));
    Ok(())
}

#[test]
fn anybody_reads_where_only_writing_is_guarded() -> Result<()> {
    let board = Board::with_box()?;
    let root = board.stage.private_directory("served")?;
    let serve = Serve::start(&board.stage, "serve", &root)?;
    let target = format!("{}/lab/box:1", serve.address);
    board.must(&["push", "-q", "--creds", &format!("any:{TOKEN}"), BOX, &target])?;
    // skopeo without a login is given one for reading by the token service, and none for writing.
    let skopeo = |words: &[&str]| {
        let mut command = tool(&board, "skopeo");
        command
            .arg("--insecure-policy")
            .args(words)
            .env("REGISTRY_AUTH_FILE", "/nonexistent/auth.json");
        command.output()
    };
    let there = format!("docker://{target}");
    good(
        "skopeo inspect",
        &skopeo(&["inspect", "--tls-verify=false", &there])?,
    )?;
    let layout = format!("oci:{}:box", board.stage.directory().join("box").display());
    let write = skopeo(&[
        "copy",
        "--dest-tls-verify=false",
        &layout,
        &format!("docker://{}/lab/new:1", serve.address),
    ])?;
    assert!(!write.status.success());
    let other = board.stage.private_directory("other")?;
    board.stage.must(&other, &["pull", "-q", &target])?;
    Ok(())
}
