//! Where a server is.

use reqwest::Url;

use crate::error::{EndpointError, Result};

/// The root of a server: no trailing slash, no `/v1`.
#[derive(Clone, Debug)]
pub struct Base(Url);

impl Base {
    /// Takes `http://host:port`, with or without a path, a trailing slash or `/v1`.
    ///
    /// # Errors
    /// Anything that is no http or https URL of a host, or that has a query or a fragment.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |why: &str| EndpointError::Url { url: text.to_owned(), why: why.to_owned() };
        let trimmed = text.trim().trim_end_matches('/');
        let root = trimmed.strip_suffix("/v1").unwrap_or(trimmed);
        let url = Url::parse(&format!("{root}/")).map_err(|error| wrong(&error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err(wrong("it must begin with http:// or https:// and a host"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("it must have no query"));
        }
        Ok(Self(url))
    }

    /// `path`, which is relative, of this server.
    pub fn join(&self, path: &str) -> Url {
        self.0.join(path).expect("a relative path joins any http URL")
    }

    pub fn root(&self) -> &Url {
        &self.0
    }

    /// Whether it is on this machine, as far as the URL tells.
    pub fn is_local(&self) -> bool {
        self.0.host_str().is_some_and(|host| matches!(host, "127.0.0.1" | "localhost" | "[::1]"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls_in_every_form() {
        for text in ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/", " http://h:1 "] {
            let base = Base::parse(text).expect(text);
            assert_eq!(base.join("v1/models").as_str(), "http://h:1/v1/models");
            assert!(!base.is_local());
        }
        let base = Base::parse("https://h/some/prefix/v1").expect("a prefix");
        assert_eq!(base.join("v1/completions").as_str(), "https://h/some/prefix/v1/completions");
        assert_eq!(base.root().as_str(), "https://h/some/prefix/");
        for text in ["http://127.0.0.1:8000", "http://localhost/v1", "http://[::1]:80"] {
            assert!(Base::parse(text).expect(text).is_local(), "{text}");
        }
    }

    #[test]
    fn what_is_no_base_url_is_refused() {
        for text in ["", "localhost:8000", "127.0.0.1:8000", "ftp://h", "http://", "http://h?x=1"] {
            assert!(Base::parse(text).is_err(), "{text}");
        }
    }
}
