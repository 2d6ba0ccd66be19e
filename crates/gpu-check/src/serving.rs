//! The real server under the built-in load: starts `plimsoll serve`, drives it with `plimsoll bench`, and reads what
//! that has written.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::results::Row;

/// A running server; ended with the value.
pub struct Server {
    child: Child,
    url: String,
}

impl Server {
    /// Starts `plimsoll serve ARGUMENTS` on a free port, and waits for `patience` until it is ready.
    ///
    /// # Errors
    /// It ends, or is not ready in time.
    pub fn start(program: &Path, arguments: &[String], patience: Duration) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg("serve").args(arguments).args(["--port", "0"]).stdout(Stdio::piped());
        command.env("RUST_LOG", "warn"); // else a line a request
        let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let output = child.stdout.take().context("the server has no output")?;
        let mut server = Self { child, url: String::new() };
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            // To the end, or the server would stop at a full pipe.
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let until = Instant::now() + patience;
        while server.url.is_empty() {
            let line = match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => bail!("the server was not ready within {} s", patience.as_secs()),
                Err(RecvTimeoutError::Disconnected) => bail!("the server ended before it was ready; its log says why"),
            };
            println!("{line}");
            if let Some((_, url)) = line.split_once("is ready at ") {
                url.trim().clone_into(&mut server.url);
            }
        }
        Ok(server)
    }

    /// Whether it is still there.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One load: so many at once, each with a prompt of random words of its own, since one that is sent again and again is kind
/// to a mixture of experts.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub concurrency: u32,
    pub requests: u32,
    /// No request is sent after this.
    pub max_seconds: u64,
    /// `--random-input` of `plimsoll bench`.
    pub input_tokens: &'static str,
    pub output_tokens: u32,
}

impl Load {
    /// As a row's name has it.
    pub fn name(&self) -> String {
        format!("N={} in={} out={}", self.concurrency, self.input_tokens, self.output_tokens)
    }
}

/// Drives the server and tells the share of requests that succeeded, and the rates and latencies. The whole report is kept
/// in `folder`.
///
/// # Errors
/// The load does not run, or not one request succeeds.
pub fn drive(program: &Path, server: &Server, load: Load, folder: &Path) -> Result<Row> {
    let mut command = Command::new(program);
    command.args(["bench", "--url", &server.url, "--timeout", "120"]);
    command.args(["--random-input", load.input_tokens, "--random-output", &load.output_tokens.to_string()]);
    command.args(["--concurrency", &load.concurrency.to_string(), "--requests", &load.requests.to_string()]);
    command.args(["--max-seconds", &load.max_seconds.to_string(), "--out"]).arg(folder).stdout(Stdio::null());
    let status = command.status().with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(status.success(), "plimsoll bench ended with {status}");
    let path = folder.join("bench.json");
    let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let report: Value = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    seven_metrics(&report).with_context(|| format!("{} lacks a number", path.display()))
}

/// Requests a second, tokens in and out a second, tokens a second of one user, TTFT, TPOT, ITL; and the success rate.
fn seven_metrics(report: &Value) -> Option<Row> {
    let rung = &report["rung"];
    let (rates, mean) = (&rung["rates"], |key: &str| rung[key]["mean"].clone());
    let row = json!({
        "success": rung["success_rate"].as_f64()?, "requests": rung["outcomes"]["success"].as_u64()?,
        "req/s": rates["requests_per_s"].as_f64()?, "in tok/s": rates["input_tokens_per_s"].as_f64()?,
        "out tok/s": rates["output_tokens_per_s"].as_f64()?,
        "tok/s/user": rung["per_user"]["one_over_tpot"]["mean"],
        "TTFT ms": mean("ttft_ms"), "TTFT p95": rung["ttft_ms"]["p95"], "TPOT ms": mean("tpot_ms"),
        "ITL ms": mean("itl_ms"), "steady": rung["window"]["steady"].as_bool()?,
    });
    row.as_object().cloned()
}

/// Where the reports of one load go.
pub fn folder(out: &Path, model: &str, load: Load) -> PathBuf {
    out.join(format!("{model}-{}-{}-{}", load.concurrency, load.input_tokens, load.output_tokens))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const LOAD: Load = Load { concurrency: 4, requests: 8, max_seconds: 5, input_tokens: "1-63", output_tokens: 100 };

    /// A shell script in the program's place.
    fn script(name: &str, text: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("plimsoll-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("plimsoll");
        std::fs::write(&path, format!("#!/bin/bash\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn a_report_becomes_a_row() {
        let program = script(
            "serving",
            r#"if [ "$1" = serve ]; then echo "m is ready at http://127.0.0.1:1"; exec sleep 100; fi
            [[ "$*" == *"--random-input 1-63 --random-output 100 --concurrency 4 --requests 8"* ]] || exit 1
            out="${@: -1}"; mkdir -p "$out"
            cat > "$out/bench.json" <<'END'
            {"rung": {"success_rate": 1.0, "outcomes": {"success": 8}, "window": {"steady": true},
             "rates": {"requests_per_s": 2.0, "input_tokens_per_s": 60.0, "output_tokens_per_s": 200.0},
             "per_user": {"one_over_tpot": {"mean": 50.0}}, "ttft_ms": {"mean": 10.0, "p95": 12.0},
             "tpot_ms": {"mean": 20.0}, "itl_ms": null}}
END"#,
        );
        let mut server = Server::start(&program, &[], Duration::from_secs(20)).unwrap();
        assert!(server.is_running());
        let row = drive(&program, &server, LOAD, &program.with_file_name("out")).unwrap();
        assert_eq!(row["out tok/s"], 200.0);
        assert_eq!((&row["TTFT ms"], &row["ITL ms"]), (&json!(10.0), &Value::Null));
        std::fs::remove_dir_all(program.parent().unwrap()).unwrap();
    }

    #[test]
    fn a_server_that_ends_or_lags_is_an_error() {
        let program = script("ending", "echo loading; exit 1");
        let error = Server::start(&program, &[], Duration::from_secs(20)).err().unwrap().to_string();
        assert!(error.contains("ended before it was ready"), "{error}");
        let program = script("lagging", "exec sleep 100");
        let error = Server::start(&program, &[], Duration::from_secs(1)).err().unwrap().to_string();
        assert!(error.contains("not ready within 1 s"), "{error}");
        for name in ["ending", "lagging"] {
            let path = std::env::temp_dir().join(format!("plimsoll-{name}-{}", std::process::id()));
            std::fs::remove_dir_all(path).unwrap();
        }
    }
}
