//! The public interface of this crate, with small vocabularies of its own.

mod detokenizing;
mod files;
mod harmony;
mod injection;
mod template_references;
mod tokenizing;
mod tools;
mod vocabularies;
