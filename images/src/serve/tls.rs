//! TLS for a served registry: a certificate and its key out of two files, and a stream that keeps to its times.
//!
//! A peer that sends a record a byte at a time gets no longer than one that sends nothing: a read's time is for all of what it takes.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};

use super::http::Stream;

/// A longer file is not read.
const MAX_FILE: u64 = 1024 * 1024;
/// How long a handshake may take. LTE in a cellar needs a second or two.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How much of a plain request is read away, and how long that is waited for.
const MAX_PLAIN: usize = 8 * 1024;
const PLAIN_TIME: Duration = Duration::from_millis(500);

/// Where the certificate and its key are, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The certificate, and after it those that vouch for it.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Reads them; the error names the file.
pub(super) fn load(files: &Files) -> Result<Arc<ServerConfig>, String> {
    let named = |path: &Path, e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let read = |path: &Path| {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(|e| named(path, &e))?;
        file.take(MAX_FILE)
            .read_to_end(&mut bytes)
            .map_err(|e| named(path, &e))?;
        Ok::<_, String>(bytes)
    };
    let chain = CertificateDer::pem_slice_iter(&read(&files.certificate)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| named(&files.certificate, &"not PEM"))?;
    if chain.is_empty() {
        return Err(named(&files.certificate, &"no certificate in it"));
    }
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?)
        .map_err(|_| named(&files.key, &"no private key in it"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|e| named(&files.key, &e))?;
    Ok(Arc::new(config))
}

/// A connection with TLS.
pub(super) struct TlsStream {
    tls: ServerConnection,
    tcp: TcpStream,
    read_time: Cell<Duration>,
    write_time: Cell<Duration>,
    /// Whether the peer's first byte was looked at.
    looked: bool,
}

/// What whoever speaks plain HTTP is told, in words that clients know from other servers.
const PLAIN: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: 48\r\n\r\n\
    Client sent an HTTP request to an HTTPS server.\n";

impl TlsStream {
    /// The handshake happens with the first read.
    pub(super) fn new(config: Arc<ServerConfig>, tcp: TcpStream) -> Result<TlsStream, rustls::Error> {
        let time = Cell::new(Duration::from_secs(1));
        Ok(TlsStream {
            tls: ServerConnection::new(config)?,
            tcp,
            read_time: time.clone(),
            write_time: time,
            looked: false,
        })
    }

    /// Ends a connection that begins with a letter, as a plain request does and no handshake.
    fn look(&mut self) -> io::Result<()> {
        let mut first = [0];
        self.tcp
            .set_read_timeout(Some(self.read_time.get().min(HANDSHAKE)))?;
        if self.tcp.peek(&mut first)? == 1 && first[0].is_ascii_uppercase() {
            self.tcp.set_write_timeout(Some(self.write_time.get()))?;
            self.tcp.write_all(PLAIN)?;
            // What was sent is read away, or closing takes the answer along.
            let _ = self.tcp.shutdown(std::net::Shutdown::Write);
            let _ = self.tcp.set_read_timeout(Some(PLAIN_TIME));
            let _ = self.tcp.read(&mut [0; MAX_PLAIN]);
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.looked = true;
        Ok(())
    }

    fn send(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            self.tcp.set_write_timeout(Some(self.write_time.get()))?;
            if self.tls.write_tls(&mut self.tcp)? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }
}

impl Read for TlsStream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if !self.looked {
            self.look()?;
        }
        let time = match self.tls.is_handshaking() {
            true => self.read_time.get().min(HANDSHAKE),
            false => self.read_time.get(),
        };
        let end = Instant::now() + time;
        loop {
            match self.tls.reader().read(out) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                // The peer left without saying so: the end of a body is known by its own length.
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                other => return other,
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.tcp.set_read_timeout(Some(left))?;
            self.tls.read_tls(&mut self.tcp)?;
            let processed = self.tls.process_new_packets();
            // An alert says why, where there is somebody to read it.
            let sent = self.send();
            processed.map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
            sent?;
        }
    }
}

impl Write for TlsStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.tls.writer().write(bytes)?;
        self.send()?;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tls.writer().flush()?;
        self.send()
    }
}

impl Drop for TlsStream {
    fn drop(&mut self) {
        self.tls.send_close_notify();
        // Whoever has gone does not need it.
        let _ = self.send();
    }
}

impl Stream for TlsStream {
    fn read_within(&self, time: Duration) -> io::Result<()> {
        self.read_time.set(time);
        Ok(())
    }
    fn write_within(&self, time: Duration) -> io::Result<()> {
        self.write_time.set(time);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_will_not_do_are_named() {
        let tls = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parts/tls");
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "nothing\n").unwrap();
        let (cert, key) = (tls.join("cert.pem"), tls.join("key.pem"));
        let files = |certificate: &Path, key: &Path| Files {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        };
        assert!(load(&files(&cert, &key)).is_ok());
        for (files, said) in [
            (files(&empty, &key), "empty.pem: no certificate in it"),
            (files(&cert, &empty), "empty.pem: no private key in it"),
            (files(&cert, &folder.path().join("none")), "none: No such file"),
        ] {
            let error = load(&files).err().unwrap();
            assert!(error.contains(said), "{error}");
        }
    }
}
