//! Who we say we are: the `WWW-Authenticate` challenge, the token it leads to, and docker's `config.json`.
//!
//! Owns the parsing of all three; performs no request. What comes from a registry is hostile: lengths are bounded, and a
//! token that could not be a header's value is refused before it becomes one. Secrets have no `Debug` that shows them.

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

/// A longer `WWW-Authenticate` value is not read. Real ones are below 300 bytes.
pub(crate) const MAX_CHALLENGE: usize = 4096;
/// A longer token is refused. Docker Hub's are about 2.5 KB; cloud registries reach 8 KB.
const MAX_TOKEN: usize = 16 * 1024;
/// A token without `expires_in` lives this long (distribution token specification).
const DEFAULT_LIFETIME_S: u64 = 60;
/// docker's config.json is small; one beyond this is not read.
pub(crate) const MAX_CONFIG: u64 = 1024 * 1024;

/// One challenge of a 401 answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// `Basic realm=...`: user and password with each request.
    Basic,
    /// `Bearer realm=URL,service=...,scope=...`: a token fetched from `realm`.
    Bearer {
        /// Address of the token service.
        realm: String,
        /// Which registry the token is for, as the token service knows it.
        service: Option<String>,
        /// What the registry says the request needs.
        scope: Option<String>,
    },
}

/// Reads the challenges of one `WWW-Authenticate` value (RFC 9110 11.6.1). Unknown schemes are left out.
pub(crate) fn parse_challenges(value: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    if value.len() > MAX_CHALLENGE {
        return found;
    }
    let mut rest = value.trim_start_matches([' ', '\t', ',']);
    while !rest.is_empty() {
        let (scheme, after) = token(rest);
        if scheme.is_empty() {
            break;
        }
        rest = after.trim_start();
        let mut realm = None;
        let mut service = None;
        let mut scope = None;
        loop {
            let (name, after) = token(rest);
            let after_name = after.trim_start();
            // A name that no `=` follows is the next challenge's scheme.
            let Some(value_text) = after_name.strip_prefix('=').filter(|_| !name.is_empty()) else {
                break;
            };
            let Some((value, after)) = parameter_value(value_text.trim_start()) else {
                return found;
            };
            match name.to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value),
                "service" => service = Some(value),
                "scope" => scope = Some(value),
                _ => {}
            }
            rest = after.trim_start_matches([' ', '\t', ',']);
        }
        if scheme.eq_ignore_ascii_case("basic") {
            found.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = realm
        {
            found.push(Challenge::Bearer {
                realm,
                service,
                scope,
            });
        }
        let before = rest.len();
        rest = rest.trim_start_matches([' ', '\t', ',']);
        // token68 credentials and stray bytes: step over them, always forward.
        if !rest.is_empty() && rest.len() == before && token(rest).0.is_empty() {
            break;
        }
    }
    found
}

fn token(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)))
        .unwrap_or(text.len());
    text.split_at(end)
}

fn parameter_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

/// A bearer token and how long it may be used.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token {
    /// The secret itself: visible ASCII only.
    pub(crate) value: String,
    /// Seconds from its issue.
    pub(crate) lifetime_s: u64,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("lifetime_s", &self.lifetime_s)
            .finish_non_exhaustive()
    }
}

/// Reads a token service's answer (`token` or `access_token`).
pub(crate) fn parse_token(body: &[u8]) -> Result<Token, String> {
    #[derive(serde::Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
        expires_in: Option<u64>,
    }
    let answer: Answer = serde_json::from_slice(body)
        .map_err(|_| "the token service's answer is not the JSON of a token".to_owned())?;
    let value = answer
        .token
        .filter(|t| !t.is_empty())
        .or(answer.access_token)
        .filter(|t| !t.is_empty())
        .ok_or_else(|| "the token service's answer carries no token".to_owned())?;
    if value.len() > MAX_TOKEN || !value.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("the token service's token is not one that a request can carry".to_owned());
    }
    Ok(Token {
        value,
        lifetime_s: answer.expires_in.unwrap_or(DEFAULT_LIFETIME_S),
    })
}

/// What is known about one registry's account.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    /// User name and password (or access token used as one).
    Password {
        /// The account's name.
        user: String,
        /// Its secret.
        secret: String,
    },
    /// An OAuth2 refresh token (docker's `identitytoken`).
    Identity {
        /// The refresh token.
        token: String,
    },
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Login::Password { user, .. } => f
                .debug_struct("Password")
                .field("user", user)
                .finish_non_exhaustive(),
            Login::Identity { .. } => f.debug_struct("Identity").finish_non_exhaustive(),
        }
    }
}

impl Login {
    /// The value of an `Authorization: Basic` header; none for a refresh token.
    pub(crate) fn basic(&self) -> Option<String> {
        match self {
            Login::Password { user, secret } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{user}:{secret}"))))
            }
            Login::Identity { .. } => None,
        }
    }
}

/// What docker's config.json says about one registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Account {
    /// Nothing: requests are anonymous.
    None,
    /// A login.
    Known(Login),
    /// A credential helper has it.
    Helper(String),
}

/// Where docker's client keeps its logins: `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`.
pub fn docker_config_path() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("DOCKER_CONFIG").filter(|v| !v.is_empty()) {
        return Some(Path::new(&folder).join("config.json"));
    }
    std::env::var_os("HOME")
        .filter(|v| !v.is_empty())
        .map(|home| Path::new(&home).join(".docker/config.json"))
}

/// Reads `path` and finds the login of `registry` in it. A missing file is no account.
pub(crate) fn load_account(path: &Path, registry: &str) -> Result<Account, String> {
    use std::io::Read;
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e)
            if matches!(
                e.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied
            ) =>
        {
            return Ok(Account::None);
        }
        Err(e) => return Err(format!("{}: {e}", path.display())),
    };
    let mut bytes = Vec::new();
    file.take(MAX_CONFIG + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| format!("{}: {e}", path.display()))?;
    if bytes.len() as u64 > MAX_CONFIG {
        return Err(format!("{}: larger than {MAX_CONFIG} bytes", path.display()));
    }
    parse_account(&bytes, registry).map_err(|e| format!("{}: {e}", path.display()))
}

/// Finds the login of `registry` (for instance `docker.io`, `ghcr.io`, `127.0.0.1:5000`) in docker's config.json.
pub(crate) fn parse_account(config: &[u8], registry: &str) -> Result<Account, String> {
    let config: serde_json::Value = serde_json::from_slice(config).map_err(|e| e.to_string())?;
    let matches = |key: &str| is_key_of(key, registry);
    let entry = config.get("auths").and_then(|a| a.as_object()).and_then(|auths| {
        auths
            .iter()
            .find(|(key, entry)| matches(key) && entry.as_object().is_some_and(|e| !e.is_empty()))
    });
    if let Some((key, entry)) = entry {
        let text = |name: &str| entry.get(name).and_then(|v| v.as_str()).filter(|v| !v.is_empty());
        if let Some(token) = text("identitytoken") {
            return Ok(Account::Known(Login::Identity {
                token: token.to_owned(),
            }));
        }
        if let (Some(user), Some(secret)) = (text("username"), text("password")) {
            return Ok(Account::Known(Login::Password {
                user: user.to_owned(),
                secret: secret.to_owned(),
            }));
        }
        if let Some(auth) = text("auth") {
            let plain = STANDARD
                .decode(auth.trim())
                .or_else(|_| STANDARD_NO_PAD.decode(auth.trim()))
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .ok_or_else(|| format!("auths[{key}].auth is not base64 of user:password"))?;
            let plain = plain.trim_end_matches('\0');
            let (user, secret) = plain
                .split_once(':')
                .ok_or_else(|| format!("auths[{key}].auth is not base64 of user:password"))?;
            return Ok(Account::Known(Login::Password {
                user: user.to_owned(),
                secret: secret.to_owned(),
            }));
        }
    }
    let helper = config.as_object().and_then(|config| helper_of(config, registry));
    Ok(helper.map_or(Account::None, Account::Helper))
}

/// Whether a key of docker's config.json (`ghcr.io`, `https://index.docker.io/v1/`) is that of `registry`.
pub(crate) fn is_key_of(key: &str, registry: &str) -> bool {
    let is_hub = |host: &str| matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io");
    let host = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let host = host.split('/').next().unwrap_or(host);
    host == registry || (is_hub(registry) && is_hub(host))
}

/// The credential helper that docker's config.json names for `registry`, else for all.
pub(crate) fn helper_of(
    config: &serde_json::Map<String, serde_json::Value>,
    registry: &str,
) -> Option<String> {
    let own = config
        .get("credHelpers")
        .and_then(|helpers| helpers.as_object())
        .and_then(|helpers| helpers.iter().find(|(key, _)| is_key_of(key, registry)))
        .and_then(|(_, name)| name.as_str());
    let name = own.or_else(|| config.get("credsStore").and_then(|name| name.as_str()));
    name.filter(|name| !name.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        }
    }

    #[test]
    fn challenges() {
        let cases: Vec<(&str, Vec<Challenge>)> = vec![
            ("Basic realm=\"x\"", vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (
                r#"Bearer realm="https://a.example/token",service="reg",scope="repository:a/b:pull,push""#,
                vec![bearer(
                    "https://a.example/token",
                    Some("reg"),
                    Some("repository:a/b:pull,push"),
                )],
            ),
            (
                r#"Bearer realm=https://a/t , service=r"#,
                vec![bearer("https://a/t", Some("r"), None)],
            ),
            (
                r#"Negotiate, Basic realm="a \"b\"", Bearer realm="https://t""#,
                vec![Challenge::Basic, bearer("https://t", None, None)],
            ),
            (r#"Bearer service="no realm""#, vec![]),
            (r#"Bearer realm="unterminated"#, vec![]),
            ("", vec![]),
            (", ,", vec![]),
            ("\u{1}\u{2}", vec![]),
            ("Digest realm=x, nonce=y", vec![]),
        ];
        for (value, wanted) in cases {
            assert_eq!(parse_challenges(value), wanted, "{value}");
        }
        assert_eq!(parse_challenges(&"a ".repeat(MAX_CHALLENGE)), vec![]);
    }

    #[test]
    fn tokens() {
        assert_eq!(
            parse_token(br#"{"token":"abc","expires_in":300}"#)
                .unwrap()
                .lifetime_s,
            300
        );
        assert_eq!(parse_token(br#"{"access_token":"abc"}"#).unwrap().value, "abc");
        assert_eq!(
            parse_token(br#"{"token":"","access_token":"b"}"#).unwrap().value,
            "b"
        );
        for bad in [
            &b"<html>"[..],
            b"{}",
            br#"{"token":"a\r\nX: y"}"#,
            br#"{"token":"a b"}"#,
        ] {
            assert!(parse_token(bad).is_err());
        }
        let long = format!(r#"{{"token":"{}"}}"#, "a".repeat(MAX_TOKEN + 1));
        assert!(parse_token(long.as_bytes()).is_err());
        assert!(!format!("{:?}", parse_token(br#"{"token":"secret"}"#).unwrap()).contains("secret"));
    }

    #[test]
    fn accounts() {
        // "dXNlcjpwYTpzcw==" is user:pa:ss
        let config = br#"{"auths":{"https://index.docker.io/v1/":{"auth":"dXNlcjpwYTpzcw=="},
            "reg.example:5000":{"username":"u","password":"p"},"id.example":{"auth":"dTo=","identitytoken":"T"},
            "empty.example":{},"bad.example":{"auth":"!!"}},
            "credHelpers":{"gcr.example":"gcloud"},"credsStore":"desktop"}"#;
        let password = |u: &str, s: &str| {
            Account::Known(Login::Password {
                user: u.to_owned(),
                secret: s.to_owned(),
            })
        };
        for (registry, wanted) in [
            ("docker.io", password("user", "pa:ss")),
            ("registry-1.docker.io", password("user", "pa:ss")),
            ("reg.example:5000", password("u", "p")),
            (
                "id.example",
                Account::Known(Login::Identity {
                    token: "T".to_owned(),
                }),
            ),
            ("gcr.example", Account::Helper("gcloud".to_owned())),
            ("empty.example", Account::Helper("desktop".to_owned())),
            ("reg.example", Account::Helper("desktop".to_owned())),
        ] {
            assert_eq!(parse_account(config, registry).unwrap(), wanted, "{registry}");
        }
        assert!(
            parse_account(config, "bad.example")
                .unwrap_err()
                .contains("bad.example")
        );
        assert!(parse_account(b"{", "x").is_err());
        assert_eq!(parse_account(b"{}", "x").unwrap(), Account::None);
    }

    #[test]
    fn a_login_does_not_print_its_secret() {
        let login = Login::Password {
            user: "u".to_owned(),
            secret: "hush".to_owned(),
        };
        assert!(!format!("{login:?}").contains("hush"));
        assert_eq!(login.basic().unwrap(), "Basic dTpodXNo");
    }
}
