//! Whom TLS trusts: the system's certificates, from the files every distribution keeps them in.

use std::path::Path;
use std::sync::Arc;

use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

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

/// TLS with the roots `chosen` or the system's, or without verification where the registry was called insecure.
pub(crate) fn config(verify: bool, chosen: Option<&Path>) -> Result<TlsConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = TlsConfig::builder().unversioned_rustls_crypto_provider(provider);
    if !verify {
        return Ok(builder
            .root_certs(RootCerts::Specific(Arc::default()))
            .disable_verification(true)
            .build());
    }
    let roots = load(chosen, &BUNDLES.map(Path::new))?;
    Ok(builder.root_certs(RootCerts::Specific(Arc::new(roots))).build())
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
    let read = || {
        use std::io::Read;
        let mut bytes = Vec::new();
        std::fs::File::open(path)?
            .take(MAX_BUNDLE)
            .read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(bytes)
    };
    let pem = read().map_err(|e| format!("TLS root certificates {}: {e}", path.display()))?;
    let roots: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if roots.is_empty() {
        return Err(format!(
            "TLS root certificates {}: no certificate in it",
            path.display()
        ));
    }
    Ok(roots)
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
        assert!(config(false, None).is_ok());
    }
}
