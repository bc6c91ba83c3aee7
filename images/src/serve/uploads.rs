//! Uploads under way: each a partial in the store, held open between its requests so that nothing is hashed twice.
//!
//! A session is the partial's name. After a restart the session is found on disk and goes on; its bytes are read once to hash
//! them. While a request works on a session no other request gets it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::MAX_BLOB;
use crate::store::{self, Partial, Store};

/// The most uploads held at once; each is an open file.
const MAX_OPEN: usize = 64;
/// An upload nobody has continued for this long is closed; its bytes stay in the store.
const IDLE: Duration = Duration::from_secs(600);

enum Slot {
    /// A request works on it.
    Busy,
    /// Between requests, since then.
    Idle(Box<Partial>, Instant),
}

/// All uploads of a server.
pub(super) struct Uploads {
    store: Store,
    slots: Mutex<HashMap<String, Slot>>,
}

/// What asking for a session gives.
pub(super) enum Claim<'a> {
    /// The session is the caller's until it is dropped.
    Yours(Session<'a>),
    /// Another request has it.
    Busy,
    /// There is none of that name.
    Unknown,
    /// Too many at once.
    Full,
}

/// A claimed upload. Dropping it gives the upload back for the next request.
pub(super) struct Session<'a> {
    uploads: &'a Uploads,
    /// The session's name.
    pub(super) id: String,
    partial: Option<Box<Partial>>,
}

impl Uploads {
    pub(super) fn new(store: Store) -> Uploads {
        Uploads {
            store,
            slots: Mutex::default(),
        }
    }

    /// Begins an upload.
    pub(super) fn begin(&self) -> Result<Claim<'_>, store::Error> {
        use ring::rand::SecureRandom;
        let mut bytes = [0; 16];
        if ring::rand::SystemRandom::new().fill(&mut bytes).is_err() {
            return Ok(Claim::Full);
        }
        self.claim(
            &bytes.iter().map(|b| format!("{b:02x}")).collect::<String>(),
            true,
        )
    }

    /// Goes on with an upload.
    pub(super) fn resume(&self, id: &str) -> Result<Claim<'_>, store::Error> {
        if id.len() != 32 || !id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Ok(Claim::Unknown);
        }
        self.claim(id, false)
    }

    fn claim(&self, id: &str, new: bool) -> Result<Claim<'_>, store::Error> {
        let held = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.retain(|_, slot| !matches!(slot, Slot::Idle(_, since) if since.elapsed() > IDLE));
            match slots.get(id) {
                Some(Slot::Busy) => return Ok(Claim::Busy),
                None if !new && !self.store.has_upload(id) => return Ok(Claim::Unknown),
                None if slots.len() >= MAX_OPEN => return Ok(Claim::Full),
                _ => {}
            }
            match slots.insert(id.to_owned(), Slot::Busy) {
                Some(Slot::Idle(partial, _)) => Some(partial),
                _ => None,
            }
        };
        let mut session = Session {
            uploads: self,
            id: id.to_owned(),
            partial: held,
        };
        if session.partial.is_none() {
            session.partial = Some(Box::new(self.store.upload(id, MAX_BLOB)?));
        }
        Ok(Claim::Yours(session))
    }
}

impl Session<'_> {
    /// How much is there.
    pub(super) fn offset(&self) -> u64 {
        self.partial.as_ref().map_or(0, |p| p.offset())
    }

    /// Takes the next bytes.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), store::Error> {
        match &mut self.partial {
            Some(partial) => partial.append(bytes),
            None => Ok(()),
        }
    }

    /// Ends the session and gives its partial away.
    pub(super) fn take(mut self) -> Option<Partial> {
        self.partial.take().map(|partial| *partial)
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        let mut slots = self.uploads.slots.lock().unwrap_or_else(PoisonError::into_inner);
        match self.partial.take() {
            Some(partial) => slots.insert(std::mem::take(&mut self.id), Slot::Idle(partial, Instant::now())),
            None => slots.remove(&self.id),
        };
    }
}
