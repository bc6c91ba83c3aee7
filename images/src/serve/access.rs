//! Who may write: whoever knows the token, or comes over the Unix socket as the same user. Reading is open.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// What a client must send with a write.
#[derive(Clone)]
pub(super) struct Access {
    token: Option<String>,
}

/// Whether a request may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Allowed,
    /// No credentials, or wrong ones: 401 with a challenge.
    Unknown,
    /// No credentials would do: 403.
    Closed,
}

impl Access {
    pub(super) fn new(token: Option<String>) -> Access {
        Access {
            token: token.filter(|t| !t.is_empty()),
        }
    }

    /// Whether there is a token to ask for.
    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Judges an `Authorization` value: `Bearer TOKEN`, or `Basic` with the token as password and any user.
    pub(super) fn judge(&self, local: bool, authorization: Option<&str>) -> Verdict {
        if local {
            return Verdict::Allowed;
        }
        let Some(token) = &self.token else {
            return Verdict::Closed;
        };
        let given = authorization.and_then(|value| {
            let (scheme, rest) = value.split_once(' ')?;
            match scheme.to_ascii_lowercase().as_str() {
                "bearer" => Some(rest.trim().to_owned()),
                "basic" => {
                    let plain = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
                    plain.split_once(':').map(|(_, password)| password.to_owned())
                }
                _ => None,
            }
        });
        match given {
            Some(given) if same(given.as_bytes(), token.as_bytes()) => Verdict::Allowed,
            _ => Verdict::Unknown,
        }
    }
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access")
            .field("has_token", &self.has_token())
            .finish()
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

    #[test]
    fn verdicts() {
        let access = Access::new(Some("s3:cret".to_owned()));
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
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
            assert_eq!(access.judge(local, value.as_deref()), wanted, "{local} {value:?}");
        }
        for empty in [None, Some(String::new())] {
            assert_eq!(Access::new(empty).judge(false, Some("Bearer ")), Verdict::Closed);
        }
    }
}
