//! Digests: SHA-256 over a blob ([`Digest`]) and over an uncompressed layer tar ([`DiffId`]).
//!
//! The two are different types because one taken for the other is the classic mistake of image tools. Only `sha256` is
//! spoken: another algorithm is refused by its name.

use std::fmt;
use std::io;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Neither `sha256:` nor another algorithm stands in front.
    #[error("digest {0:?}: expected sha256: and 64 lower-case hex digits")]
    Form(String),
    /// Another algorithm than sha256.
    #[error("digest {0:?}: algorithm {1} is not supported, only sha256")]
    Algorithm(String, String),
}

/// How many hex digits a SHA-256 has.
const HEX_LEN: usize = 64;
/// How much of a wrong text an error repeats.
const QUOTE_LEN: usize = 100;

fn parse(text: &str) -> Result<[u8; 32], Error> {
    let quote = || text.chars().take(QUOTE_LEN).collect::<String>();
    let Some((algorithm, hex)) = text.split_once(':') else {
        return Err(Error::Form(quote()));
    };
    if algorithm != "sha256" {
        let known = matches!(algorithm, "sha512" | "sha384" | "sha1" | "md5" | "blake3");
        return Err(if known {
            Error::Algorithm(quote(), algorithm.into())
        } else {
            Error::Form(quote())
        });
    }
    parse_hex(hex).ok_or_else(|| Error::Form(quote()))
}

fn parse_hex(hex: &str) -> Option<[u8; 32]> {
    let hex = hex.as_bytes();
    if hex.len() != HEX_LEN {
        return None;
    }
    let nibble = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = nibble(*pair.first()?)? << 4 | nibble(*pair.get(1)?)?;
    }
    Some(bytes)
}

macro_rules! digest_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// The hash itself.
            pub const fn bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// Reads `sha256:` and 64 lower-case hex digits.
            pub fn parse(text: &str) -> Result<Self, Error> {
                parse(text).map(Self)
            }

            /// Reads the 64 hex digits alone, as they stand in a file name.
            pub fn from_hex(hex: &str) -> Option<Self> {
                parse_hex(hex).map(Self)
            }

            /// The 32 bytes as given.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The 32 bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// The value over bytes that are in memory.
            pub fn of(bytes: &[u8]) -> Self {
                let mut hasher = Hasher::new();
                hasher.update(bytes);
                Self(hasher.finish())
            }

            /// 64 lower-case hex digits, without the algorithm.
            pub fn hex(&self) -> String {
                use fmt::Write;
                let mut text = String::with_capacity(HEX_LEN);
                for byte in self.0 {
                    // Writing into a String cannot fail.
                    let _ = write!(text, "{byte:02x}");
                }
                text
            }

            /// The first 12 hex digits, as people type and read them.
            pub fn short(&self) -> String {
                let mut hex = self.hex();
                hex.truncate(12);
                hex
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("sha256:")?;
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                Self::parse(text)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

digest_type! {
    /// The digest of a blob: of a manifest, a config, or a layer as it travels (compressed).
    Digest
}

digest_type! {
    /// The digest of a layer's uncompressed tar, as an image config lists it in `rootfs.diff_ids`.
    DiffId
}

/// SHA-256 over bytes as they come by.
#[derive(Clone)]
pub struct Hasher(ring::digest::Context);

impl Hasher {
    /// Nothing hashed yet.
    pub fn new() -> Self {
        Self(ring::digest::Context::new(&ring::digest::SHA256))
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (to, from) in bytes.iter_mut().zip(self.0.finish().as_ref()) {
            *to = *from;
        }
        bytes
    }

    /// The value as a blob's digest.
    pub fn digest(self) -> Digest {
        Digest(self.finish())
    }

    /// The value as a layer's diffID.
    pub fn diff_id(self) -> DiffId {
        DiffId(self.finish())
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher(sha256)")
    }
}

impl io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn the_empty_input() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(Digest::parse(EMPTY).unwrap(), Digest::of(b""));
        assert_eq!(Digest::of(b"").hex(), EMPTY[7..]);
        assert_eq!(Digest::of(b"").short(), "e3b0c44298fc");
        assert_eq!(Hasher::new().diff_id().to_string(), EMPTY);
    }

    #[test]
    fn what_is_refused() {
        let upper = EMPTY.to_uppercase().replace("SHA256", "sha256");
        let long = format!("{EMPTY}0");
        for text in [
            "",
            "sha256",
            "sha256:",
            "sha256:12",
            &upper,
            &long,
            "sha256:é",
            "x:y",
            "../../etc/passwd",
        ] {
            assert!(matches!(Digest::parse(text), Err(Error::Form(_))), "{text}");
        }
        let sha512 = format!("sha512:{}", "0".repeat(128));
        assert!(
            Digest::parse(&sha512)
                .unwrap_err()
                .to_string()
                .contains("algorithm sha512 is not supported")
        );
    }

    #[test]
    fn json_is_the_text() {
        let digest = Digest::of(b"x");
        let json = serde_json::to_string(&digest).unwrap();
        assert_eq!(json, format!("\"{digest}\""));
        assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), digest);
        assert!(serde_json::from_str::<DiffId>("\"sha256:no\"").is_err());
    }
}
