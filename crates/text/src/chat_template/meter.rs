//! Counts what a rendering makes, and stops it when that is more than any conversation needs.
//!
//! Guards in the template's source (see `guard`) and the filters, methods and output of the template engine all pay
//! here, in bytes, before or as they make them. The budget travels in the rendering's own context.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use minijinja::functions::namespace;
use minijinja::value::{Kwargs, Object, ObjectRepr, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value, escape_formatter};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::python;

/// What the guards call, and the variable that the budget is in.
pub(super) const METER: &str = "__plimsoll_meter";
pub(super) const LOOP: &str = "__plimsoll_loop";
pub(super) const CONCAT: &str = "__plimsoll_concat";
pub(super) const VARIABLE: &str = "__plimsoll_budget";

/// Bytes that a rendering may make however short the conversation is, and for each byte of it.
const BASE_BUDGET: usize = 64 * 1024 * 1024;
const BUDGET_PER_BYTE: usize = 64;
/// No string may be longer than this and twice the conversation.
const BASE_STRING: usize = 1024 * 1024;
const MAX_ITEMS: usize = 1_000_000;
/// What an item of a list costs.
const ITEM_BYTES: usize = 16;
/// What a directive of a format string may widen its argument to.
const FORMAT_WIDTH: usize = 10_000;

/// One rendering's budget.
pub(super) struct Meter {
    left: AtomicUsize,
    longest_string: usize,
}

impl Meter {
    /// For a conversation of `bytes`.
    pub(super) fn new(bytes: usize) -> Self {
        Self {
            left: AtomicUsize::new(BASE_BUDGET.saturating_add(bytes.saturating_mul(BUDGET_PER_BYTE))),
            longest_string: BASE_STRING.saturating_add(bytes.saturating_mul(2)),
        }
    }

    fn pay(&self, bytes: usize) -> Result<(), Error> {
        let paid = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        paid.map(drop).map_err(|_| exhausted())
    }

    fn pay_string(&self, bytes: usize) -> Result<(), Error> {
        if bytes > self.longest_string {
            return Err(exhausted());
        }
        self.pay(bytes)
    }

    /// Pays for a value by its own length.
    fn pay_value(&self, value: &Value) -> Result<(), Error> {
        if let Some(text) = value.as_str() {
            return self.pay_string(text.len());
        }
        match value.kind() {
            ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => match value.len() {
                Some(items) if items > MAX_ITEMS => Err(exhausted()),
                items => self.pay(items.unwrap_or(1) * ITEM_BYTES),
            },
            _ => self.pay(ITEM_BYTES),
        }
    }

    /// Pays for a value by the length of its text, without making it.
    fn pay_text(&self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > 200 {
            return Err(exhausted());
        }
        self.pay_value(value)?;
        let Some(object) = value.as_object() else { return Ok(()) };
        match object.repr() {
            ObjectRepr::Map => {
                for (name, item) in object.try_iter_pairs().into_iter().flatten() {
                    self.pay_text(&name, depth + 1)?;
                    self.pay_text(&item, depth + 1)?;
                }
            }
            ObjectRepr::Seq | ObjectRepr::Iterable => {
                for item in object.try_iter().into_iter().flatten() {
                    self.pay_text(&item, depth + 1)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Meter")
    }
}

impl Object for Meter {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }
}

/// The budget is spent.
#[derive(Debug)]
pub(super) struct Exhausted;

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the template made too much text")
    }
}

impl std::error::Error for Exhausted {}

fn exhausted() -> Error {
    Error::new(ErrorKind::InvalidOperation, "limit reached").with_source(Exhausted)
}

fn with_meter<T>(state: &State<'_, '_>, pay: impl FnOnce(&Meter) -> Result<T, Error>) -> Result<T, Error> {
    let budget = state.lookup(VARIABLE);
    let meter = budget.as_ref().and_then(|value| value.downcast_object_ref::<Meter>());
    pay(meter.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "the rendering has no budget"))?)
}

/// Makes everything in `environment` that makes text pay for it.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_function(METER, meter_value);
    environment.add_function(LOOP, meter_loop);
    environment.add_function(CONCAT, concat);
    environment.add_function("namespace", metered_namespace);
    environment.add_filter("tojson", metered_tojson);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    for &name in METERED_FILTERS {
        environment.add_filter(name, move |state: &State<'_, '_>, arguments: Rest<ValueOrKwargs>| {
            let arguments = arguments.into_values();
            with_meter(state, |meter| meter.pay_call(name, &arguments))?;
            BUILTIN.empty_state().apply_filter(name, &arguments)
        });
    }
    environment.set_unknown_method_callback(|state, value, method, arguments| {
        let mut all = vec![value.clone()];
        all.extend_from_slice(arguments);
        with_meter(state, |meter| meter.pay_call(method, &all))?;
        unknown_method_callback(state, value, method, arguments)
    });
    environment.set_formatter(|out, state, value| {
        with_meter(state, |meter| meter.pay_text(value, 0))?;
        escape_formatter(out, state, value)
    });
}

/// Filters as they come, for those here to call.
static BUILTIN: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_debug(false);
    environment
});

/// Filters that make something of the size of what they get, or larger.
const METERED_FILTERS: &[&str] = &[
    "upper",
    "lower",
    "title",
    "capitalize",
    "replace",
    "trim",
    "join",
    "split",
    "lines",
    "reverse",
    "string",
    "list",
    "dictsort",
    "items",
    "sort",
    "unique",
    "batch",
    "slice",
    "indent",
    "groupby",
    "chain",
    "zip",
    "pprint",
    "format",
    "escape",
    "e",
    "sum",
    "min",
    "max",
];

impl Meter {
    /// Pays for a filter or a method: the value it is applied to comes first.
    fn pay_call(&self, name: &str, arguments: &[Value]) -> Result<(), Error> {
        arguments.iter().try_for_each(|argument| self.pay_value(argument))?;
        let Some(value) = arguments.first() else { return Ok(()) };
        let text = |index: usize| arguments.get(index).and_then(Value::as_str).unwrap_or("");
        match name {
            "replace" => {
                let (from, to) = (text(1).len(), text(2).len());
                let matches = if from == 0 { text(0).len() + 1 } else { text(0).matches(text(1)).count() };
                self.pay_string(text(0).len().saturating_add(matches.saturating_mul(to)))
            }
            // As a filter, of a list; as a method, of the separator.
            "join" => {
                let (list, separator) = if value.as_str().is_some() { (1, 0) } else { (0, 1) };
                let Some(list) = arguments.get(list) else { return Ok(()) };
                self.pay_text(list, 0)?;
                self.pay_string(list.len().unwrap_or(0).saturating_mul(text(separator).len()))
            }
            "string" | "pprint" => self.pay_text(value, 0),
            "format" => {
                arguments.iter().try_for_each(|argument| self.pay_text(argument, 0))?;
                let format = text(0);
                let is_wide = format.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 4);
                let directives = format.matches(['%', '{']).count();
                if is_wide { Err(exhausted()) } else { self.pay(directives * FORMAT_WIDTH) }
            }
            "indent" => {
                let lines = text(0).matches('\n').count() + 1;
                self.pay_string(integers(arguments).saturating_mul(lines))
            }
            "batch" | "slice" => self.pay(integers(arguments).saturating_mul(ITEM_BYTES)),
            _ => Ok(()),
        }
    }
}

/// The sum of the whole numbers among a call's arguments, by name or not.
fn integers(arguments: &[Value]) -> usize {
    let named = arguments.iter().filter(|argument| argument.is_kwargs());
    let named = named.filter_map(|kwargs| kwargs.as_object()?.try_iter_pairs()).flatten().map(|(_, value)| value);
    let all = arguments.iter().cloned().chain(named);
    all.filter_map(|value| value.as_i64()).fold(0, |sum, value| sum.saturating_add(value.unsigned_abs() as usize))
}

/// Pays for a value that an operator or a literal made, and for what is directly in it.
fn meter_value(state: &State<'_, '_>, value: Value) -> Result<Value, Error> {
    with_meter(state, |meter| {
        meter.pay_value(&value)?;
        let is_short = value.kind() == ValueKind::Seq && value.len().is_some_and(|items| items <= 16);
        match value.as_object().filter(|_| is_short).and_then(|list| list.try_iter()) {
            Some(mut items) => items.try_for_each(|item| meter.pay_value(&item)),
            None => Ok(()),
        }
    })?;
    Ok(value)
}

/// Pays for the raw text, `raw_bytes` of it, that a loop over `items` writes.
fn meter_loop(state: &State<'_, '_>, items: Value, raw_bytes: usize) -> Result<Value, Error> {
    with_meter(state, |meter| match items.len() {
        Some(count) if count > MAX_ITEMS => Err(exhausted()),
        count => meter.pay(count.unwrap_or(1).saturating_mul(raw_bytes)),
    })?;
    Ok(items)
}

/// The `~` operator.
fn concat(state: &State<'_, '_>, left: Value, right: Value) -> Result<String, Error> {
    with_meter(state, |meter| {
        meter.pay_text(&left, 0)?;
        meter.pay_text(&right, 0)?;
        let length = |value: &Value| value.as_str().map_or(0, str::len);
        meter.pay_string(length(&left) + length(&right))
    })?;
    Ok(format!("{left}{right}"))
}

fn metered_tojson(state: &State<'_, '_>, value: &Value, options: Kwargs) -> Result<String, Error> {
    with_meter(state, |meter| meter.pay_text(value, 0))?;
    python::tojson(value, options)
}

/// As in Python's Jinja, what is not there has no length instead of being an error.
fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() { Ok(0) } else { minijinja::filters::length(value) }
}

fn metered_namespace(state: &State<'_, '_>, defaults: Option<ValueOrKwargs>) -> Result<Value, Error> {
    if let Some(defaults) = &defaults {
        let values = defaults.as_object().and_then(|defaults| defaults.try_iter_pairs());
        with_meter(state, |meter| values.into_iter().flatten().try_for_each(|(_, value)| meter.pay_value(&value)))?;
    }
    namespace(defaults)
}
