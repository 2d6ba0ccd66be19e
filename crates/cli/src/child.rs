//! Servers that a command starts for itself: this same binary, as a child process, ended with the command.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::options::{ServeOptions, SharedOptions};

/// What a server prints, followed by its URL, once it can be asked.
pub(crate) const READY: &str = "is ready at ";

/// A child process that serves at `url`. Dropping it ends it.
pub(crate) struct Listening {
    child: Child,
    pub(crate) url: String,
}

impl Listening {
    /// `plimsoll serve` on a free loopback port, with the same options as a `serve` of one's own.
    pub(crate) fn server(shared: &SharedOptions, serve: &ServeOptions) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        pass_on(&mut command, shared)?;
        pass_on(&mut command, serve)?;
        command.args(["serve", "--host", "127.0.0.1", "--port", "0"]);
        for path in &shared.config {
            command.arg("--config").arg(path);
        }
        Self::start(command, "the server")
    }

    /// The load generator's yardstick.
    pub(crate) fn null_server() -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("null-server");
        Self::start(command, "the null server")
    }

    /// The process that serves.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    fn start(mut command: Command, what: &str) -> Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut server = Self { child: child.context("cannot start a server")?, url: String::new() };
        let stdout = server.child.stdout.take().context("the server's output cannot be read")?;
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        let url = lines.by_ref().find_map(|line| {
            eprintln!("  {line}");
            line.split_once(READY).map(|(_, url)| url.trim().to_owned())
        });
        let Some(url) = url else {
            let status = server.child.wait()?;
            bail!("{what} did not start ({status}); what it said stands above");
        };
        server.url = url;
        // Whatever it goes on to print must be read, or it would wait for us.
        std::thread::spawn(move || lines.for_each(|line| eprintln!("  {line}")));
        Ok(server)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Runs the load generator's yardstick until the process is ended.
pub(crate) fn serve_null() -> Result<()> {
    let server = plimsoll_bench::NullServer::start(plimsoll_bench::NullServerConfig::default())?;
    println!("the null server {READY}{}", server.url());
    server.wait();
    Ok(())
}

/// Hands options over as the environment variables that stand for them.
fn pass_on(command: &mut Command, options: &impl Serialize) -> Result<()> {
    for (key, value) in toml::Table::try_from(options)? {
        let variable = format!("PLIMSOLL_{}", key.replace('-', "_").to_ascii_uppercase());
        command.env(variable, written(&value));
    }
    Ok(())
}

fn written(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Array(values) => values.iter().map(written).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command as Parser, FromArgMatches};

    use super::pass_on;
    use crate::bytes::ByteSize;
    use crate::options::{CacheDtype, LoadFormat, SchedulingPolicy, ServeOptions};

    #[test]
    fn every_option_that_is_passed_on_is_one_that_serve_reads() {
        let options = ServeOptions {
            model: Some("m".into()),
            kv_cache_memory: Some(ByteSize(1 << 30)),
            prefix_caching: Some(false),
            scheduling_policy: Some(SchedulingPolicy::ShortestPromptFirst),
            api_key: vec!["a".into(), "b".into()],
            max_num_seqs: Some(3),
            load_format: Some(LoadFormat::Dummy),
            kv_cache_dtype: Some(CacheDtype::Fp8),
            gpu_memory_utilization: Some(0.5),
            ..ServeOptions::default()
        };
        let mut command = std::process::Command::new("plimsoll");
        pass_on(&mut command, &options).unwrap();
        let parser = ServeOptions::augment_args(Parser::new("serve"));
        for (variable, value) in command.get_envs() {
            let known = parser.get_arguments().find(|argument| argument.get_env() == Some(variable));
            let argument = known.unwrap_or_else(|| panic!("{variable:?} is no option's variable"));
            let flag = argument.get_long().map(|long| format!("--{long}"));
            let words = ["serve".into()].into_iter().chain(flag).chain(value.map(|v| v.to_string_lossy().into_owned()));
            let matches = parser.clone().try_get_matches_from(words).unwrap();
            ServeOptions::from_arg_matches(&matches).unwrap();
        }
    }
}
