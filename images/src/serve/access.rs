//! Who may read and who may write: everybody reads unless there are accounts; who knows the token or has a writing account writes,
//! and so does whoever comes over the Unix socket as the same user.
//!
//! docker, podman, skopeo and crane log in by the registry token protocol: `/v2/` answers 401 and names `/token`, which gives a
//! short-lived token for a name and a password, and one for reading for nothing where reading is open. The tokens are this
//! process's own (a key made at its start, a clock that nobody sets); after a restart clients fetch new ones.

use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;

/// How long an issued token is good.
pub(super) const LIFETIME_S: u64 = 300;
/// What the token service is called in challenges.
pub(super) const SERVICE: &str = "wherry";
/// The longest `Host` that is put into a challenge.
const MAX_HOST: usize = 255;

/// A name with a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Account {
    /// Who.
    pub name: String,
    /// The password.
    pub secret: String,
    /// Whether it may write.
    pub writes: bool,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Account")
            .field("name", &self.name)
            .field("writes", &self.writes)
            .finish_non_exhaustive()
    }
}

/// What a request wants to do, and what a client may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Right {
    Read,
    Write,
}

/// Whether a request may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Allowed,
    /// No credentials, wrong ones, or not enough: 401 with a challenge.
    Unknown,
    /// No credentials would do: 403.
    Closed,
}

/// What a client must send.
pub(super) struct Access {
    token: Option<String>,
    accounts: Vec<Account>,
    key: hmac::Key,
    begun: Instant,
}

impl Access {
    pub(super) fn new(token: Option<String>, accounts: Vec<Account>) -> Access {
        let random = ring::rand::SystemRandom::new();
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &random);
        Access {
            token: token.filter(|t| !t.is_empty()),
            accounts,
            // Without randomness no issued token is any good: its key is one that is thrown away.
            key: key.unwrap_or_else(|_| hmac::Key::new(hmac::HMAC_SHA256, &[])),
            begun: Instant::now(),
        }
    }

    /// Whether there is anything to log in with.
    pub(super) fn has_login(&self) -> bool {
        self.token.is_some() || !self.accounts.is_empty()
    }

    fn reading_is_open(&self) -> bool {
        self.accounts.is_empty()
    }

    /// Judges a request by its `Authorization`.
    pub(super) fn judge(&self, local: bool, authorization: Option<&str>, wants: Right) -> Verdict {
        if local || (wants == Right::Read && self.reading_is_open()) {
            return Verdict::Allowed;
        }
        if !self.has_login() {
            return Verdict::Closed;
        }
        match authorization.and_then(|value| self.right_of(value)) {
            Some(right) if right >= wants => Verdict::Allowed,
            _ => Verdict::Unknown,
        }
    }

    /// Judges a request for `/v2/`, by which clients learn that they can log in and whether they are.
    pub(super) fn judge_base(&self, local: bool, authorization: Option<&str>) -> Verdict {
        if local || !self.has_login() || authorization.is_some_and(|value| self.right_of(value).is_some()) {
            return Verdict::Allowed;
        }
        Verdict::Unknown
    }

    /// A token for a request to the token service; none when the login is wrong or one is needed.
    pub(super) fn issue(&self, authorization: Option<&str>) -> Option<String> {
        let right = match authorization {
            Some(value) => self.right_of(value)?,
            None if self.reading_is_open() => Right::Read,
            None => return None,
        };
        Some(self.sign(right, self.now() + LIFETIME_S))
    }

    fn right_of(&self, authorization: &str) -> Option<Right> {
        let (scheme, rest) = authorization.split_once(' ')?;
        let rest = rest.trim();
        let is_token = |given: &str| {
            self.token
                .as_ref()
                .is_some_and(|t| same(given.as_bytes(), t.as_bytes()))
        };
        match scheme.to_ascii_lowercase().as_str() {
            "bearer" if is_token(rest) => Some(Right::Write),
            "bearer" => self.read_issued(rest),
            "basic" => {
                let plain = String::from_utf8(STANDARD.decode(rest).ok()?).ok()?;
                let (name, secret) = plain.split_once(':')?;
                if is_token(secret) {
                    return Some(Right::Write);
                }
                // What clients without a login send where they were asked for one.
                if name.is_empty() && secret.is_empty() && self.reading_is_open() {
                    return Some(Right::Read);
                }
                let mut found = None;
                for account in &self.accounts {
                    // All of them are compared, whichever it is.
                    let secret = same(secret.as_bytes(), account.secret.as_bytes());
                    if same(name.as_bytes(), account.name.as_bytes()) && secret {
                        found = Some(if account.writes { Right::Write } else { Right::Read });
                    }
                }
                found
            }
            _ => None,
        }
    }

    fn now(&self) -> u64 {
        self.begun.elapsed().as_secs()
    }

    fn sign(&self, right: Right, until: u64) -> String {
        let word = match right {
            Right::Read => "r",
            Right::Write => "w",
        };
        let text = format!("{word}.{until}");
        let mark = STANDARD.encode(hmac::sign(&self.key, text.as_bytes()).as_ref());
        format!("{text}.{mark}")
    }

    fn read_issued(&self, token: &str) -> Option<Right> {
        let (text, mark) = token.rsplit_once('.')?;
        let mark = STANDARD.decode(mark).ok()?;
        hmac::verify(&self.key, text.as_bytes(), &mark).ok()?;
        let (word, until) = text.split_once('.')?;
        if until.parse::<u64>().ok()? < self.now() {
            return None;
        }
        match word {
            "r" => Some(Right::Read),
            "w" => Some(Right::Write),
            _ => None,
        }
    }
}

/// The challenge of a 401. `host` is what the client called us; without a usable one only the password itself can be asked for.
pub(super) fn challenge(secure: bool, host: Option<&str>, scope: Option<&str>) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b':' | b'-' | b'[' | b']' | b'_');
    let Some(host) = host.filter(|h| !h.is_empty() && h.len() <= MAX_HOST && h.bytes().all(plain)) else {
        return format!("Basic realm=\"{SERVICE}\"");
    };
    let scheme = if secure { "https" } else { "http" };
    let scope = scope.map_or_else(String::new, |scope| format!(",scope=\"{scope}\""));
    format!("Bearer realm=\"{scheme}://{host}/token\",service=\"{SERVICE}\"{scope}")
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access")
            .field("has_token", &self.token.is_some())
            .field("accounts", &self.accounts)
            .finish_non_exhaustive()
    }
}

/// Compares in a time that tells nothing about where the two differ: over their digests.
fn same(a: &[u8], b: &[u8]) -> bool {
    let digest = |bytes| ring::digest::digest(&ring::digest::SHA256, bytes);
    let (a, b) = (digest(a), digest(b));
    a.as_ref()
        .iter()
        .zip(b.as_ref())
        .fold(0, |differs, (a, b)| differs | (a ^ b))
        == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(text: &str) -> String {
        format!("Basic {}", STANDARD.encode(text))
    }

    #[test]
    fn writing_needs_the_token_and_reading_nothing() {
        let access = Access::new(Some("s3:cret".to_owned()), Vec::new());
        for (local, value, wanted) in [
            (true, None, Verdict::Allowed),
            (false, None, Verdict::Unknown),
            (false, Some("Bearer s3:cret".to_owned()), Verdict::Allowed),
            (false, Some("bearer s3:cre".to_owned()), Verdict::Unknown),
            (false, Some(basic("anyone:s3:cret")), Verdict::Allowed),
            (false, Some(basic("s3:cret")), Verdict::Unknown),
            (false, Some(basic(":")), Verdict::Unknown),
            (false, Some("Basic !!".to_owned()), Verdict::Unknown),
            (false, Some("s3:cret".to_owned()), Verdict::Unknown),
        ] {
            let verdict = access.judge(local, value.as_deref(), Right::Write);
            assert_eq!(verdict, wanted, "{local} {value:?}");
            assert_eq!(
                access.judge(local, value.as_deref(), Right::Read),
                Verdict::Allowed
            );
        }
        for empty in [None, Some(String::new())] {
            let closed = Access::new(empty, Vec::new());
            assert_eq!(
                closed.judge(false, Some("Bearer "), Right::Write),
                Verdict::Closed
            );
            assert_eq!(closed.judge_base(false, None), Verdict::Allowed);
        }
    }

    #[test]
    fn with_accounts_reading_needs_one_too() {
        let account = |name: &str, writes| Account {
            name: name.to_owned(),
            secret: format!("{name}-secret"),
            writes,
        };
        let access = Access::new(None, vec![account("board", false), account("maker", true)]);
        for (value, read, write) in [
            (None, Verdict::Unknown, Verdict::Unknown),
            (Some(basic(":")), Verdict::Unknown, Verdict::Unknown),
            (
                Some(basic("board:board-secret")),
                Verdict::Allowed,
                Verdict::Unknown,
            ),
            (
                Some(basic("maker:maker-secret")),
                Verdict::Allowed,
                Verdict::Allowed,
            ),
            (
                Some(basic("maker:board-secret")),
                Verdict::Unknown,
                Verdict::Unknown,
            ),
        ] {
            let value = value.as_deref();
            assert_eq!(access.judge(false, value, Right::Read), read, "{value:?}");
            assert_eq!(access.judge(false, value, Right::Write), write, "{value:?}");
            // The same by way of the token service.
            let issued = access.issue(value).map(|token| format!("Bearer {token}"));
            assert_eq!(issued.is_some(), read == Verdict::Allowed);
            assert_eq!(
                access.judge(false, issued.as_deref(), Right::Read),
                read,
                "{value:?}"
            );
            assert_eq!(
                access.judge(false, issued.as_deref(), Right::Write),
                write,
                "{value:?}"
            );
        }
        assert!(!format!("{access:?}").contains("secret\""), "{access:?}");
    }

    #[test]
    fn issued_tokens_cannot_be_made_up() {
        let access = Access::new(Some("letmein".to_owned()), Vec::new());
        let token = access.issue(None).unwrap();
        let bearer = |token: &str| format!("Bearer {token}");
        let write = |token: &str| access.judge(false, Some(&bearer(token)), Right::Write);
        assert_eq!(access.judge_base(false, Some(&bearer(&token))), Verdict::Allowed);
        assert_eq!(write(&token), Verdict::Unknown);
        assert_eq!(write(&token.replacen('r', "w", 1)), Verdict::Unknown);
        let mine = access.issue(Some(&basic("x:letmein"))).unwrap();
        assert_eq!(write(&mine), Verdict::Allowed);
        assert_eq!(write(&access.sign(Right::Write, 0)), Verdict::Allowed);
        let late = Access {
            begun: Instant::now()
                .checked_sub(std::time::Duration::from_secs(LIFETIME_S + 2))
                .unwrap(),
            ..Access::new(None, Vec::new())
        };
        assert_eq!(late.read_issued(&late.sign(Right::Write, LIFETIME_S)), None);
        // Another process's.
        let other = Access::new(Some("letmein".to_owned()), Vec::new());
        assert_eq!(
            other.judge(false, Some(&bearer(&mine)), Right::Write),
            Verdict::Unknown
        );
        assert_eq!(access.issue(Some(&basic("x:wrong"))), None);
        for odd in ["", ".", "w.", "w.99", "w.99.", "w.99.!!"] {
            assert_eq!(write(odd), Verdict::Unknown, "{odd}");
        }
    }

    #[test]
    fn challenges_name_this_registry_or_nobody() {
        assert_eq!(
            challenge(false, Some("reg.lan:5000"), Some("repository:a:pull,push")),
            "Bearer realm=\"http://reg.lan:5000/token\",service=\"wherry\",scope=\"repository:a:pull,push\""
        );
        assert_eq!(
            challenge(true, Some("[::1]:5000"), None),
            "Bearer realm=\"https://[::1]:5000/token\",service=\"wherry\""
        );
        for host in [None, Some(""), Some("a\"b"), Some("a/b"), Some("a b")] {
            assert_eq!(challenge(false, host, None), "Basic realm=\"wherry\"", "{host:?}");
        }
    }
}
