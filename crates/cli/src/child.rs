//! Servers that a command starts for itself: this same binary, as a child process. It ends with the command, however
//! that ends, and when it ends before, its last words are kept.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};
use plimsoll_bench::{BenchError, Stop};
use serde::Serialize;
use tokio::task::spawn_blocking;

use crate::options::{ServeOptions, SharedOptions};
use crate::progress::tell;

/// What a server prints, followed by its URL, once it can be asked.
pub(crate) const READY: &str = "is ready at ";
/// Set for a process that is to end when its standard input does, which its parent holds open as long as it lives.
const ENDS_WITH_INPUT: &str = "PLIMSOLL_ENDS_WITH_INPUT";
/// Lines of what a server said that are kept.
const KEPT_LINES: usize = 20;

/// A child process that serves at `url`. Dropping it ends it.
pub(crate) struct Listening {
    child: Child,
    what: &'static str,
    said: Said,
    readers: Vec<JoinHandle<()>>,
    pub(crate) url: String,
}

impl Listening {
    /// `plimsoll serve` on a free loopback port, with the same options as a `serve` of one's own; ended where `stop` is
    /// set before it is ready.
    pub(crate) async fn server(shared: &SharedOptions, serve: &ServeOptions, stop: &Stop) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        pass_on(&mut command, shared)?;
        pass_on(&mut command, serve)?;
        command.args(["serve", "--host", "127.0.0.1", "--port", "0"]);
        for path in &shared.config {
            command.arg("--config").arg(path);
        }
        Self::start(command, "the server", stop).await
    }

    /// The load generator's yardstick.
    pub(crate) async fn null_server(stop: &Stop) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("null-server");
        Self::start(command, "the null server", stop).await
    }

    /// The process that serves.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, with its last words. None: it is still there.
    pub(crate) fn last_words(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok()??;
        self.finish_reading();
        Some(format!("{} ended ({status}); {}", self.what, self.said.last()))
    }

    async fn start(mut command: Command, what: &'static str, stop: &Stop) -> Result<Self> {
        command.env(ENDS_WITH_INPUT, "1").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A line for each request would push out the lines that say why it ended.
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "warn");
        }
        // A group of its own: a terminal's Ctrl-C is for the command, which still has questions to its server.
        let mut child = command.process_group(0).spawn().context("cannot start a server")?;
        let stdout = child.stdout.take().context("the server's output cannot be read")?;
        let stderr = child.stderr.take().context("the server's output cannot be read")?;
        let said = Said::default();
        let mut server = Self { child, what, said: said.clone(), readers: Vec::new(), url: String::new() };
        server.readers.push(read_on(stderr, said.clone()));
        let heard = said.clone();
        let ready = spawn_blocking(move || {
            let mut stdout = BufReader::new(stdout);
            let url = lines(&mut stdout).find_map(|line| {
                let url = line.split_once(READY).map(|(_, url)| url.trim().to_owned());
                heard.take(line);
                url
            });
            (url, stdout)
        });
        let (url, stdout) = tokio::select! {
            ready = ready => ready?,
            // Loading a model may take minutes.
            () = stop.requested() => return Err(BenchError::Interrupted.into()),
        };
        let Some(url) = url else {
            let status = server.child.wait()?;
            server.finish_reading();
            bail!("{what} did not start ({status}); what it said stands above");
        };
        server.url = url;
        said.keep_quiet();
        // Whatever it goes on to print must be read, or it would wait for us.
        server.readers.push(read_on(stdout, said));
        Ok(server)
    }

    /// Of a process that has ended.
    fn finish_reading(&mut self) {
        self.readers.drain(..).for_each(|reader| drop(reader.join()));
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Lines as text, whatever bytes they hold.
fn lines(from: &mut impl BufRead) -> impl Iterator<Item = String> {
    from.split(b'\n').map_while(io::Result::ok).map(|line| String::from_utf8_lossy(&line).trim_end().to_owned())
}

fn read_on(from: impl Read + Send + 'static, said: Said) -> JoinHandle<()> {
    std::thread::spawn(move || lines(&mut BufReader::new(from)).for_each(|line| said.take(line)))
}

/// What a server said last; shown as it comes until it is ready, and kept for the case that it ends.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Words>>);

#[derive(Default)]
struct Words {
    is_quiet: bool,
    last: VecDeque<String>,
}

impl Said {
    fn take(&self, line: String) {
        let mut words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !words.is_quiet {
            tell(format_args!("  {line}"));
        }
        if words.last.len() == KEPT_LINES {
            words.last.pop_front();
        }
        words.last.push_back(line);
    }

    /// Shows no more, so as not to run into the progress of a measurement.
    fn keep_quiet(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_quiet = true;
    }

    fn last(&self) -> String {
        let words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<&str> = words.last.iter().map(String::as_str).collect();
        if lines.is_empty() { "it said nothing".to_owned() } else { format!("its last lines: {}", lines.join(" | ")) }
    }
}

/// Lets this process end when the one that started it for itself does, however that ends: also when it is killed.
pub(crate) fn end_with_parent() {
    if std::env::var_os(ENDS_WITH_INPUT).is_none() {
        return;
    }
    std::thread::spawn(|| {
        io::copy(&mut io::stdin(), &mut io::sink()).ok();
        // Nobody is left to be told.
        std::process::exit(1);
    });
}

/// Runs the load generator's yardstick until the process is ended.
pub(crate) fn serve_null() -> Result<()> {
    end_with_parent();
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

    use super::{KEPT_LINES, Said, pass_on};
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

    #[test]
    fn the_last_words_are_kept() {
        let said = Said::default();
        assert_eq!(said.last(), "it said nothing");
        said.keep_quiet();
        (0..KEPT_LINES + 5).for_each(|line| said.take(format!("line {line}")));
        let last = said.last();
        assert!(last.starts_with("its last lines: line 5 | ") && last.ends_with(" | line 24"), "{last}");
    }
}
