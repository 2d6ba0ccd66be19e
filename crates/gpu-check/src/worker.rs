//! Runs items one after the other and prints their rows, as `supervise` reads them.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use anyhow::{Result, bail};
use plimsoll_gpu_check::results::Row;
use serde_json::{Value, json};

use crate::gpu::Gpu;
use plimsoll_gpu_check::scale::Scale;

/// Gives what was measured.
pub(crate) type Measure = Box<dyn Fn(&Gpu) -> Result<Row>>;

/// What is run and told of on its own.
pub(crate) struct Item {
    pub(crate) name: String,
    pub(crate) run: Measure,
}

/// # Errors
/// There is no GPU, or an item has left it unusable: the items after it need a new process.
pub(crate) fn run(items: Vec<Item>, from: usize, scale: &'static Scale) -> Result<()> {
    let gpu = Gpu::open(scale)?;
    for (index, item) in items.iter().enumerate().skip(from) {
        print_line(&json!({"begin": index, "name": item.name}))?;
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| (item.run)(&gpu)));
        let well = gpu.is_well();
        let mut row = Row::new();
        row.insert("name".to_owned(), json!(item.name));
        let (told, measured) = match outcome {
            Ok(Ok(measured)) if well => ("ok".to_owned(), measured),
            Ok(Ok(_)) => ("the GPU failed after it".to_owned(), Row::new()),
            Ok(Err(error)) => {
                let whole = format!("{error:#}");
                eprintln!("{}: {whole}", item.name); // some errors come with a backtrace, which is for the log
                (whole.lines().next().unwrap_or_default().to_owned(), Row::new())
            }
            Err(panic) => (format!("panicked: {}", message(panic.as_ref())), Row::new()),
        };
        row.insert("outcome".to_owned(), json!(told));
        row.extend(measured);
        row.insert("ms".to_owned(), json!(started.elapsed().as_millis() as u64));
        print_line(&Value::Object(row))?;
        if !well {
            bail!("{} has left the GPU unusable", item.name);
        }
    }
    Ok(())
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}

fn print_line(value: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    out.flush()?;
    Ok(())
}
