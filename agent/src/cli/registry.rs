//! Registries as the verbs reach them: who asks, and with how much trust.

use wherry_images::Reference;
use wherry_images::registry::{Client, Limits, Login, Options};

use super::failure::Failure;

/// A client for the registry of `reference`. `creds` is `USER:PASSWORD`; without it docker's config.json is asked.
pub(super) fn client(
    tls_verify: bool,
    creds: Option<&str>,
    reference: &Reference,
) -> Result<Client, Failure> {
    limited(tls_verify, creds, reference, Limits::default())
}

/// As [`client`], for sending: mirrors are not asked.
pub(super) fn publisher(
    tls_verify: bool,
    creds: Option<&str>,
    reference: &Reference,
) -> Result<Client, Failure> {
    let options = options(tls_verify, creds, reference)?;
    Ok(Client::new(Options {
        mirrors: false,
        ..options
    }))
}

/// As [`client`], with limits on its use of the link.
pub(super) fn limited(
    tls_verify: bool,
    creds: Option<&str>,
    reference: &Reference,
    limits: Limits,
) -> Result<Client, Failure> {
    let options = options(tls_verify, creds, reference)?;
    Ok(Client::new(Options { limits, ..options }))
}

fn options(tls_verify: bool, creds: Option<&str>, reference: &Reference) -> Result<Options, Failure> {
    let login = creds.map(|creds| {
        let pair = creds
            .split_once(':')
            .filter(|(user, secret)| !user.is_empty() && !secret.is_empty());
        let (user, secret) = pair.ok_or_else(|| Failure::new("--creds: expected USER:PASSWORD"))?;
        Ok::<_, Failure>(Login::Password {
            user: user.into(),
            secret: secret.into(),
        })
    });
    let insecure = if tls_verify {
        Vec::new()
    } else {
        vec![reference.registry().to_owned()]
    };
    Ok(Options {
        insecure,
        login: login.transpose()?,
        ..Options::default()
    })
}

/// What can be done about a registry's refusal.
pub(super) fn advice(error: &wherry_images::registry::Error) -> &'static str {
    use wherry_images::registry::Error;
    match error {
        Error::Unreachable { .. } => "; check the registry's name and the link, what has arrived is kept",
        Error::NotFound { .. } => "; check the image's name and tag",
        Error::Denied { .. } | Error::Login(_) => {
            "; give --creds USER:PASSWORD or correct docker's config.json"
        }
        Error::Tls { .. } => "; a registry without TLS needs --tls-verify=false",
        Error::Digest { .. } | Error::Document { .. } | Error::Protocol { .. } => {
            "; nothing of it was kept, tell whoever runs the registry"
        }
        Error::Store(error) => store_advice(error),
        Error::Settings(_) => "; correct the file",
        Error::Spent { .. } => "; pull again to go on, with another --budget",
        Error::Closed { .. } => "; pull again then",
        Error::Status { .. } | Error::Local { .. } | Error::Cancelled => "; try again",
    }
}

/// What can be done about the store's refusal.
pub(super) fn store_advice(error: &wherry_images::store::Error) -> &'static str {
    use wherry_images::store::Error;
    match error {
        Error::NoSpace { .. } | Error::Room { .. } => {
            "; free some space (wherry image prune) or choose another place with --root"
        }
        Error::InUse(_) => "; see wherry ps -a, and remove or mend what cannot be read",
        Error::Newer { .. } => "; upgrade wherry",
        Error::NoImage(_) => "; see wherry images, or pull it first",
        _ => "",
    }
}
