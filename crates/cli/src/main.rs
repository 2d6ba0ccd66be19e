//! The `plimsoll` binary: parses options and hands over to one room a command. The only place where engine, models,
//! server and load generator meet.

mod bytes;
mod catalogue;
mod config;
mod logging;
mod options;
mod pull;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::config::Config;
use crate::options::{ServeOptions, SharedOptions};

#[derive(Parser)]
#[command(name = "plimsoll", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    shared: SharedOptions,
}

#[derive(Subcommand)]
enum Command {
    Serve(ServeOptions),
    Pull(pull::PullOptions),
}

fn main() -> Result<()> {
    let Cli { command, shared } = Cli::parse();
    match command {
        Command::Serve(options) => {
            let config = Config::resolve(shared, options)?;
            logging::init(config.shared.log_format);
            println!("{config}");
            Ok(())
        }
        Command::Pull(options) => pull::run(&options),
    }
}
