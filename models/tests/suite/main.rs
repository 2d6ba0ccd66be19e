//! The models against transformers, against themselves, and against checkpoints that should be refused.

mod driver;
mod dummies;
mod formats;
mod golden;
mod published;
mod refusals;
#[path = "../scratch/mod.rs"]
mod scratch;
mod table;
