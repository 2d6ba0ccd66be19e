//! Rewrites a template so that what can grow passes through the meter.
//!
//! The template engine counts instructions, not bytes, and has no hook in its operators: `s ~ s` doubles a string for
//! one instruction. So the source is parsed, and guards are written around the operators that make larger values of
//! smaller ones and around what loops run over. What a template means does not change.

use std::borrow::Cow;

use minijinja::machinery::ast::{BinOp, BinOpKind, Call, CallArg, Expr, ForLoop, Spanned, Stmt};
use minijinja::machinery::parse;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Error, ErrorKind};

use super::meter::{CONCAT, LOOP, METER, VARIABLE};

/// The template's source with guards.
pub(super) fn insert_guards(source: &str, syntax: &SyntaxConfig) -> Result<String, Error> {
    if [CONCAT, LOOP, METER, VARIABLE].iter().any(|name| source.contains(name)) {
        return Err(Error::new(ErrorKind::SyntaxError, "it uses a name that is reserved for the server"));
    }
    let template = parse(source, "chat template", syntax.clone())?;
    let mut guard = Guard { source, edits: Vec::new() };
    guard.statement(&template)?;
    Ok(guard.apply())
}

/// Replaces `remove` bytes at `at` by `text`.
struct Edit {
    at: usize,
    remove: usize,
    opens: bool,
    text: Cow<'static, str>,
}

struct Guard<'s> {
    source: &'s str,
    edits: Vec<Edit>,
}

impl Guard<'_> {
    fn apply(mut self) -> String {
        // At one place, ends come before beginnings; of ends the inner one is first, of beginnings the outer one,
        // and inner guards were noted before outer ones.
        self.edits.reverse();
        self.edits.sort_by_key(|edit| (edit.at, edit.opens));
        for same in self.edits.chunk_by_mut(|a, b| (a.at, a.opens) == (b.at, b.opens)) {
            if !same[0].opens {
                same.reverse();
            }
        }
        let mut guarded = String::with_capacity(self.source.len() + self.edits.len() * 10);
        let mut rest = 0;
        for edit in &self.edits {
            guarded.push_str(&self.source[rest..edit.at]);
            guarded.push_str(&edit.text);
            rest = edit.at + edit.remove;
        }
        guarded.push_str(&self.source[rest..]);
        guarded
    }

    fn wrap(&mut self, (start, end): (usize, usize), function: &str, last_argument: Option<usize>) {
        let close = last_argument.map_or(Cow::Borrowed(")"), |argument| format!(", {argument})").into());
        self.edits.push(Edit { at: start, remove: 0, opens: true, text: format!("{function}(").into() });
        self.edits.push(Edit { at: end, remove: 0, opens: false, text: close });
    }

    /// Guards the statements and returns how many bytes of raw text they hold.
    fn statements(&mut self, statements: &[Stmt<'_>]) -> Result<usize, Error> {
        statements.iter().map(|statement| self.statement(statement)).sum()
    }

    fn statement(&mut self, statement: &Stmt<'_>) -> Result<usize, Error> {
        match statement {
            Stmt::Template(template) => return self.statements(&template.children),
            Stmt::EmitRaw(raw) => return Ok(raw.raw.len()),
            Stmt::EmitExpr(emit) => self.expression(&emit.expr),
            Stmt::ForLoop(for_loop) => return self.for_loop(for_loop),
            Stmt::IfCond(branch) => {
                self.expression(&branch.expr);
                return Ok(self.statements(&branch.true_body)? + self.statements(&branch.false_body)?);
            }
            Stmt::WithBlock(with) => {
                with.assignments.iter().for_each(|(_, value)| self.expression(value));
                return self.statements(&with.body);
            }
            Stmt::Set(set) => self.expression(&set.expr),
            Stmt::SetBlock(set) => return self.statements(&set.body),
            Stmt::AutoEscape(block) => return self.statements(&block.body),
            Stmt::FilterBlock(block) => return self.statements(&block.body),
            Stmt::Macro(definition) => {
                definition.defaults.iter().for_each(|default| self.expression(default));
                self.statements(&definition.body)?;
            }
            Stmt::CallBlock(block) => {
                self.call(&block.call);
                self.statements(&block.macro_decl.body)?;
            }
            Stmt::Do(statement) => self.call(&statement.call),
            Stmt::Continue(_) | Stmt::Break(_) => {}
            Stmt::Block(_) | Stmt::Import(_) | Stmt::FromImport(_) | Stmt::Extends(_) | Stmt::Include(_) => {
                return Err(Error::new(ErrorKind::SyntaxError, "it refers to other templates, and there are none"));
            }
        }
        Ok(0)
    }

    fn for_loop(&mut self, for_loop: &ForLoop<'_>) -> Result<usize, Error> {
        self.expression(&for_loop.iter);
        for_loop.filter_expr.iter().for_each(|filter| self.expression(filter));
        let raw = self.statements(&for_loop.body)? + self.statements(&for_loop.else_body)?;
        // A tuple is as long as the source says.
        if !matches!(for_loop.iter, Expr::Tuple(_) | Expr::IfExpr(_)) {
            self.wrap(self.extent(&for_loop.iter), LOOP, Some(raw));
        }
        Ok(raw)
    }

    fn expression(&mut self, expression: &Expr<'_>) {
        match expression {
            Expr::Var(_) | Expr::Const(_) => {}
            Expr::BinOp(operation) => self.operation(operation),
            Expr::Slice(slice) => {
                self.expression(&slice.expr);
                [&slice.start, &slice.stop, &slice.step].into_iter().flatten().for_each(|e| self.expression(e));
            }
            Expr::UnaryOp(operation) => self.expression(&operation.expr),
            Expr::Compare(compare) => {
                self.expression(&compare.expr);
                compare.ops.iter().for_each(|op| self.expression(&op.expr));
            }
            Expr::IfExpr(choice) => {
                [&choice.test_expr, &choice.true_expr].into_iter().for_each(|e| self.expression(e));
                choice.false_expr.iter().for_each(|e| self.expression(e));
            }
            Expr::Filter(filter) => {
                filter.expr.iter().for_each(|e| self.expression(e));
                self.arguments(&filter.args);
            }
            Expr::Test(test) => {
                self.expression(&test.expr);
                self.arguments(&test.args);
            }
            Expr::GetAttr(attribute) => self.expression(&attribute.expr),
            Expr::GetItem(item) => {
                self.expression(&item.expr);
                self.expression(&item.subscript_expr);
            }
            Expr::Call(call) => self.call(call),
            Expr::List(list) => {
                list.items.iter().for_each(|item| self.expression(item));
                self.wrap(self.extent(expression), METER, None);
            }
            Expr::Tuple(tuple) => tuple.items.iter().for_each(|item| self.expression(item)),
            Expr::Map(map) => {
                map.keys.iter().chain(&map.values).for_each(|e| self.expression(e));
                self.wrap(self.extent(expression), METER, None);
            }
        }
    }

    fn operation(&mut self, operation: &Spanned<BinOp<'_>>) {
        self.expression(&operation.left);
        self.expression(&operation.right);
        let span = operation.span();
        let extent = (span.start_offset as usize, span.end_offset as usize);
        match operation.op {
            BinOpKind::Add | BinOpKind::Mul => self.wrap(extent, METER, None),
            BinOpKind::Concat => {
                let gap = operation.left.span().end_offset as usize;
                let operator = self.source[gap..].find('~').expect("the operator follows its left side") + gap;
                self.edits.push(Edit { at: operator, remove: 1, opens: false, text: ",".into() });
                self.wrap(extent, CONCAT, None);
            }
            // What is searched through costs its length.
            BinOpKind::In if !matches!(operation.right, Expr::Const(_) | Expr::IfExpr(_) | Expr::Tuple(_)) => {
                self.wrap(self.extent(&operation.right), METER, None);
            }
            _ => {}
        }
    }

    fn call(&mut self, call: &Spanned<Call<'_>>) {
        self.expression(&call.expr);
        self.arguments(&call.args);
    }

    fn arguments(&mut self, arguments: &[CallArg<'_>]) {
        for argument in arguments {
            match argument {
                CallArg::Pos(e) | CallArg::Kwarg(_, e) | CallArg::PosSplat(e) | CallArg::KwargSplat(e) => {
                    self.expression(e);
                }
            }
        }
    }

    /// Where an expression begins and ends in the source, with as many parentheses on its left as it closes.
    fn extent(&self, expression: &Expr<'_>) -> (usize, usize) {
        let (mut start, end) = (start(expression), expression.span().end_offset as usize);
        while closes_more_than_it_opens(&self.source[start..end]) {
            match self.source[..start].rfind('(') {
                Some(open) => start = open,
                None => break,
            }
        }
        (start, end)
    }
}

/// The parser's spans of what follows a dot, a bracket or a pipe begin there: the beginning is the innermost's.
fn start(expression: &Expr<'_>) -> usize {
    match expression {
        Expr::GetAttr(attribute) => start(&attribute.expr),
        Expr::GetItem(item) => start(&item.expr),
        Expr::Slice(slice) => start(&slice.expr),
        Expr::Call(call) => start(&call.expr),
        Expr::Test(test) => start(&test.expr),
        Expr::Filter(filter) => filter.expr.as_ref().map_or(filter.span().start_offset as usize, start),
        Expr::IfExpr(choice) => start(&choice.true_expr),
        Expr::Compare(compare) => start(&compare.expr),
        // A comparison's span begins at the token before it.
        Expr::BinOp(operation) if is_comparison(operation.op) => start(&operation.left),
        other => other.span().start_offset as usize,
    }
}

fn is_comparison(operator: BinOpKind) -> bool {
    use BinOpKind::{Eq, Gt, Gte, In, Lt, Lte, Ne};
    matches!(operator, Eq | Ne | Lt | Lte | Gt | Gte | In)
}

fn closes_more_than_it_opens(expression: &str) -> bool {
    let mut depth = 0i32;
    let mut quote = None;
    let mut bytes = expression.bytes();
    while let Some(byte) = bytes.next() {
        match (quote, byte) {
            (Some(_), b'\\') => drop(bytes.next()),
            (Some(open), _) if byte == open => quote = None,
            (Some(_), _) => {}
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, b'(') => depth += 1,
            (None, b')') => depth -= 1,
            (None, _) => {}
        }
    }
    depth < 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guarded(source: &str) -> String {
        insert_guards(source, &SyntaxConfig::default())
            .unwrap()
            .replace(METER, "meter")
            .replace(CONCAT, "concat")
            .replace(LOOP, "loop")
    }

    #[test]
    fn guards_stand_where_values_grow() {
        for (source, expected) in [
            ("{{ a.b ~ 'x~' ~ c }}", "{{ concat(concat(a.b , 'x~') , c) }}"),
            ("{{ (a + b) * 2 }}", "{{ meter((meter(a + b)) * 2) }}"),
            ("{{ (a ~ b).upper() ~ ('!') }}", "{{ concat((concat(a , b)).upper() , ('!')) }}"),
            ("{% for x in a.b.c %}raw{% endfor %}", "{% for x in loop(a.b.c, 3) %}raw{% endfor %}"),
            ("{% for x in (a or b).c('(') %}{% endfor %}", "{% for x in loop((a or b).c('('), 0) %}{% endfor %}"),
            (
                "{% for x in {'a': 1}.items() %}{% endfor %}",
                "{% for x in loop(meter({'a': 1}).items(), 0) %}{% endfor %}",
            ),
            ("{% for x in (a or b) %}{% endfor %}", "{% for x in (loop(a or b, 0)) %}{% endfor %}"),
            ("{% for x in a[1:] | list if x %}{% endfor %}", "{% for x in loop(a[1:] | list, 0) if x %}{% endfor %}"),
            ("{% if 'x' in a.b.c and d %}{% endif %}", "{% if 'x' in meter(a.b.c) and d %}{% endif %}"),
            ("{% if x not in (a ~ b)[1:] %}{% endif %}", "{% if x not in meter((concat(a , b))[1:]) %}{% endif %}"),
            ("{% set x = [a, {'b': c}] %}", "{% set x = meter([a, meter({'b': c})]) %}"),
            ("{{ a if b + c else d | f(e ~ 1) }}", "{{ a if meter(b + c) else d | f(concat(e , 1)) }}"),
            (
                "{% macro m(a=b+c) %}{{ -a ~ 'x' }}{% endmacro %}",
                "{% macro m(a=meter(b+c)) %}{{ concat(-a , 'x') }}{% endmacro %}",
            ),
        ] {
            assert_eq!(guarded(source), expected);
        }
    }

    #[test]
    fn other_templates_and_reserved_names_are_refused() {
        for source in ["{% include 'x' %}", "{% extends 'x' %}", "{% import 'x' as y %}", "{{ __plimsoll_meter }}"] {
            assert!(insert_guards(source, &SyntaxConfig::default()).is_err(), "{source}");
        }
    }
}
