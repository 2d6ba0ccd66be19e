//! Who asks: API keys, compared so that the time taken tells nothing about them.

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HeaderMap};
use axum::middleware::Next;
use axum::response::Response;
use sha2::{Digest, Sha256};

use crate::ServerState;
use crate::error::ApiError;

/// The keys that open the server, as digests.
pub(crate) struct ApiKeys(Vec<[u8; 32]>);

/// Which key a request came with: its place in the list, or 0 where there are no keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caller(pub(crate) usize);

impl ApiKeys {
    pub(crate) fn new(keys: &[String]) -> Self {
        Self(keys.iter().map(|key| Sha256::digest(key).into()).collect())
    }

    /// Whose key the request carries; `None` if it has none that fits.
    fn identify(&self, headers: &HeaderMap) -> Option<Caller> {
        if self.0.is_empty() {
            return Some(Caller(0));
        }
        let credentials = headers.get(AUTHORIZATION)?.as_bytes();
        let (scheme, key) = credentials.split_at_checked("Bearer ".len())?;
        if !scheme.eq_ignore_ascii_case(b"Bearer ") {
            return None;
        }
        let given: [u8; 32] = Sha256::digest(key.trim_ascii()).into();
        // Digests of equal length, every bit of every one of them: neither a key's length nor how much of it was
        // guessed, nor its place in the list, shows in the time.
        let mut found = None;
        for (index, known) in self.0.iter().enumerate() {
            let difference = known.iter().zip(&given).fold(0, |all, (a, b)| all | (a ^ b));
            if std::hint::black_box(difference) == 0 {
                found = Some(Caller(index));
            }
        }
        found
    }
}

/// Lets requests with a key through, and tells the handlers whose it is.
pub(crate) async fn require_key(
    State(state): State<ServerState>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let caller = state.keys.identify(request.headers()).ok_or(ApiError::Unauthorized)?;
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(credentials: Option<&str>) -> Option<Caller> {
        let keys = ApiKeys::new(&["first".to_owned(), "second".to_owned()]);
        let mut headers = HeaderMap::new();
        if let Some(credentials) = credentials {
            headers.insert(AUTHORIZATION, credentials.parse().unwrap());
        }
        keys.identify(&headers)
    }

    #[test]
    fn a_key_must_fit_in_full() {
        assert_eq!(with(Some("Bearer first")), Some(Caller(0)));
        assert_eq!(with(Some("bearer second")), Some(Caller(1)));
        for wrong in ["Bearer firs", "Bearer first2", "Bearer", "Bearer ", "Basic first", "first", ""] {
            assert_eq!(with(Some(wrong)), None, "{wrong}");
        }
        assert_eq!(with(None), None);
    }

    #[test]
    fn without_keys_everyone_may_ask() {
        assert_eq!(ApiKeys::new(&[]).identify(&HeaderMap::new()), Some(Caller(0)));
    }
}
