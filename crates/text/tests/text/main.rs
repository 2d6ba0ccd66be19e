//! The public interface of this crate, with small vocabularies of its own.

mod detokenizing;
mod files;
mod harmony;
mod injection;
mod tokenizing;
mod vocabularies;
