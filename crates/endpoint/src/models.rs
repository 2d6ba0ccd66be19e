//! Which model a server serves.

use std::time::Duration;

use serde_json::Value;

use crate::base::Base;
use crate::error::{EndpointError, Result};
use crate::http::{read_limited, with_causes};

/// No list of models is longer, in bytes.
const LONGEST_LIST: usize = 4 << 20;

/// The model that `/v1/models` lists, if it is the only one; asked within `patience`.
///
/// # Errors
/// A server that does not answer, or not with such a list, and none or several models.
pub async fn only_model(http: &reqwest::Client, base: &Base, patience: Duration) -> Result<String> {
    let url = base.join("v1/models");
    let unreachable = |why: String| EndpointError::Unreachable { url: url.to_string(), why };
    let response =
        http.get(url.clone()).timeout(patience).send().await.map_err(|error| unreachable(with_causes(&error)))?;
    let response = response.error_for_status().map_err(|error| unreachable(with_causes(&error)))?;
    let body = read_limited(response, LONGEST_LIST).await.map_err(unreachable)?;
    let list: Value = serde_json::from_slice(&body).map_err(|error| unreachable(error.to_string()))?;
    let entries = list.get("data").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut names: Vec<String> = entries.iter().filter_map(|m| Some(m.get("id")?.as_str()?.to_owned())).collect();
    match names.len() {
        1 => Ok(names.remove(0)),
        _ => Err(EndpointError::ModelChoice { url: url.to_string(), names }),
    }
}
