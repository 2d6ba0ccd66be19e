//! The `plimsoll` binary: parses options and hands over to one room a command. The only place where engine, models,
//! server and load generator meet.

mod bytes;
mod catalogue;
mod config;
mod logging;
mod options;
mod pull;

use clap::{Parser, Subcommand};

use crate::options::{ServeOptions, SharedOptions};

fn main() {}
