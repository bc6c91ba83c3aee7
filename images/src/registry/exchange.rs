//! One request and its answer: the right agent, the login, redirects, and what a bad status means.
//!
//! The login loop runs at most once for each request, redirects at most [`MAX_REDIRECTS`] times, and credentials are put on
//! a request only while it goes to the registry's own origin. Trying again after faults is the caller's (`Client::persist`).

use std::io::Read;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use ureq::http::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderName, LOCATION, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use ureq::http::{HeaderValue, Method, Request as HttpRequest, Response};
use ureq::unversioned::transport::{ConnectProxyConnector, Connector, RustlsConnector};
use ureq::{Agent, Body, BodyReader};

use super::auth::{self, Account, Challenge, Login, Token};
use super::endpoint::{Url, escape, is_loopback};
use super::range::Answer;
use super::retry::{Fault, MAX_RETRY_AFTER, parse_retry_after};
use super::steady::Steady;
use super::wire::{self, CountedTcp, RememberingResolver};
use super::{CONNECT, Client, Error, STALL, credential, tls};
use crate::reference::Reference;

/// Content stores redirect once, behind a load balancer twice.
const MAX_REDIRECTS: u32 = 5;
/// An answer's header may be this large in all.
const MAX_HEADER: usize = 32 * 1024;
/// How much of an error's body is read for its message, and of a token service's answer.
const MAX_ERROR_BODY: u64 = 64 * 1024;
/// How much of a registry's own words goes into a message.
const MAX_DETAIL: usize = 300;
/// A token is not used in its last seconds: it must last for the request.
const TOKEN_MARGIN_S: u64 = 5;
/// The longest that an answer's head may take in all, however steadily it drips: longer than [`COMMIT_WAIT`].
const HEAD_TIME: Duration = Duration::from_secs(150);
/// A registry may move or check what it was sent before it answers.
pub(crate) const COMMIT_WAIT: Duration = Duration::from_secs(120);

/// Why one try failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Worth another try, and what the try met.
    Retry(Fault, String),
    /// Not worth another try.
    Final(Box<Error>),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Final(Box::new(error))
    }
}

/// A request to a registry.
pub(crate) struct Request<'a> {
    pub(crate) reference: &'a Reference,
    /// What it is for, as an error names it.
    pub(crate) what: &'a str,
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: Vec<(HeaderName, String)>,
    pub(crate) body: Option<&'a [u8]>,
    /// Whether the token must allow writing.
    pub(crate) write: bool,
    /// How long the answer's next byte may take.
    pub(crate) stall: Duration,
    /// Whether redirects are followed or are an answer like others.
    pub(crate) follow: bool,
    /// Whether the token is for the repository, or for nothing but a login that is tried.
    pub(crate) scoped: bool,
}

impl<'a> Request<'a> {
    pub(crate) fn new(reference: &'a Reference, what: &'a str, method: Method, url: Url) -> Self {
        Request {
            reference,
            what,
            method,
            url,
            headers: Vec::new(),
            body: None,
            write: false,
            stall: STALL,
            follow: true,
            scoped: true,
        }
    }

    pub(crate) fn header(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn writing(mut self, body: &'a [u8], stall: Duration) -> Self {
        self.body = Some(body);
        self.write = true;
        self.stall = stall;
        self
    }
}

/// An answer, and the address that gave it after redirects.
pub(crate) struct Exchange {
    pub(crate) response: Response<Body>,
    pub(crate) url: Url,
    grace: Duration,
}

impl Exchange {
    pub(crate) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    pub(crate) fn header(&self, name: &HeaderName) -> Option<&str> {
        self.response.headers().get(name).and_then(|v| v.to_str().ok())
    }

    pub(crate) fn length(&self) -> Option<u64> {
        self.header(&CONTENT_LENGTH).and_then(|v| v.parse().ok())
    }

    pub(crate) fn answer(&self) -> Answer<'_> {
        Answer {
            status: self.status(),
            length: self.length(),
            range: self.header(&CONTENT_RANGE),
            media_type: self.header(&CONTENT_TYPE),
        }
    }

    /// The body, as long as it comes at a pace.
    pub(crate) fn body(self) -> Steady<BodyReader<'static>> {
        Steady::new(self.response.into_body().into_reader(), self.grace)
    }

    /// Reads the body to its end, at most `limit` bytes; none if it is longer.
    pub(crate) fn read(self, limit: u64) -> Result<Option<Vec<u8>>, Failure> {
        let mut bytes = Vec::new();
        let mut reader = self.body().take(limit + 1);
        reader.read_to_end(&mut bytes).map_err(body_fault)?;
        Ok((bytes.len() as u64 <= limit).then_some(bytes))
    }

    /// Reads what is left of an answer nobody needs, so that the connection can be used again.
    pub(crate) fn drain(self) {
        let mut reader = self.body().take(MAX_ERROR_BODY);
        // A connection that breaks here is simply not used again.
        let _ = std::io::copy(&mut reader, &mut std::io::sink());
    }

    /// What a status that is not the wanted one means.
    pub(crate) fn refuse(self, client: &Client, request_for: &Reference, what: &str) -> Failure {
        let status = self.status();
        let host = request_for.registry().to_owned();
        let what = what.to_owned();
        let after = self
            .header(&RETRY_AFTER)
            .and_then(|v| parse_retry_after(v, unix_now()));
        let page = self
            .header(&CONTENT_TYPE)
            .is_some_and(|t| t.starts_with("text/html"));
        let body = if self.response.body().content_length() == Some(0) {
            None
        } else {
            self.read(MAX_ERROR_BODY).ok().flatten()
        };
        let detail = body.filter(|_| !page).map(|b| detail(&b)).unwrap_or_default();
        let shown = if detail.is_empty() {
            String::new()
        } else {
            format!(": {detail}")
        };
        match status {
            404 => Error::NotFound { what, host }.into(),
            401 | 403 => {
                let reason = client.denial(request_for, status, &detail);
                Error::Denied { what, host, reason }.into()
            }
            429 | 503 => {
                let asks = match after {
                    Some(after) if after > MAX_RETRY_AFTER => format!(", asks to wait {} s", after.as_secs()),
                    _ => String::new(),
                };
                Failure::Retry(
                    Fault::Busy(after),
                    format!("{what}: busy, answered {status}{asks}{shown}"),
                )
            }
            408 | 500 | 502 | 504 => {
                Failure::Retry(Fault::Server, format!("{what}: answered {status}{shown}"))
            }
            _ => Error::Status {
                what,
                host,
                status,
                detail: shown,
            }
            .into(),
        }
    }
}

/// A registry's error in its own words: `errors[].code: message` (distribution specification), else the text's beginning.
fn detail(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Answer {
        errors: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let text = match serde_json::from_slice::<Answer>(body) {
        Ok(answer) => answer
            .errors
            .iter()
            .take(3)
            .map(|e| {
                if e.message.is_empty() {
                    e.code.clone()
                } else {
                    e.message.clone()
                }
            })
            .collect::<Vec<_>>()
            .join(", "),
        Err(_) => String::from_utf8_lossy(body).trim().to_owned(),
    };
    // One line, no control characters: it goes to a terminal.
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_DETAIL)
        .collect()
}

pub(crate) fn unix_now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

/// What a break in the middle of a body means.
pub(crate) fn body_fault(error: std::io::Error) -> Failure {
    match ureq::Error::from(error) {
        ureq::Error::Protocol(e) => Failure::Retry(Fault::Cut, format!("the answer broke off: {e}")),
        e => fault(&e),
    }
}

/// What certificates have to do with the end of a handshake, if they have: trying again changes nothing.
fn certificate_fault(error: &ureq::Error) -> Option<String> {
    use rustls::AlertDescription as Alert;
    let tls = match error {
        ureq::Error::Rustls(tls) => tls,
        ureq::Error::Io(e) => e.get_ref()?.downcast_ref::<rustls::Error>()?,
        _ => return None,
    };
    match tls {
        rustls::Error::InvalidCertificate(why) => Some(format!("its certificate does not verify: {why}")),
        // Servers differ in what they call a certificate that is not there.
        rustls::Error::AlertReceived(
            alert @ (Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied),
        ) => Some(format!(
            "it refuses our certificate, or wants one ({alert:?}): put NAME.cert and NAME.key into its folder in certs.d"
        )),
        _ => None,
    }
}

fn fault(error: &ureq::Error) -> Failure {
    use std::io::ErrorKind;
    let (fault, reason) = match error {
        ureq::Error::Io(e) if e.get_ref().is_some_and(|e| e.is::<rustls::Error>()) => {
            (Fault::Foreign, format!("does not speak TLS as expected: {e}"))
        }
        ureq::Error::Io(e) => match e.kind() {
            ErrorKind::ConnectionRefused => (Fault::Absent, "connection refused".to_owned()),
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::NetworkDown => {
                (Fault::Absent, "no route to it".to_owned())
            }
            _ => (Fault::Cut, format!("connection lost: {e}")),
        },
        ureq::Error::HostNotFound => (Fault::Absent, "its name does not resolve".to_owned()),
        ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => (
            Fault::Absent,
            format!("no connection within {} s", CONNECT.as_secs()),
        ),
        ureq::Error::Timeout(_) => (Fault::Cut, format!("no byte for {} s", STALL.as_secs())),
        ureq::Error::ConnectionFailed | ureq::Error::BodyStalled => (Fault::Cut, error.to_string()),
        e => (Fault::Foreign, format!("does not speak HTTP as expected: {e}")),
    };
    Failure::Retry(fault, reason)
}

impl Client {
    /// Sends `request`, logging in and following redirects as needed. Any status but those two is the caller's.
    pub(crate) fn exchange(&self, request: &Request<'_>) -> Result<Exchange, Failure> {
        let own = self.origin(request.reference)?;
        let mut url = request.url.clone();
        let mut redirects = 0;
        let mut renewed = false;
        loop {
            self.check_allowed()?;
            // Not the request's own address: the registry chose where an upload or a list goes on.
            let home = url.same_origin(&own);
            let authorization = if home { self.authorization(request)? } else { None };
            let sent_one = authorization.is_some();
            let response = self.send(request, &url, authorization)?;
            let exchange = self.answered(response, url.clone());
            if exchange.status() == 400 && !url.secure && home && self.wants_tls(request.reference)? {
                let reason = "it speaks TLS".to_owned();
                return Err(Failure::Retry(Fault::Cut, reason));
            }
            match exchange.status() {
                // A token may end in the middle, and some registries say 403 then.
                status @ (401 | 403) if home && !renewed && (status == 401 || sent_one) => {
                    renewed = true;
                    if !self.renew(request, choose(&exchange))? {
                        return Ok(exchange);
                    }
                    exchange.drain();
                }
                301 | 302 | 303 | 307 | 308 if request.follow => {
                    redirects += 1;
                    let next = exchange.header(&LOCATION).and_then(|to| url.join(to));
                    let refuse = |reason: String| {
                        let (what, host) = (request.what.to_owned(), request.reference.registry().to_owned());
                        Failure::from(Error::Protocol { what, host, reason })
                    };
                    let Some(next) = next else {
                        return Err(refuse("redirects to no usable address".to_owned()));
                    };
                    if redirects > MAX_REDIRECTS {
                        return Err(refuse(format!(
                            "redirects more than {MAX_REDIRECTS} times, last to {next}"
                        )));
                    }
                    if url.secure && !next.secure {
                        return Err(refuse(format!("redirects from TLS to plain {next}")));
                    }
                    if request.body.is_some() && !matches!(exchange.status(), 307 | 308) {
                        return Err(refuse(format!("redirects an upload with {}", exchange.status())));
                    }
                    exchange.drain();
                    url = next;
                }
                _ => return Ok(exchange),
            }
        }
    }

    fn answered(&self, response: Response<Body>, url: Url) -> Exchange {
        Exchange {
            response,
            url,
            grace: self.grace,
        }
    }

    fn send(
        &self,
        request: &Request<'_>,
        url: &Url,
        authorization: Option<String>,
    ) -> Result<Response<Body>, Failure> {
        let bad = |reason: String| {
            let (what, host) = (request.what.to_owned(), request.reference.registry().to_owned());
            Failure::from(Error::Protocol { what, host, reason })
        };
        let mut builder = HttpRequest::builder()
            .method(request.method.clone())
            .uri(url.text());
        for (name, value) in &request.headers {
            builder = builder.header(name, value);
        }
        if let Some(authorization) = authorization {
            let mut value = HeaderValue::from_str(&authorization)
                .map_err(|_| bad("the login has characters that a request cannot carry".to_owned()))?;
            value.set_sensitive(true);
            builder = builder.header(AUTHORIZATION, value);
        }
        let agent = self.agent(url, request.reference)?;
        // What stays on this machine goes past a proxy.
        let direct = agent.config().proxy().is_some() && is_loopback(&url.authority);
        let result = match request.body {
            Some(body) => {
                let http = builder.body(body).map_err(|e| bad(e.to_string()))?;
                let http = agent
                    .configure_request(http)
                    .timeout_per_read(Some(request.stall));
                agent.run(if direct {
                    http.proxy(None).build()
                } else {
                    http.build()
                })
            }
            None => {
                let http = builder.body(()).map_err(|e| bad(e.to_string()))?;
                agent.run(if direct {
                    agent.configure_request(http).proxy(None).build()
                } else {
                    http
                })
            }
        };
        let error = match result {
            Ok(response) => {
                self.host(request.reference.api_host(), |host| host.reached = true);
                return Ok(response);
            }
            Err(error) => error,
        };
        if let Some(reason) = certificate_fault(&error) {
            let host = url.authority.clone();
            return Err(Error::Tls { host, reason }.into());
        }
        match error {
            e @ ureq::Error::LargeResponseHeader(..) => Err(bad(e.to_string())),
            e => Err(fault(&e)),
        }
    }

    fn agent(&self, url: &Url, reference: &Reference) -> Result<Agent, Failure> {
        if !url.secure {
            return Ok(self.plain.get_or_init(|| self.new_agent(None)).clone());
        }
        let verify = !(url.authority == reference.api_host() && self.is_insecure(reference.api_host())?);
        // Hosts with certificates of their own have an agent of their own: nobody else is shown them.
        let own = tls::folder_of(&self.options.certs, &url.authority);
        let key = (verify, own.clone());
        let mut agents = self.secure.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = agents.get(&key) {
            return Ok(agent.clone());
        }
        let tls = tls::config(verify, self.options.roots.as_deref(), own.as_deref()).map_err(|reason| {
            Failure::from(Error::Tls {
                host: url.authority.clone(),
                reason,
            })
        })?;
        Ok(agents
            .entry(key)
            .or_insert_with(|| self.new_agent(Some(tls)))
            .clone())
    }

    fn new_agent(&self, tls: Option<ureq::tls::TlsConfig>) -> Agent {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(STALL))
            .timeout_per_write(Some(STALL))
            .timeout_recv_response(Some(HEAD_TIME))
            .max_response_header_size(MAX_HEADER)
            .input_buffer_size(64 * 1024)
            .output_buffer_size(16 * 1024)
            .max_idle_connections_per_host(1)
            .user_agent(concat!("wherry/", env!("CARGO_PKG_VERSION")))
            .accept("")
            .accept_encoding("")
            .proxy(wire::proxy(tls.is_some(), |name| std::env::var(name).ok()));
        if let Some(tls) = tls {
            config = config.tls_config(tls);
        }
        let tcp = CountedTcp {
            meter: self.meter.clone(),
            addresses: self.addresses.clone(),
        };
        let connector =
            ().chain(ConnectProxyConnector::default())
                .chain(tcp)
                .chain(RustlsConnector::default());
        Agent::with_parts(
            config.build(),
            connector,
            RememberingResolver {
                addresses: self.addresses.clone(),
            },
        )
    }

    /// Whether the registry is spoken to over TLS: always, but for loopback and for those called insecure that have none.
    pub(crate) fn speaks_tls(&self, reference: &Reference) -> Result<bool, Failure> {
        let authority = reference.api_host();
        if let Some(secure) = self.host(authority, |host| host.secure) {
            return Ok(secure);
        }
        let secure = if self.is_insecure(authority)? {
            let url = Url::at(true, authority, "/v2/");
            let probe = Request::new(reference, "the registry", Method::GET, url.clone());
            match self.send(&probe, &url, None) {
                Ok(response) => {
                    self.answered(response, url).drain();
                    true
                }
                Err(Failure::Retry(Fault::Absent, _)) if authority.contains(':') => false,
                Err(Failure::Retry(Fault::Foreign, _)) => false,
                Err(Failure::Retry(Fault::Cut, _)) | Err(Failure::Retry(Fault::Absent, _)) => false,
                Err(other) => return Err(other),
            }
        } else {
            !is_loopback(authority)
        };
        self.host(authority, |host| host.secure = Some(secure));
        Ok(secure)
    }

    /// The registry's own origin, the only one that its account is for.
    fn origin(&self, reference: &Reference) -> Result<Url, Failure> {
        Ok(Url::at(self.speaks_tls(reference)?, reference.api_host(), "/"))
    }

    /// Whether a registry that was spoken to in plain HTTP, as loopback is, says that it wants TLS. Asked once.
    fn wants_tls(&self, reference: &Reference) -> Result<bool, Failure> {
        let authority = reference.api_host();
        if self.host(authority, |host| std::mem::replace(&mut host.asked_for_tls, true)) {
            return Ok(false);
        }
        let url = Url::at(false, authority, "/v2/");
        let probe = Request::new(reference, "the registry", Method::GET, url.clone());
        let response = self.send(&probe, &url, None)?;
        let text = self.answered(response, url).read(MAX_ERROR_BODY)?;
        let text = text.unwrap_or_default();
        // Go's server, nginx and Apache all name it in their answer to plain HTTP.
        let wants = String::from_utf8_lossy(&text).contains("HTTPS");
        if wants {
            self.host(authority, |host| host.secure = Some(true));
        }
        Ok(wants)
    }

    fn scope(request: &Request<'_>) -> String {
        if !request.scoped {
            return String::new();
        }
        let actions = if request.write { "pull,push" } else { "pull" };
        format!("repository:{}:{actions}", request.reference.repository())
    }

    fn account(&self, reference: &Reference) -> Result<Account, Failure> {
        if let Some(login) = &self.options.login {
            return Ok(Account::Known(login.clone()));
        }
        let Some(path) = &self.options.docker_config else {
            return Ok(Account::None);
        };
        let authority = reference.api_host();
        if let Some(known) = self.host(authority, |host| host.account.clone()) {
            return Ok(known);
        }
        let registry = reference.registry();
        let account = match auth::load_account(path, registry).map_err(Error::Login)? {
            Account::Helper(name) => match credential::get(&name, registry).map_err(Error::Login)? {
                Some(login) => Account::Known(login),
                None => Account::Helper(name),
            },
            account => account,
        };
        self.host(authority, |host| host.account = Some(account.clone()));
        Ok(account)
    }

    /// The `Authorization` that is known to be wanted, if any.
    fn authorization(&self, request: &Request<'_>) -> Result<Option<String>, Failure> {
        let authority = request.reference.api_host();
        let scope = Self::scope(request);
        let now = Instant::now();
        let (challenge, token) = self.host(authority, |host| {
            host.tokens.retain(|_, (_, until)| *until > now);
            (
                host.challenge.clone(),
                host.tokens.get(&scope).map(|(token, _)| token.value.clone()),
            )
        });
        match (challenge, token) {
            (_, Some(token)) => Ok(Some(format!("Bearer {token}"))),
            (Some(Challenge::Basic), None) => match self.account(request.reference)? {
                Account::Known(login) => Ok(login.basic()),
                _ => Ok(None),
            },
            (Some(challenge @ Challenge::Bearer { .. }), None) => {
                let token = self.fetch_token(request, &challenge, &scope)?;
                Ok(Some(format!(
                    "Bearer {}",
                    self.keep_token(authority, scope, token)
                )))
            }
            (None, None) => Ok(None),
        }
    }

    /// After a refusal: a new token or a login to send. False when there is nothing new to say.
    fn renew(&self, request: &Request<'_>, challenge: Option<Challenge>) -> Result<bool, Failure> {
        let authority = request.reference.api_host();
        let scope = Self::scope(request);
        let known = self.host(authority, |host| {
            host.tokens.remove(&scope);
            host.challenge.clone()
        });
        match challenge.or_else(|| known.clone()) {
            Some(challenge @ Challenge::Bearer { .. }) => {
                let token = self.fetch_token(request, &challenge, &scope)?;
                self.host(authority, |host| host.challenge = Some(challenge));
                self.keep_token(authority, scope, token);
                Ok(true)
            }
            Some(Challenge::Basic) if known != Some(Challenge::Basic) => {
                self.host(authority, |host| host.challenge = Some(Challenge::Basic));
                Ok(matches!(
                    self.account(request.reference)?,
                    Account::Known(Login::Password { .. })
                ))
            }
            _ => Ok(false),
        }
    }

    fn keep_token(&self, authority: &str, scope: String, token: Token) -> String {
        let lifetime = Duration::from_secs(token.lifetime_s.saturating_sub(TOKEN_MARGIN_S).min(24 * 3600));
        let value = token.value.clone();
        self.host(authority, |host| {
            host.tokens.insert(scope, (token, Instant::now() + lifetime))
        });
        value
    }

    fn fetch_token(
        &self,
        request: &Request<'_>,
        challenge: &Challenge,
        scope: &str,
    ) -> Result<Token, Failure> {
        let host = request.reference.registry().to_owned();
        let bad = |reason: String| {
            Failure::from(Error::Protocol {
                what: request.what.to_owned(),
                host: host.clone(),
                reason,
            })
        };
        let Challenge::Bearer {
            realm,
            service,
            scope: asked,
        } = challenge
        else {
            return Err(bad("asks for a token without naming who gives it".to_owned()));
        };
        // A registry may ask for more than we would; when it asks for this repository its words are used.
        let same = asked
            .as_deref()
            .filter(|a| !request.write && a.contains(request.reference.repository()));
        let scope = same.unwrap_or(scope);
        let realm =
            Url::parse(realm).ok_or_else(|| bad("names a token service that is no address".to_owned()))?;
        let account = self.account(request.reference)?;
        // An account crosses a wire in the clear only to hosts that were called insecure.
        let own = self.origin(request.reference)?;
        let in_the_clear = account == Account::None
            || is_loopback(&realm.authority)
            || realm.same_origin(&own)
            || self.is_insecure(&realm.authority)?;
        if !realm.secure && (own.secure || !in_the_clear) {
            return Err(bad(format!("names a token service without TLS, {realm}")));
        }
        let response = match &account {
            Account::Known(Login::Identity { token }) => {
                let mut form = format!(
                    "grant_type=refresh_token&client_id=wherry&refresh_token={}",
                    escape(token)
                );
                if !scope.is_empty() {
                    form.push_str(&format!("&scope={}", escape(scope)));
                }
                if let Some(service) = service {
                    form.push_str(&format!("&service={}", escape(service)));
                }
                let token_request =
                    Request::new(request.reference, request.what, Method::POST, realm.clone())
                        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                        .writing(form.as_bytes(), STALL);
                self.send(&token_request, &realm, None)?
            }
            account => {
                let mut url = realm.clone();
                if !scope.is_empty() {
                    url = url.with_query("scope", scope);
                }
                if let Some(service) = service {
                    url = url.with_query("service", service);
                }
                let basic = match account {
                    Account::Known(login) => login.basic(),
                    _ => None,
                };
                let token_request = Request::new(request.reference, request.what, Method::GET, url.clone());
                self.send(&token_request, &url, basic)?
            }
        };
        let exchange = self.answered(response, realm.clone());
        match exchange.status() {
            200 => {}
            status @ (400 | 401 | 403) => {
                let reason = self.denial(request.reference, status, "the token service refuses the login");
                return Err(Error::Denied {
                    what: request.what.to_owned(),
                    host,
                    reason,
                }
                .into());
            }
            _ => return Err(exchange.refuse(self, request.reference, &format!("token from {realm}"))),
        }
        let body = exchange
            .read(MAX_ERROR_BODY)?
            .ok_or_else(|| bad("gives a token of absurd size".to_owned()))?;
        auth::parse_token(&body).map_err(bad)
    }

    /// Why access was denied, and what a person could do.
    fn denial(&self, reference: &Reference, status: u16, detail: &str) -> String {
        let said = if detail.is_empty() {
            format!("answered {status}")
        } else {
            detail.to_owned()
        };
        let hint = match self.account(reference) {
            Ok(Account::None) => "; no login for it in docker's config.json".to_owned(),
            Ok(Account::Helper(name)) => format!(
                "; docker's config.json names the credential helper {name:?}, which has no login for it"
            ),
            _ => String::new(),
        };
        format!("{said}{hint}")
    }
}

/// The challenge that can be answered: Bearer before Basic.
fn choose(exchange: &Exchange) -> Option<Challenge> {
    let mut found: Vec<Challenge> = exchange
        .response
        .headers()
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .take(4)
        .filter_map(|value| value.to_str().ok())
        .flat_map(auth::parse_challenges)
        .collect();
    found.sort_by_key(|challenge| matches!(challenge, Challenge::Basic));
    found.into_iter().next()
}
