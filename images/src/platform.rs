//! What an image runs on, and which of an index's images suits this board.
//!
//! The board's platform comes from its user space, not from `uname`: a 64-bit kernel under a 32-bit user space is common
//! on boards, and what runs there is 32-bit. Within `arm` the variant says what the processor can do.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::manifest::{Descriptor, Index};

/// Why no image of an index suits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The index has nothing for the platform.
    #[error("no image for {wanted} in the index, only for: {present}")]
    None {
        /// The platform asked for.
        wanted: Platform,
        /// What the index lists.
        present: String,
    },
    /// The only image that there is is for something else.
    #[error("the image is for {found}, not for {wanted}")]
    Other {
        /// The platform asked for.
        wanted: String,
        /// What the image says of itself.
        found: String,
    },
    /// The text is not `os/architecture[/variant]`.
    #[error("invalid platform {0:?}: expected os/architecture or os/architecture/variant")]
    Form(String),
}

/// Go's names of an operating system and an architecture, normalised: `linux/arm64` has no variant, `linux/arm` always.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "Raw")]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `arm64`, `arm`, `amd64`, ...
    pub architecture: String,
    /// `v7` and the like.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
}

impl From<Raw> for Platform {
    fn from(raw: Raw) -> Self {
        Self::new(&raw.os, &raw.architecture, raw.variant.as_deref())
    }
}

impl Platform {
    /// A platform with its names brought to Go's: `aarch64` is `arm64`, `arm64/v8` is `arm64`, `arm` alone is `arm/v7`.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let variant = variant.filter(|v| !v.is_empty());
        let (architecture, variant) = match (architecture, variant) {
            ("aarch64", v) => ("arm64", v),
            ("x86_64" | "x86-64", v) => ("amd64", v),
            ("armhf", None) => ("arm", Some("v7")),
            ("armel", None) => ("arm", Some("v6")),
            (a, v) => (a, v),
        };
        let variant = match (architecture, variant) {
            ("arm64", Some("8" | "v8")) | ("amd64", Some("v1")) => None,
            ("arm", None) => Some("v7"),
            ("arm", Some("5")) => Some("v5"),
            ("arm", Some("6")) => Some("v6"),
            ("arm", Some("7")) => Some("v7"),
            ("arm", Some("8")) => Some("v8"),
            (_, v) => v,
        };
        Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// What this board's user space runs, from the ELF header of its own programs.
    pub fn host() -> Self {
        let header = ["/bin/sh", "/usr/bin/env", "/sbin/init", "/proc/self/exe"]
            .iter()
            .find_map(|path| read_header(Path::new(path)));
        let machine = rustix::system::uname();
        Self::from_elf(&header.unwrap_or_default(), &machine.machine().to_string_lossy())
    }

    /// The platform of a program whose file begins with `header`, on a processor that `uname -m` calls `machine`. The
    /// platform that this code was compiled for, when the header is not an ELF file's.
    fn from_elf(header: &[u8; HEADER_LEN], machine: &str) -> Self {
        let little = header[5] != 2;
        let kind = match little {
            true => u16::from_le_bytes([header[18], header[19]]),
            false => u16::from_be_bytes([header[18], header[19]]),
        };
        // e_machine values of the ELF specification's registry.
        let architecture = match (header.starts_with(b"\x7fELF"), header[4], kind) {
            (true, 1, 3) => "386",
            (true, 2, 62) => "amd64",
            (true, 1, 40) => "arm",
            (true, 2, 183) => "arm64",
            (true, 2, 243) => "riscv64",
            (true, 2, 22) => "s390x",
            (true, 2, 21) if little => "ppc64le",
            _ => match std::env::consts::ARCH {
                "x86" => "386",
                other => other,
            },
        };
        let variant = match (architecture, machine) {
            ("arm", m) if m.starts_with("armv5") => Some("v5"),
            ("arm", m) if m.starts_with("armv6") => Some("v6"),
            ("arm", m) if m.starts_with("armv7") => Some("v7"),
            ("arm", "aarch64" | "armv8l") => Some("v8"),
            _ => None,
        };
        Self::new("linux", architecture, variant)
    }

    /// How well an image for `image` runs here: none, or the larger the better.
    fn suits(&self, image: &Self) -> Option<u32> {
        if self.os != image.os || self.architecture != image.architecture {
            return None;
        }
        if self.architecture != "arm" {
            return (self.variant == image.variant || image.variant.is_none()).then_some(
                match image.variant {
                    Some(_) => 2,
                    None => 1,
                },
            );
        }
        // An older variant runs on a newer processor, and the newest that runs is best.
        let level = |variant: &Option<String>| variant.as_deref()?.strip_prefix('v')?.parse::<u32>().ok();
        let (here, wanted) = (level(&self.variant)?, level(&image.variant)?);
        (wanted <= here).then_some(wanted)
    }

    /// The image of `index` that suits best. Attestations and other artifacts are passed over; a single image with no
    /// platform is taken on trust: its config is judged by `admit` later.
    pub fn select<'a>(&self, index: &'a Index) -> Result<&'a Descriptor, Error> {
        let images = || {
            let image = |d: &&Descriptor| {
                d.artifact_type.is_none() && d.platform.as_ref().is_none_or(|p| p.os != "unknown")
            };
            index.manifests.iter().filter(image)
        };
        // Of equals the first wins, as in other tools; `max_by_key` would take the last.
        let best = images()
            .rev()
            .filter_map(|d| Some((self.suits(d.platform.as_ref()?)?, d)))
            .max_by_key(|(rank, _)| *rank)
            .map(|(_, d)| d);
        if let Some(best) = best {
            return Ok(best);
        }
        let mut list = images();
        if let (Some(only), None) = (list.next(), list.next())
            && only.platform.is_none()
        {
            return Ok(only);
        }
        let mut present: Vec<_> = images()
            .map(|d| {
                d.platform
                    .as_ref()
                    .map_or("(unnamed)".into(), ToString::to_string)
            })
            .take(20)
            .collect();
        present.dedup();
        let present = if present.is_empty() {
            "nothing".into()
        } else {
            present.join(", ")
        };
        Err(Error::None {
            wanted: self.clone(),
            present,
        })
    }

    /// Judges an image by what its own config says, as docker does: an image for something else is refused where a
    /// platform other than the host's was asked for, and else taken with the warning that this returns (an emulator may run it).
    pub(crate) fn admit(
        &self,
        image: &crate::manifest::ImageConfig,
        host: &Self,
    ) -> Result<Option<String>, Error> {
        let found = image.platform();
        // Old images say neither, and those for arm seldom say the variant.
        let known = !found.os.is_empty() && !found.architecture.is_empty();
        let same_kind = self.os == found.os && self.architecture == found.architecture;
        if !known || self.runs(&found) || same_kind && image.variant.is_none() {
            return Ok(None);
        }
        if self == host {
            return Ok(Some(format!(
                "the image is for {found}, and this board runs {host}"
            )));
        }
        let (wanted, found) = (self.to_string(), found.to_string());
        Err(Error::Other { wanted, found })
    }

    /// Whether an image for `image` can run where this platform is the host's.
    pub fn runs(&self, image: &Self) -> bool {
        self.suits(image).is_some()
    }
}

/// As much of an ELF header as names class, order and machine.
const HEADER_LEN: usize = 20;

fn read_header(path: &Path) -> Option<[u8; HEADER_LEN]> {
    let mut header = [0; HEADER_LEN];
    File::open(path).ok()?.read_exact(&mut header).ok()?;
    header.starts_with(b"\x7fELF").then_some(header)
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant
            .as_ref()
            .map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let parts: Vec<&str> = text.split('/').collect();
        let word = |part: &&str| {
            !part.is_empty()
                && part.len() <= 32
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        if !parts.iter().all(word) {
            return Err(Error::Form(text.chars().take(100).collect()));
        }
        match parts.as_slice() {
            [os, architecture] => Ok(Self::new(os, architecture, None)),
            [os, architecture, variant] => Ok(Self::new(os, architecture, Some(variant))),
            _ => Err(Error::Form(text.chars().take(100).collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn index(platforms: &[&str]) -> Index {
        let manifests = platforms.iter().map(|text| {
            let mut d = Descriptor::of("m", text.as_bytes());
            d.platform = text.parse().ok();
            d
        });
        Index {
            schema_version: 2,
            media_type: None,
            artifact_type: None,
            manifests: manifests.collect(),
            subject: None,
            annotations: Default::default(),
        }
    }

    #[test]
    fn the_best_image_is_selected() {
        let table: [(&str, &[&str], Option<&str>); 12] = [
            (
                "linux/arm64",
                &["linux/amd64", "linux/arm64/v8"],
                Some("linux/arm64/v8"),
            ),
            ("linux/arm64/v8", &["linux/arm64"], Some("linux/arm64")),
            ("linux/arm64", &["linux/arm/v7"], None),
            (
                "linux/arm/v7",
                &["linux/arm/v5", "linux/arm/v6", "linux/arm/v7", "linux/arm/v8"],
                Some("linux/arm/v7"),
            ),
            ("linux/arm/v8", &["linux/arm/v6", "linux/arm"], Some("linux/arm")),
            (
                "linux/arm/v6",
                &["linux/arm/v7", "linux/arm/v6"],
                Some("linux/arm/v6"),
            ),
            ("linux/arm/v6", &["linux/arm"], None),
            ("linux/amd64", &["linux/amd64/v3"], None),
            (
                "linux/amd64/v3",
                &["linux/amd64", "linux/amd64/v3"],
                Some("linux/amd64/v3"),
            ),
            (
                "linux/amd64",
                &["unknown/unknown", "windows/amd64", "linux/amd64"],
                Some("linux/amd64"),
            ),
            ("linux/amd64", &["-"], Some("-")),
            ("linux/amd64", &["-", "+"], None),
        ];
        for (host, present, want) in table {
            let host: Platform = host.parse().unwrap();
            let index = index(present);
            let got = host.select(&index).ok().map(|d| d.digest);
            assert_eq!(
                got,
                want.map(|text| Digest::of(text.as_bytes())),
                "{host} of {present:?}"
            );
        }
        let error = Platform::new("linux", "arm", Some("v6"))
            .select(&index(&["linux/amd64", "linux/arm"]))
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "no image for linux/arm/v6 in the index, only for: linux/amd64, linux/arm/v7"
        );
    }

    #[test]
    fn an_image_that_nobody_chose_is_judged_by_its_config() {
        let config = |platform: &str| {
            let (os, rest) = platform.split_once('/').unwrap();
            let (architecture, variant) = rest.split_once('/').map_or((rest, None), |(a, v)| (a, Some(v)));
            let text = serde_json::json!({"os": os, "architecture": architecture, "variant": variant,
                "rootfs": {"type": "layers", "diff_ids": []}});
            crate::manifest::ImageConfig::parse(text.to_string().as_bytes()).unwrap()
        };
        let table = [
            ("linux/arm64", "linux/arm64", "linux/arm64", "fine"),
            ("linux/arm64", "linux/arm64/v8", "linux/arm64", "fine"),
            ("linux/arm64", "/", "linux/arm64", "fine"),
            ("linux/arm/v6", "linux/arm", "linux/arm/v6", "fine"),
            ("linux/arm/v6", "linux/arm/v7", "linux/arm/v6", "warned"),
            ("linux/arm64", "linux/amd64", "linux/arm64", "warned"),
            ("linux/arm64", "linux/amd64", "linux/amd64", "refused"),
            ("linux/arm/v6", "linux/arm/v7", "linux/amd64", "refused"),
            ("linux/amd64", "linux/amd64", "linux/arm64", "fine"),
        ];
        for (wanted, image, host, expected) in table {
            let [wanted, host] = [wanted, host].map(|text| text.parse::<Platform>().unwrap());
            let got = match wanted.admit(&config(image), &host) {
                Ok(None) => "fine",
                Ok(Some(_)) => "warned",
                Err(_) => "refused",
            };
            assert_eq!(got, expected, "{wanted} {image} {host}");
        }
    }

    #[test]
    fn the_host_comes_from_the_user_space() {
        let elf = |class: u8, machine: u16| {
            let mut header = [0; HEADER_LEN];
            header[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, 1]);
            header[18..].copy_from_slice(&machine.to_le_bytes());
            header
        };
        let table = [
            (elf(1, 40), "aarch64", "linux/arm/v8"),
            (elf(1, 40), "armv6l", "linux/arm/v6"),
            (elf(1, 40), "armv7l", "linux/arm/v7"),
            (elf(2, 183), "aarch64", "linux/arm64"),
            (elf(2, 62), "x86_64", "linux/amd64"),
            (elf(1, 3), "x86_64", "linux/386"),
        ];
        for (header, machine, want) in table {
            assert_eq!(Platform::from_elf(&header, machine).to_string(), want);
        }
        assert!(Platform::host().to_string().starts_with("linux/"));
        assert!("linux".parse::<Platform>().is_err() && "a/b/c/d".parse::<Platform>().is_err());
    }
}
