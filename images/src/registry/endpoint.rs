//! Addresses: where a registry's API is, and where a `Location` leads from there.
//!
//! Only `http` and `https`, no user information, bounded length. [`Url`]'s `Display` leaves the query out: in a signed
//! redirect that is where the secret is.

use std::fmt;
use std::net::IpAddr;

/// A longer `Location` is not followed. Signed addresses of cloud stores reach 2 KB.
const MAX_URL: usize = 8192;

/// An absolute HTTP address.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Url {
    /// Whether TLS is spoken.
    pub(crate) secure: bool,
    /// `host[:port]`, lower case.
    pub(crate) authority: String,
    /// Path and query, with the leading slash.
    path: String,
}

impl Url {
    /// The address of `path` (which begins with a slash) at a host.
    pub(crate) fn at(secure: bool, authority: &str, path: &str) -> Url {
        Url {
            secure,
            authority: authority.to_ascii_lowercase(),
            path: path.to_owned(),
        }
    }

    /// Reads an absolute address.
    pub(crate) fn parse(text: &str) -> Option<Url> {
        if text.len() > MAX_URL || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return None;
        }
        let (scheme, rest) = text.split_once("://")?;
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let path = path.split('#').next().unwrap_or(path);
        let path = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        };
        if authority.is_empty() || authority.contains(['@', '\\']) {
            return None;
        }
        let url = Url {
            secure,
            authority: authority.to_ascii_lowercase(),
            path,
        };
        // The HTTP library has the last word on what is an address.
        url.text().parse::<ureq::http::Uri>().ok().map(|_| url)
    }

    /// Where `location` leads from here (RFC 3986 5.2, without dot segments: servers send absolute paths).
    pub(crate) fn join(&self, location: &str) -> Option<Url> {
        if location.is_empty() || location.len() > MAX_URL {
            return None;
        }
        if let Some(rest) = location.strip_prefix("//") {
            return Url::parse(&format!("{}://{rest}", self.scheme()));
        }
        if location.starts_with('/') {
            return Url::parse(&format!("{}://{}{location}", self.scheme(), self.authority));
        }
        if location.contains("://") {
            return Url::parse(location);
        }
        let path = self.path.split('?').next().unwrap_or("/");
        let path = if location.starts_with('?') {
            path
        } else {
            &path[..=path.rfind('/')?]
        };
        Url::parse(&format!("{}://{}{path}{location}", self.scheme(), self.authority))
    }

    /// The same address with one more query parameter; `value` must need no escaping beyond that of `:`.
    pub(crate) fn with_query(&self, name: &str, value: &str) -> Url {
        let mark = if self.path.contains('?') { '&' } else { '?' };
        Url {
            path: format!("{}{mark}{name}={}", self.path, escape(value)),
            ..self.clone()
        }
    }

    /// The whole address, query included, as it is requested.
    pub(crate) fn text(&self) -> String {
        format!("{}://{}{}", self.scheme(), self.authority, self.path)
    }

    /// Whether a secret meant for `other` may be sent here.
    pub(crate) fn same_origin(&self, other: &Url) -> bool {
        self.secure == other.secure && self.host_and_port() == other.host_and_port()
    }

    /// The authority without a port that the scheme implies.
    fn host_and_port(&self) -> &str {
        let implied = if self.secure { ":443" } else { ":80" };
        self.authority.strip_suffix(implied).unwrap_or(&self.authority)
    }

    fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}://{}{}",
            self.scheme(),
            self.authority,
            self.path.split('?').next().unwrap_or_default()
        )
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Percent-encodes all but unreserved characters.
pub(crate) fn escape(value: &str) -> String {
    let mut text = String::with_capacity(value.len() + 8);
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// Whether `host[:port]` is this machine, so that plain HTTP crosses no wire.
pub(crate) fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => authority.split(':').next().unwrap_or(authority),
    };
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins() {
        let base = Url::parse("http://Reg.example:5000/v2/a/blobs/uploads/?x=1").unwrap();
        for (location, wanted) in [
            ("/v2/b?_state=q", Some("http://reg.example:5000/v2/b?_state=q")),
            (
                "https://cdn.example/x?sig=1#frag",
                Some("https://cdn.example/x?sig=1"),
            ),
            ("//cdn.example/x", Some("http://cdn.example/x")),
            ("id", Some("http://reg.example:5000/v2/a/blobs/uploads/id")),
            ("?y=2", Some("http://reg.example:5000/v2/a/blobs/uploads/?y=2")),
            ("https://cdn.example", Some("https://cdn.example/")),
            ("", None),
            ("ftp://x/y", None),
            ("file:///etc/passwd", None),
            ("http://u:p@x/y", None),
            ("http:///y", None),
            ("/a b", None),
            ("/a\r\nX: y", None),
        ] {
            assert_eq!(
                base.join(location).map(|u| u.text()).as_deref(),
                wanted,
                "{location}"
            );
        }
        assert!(base.join(&format!("/{}", "a".repeat(MAX_URL))).is_none());
    }

    #[test]
    fn queries_and_display() {
        let url = Url::parse("https://h/v2/u?_state=secret").unwrap();
        assert_eq!(
            url.with_query("digest", "sha256:ab").text(),
            "https://h/v2/u?_state=secret&digest=sha256%3Aab"
        );
        assert_eq!(
            Url::at(false, "h", "/v2/").with_query("n", "2").text(),
            "http://h/v2/?n=2"
        );
        assert_eq!(
            (url.to_string().as_str(), format!("{url:?}").as_str()),
            ("https://h/v2/u", "https://h/v2/u")
        );
    }

    #[test]
    fn origins_and_loopback() {
        let url = |text| Url::parse(text).unwrap();
        assert!(url("https://a/x").same_origin(&url("https://A/y?z")));
        assert!(!url("https://a/x").same_origin(&url("http://a/x")));
        assert!(!url("https://a/x").same_origin(&url("https://a:8443/x")));
        assert!(url("https://a/x").same_origin(&url("https://a:443/x")));
        assert!(!url("http://a/x").same_origin(&url("http://a:443/x")));
        for (authority, wanted) in [
            ("localhost:5000", true),
            ("127.0.0.1", true),
            ("127.9.9.9:80", true),
            ("[::1]:5000", true),
            ("10.0.0.1", false),
            ("localhost.example", false),
            ("127.0.0.1.example", false),
        ] {
            assert_eq!(is_loopback(authority), wanted, "{authority}");
        }
    }
}
