//! What a single value has to look like.

use crate::pod::PullPolicy;

/// Kubernetes' rule: a tag `latest`, or none, is asked for again; a digest or another tag is not.
pub(super) fn default_pull_policy(image: &str) -> PullPolicy {
    if image.contains('@') {
        return PullPolicy::IfNotPresent;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    match last.split_once(':') {
        None | Some((_, "latest")) => PullPolicy::Always,
        Some(_) => PullPolicy::IfNotPresent,
    }
}

/// Foreign text in a message, at a length that a log line can bear.
pub(super) fn clip(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}

pub(super) fn dns_label(text: &str) -> Result<(), String> {
    let good = (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-');
    if good {
        return Ok(());
    }
    Err(format!(
        "{:?} is not a DNS label (a-z, 0-9 and \"-\" inside, at most 63)",
        clip(text)
    ))
}

pub(super) fn dns_subdomain(text: &str) -> Result<(), String> {
    if text.len() <= 253 && text.split('.').all(|label| dns_label(label).is_ok()) {
        return Ok(());
    }
    Err(format!(
        "{:?} is not a DNS name (a-z, 0-9, \"-\" and \".\" inside, at most 253)",
        clip(text)
    ))
}

pub(super) fn absolute_path(text: &str) -> Result<(), String> {
    if text.len() > 4095 {
        return Err("the path is longer than 4095 bytes".to_owned());
    }
    if !text.starts_with('/') || text.split('/').any(|part| part == "..") {
        return Err(format!("{:?} is not an absolute path without \"..\"", clip(text)));
    }
    Ok(())
}

pub(super) fn ip_address(text: &str) -> Result<(), String> {
    text.parse::<std::net::IpAddr>()
        .map(|_| ())
        .map_err(|_| format!("{:?} is not an IP address", clip(text)))
}

/// The shape only: the registry's client parses it in full before it is used.
pub(super) fn image_reference(text: &str) -> Result<(), String> {
    let good = (1..=512).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-/:@[]".contains(&byte))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[');
    if good {
        Ok(())
    } else {
        Err(format!("{:?} is not an image reference", clip(text)))
    }
}
