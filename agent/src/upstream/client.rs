//! One request, one answer, over `kube`'s client. The only async code besides the loop in [`super`].

use std::path::Path;
use std::time::Duration;

use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;

use super::cluster::{Answer, Request};
use crate::causes::line;

/// No answer takes longer on a link that works at all; past it, the next attempt is due.
const TIMEOUT: Duration = Duration::from_secs(20);
/// A list of a board's pods is far below it.
const MAX_BODY: usize = 4 << 20;

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("kubeconfig: {0}")]
    Config(String),
    #[error("{0}")]
    Link(String),
}

/// A connection to the API server.
pub(super) struct Client {
    client: kube::Client,
}

impl Client {
    pub(super) async fn connect(kubeconfig: &Path) -> Result<Self, Error> {
        let config = Kubeconfig::read_from(kubeconfig).map_err(|error| Error::Config(line(&error)))?;
        let mut config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default())
            .await
            .map_err(|error| Error::Config(line(&error)))?;
        config.connect_timeout = Some(TIMEOUT);
        config.read_timeout = Some(TIMEOUT);
        config.write_timeout = Some(TIMEOUT);
        let client = kube::Client::try_from(config).map_err(|error| Error::Config(line(&error)))?;
        Ok(Self { client })
    }

    pub(super) async fn send(&self, request: &Request) -> Result<Answer, Error> {
        let body = request
            .body
            .as_ref()
            .map(|body| body.to_string().into_bytes())
            .unwrap_or_default();
        let built = http::Request::builder()
            .method(request.method)
            .uri(&request.path)
            .header(CONTENT_TYPE, request.content_type)
            .body(Body::from(body))
            .map_err(|error| Error::Link(error.to_string()))?;
        let exchange = async {
            let response = self
                .client
                .send(built)
                .await
                .map_err(|error| Error::Link(line(&error)))?;
            let status = response.status().as_u16();
            let retry_after = response
                .headers()
                .get(RETRY_AFTER)
                .and_then(|value| value.to_str().ok()?.parse().ok());
            let body = Limited::new(response.into_body(), MAX_BODY)
                .collect()
                .await
                .map_err(|error| Error::Link(error.to_string()))?
                .to_bytes();
            // A proxy's error page is no JSON: its status is enough.
            let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
            Ok(Answer {
                status,
                retry_after: retry_after.map(Duration::from_secs),
                body,
            })
        };
        match tokio::time::timeout(TIMEOUT, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::Link(format!("no answer within {} s", TIMEOUT.as_secs()))),
        }
    }
}
