//! The server over real connections, with a real engine and an executor that says its prompt back.

mod bodies;
mod connections;
mod echo;
mod harness;
mod hostile;
mod lifecycle;
mod overload;
mod speech;
mod streams;
