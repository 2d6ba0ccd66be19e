//! A `plimsoll` process of a test's own: started on a free port, ended when dropped.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

/// The binary under test, with no option taken from the tester's environment but the models' folder.
pub(crate) fn plimsoll() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PLIMSOLL_") && name != "PLIMSOLL_MODELS_DIR")
    {
        command.env_remove(name);
    }
    // Nor what was measured here before.
    let load_lines = format!("{}/load-lines-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    command.env("PLIMSOLL_LOAD_LINES_DIR", load_lines);
    command
}

/// Path of a catalogue model's file, pulled if it is not here yet.
pub(crate) fn pulled(name: &str) -> PathBuf {
    let output = plimsoll().args(["pull", name]).stderr(Stdio::inherit()).output().expect("plimsoll starts");
    assert!(output.status.success(), "{name} could not be pulled");
    PathBuf::from(String::from_utf8(output.stdout).expect("a path in UTF-8").trim())
}

/// `saturate` in seconds.
pub(crate) const SHORT: [&str; 6] = ["--rung-seconds", "1", "--max-tokens", "8", "--no-open-loop", "--no-drift-check"];

/// An empty folder of a test's own.
pub(crate) fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::remove_dir_all(&folder).ok();
    std::fs::create_dir_all(&folder).expect("writable");
    folder
}

/// A file of JSON.
pub(crate) fn read(path: &Path) -> Value {
    let text = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).expect("JSON")
}

/// Runs `plimsoll` to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    plimsoll().args(arguments).output().expect("plimsoll starts")
}

/// A process that is ended when a test is, also by a failure, with the servers that it started itself.
pub(crate) struct Ended(pub(crate) Child);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A running server.
pub(crate) struct Server {
    child: Child,
    /// `http://127.0.0.1:PORT`
    pub(crate) url: String,
}

impl Server {
    /// Starts `plimsoll serve ARGUMENTS` on a free port and waits until it is ready.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_as(plimsoll(), arguments)
    }

    /// As [`Server::start`], of a binary and an environment of the test's choice.
    pub(crate) fn start_as(mut plimsoll: Command, arguments: &[&str]) -> Self {
        let mut child = plimsoll
            .arg("serve")
            .args(arguments)
            .args(["--port", "0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("plimsoll starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let url = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.split_once("is ready at ").map(|(_, url)| url.trim().to_owned()))
            .unwrap_or_else(|| panic!("the server ended before it was ready: {:?}", child.wait()));
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { child, url }
    }

    /// Status and body of a GET.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        exchange(&self.url, &format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"))
    }

    /// Status and body of a POST of JSON.
    pub(crate) fn post(&self, path: &str, body: &Value) -> (u16, String) {
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n",
            body.len()
        );
        exchange(&self.url, &(head + &body))
    }

    /// Body of a POST that succeeds, as JSON.
    pub(crate) fn ask(&self, path: &str, body: &Value) -> Value {
        let (status, text) = self.post(path, body);
        assert_eq!(status, 200, "{body} -> {text}");
        serde_json::from_str(&text).expect("a body of JSON")
    }

    /// The value of a metric without labels' help: the first sample whose line starts with `name`.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics");
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no metric {name}"));
        line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
    }

    /// Asks the process to end, as a service manager does, and returns how it did.
    pub(crate) fn terminate(mut self) -> ExitStatus {
        self.signal_terminate();
        self.child.wait().expect("the server ends")
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait(mut self) -> ExitStatus {
        self.child.wait().expect("the server ends")
    }

    pub(crate) fn signal_terminate(&self) {
        let status = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().expect("kill runs");
        assert!(status.success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// One plain HTTP/1.1 exchange; understands `Content-Length`, chunked bodies and bodies up to the connection's end.
pub(crate) fn exchange(url: &str, request: &str) -> (u16, String) {
    let text = exchange_whole(url, request);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    (status, if chunked { dechunk(body) } else { body.to_owned() })
}

/// The same with the reply as it came.
pub(crate) fn exchange_whole(url: &str, request: &str) -> String {
    use std::io::Write;
    let address = url.trim_start_matches("http://");
    let mut stream = std::net::TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(Duration::from_secs(120))).expect("a timeout can be set");
    // A server that refuses early may close before it has read everything: what it answered still counts.
    stream.write_all(request.as_bytes()).ok();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).ok();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn dechunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        if size == 0 || rest.len() < size {
            break;
        }
        whole.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    whole
}
