//! Runs the programs that models write. They are strangers' code, so this happens only where it was asked for, in a process
//! of its own: ten seconds, one gigabyte, small files in a folder that is deleted afterwards, an empty environment, no
//! input, and no network where the kernel lets a user cut it off. It guards against accidents, not against an attacker:
//! the program runs as the user who started it, and may read what that user may read.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rand::distr::{Alphanumeric, SampleString};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

/// What the limits are, as a shell knows them: seconds of processor time, KiB of memory, blocks of files, open files.
const LIMITS: &str = "ulimit -t 10; ulimit -v 1048576; ulimit -f 2048; ulimit -n 64; ulimit -c 0; exec \"$@\"";
/// Longer than the limit of processor time: a program may sleep.
const PATIENCE: Duration = Duration::from_secs(15);
/// Bytes of what a program prints that are read.
const MAX_OUTPUT: u64 = 64 << 10;

/// How far programs are cut off from the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sandbox {
    /// Processes and network of their own.
    Namespaces,
    /// Limits alone: programs can reach the network.
    Limits,
}

impl Sandbox {
    /// The strictest that works here.
    ///
    /// # Errors
    /// There is no python3.
    pub async fn find() -> Result<Self, String> {
        for sandbox in [Self::Namespaces, Self::Limits] {
            if sandbox.run("", "").await.is_ok() {
                return Ok(sandbox);
            }
        }
        Err("python3 cannot be run here, which --run-code needs".to_owned())
    }

    /// Runs `program` and then `tests`.
    ///
    /// # Errors
    /// Why it did not come to the end: the last line that it printed, or the limit.
    pub(crate) async fn run(self, program: &str, tests: &str) -> Result<(), String> {
        let folder = Folder::new().map_err(|error| format!("cannot make a folder: {error}"))?;
        // A program that ends the process early has not passed.
        let token = Alphanumeric.sample_string(&mut rand::rng(), 24);
        let script = folder.0.join("answer.py");
        let text = format!("{program}\n\n{tests}\nprint(\"{token}\")\n");
        std::fs::write(&script, text).map_err(|error| format!("cannot write the program: {error}"))?;
        let output = self.output_of(&script, &folder.0).await?;
        if output.lines().last() == Some(token.as_str()) {
            return Ok(());
        }
        let last = output.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it ended early, without a word");
        Err(last.chars().take(200).collect())
    }

    async fn output_of(self, script: &Path, folder: &Path) -> Result<String, String> {
        let mut command = self.command();
        // Standard output and error come in one stream, as a reader would see them.
        command.args(["sh", "-c", &format!("exec 2>&1; {LIMITS}"), "sh", "python3", "-I", "-B"]).arg(script);
        command.current_dir(folder).env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| format!("cannot run python3: {error}"))?;
        let stdout = child.stdout.take().ok_or("its output cannot be read")?;
        let mut reader = stdout.take(MAX_OUTPUT);
        let reading = async move {
            let mut output = Vec::new();
            reader.read_to_end(&mut output).await.ok();
            // Who prints more than is read must not wait for a reader.
            drop(reader);
            child.wait().await.map(|_| output)
        };
        match timeout(PATIENCE, reading).await {
            Ok(Ok(output)) => Ok(String::from_utf8_lossy(&output).into_owned()),
            Ok(Err(error)) => Err(format!("cannot wait for it: {error}")),
            Err(_) => Err(format!("not done within {PATIENCE:?}")),
        }
    }

    /// Both end everything that the program started: the one with its namespace, the other with its process group.
    fn command(self) -> Command {
        match self {
            Self::Namespaces => {
                let mut command = Command::new("unshare");
                command.args(["--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--"]);
                command
            }
            Self::Limits => {
                let mut command = Command::new("timeout");
                command.args(["--signal=KILL", "12"]);
                command
            }
        }
    }
}

/// A folder that is deleted with this.
struct Folder(PathBuf);

impl Folder {
    fn new() -> std::io::Result<Self> {
        let name = Alphanumeric.sample_string(&mut rand::rng(), 16);
        let path = std::env::temp_dir().join(format!("plimsoll-eval-{name}"));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left over lies in the system's folder for such.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extract;
    use crate::grade::defined_name;
    use crate::task::{Category, Check, tasks};

    #[tokio::test]
    async fn right_programs_pass_and_others_say_why_not() {
        let sandbox = Sandbox::find().await.unwrap();
        for task in tasks(&[Category::Code]) {
            let Check::Python { stub, tests } = &task.check else { panic!("{} is no program", task.id) };
            let example = task.example.as_ref().unwrap();
            let program = extract::python(&format!("```python\n{example}```"), defined_name(stub)).unwrap();
            assert_eq!(sandbox.run(&program, tests).await, Ok(()), "{}", task.id);
            let idle = format!("{}    pass\n", stub.trim_start());
            assert!(sandbox.run(&idle, tests).await.is_err(), "{}", task.id);
        }
    }

    #[tokio::test]
    async fn programs_keep_to_their_limits() {
        let sandbox = Sandbox::find().await.unwrap();
        for (program, complaint) in [
            ("import sys; sys.exit(0)", "it ended early"),
            ("import os; os._exit(0)", "it ended early"),
            ("x = bytearray(4 << 30)", "MemoryError"),
            ("print(open('missing').read())", "No such file"),
            ("import os; assert 'HOME' not in os.environ; assert False, 'no home'", "no home"),
            ("input()", "EOFError"),
        ] {
            let failure = sandbox.run(program, "").await.unwrap_err();
            assert!(failure.contains(complaint), "{program}: {failure}");
        }
        assert!(sandbox.run("print('x' * 1000000)", "").await.is_err(), "what it prints is bounded");
    }
}
