//! Logging in and out: a login is tried before it is kept, and kept where docker's tools look for it.
//!
//! docker's `config.json` holds the login itself (mode 0600, replaced by rename, all else in it unchanged), unless it names a
//! credential helper: then the helper keeps it and the file says only that there is one.

use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use ureq::http::Method;

use super::auth::{Login, MAX_CONFIG, helper_of, is_key_of};
use super::endpoint::Url;
use super::exchange::Request;
use super::{Client, Error, credential};
use crate::reference::Reference;

/// Where a login was put, as a person is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// In the file, in the clear but for base64.
    File,
    /// With a credential helper.
    Helper(String),
}

impl Client {
    /// Tries the client's login at `registry` (`host[:port]`). Nothing is kept.
    ///
    /// # Errors
    /// [`Error::Denied`] when the registry or its token service refuses it.
    pub fn try_login(&self, registry: &str) -> Result<(), Error> {
        let what = "login";
        let reference = Reference::parse("docker.io/library/login")
            .and_then(|any| any.at_registry(registry))
            .map_err(|e| Error::Login(e.to_string()))?;
        self.persist(&reference, what, || {
            let secure = self.speaks_tls(&reference)?;
            let url = Url::at(secure, reference.api_host(), "/v2/");
            let mut request = Request::new(&reference, what, Method::GET, url);
            request.scoped = false;
            let exchange = self.exchange(&request)?;
            match exchange.status() {
                200 => {
                    exchange.drain();
                    Ok(())
                }
                _ => Err(exchange.refuse(self, &reference, what)),
            }
        })
    }
}

/// Keeps a login in docker's config.json at `path`, or with the helper that it names.
pub fn keep(path: &Path, registry: &str, user: &str, secret: &str) -> Result<Kept, Error> {
    let mut config = read(path)?;
    let helper = helper_of(&config, registry);
    let entry = match &helper {
        Some(helper) => {
            credential::store(helper, registry, user, secret).map_err(Error::Login)?;
            json!({})
        }
        None => json!({"auth": STANDARD.encode(format!("{user}:{secret}"))}),
    };
    let mut auths = take_auths(&mut config);
    auths.retain(|key, _| !is_key_of(key, registry));
    auths.insert(credential::server(registry).to_owned(), entry);
    config.insert("auths".to_owned(), Value::Object(auths));
    write(path, &config)?;
    Ok(helper.map_or(Kept::File, Kept::Helper))
}

/// Forgets a login. False when there was none.
pub fn forget(path: &Path, registry: &str) -> Result<bool, Error> {
    let mut config = read(path)?;
    let mut auths = take_auths(&mut config);
    let before = auths.len();
    auths.retain(|key, _| !is_key_of(key, registry));
    let found = auths.len() < before;
    config.insert("auths".to_owned(), Value::Object(auths));
    if let Some(helper) = helper_of(&config, registry) {
        credential::erase(&helper, registry).map_err(Error::Login)?;
    }
    if found {
        write(path, &config)?;
    }
    Ok(found)
}

/// The login that the file itself has, for showing who is logged in.
pub fn user(login: &Login) -> &str {
    match login {
        Login::Password { user, .. } => user,
        Login::Identity { .. } => "<token>",
    }
}

/// Takes the logins out of the file; they are put back under the same key.
fn take_auths(config: &mut Map<String, Value>) -> Map<String, Value> {
    match config.get_mut("auths").map(Value::take) {
        Some(Value::Object(auths)) => auths,
        _ => Map::new(),
    }
}

fn read(path: &Path) -> Result<Map<String, Value>, Error> {
    let failed = |what: String| Error::Login(format!("{}: {what}", path.display()));
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(e) => return Err(failed(e.to_string())),
    };
    let mut bytes = Vec::new();
    file.take(MAX_CONFIG + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| failed(e.to_string()))?;
    if bytes.len() as u64 > MAX_CONFIG {
        return Err(failed(format!("larger than {MAX_CONFIG} bytes")));
    }
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(config)) => Ok(config),
        Ok(_) => Err(failed("not a JSON object".to_owned())),
        Err(e) => Err(failed(e.to_string())),
    }
}

/// Replaces the file: private, whole or not at all. One that is a link stays one, and what it leads to is replaced.
fn write(path: &Path, config: &Map<String, Value>) -> Result<(), Error> {
    let failed = |e: &dyn std::fmt::Display| Error::Login(format!("{}: {e}", path.display()));
    let mut bytes = serde_json::to_vec_pretty(config).map_err(|e| failed(&e))?;
    bytes.push(b'\n');
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = path.parent().unwrap_or(Path::new("."));
    std::os::unix::fs::DirBuilderExt::mode(std::fs::DirBuilder::new().recursive(true), 0o700)
        .create(folder)
        .map_err(|e| failed(&e))?;
    let temporary = folder.join(format!(".config.json.{}", std::process::id()));
    let replaced = (|| {
        let mut file = std::fs::File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        std::fs::File::open(folder)?.sync_all()
    })();
    replaced.map_err(|e| {
        let _ = std::fs::remove_file(&temporary);
        failed(&e)
    })
}

#[cfg(test)]
mod tests {
    use super::super::auth::{Account, load_account};
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_login_is_kept_beside_what_was_there_and_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/config.json");
        assert!(!forget(&path, "reg.example").unwrap() && !path.exists());
        assert_eq!(keep(&path, "reg.example", "u", "p:w").unwrap(), Kept::File);
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let known = |registry: &str| load_account(&path, registry).unwrap();
        let login = |user: &str, secret: &str| {
            Account::Known(Login::Password {
                user: user.to_owned(),
                secret: secret.to_owned(),
            })
        };
        assert_eq!(known("reg.example"), login("u", "p:w"));

        std::fs::write(
            &path,
            r#"{"psFormat":"x","auths":{"https://reg.example/v2/":{"auth":"eA=="},"other":{"auth":"YTpi"}}}"#,
        )
        .unwrap();
        keep(&path, "reg.example", "v", "q").unwrap();
        keep(&path, "docker.io", "h", "i").unwrap();
        assert_eq!(
            (known("reg.example"), known("other")),
            (login("v", "q"), login("a", "b"))
        );
        assert_eq!(known("docker.io"), login("h", "i"));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.contains("psFormat") && text.contains("https://index.docker.io/v1/"),
            "{text}"
        );
        assert_eq!(text.matches("reg.example").count(), 1, "{text}");
        assert!(forget(&path, "reg.example").unwrap() && !forget(&path, "reg.example").unwrap());
        assert_eq!(
            (known("reg.example"), known("other")),
            (Account::None, login("a", "b"))
        );
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );

        std::fs::write(&path, "[]").unwrap();
        let error = keep(&path, "reg.example", "u", "p").unwrap_err().to_string();
        assert!(error.contains("config.json: not a JSON object"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"[]");
    }
}
