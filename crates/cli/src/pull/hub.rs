//! The Hugging Face hub as a source. Downloads resume; `HF_ENDPOINT` and `HF_TOKEN` are honoured.

use std::fs;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use hf_hub::api::Progress;
use hf_hub::api::sync::ApiBuilder;
use indicatif::ProgressBar;

use crate::catalogue::Entry;
use crate::pull::progress_bar;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Fetches the entry's file from `repo` to `to`. What has arrived is kept under `folder` until it is whole.
pub(super) fn fetch(repo: &str, entry: &Entry, folder: &Path, to: &Path) -> Result<()> {
    let endpoint = std::env::var("HF_ENDPOINT").unwrap_or_else(|_| DEFAULT_ENDPOINT.to_owned());
    reachable(&endpoint)?;
    let cache = folder.join("hub");
    let api = ApiBuilder::from_env()
        .with_cache_dir(cache.clone())
        .with_endpoint(endpoint)
        .with_token(std::env::var("HF_TOKEN").ok().filter(|token| !token.is_empty()))
        .with_retries(3)
        .build()?;
    let fetched = api.model(repo.to_owned()).download_with_progress(&entry.file, Bar(None))?;
    let whole = fs::canonicalize(&fetched).with_context(|| format!("cannot read {}", fetched.display()))?;
    fs::rename(&whole, to).with_context(|| format!("cannot move {}", whole.display()))?;
    fs::remove_dir_all(&cache).ok();
    Ok(())
}

/// A quick no where there is no way to the hub, so that the next source is not kept waiting.
fn reachable(endpoint: &str) -> Result<()> {
    let (scheme, rest) = endpoint.split_once("://").ok_or_else(|| anyhow!("HF_ENDPOINT is not a URL: {endpoint}"))?;
    let host = rest.split('/').next().unwrap_or(rest);
    let port = if scheme == "http" { 80 } else { 443 };
    let authority = if host.contains(':') { host.to_owned() } else { format!("{host}:{port}") };
    let addresses = authority.to_socket_addrs().with_context(|| format!("cannot find {host}"))?;
    let mut last = None;
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(_) => return Ok(()),
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) => Err(error).with_context(|| format!("cannot reach {host}")),
        None => bail!("{host} has no address"),
    }
}

struct Bar(Option<ProgressBar>);

impl Progress for Bar {
    fn init(&mut self, size: usize, _filename: &str) {
        self.0 = Some(progress_bar(size as u64, "downloading"));
    }

    fn update(&mut self, size: usize) {
        if let Some(bar) = &self.0 {
            bar.inc(size as u64);
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
