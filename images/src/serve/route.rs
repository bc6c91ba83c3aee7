//! Paths of the distribution API, read once: a path becomes a [`Route`] or nothing.

use crate::digest::Digest;
use crate::reference::Reference;

/// What a tag or digest names, in the path of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Tag(String),
    Digest(Digest),
}

/// What a path asks for. A repository is a [`Reference`] at the registry [`HOME`], whose tag means nothing here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    /// `/v2/`
    Base,
    /// `/token`, which is not of the API: challenges lead to it.
    Token,
    /// `/v2/_catalog`
    Catalog,
    /// `/v2/NAME/tags/list`
    Tags(Reference),
    /// `/v2/NAME/manifests/TAG|DIGEST`
    Manifest(Reference, Target),
    /// `/v2/NAME/blobs/DIGEST`
    Blob(Reference, Digest),
    /// `/v2/NAME/blobs/uploads/`
    Uploads(Reference),
    /// `/v2/NAME/blobs/uploads/ID`
    Upload(Reference, String),
    /// `/v2/NAME/referrers/DIGEST`
    Referrers(Reference, Digest),
}

impl Route {
    /// The repository that it is about, if it is about one.
    pub(super) fn repository(&self) -> Option<&Reference> {
        match self {
            Route::Base | Route::Token | Route::Catalog => None,
            Route::Tags(name)
            | Route::Manifest(name, _)
            | Route::Blob(name, _)
            | Route::Uploads(name)
            | Route::Upload(name, _)
            | Route::Referrers(name, _) => Some(name),
        }
    }
}

/// Why a path is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoRoute {
    /// Not of this API.
    Unknown,
    /// The repository's name is not one.
    Name,
    /// The digest is not one.
    Digest,
    /// The tag is not one.
    Tag,
}

/// The registry under which what is pushed here stands in the store: `localhost/iris:v1`, as people name local images.
pub(super) const HOME: &str = "localhost";

/// Reads a path.
pub(super) fn parse(path: &str) -> Result<Route, NoRoute> {
    let rest = match path {
        "/v2" | "/v2/" => return Ok(Route::Base),
        "/token" => return Ok(Route::Token),
        "/v2/_catalog" => return Ok(Route::Catalog),
        path => path.strip_prefix("/v2/").ok_or(NoRoute::Unknown)?,
    };
    let repository = |name: &str| Reference::parse(&format!("{HOME}/{name}")).map_err(|_| NoRoute::Name);
    let digest = |text: &str| Digest::parse(text).map_err(|_| NoRoute::Digest);
    // Names may hold any of the words below: the last one decides.
    let (front, last) = rest.rsplit_once('/').ok_or(NoRoute::Unknown)?;
    if let Some(name) = front.strip_suffix("/tags")
        && last == "list"
    {
        return Ok(Route::Tags(repository(name)?));
    }
    if let Some(name) = front.strip_suffix("/manifests") {
        let name = repository(name)?;
        if last.contains(':') {
            return Ok(Route::Manifest(name, Target::Digest(digest(last)?)));
        }
        name.with_tag(last).map_err(|_| NoRoute::Tag)?;
        return Ok(Route::Manifest(name, Target::Tag(last.to_owned())));
    }
    if let Some(name) = front.strip_suffix("/referrers") {
        return Ok(Route::Referrers(repository(name)?, digest(last)?));
    }
    if let Some(name) = front.strip_suffix("/blobs/uploads") {
        let name = repository(name)?;
        if last.is_empty() {
            return Ok(Route::Uploads(name));
        }
        return Ok(Route::Upload(name, last.to_owned()));
    }
    if let Some(name) = front.strip_suffix("/blobs") {
        if last == "uploads" {
            return Ok(Route::Uploads(repository(name)?));
        }
        return Ok(Route::Blob(repository(name)?, digest(last)?));
    }
    Err(NoRoute::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let name = |text: &str| Reference::parse(&format!("{HOME}/{text}")).unwrap();
        let digest = Digest::of(b"x");
        let table = [
            ("/v2".to_owned(), Ok(Route::Base)),
            ("/v2/".to_owned(), Ok(Route::Base)),
            ("/v2/_catalog".to_owned(), Ok(Route::Catalog)),
            ("/token".to_owned(), Ok(Route::Token)),
            ("/v2/a/b/tags/list".to_owned(), Ok(Route::Tags(name("a/b")))),
            (
                "/v2/a/manifests/v1".to_owned(),
                Ok(Route::Manifest(name("a"), Target::Tag("v1".to_owned()))),
            ),
            (
                format!("/v2/a/manifests/{digest}"),
                Ok(Route::Manifest(name("a"), Target::Digest(digest))),
            ),
            (
                format!("/v2/blobs/blobs/{digest}"),
                Ok(Route::Blob(name("blobs"), digest)),
            ),
            ("/v2/a/blobs/uploads/".to_owned(), Ok(Route::Uploads(name("a")))),
            ("/v2/a/blobs/uploads".to_owned(), Ok(Route::Uploads(name("a")))),
            (
                "/v2/a/blobs/uploads/x1".to_owned(),
                Ok(Route::Upload(name("a"), "x1".to_owned())),
            ),
            (
                format!("/v2/a/referrers/{digest}"),
                Ok(Route::Referrers(name("a"), digest)),
            ),
            ("/".to_owned(), Err(NoRoute::Unknown)),
            ("/v1/_ping".to_owned(), Err(NoRoute::Unknown)),
            ("/v2/a".to_owned(), Err(NoRoute::Unknown)),
            ("/v2/a/b/c".to_owned(), Err(NoRoute::Unknown)),
            ("/v2/A/tags/list".to_owned(), Err(NoRoute::Name)),
            ("/v2/../tags/list".to_owned(), Err(NoRoute::Name)),
            ("/v2/%2e%2e/tags/list".to_owned(), Err(NoRoute::Name)),
            ("/v2/a/blobs/sha256:12".to_owned(), Err(NoRoute::Digest)),
            ("/v2/a/manifests/..".to_owned(), Err(NoRoute::Tag)),
        ];
        for (path, wanted) in table {
            assert_eq!(parse(&path), wanted, "{path}");
        }
    }
}
