//! Whom TLS trusts: the system's certificates, from the files every distribution keeps them in, and for single registries those of
//! their folder in `certs.d`, as docker and podman have it: `certs.d/HOST[:PORT]/*.crt` are trusted, `NAME.cert` and `NAME.key`
//! are shown to the registry.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

/// Where distributions keep their bundle: Debian and Alpine, Fedora, SUSE, older ones.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// A bundle beyond this is not read. Mozilla's is about 230 KB.
const MAX_BUNDLE: u64 = 8 * 1024 * 1024;
/// A registry's folder holds a handful of files.
const MAX_FILES: usize = 64;

/// Where docker and podman look for a registry's own certificates.
pub(crate) fn usual_folders() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME")
        .filter(|v| !v.is_empty())
        .map(PathBuf::from);
    let own = home.map(|home| home.join(".config/containers/certs.d"));
    let system = ["/etc/containers/certs.d", "/etc/docker/certs.d"].map(PathBuf::from);
    own.into_iter().chain(system).collect()
}

/// The folder of `authority`, if one of `folders` has it.
pub(crate) fn folder_of(folders: &[PathBuf], authority: &str) -> Option<PathBuf> {
    let plain = !authority.contains('/') && !authority.starts_with('.');
    let mut places = folders.iter().map(|folder| folder.join(authority));
    plain.then(|| places.find(|place| place.is_dir())).flatten()
}

/// TLS with the roots `chosen` or the system's, or without verification where the registry was called insecure; with what the
/// registry's folder `own` adds.
pub(crate) fn config(verify: bool, chosen: Option<&Path>, own: Option<&Path>) -> Result<TlsConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = TlsConfig::builder().unversioned_rustls_crypto_provider(provider);
    let own = own.map(Own::load).transpose()?.unwrap_or_default();
    let builder = builder.client_cert(own.client);
    if !verify {
        return Ok(builder
            .root_certs(RootCerts::Specific(Arc::default()))
            .disable_verification(true)
            .build());
    }
    let roots = match load(chosen, &BUNDLES.map(Path::new)) {
        Ok(mut roots) => {
            roots.extend(own.roots);
            roots
        }
        // A registry of one's own needs nobody else's certificates.
        Err(_) if chosen.is_none() && !own.roots.is_empty() => own.roots,
        Err(reason) => return Err(reason),
    };
    Ok(builder.root_certs(RootCerts::Specific(Arc::new(roots))).build())
}

/// What a registry's folder holds.
#[derive(Default)]
struct Own {
    roots: Vec<Certificate<'static>>,
    client: Option<ClientCert>,
}

impl Own {
    fn load(folder: &Path) -> Result<Own, String> {
        let mut names: Vec<PathBuf> = std::fs::read_dir(folder)
            .map_err(|e| format!("{}: {e}", folder.display()))?
            .take(MAX_FILES)
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        names.sort();
        let mut own = Own::default();
        for path in names {
            match path.extension().and_then(|e| e.to_str()) {
                Some("crt") => own.roots.extend(certificates(&path)?),
                Some("cert") if own.client.is_none() => {
                    let chain = certificates(&path)?;
                    let key = path.with_extension("key");
                    let named = |e: &dyn std::fmt::Display| format!("{}: {e}", key.display());
                    let pem = read(&key).map_err(|e| named(&e))?;
                    let key = PrivateKey::from_pem(&pem).map_err(|_| named(&"no private key in it"))?;
                    own.client = Some(ClientCert::new_with_certs(&chain, key));
                }
                _ => {}
            }
        }
        Ok(own)
    }
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?
        .take(MAX_BUNDLE)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// All certificates of a file; one without any is an error.
fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, String> {
    let pem = read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let found: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if found.is_empty() {
        return Err(format!("{}: no certificate in it", path.display()));
    }
    Ok(found)
}

/// Loads the bundle `chosen`, else the first of `usual` that is there.
fn load(chosen: Option<&Path>, usual: &[&Path]) -> Result<Vec<Certificate<'static>>, String> {
    let path = match chosen {
        Some(path) => path,
        None => usual.iter().copied().find(|path| path.exists()).ok_or_else(|| {
            format!(
                "no TLS root certificates: none of {} is there; install ca-certificates or set SSL_CERT_FILE",
                usual
                    .iter()
                    .map(|p| p.display().to_string())
                    .collect::<Vec<_>>()
                    .join(", ")
            )
        })?,
    };
    certificates(path).map_err(|reason| format!("TLS root certificates {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_or_empty_bundle_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "nothing here\n").unwrap();
        let nowhere = folder.path().join("none.pem");
        for (chosen, usual, wanted) in [
            (
                None,
                vec![nowhere.as_path()],
                "install ca-certificates or set SSL_CERT_FILE",
            ),
            (Some(nowhere.as_path()), vec![], "none.pem: No such file"),
            (Some(empty.as_path()), vec![], "empty.pem: no certificate in it"),
            (
                None,
                vec![nowhere.as_path(), empty.as_path()],
                "empty.pem: no certificate in it",
            ),
        ] {
            let message = load(chosen, &usual).err().unwrap();
            assert!(message.contains(wanted), "{message}");
        }
    }

    #[test]
    fn verification_off_needs_no_bundle() {
        assert!(config(false, None, None).is_ok());
    }

    #[test]
    fn a_registrys_folder_is_found_and_its_faults_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let folders = vec![folder.path().join("none"), folder.path().to_owned()];
        let own = folder.path().join("reg.example:5000");
        assert_eq!(folder_of(&folders, "reg.example:5000"), None);
        std::fs::create_dir(&own).unwrap();
        assert_eq!(folder_of(&folders, "reg.example:5000"), Some(own.clone()));
        for stranger in ["reg.example", "..", "../x", "/etc", "."] {
            assert_eq!(folder_of(&folders, stranger), None, "{stranger}");
        }
        let pem = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parts/tls/cert.pem"))
            .unwrap();
        std::fs::write(own.join("ca.crt"), &pem).unwrap();
        let roots = Own::load(&own).unwrap();
        assert!(roots.roots.len() == 1 && roots.client.is_none());
        std::fs::write(own.join("me.cert"), &pem).unwrap();
        let message = config(true, None, Some(&own)).err().unwrap();
        assert!(message.contains("me.key: No such file"), "{message}");
        std::fs::write(own.join("me.key"), "nothing").unwrap();
        let message = config(true, None, Some(&own)).err().unwrap();
        assert!(message.contains("me.key: no private key in it"), "{message}");
    }
}
