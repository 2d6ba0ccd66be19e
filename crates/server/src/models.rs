//! `GET /v1/models` and `GET /v1/models/{id}`

use axum::Json;
use axum::extract::{Path, State};
use plimsoll_api::{Model, ModelList};

use crate::error::ApiError;
use crate::{ServedModel, ServerState};

pub(crate) async fn list(State(state): State<ServerState>) -> Result<Json<ModelList>, ApiError> {
    let model = state.model()?;
    let names = std::iter::once(&model.name).chain(&model.aliases);
    let data = names.map(|name| describe(name, model, &state)).collect();
    Ok(Json(ModelList { object: "list".to_owned(), data }))
}

pub(crate) async fn get(State(state): State<ServerState>, Path(id): Path<String>) -> Result<Json<Model>, ApiError> {
    let model = state.model_called(Some(&id))?;
    Ok(Json(describe(&id, &model, &state)))
}

fn describe(name: &str, model: &ServedModel, state: &ServerState) -> Model {
    Model {
        id: name.to_owned(),
        object: "model".to_owned(),
        created: state.started,
        owned_by: "plimsoll".to_owned(),
        max_model_len: Some(model.max_model_len),
    }
}
