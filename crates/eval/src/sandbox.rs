//! Runs the programs that models write. They are strangers' code, so this happens only where it was asked for, in processes
//! of their own: ten seconds, one gigabyte, few processes, small files in a folder that is deleted afterwards, an empty
//! environment, no input, and no network where the kernel lets a user cut it off. It guards against accidents, not against
//! an attacker: the program runs as the user who started it, and can read, change and delete whatever that user can.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rand::distr::{Alphanumeric, SampleString};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Sets the limits (seconds of processor time, bytes of memory, bytes of a file, open files, processes) and runs the file.
/// Not as `__main__`: what an answer does as a program of its own, such as asking for input, is no part of the task.
const DRIVER: &str = r#"
import resource, runpy, sys
path, processes = sys.argv[1], int(sys.argv[2])
del sys.argv[1:]
limits = {"CPU": 10, "AS": 1 << 30, "FSIZE": 1 << 20, "NOFILE": 64, "CORE": 0, "NPROC": processes}
for name, most in limits.items():
    kind = getattr(resource, "RLIMIT_" + name)
    hard = resource.getrlimit(kind)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))
runpy.run_path(path, run_name="answer")
"#;
/// Longer than the limit of processor time: a program may sleep.
const PATIENCE: Duration = Duration::from_secs(15);
/// Seconds after which programs end that nobody waits for any more, since the evaluation itself was ended.
const ABANDONED_AFTER: &str = "20";
/// Bytes of what a program prints that are read: as large as its files may be.
const MAX_OUTPUT: u64 = 1 << 20;

/// How far programs are cut off from the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sandbox {
    /// Processes and network of their own: nothing outlives the program.
    Namespaces,
    /// Limits alone: programs can reach the network, and a child that makes a session of its own outlives them.
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

    /// Runs `program` and then `tests`. Whatever they started has ended afterwards, as far as the sandbox goes.
    ///
    /// # Errors
    /// Why it did not come to the end: the last line that it printed, or the limit.
    pub(crate) async fn run(self, program: &str, tests: &str) -> Result<(), String> {
        let folder = Folder::new().map_err(|error| format!("cannot make a folder: {error}"))?;
        // A program that ends the process early has not passed.
        let token = Alphanumeric.sample_string(&mut rand::rng(), 24);
        let script = folder.0.join("answer.py");
        // The token has a line of its own, whatever was or will be printed.
        let text = format!("{program}\n\n{tests}\nprint(\"\\n{token}\", flush=True)\n");
        fs::write(&script, text).map_err(|error| format!("cannot write the program: {error}"))?;
        let output = self.output_of(&script, &folder.0).await?;
        if output.lines().any(|line| line == token) {
            return Ok(());
        }
        let last = output.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it ended early, without a word");
        Err(last.chars().take(200).collect())
    }

    async fn output_of(self, script: &Path, folder: &Path) -> Result<String, String> {
        // A file, since a pipe would have to be read for as long as any child of the program holds it.
        let path = folder.join("output");
        let opened = || -> std::io::Result<_> {
            let written = File::options().append(true).create_new(true).open(&path)?;
            Ok((written.try_clone()?, written, File::open(&path)?))
        };
        let (errors, output, read) = opened().map_err(|error| format!("cannot keep its output: {error}"))?;
        let mut command = self.command();
        command.args(["python3", "-I", "-B", "-c", DRIVER]).arg(script).arg(self.most_processes());
        command.current_dir(folder).env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin");
        command.stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| format!("cannot run python3: {error}"))?;
        let _group = Group::of(&child);
        match timeout(PATIENCE, child.wait()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(format!("cannot wait for it: {error}")),
            Err(_) => return Err(format!("not done within {PATIENCE:?}")),
        }
        let mut bytes = Vec::new();
        read.take(MAX_OUTPUT).read_to_end(&mut bytes).map_err(|error| format!("cannot read its output: {error}"))?;
        // There was no room left for what it would have said in the end.
        if bytes.len() as u64 == MAX_OUTPUT {
            return Err("it printed too much".to_owned());
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn command(self) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", ABANDONED_AFTER]);
        if self == Self::Namespaces {
            command.args(["unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--"]);
        }
        command
    }

    /// The kernel counts a user's processes in a user namespace of their own; without one, together with all else that the
    /// user runs. It holds root to no such limit.
    fn most_processes(self) -> &'static str {
        match self {
            Self::Namespaces => "64",
            Self::Limits => "2048",
        }
    }
}

/// A process group, which ends with this: on every path, also where the evaluation is given up.
struct Group(Option<Pid>);

impl Group {
    /// Of a child that leads one.
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| Pid::from_raw(id.cast_signed())))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // An error says that none is left.
        let _ = self.0.map(|group| kill_process_group(group, Signal::KILL));
    }
}

/// A folder that is deleted with this.
struct Folder(PathBuf);

impl Folder {
    fn new() -> std::io::Result<Self> {
        let name = Alphanumeric.sample_string(&mut rand::rng(), 16);
        let path = std::env::temp_dir().join(format!("plimsoll-eval-{name}"));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left over lies in the system's folder for such.
        let _ = fs::remove_dir_all(&self.0);
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
        let failure = sandbox.run("print('x' * 4000000)", "").await.unwrap_err();
        assert_eq!(failure, "it printed too much");
    }

    #[tokio::test]
    async fn an_answer_is_no_program_of_its_own() {
        let sandbox = Sandbox::find().await.unwrap();
        let main = "def f():\n    return 1\n\nif __name__ == \"__main__\":\n    print(input())\n";
        assert_eq!(sandbox.run(main, "assert f() == 1").await, Ok(()));
        // Classes look up the module that they are of.
        let class = "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: 'int'\n";
        assert_eq!(sandbox.run(class, "assert P(1).x == 1").await, Ok(()));
        for talkative in ["import atexit\natexit.register(print, 'bye')", "print('no end of line', end='')"] {
            assert_eq!(sandbox.run(talkative, "").await, Ok(()), "{talkative}");
        }
    }

    /// Ids of processes that have this in their command line.
    fn processes_with(text: &str) -> Vec<String> {
        let command = |id: &str| fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let ids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        ids.filter(|id| String::from_utf8_lossy(&command(id)).contains(text)).collect()
    }

    #[tokio::test]
    async fn what_a_program_leaves_behind_is_ended() {
        let found = Sandbox::find().await.unwrap();
        for (sandbox, number) in [(found, 1), (Sandbox::Limits, 2)] {
            let seconds = format!("86{number}.{}", std::process::id());
            let straggler = format!("import subprocess\nsubprocess.Popen(['sleep', '{seconds}'])\n");
            assert_eq!(sandbox.run(&straggler, "").await, Ok(()), "{sandbox:?}");
            let failure = sandbox.run(&straggler, "assert False, 'wrong'").await.unwrap_err();
            assert!(failure.contains("wrong"), "{sandbox:?}: {failure}");
            // A killed process takes a moment to be gone; these would sleep for a quarter of an hour.
            for _ in 0..500 {
                if processes_with(&seconds).is_empty() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(processes_with(&seconds), Vec::<String>::new(), "{sandbox:?}");
        }
    }

    #[tokio::test]
    async fn processes_are_bounded() {
        use std::os::unix::fs::MetadataExt;

        let found = Sandbox::find().await.unwrap();
        for sandbox in [found, Sandbox::Limits] {
            let most = sandbox.most_processes();
            let is_set = format!("import resource\nassert resource.getrlimit(resource.RLIMIT_NPROC)[1] <= {most}");
            assert_eq!(sandbox.run(&is_set, "").await, Ok(()), "{sandbox:?}");
        }
        let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
        if found == Sandbox::Namespaces && !is_root {
            let many = "import subprocess\nfor _ in range(80):\n    subprocess.Popen(['sleep', '60'])\n";
            let failure = found.run(many, "").await.unwrap_err();
            assert!(failure.contains("temporarily unavailable"), "{failure}");
        }
    }
}
