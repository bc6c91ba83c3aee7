//! For `crate::fuzzed`.

use std::io::{Cursor, Read, Write};
use std::time::Duration;

use super::access::{Access, Account, Right, Verdict};
use super::http::{Connection, Stream};
use super::route;

/// Bytes that a peer sends; what it is answered goes nowhere.
struct Peer(Cursor<Vec<u8>>);

impl Read for Peer {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(out)
    }
}

impl Write for Peer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Stream for Peer {
    fn read_within(&self, _: Duration) -> std::io::Result<()> {
        Ok(())
    }
    fn write_within(&self, _: Duration) -> std::io::Result<()> {
        Ok(())
    }
}

/// Requests on one connection, as a server reads them: heads, routes, logins, bodies. Nothing that was sent is a writer's login.
pub fn request(bytes: &[u8]) {
    let account = Account {
        name: "board".to_owned(),
        secret: "board-secret".to_owned(),
        writes: false,
    };
    let access = Access::new(Some("a-token-that-nobody-guesses".to_owned()), vec![account]);
    let mut connection = Connection::new(Box::new(Peer(Cursor::new(bytes.to_vec()))));
    while let Ok(Some(mut head)) = connection.head() {
        let authorization = head.field("authorization").map(str::to_owned);
        assert_ne!(
            access.judge(false, authorization.as_deref(), Right::Write),
            Verdict::Allowed
        );
        if let Ok(route) = route::parse(&head.path) {
            let _ = (route.repository(), head.query("digest"), head.query("n"));
        }
        let mut body = connection.body(&mut head);
        let whole = body.whole(4096);
        assert!(!matches!(whole, Ok(Some(bytes)) if bytes.len() > 4096));
        let rest = body.rest();
        if head.close || rest.closes() || !connection.drain(rest) {
            return;
        }
    }
}
