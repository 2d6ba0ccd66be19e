//! Finds stop strings in text that arrives in pieces.
//!
//! An Aho-Corasick automaton (1975) over bytes: each byte costs amortised constant time however many stop strings
//! there are, and the depth of its state is the length of the text that must be held back.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// A request's stop strings, compiled. Cheap to clone, for the sequences of one request.
#[derive(Clone, Default)]
pub struct StopStrings(Option<Arc<Automaton>>);

struct Automaton {
    nodes: Vec<Node>,
    children: HashMap<(u32, u8), u32>,
    /// Node after one byte, from the root: most text never leaves it.
    from_root: [u32; 256],
    includes_match: bool,
}

#[derive(Clone, Copy, Default)]
struct Node {
    /// The longest proper suffix of this node's string that is a node.
    fallback: u32,
    /// Bytes of this node's string.
    depth: u32,
    /// The longest stop string that this node's string ends with: its index and its length in bytes.
    matched: Option<(u32, u32)>,
}

const ROOT: u32 = 0;

impl StopStrings {
    /// Compiles `stops`, in time linear in their length; empty ones never match. With `includes_match` the text ends
    /// after the stop string, else before it.
    ///
    /// How many there may be is the caller's to limit.
    pub fn new<S: AsRef<str>>(stops: &[S], includes_match: bool) -> Self {
        if stops.iter().all(|stop| stop.as_ref().is_empty()) {
            return Self(None);
        }
        let mut automaton = Automaton {
            nodes: vec![Node::default()],
            children: HashMap::new(),
            from_root: [ROOT; 256],
            includes_match,
        };
        for (index, stop) in stops.iter().enumerate() {
            automaton.insert(index as u32, stop.as_ref());
        }
        automaton.link();
        Self(Some(Arc::new(automaton)))
    }

    /// A matcher for one sequence; `None` where there is nothing to look for.
    pub fn matcher(&self) -> Option<StopMatcher> {
        let automaton = self.0.clone()?;
        Some(StopMatcher { automaton, state: ROOT, held: String::new() })
    }
}

impl Automaton {
    fn insert(&mut self, index: u32, stop: &str) {
        if stop.is_empty() {
            return;
        }
        let mut node = ROOT;
        for &byte in stop.as_bytes() {
            let depth = self.nodes[node as usize].depth + 1;
            node = *self.children.entry((node, byte)).or_insert_with(|| {
                self.nodes.push(Node { depth, ..Node::default() });
                (self.nodes.len() - 1) as u32
            });
        }
        // Of equal stop strings the first is reported.
        self.nodes[node as usize].matched.get_or_insert((index, stop.len() as u32));
    }

    /// Sets the fallbacks, breadth first, so that each node's fallback is done before it.
    fn link(&mut self) {
        let mut outgoing: Vec<Vec<(u8, u32)>> = vec![Vec::new(); self.nodes.len()];
        for (&(parent, byte), &child) in &self.children {
            outgoing[parent as usize].push((byte, child));
        }
        for &(byte, child) in &outgoing[ROOT as usize] {
            self.from_root[usize::from(byte)] = child;
        }
        let mut queue: VecDeque<u32> = outgoing[ROOT as usize].iter().map(|&(_, child)| child).collect();
        while let Some(node) = queue.pop_front() {
            for &(byte, child) in &outgoing[node as usize] {
                let fallback = self.step(self.nodes[node as usize].fallback, byte);
                let inherited = self.nodes[fallback as usize].matched;
                let child_node = &mut self.nodes[child as usize];
                child_node.fallback = fallback;
                child_node.matched = child_node.matched.or(inherited);
                queue.push_back(child);
            }
        }
    }

    fn step(&self, mut node: u32, byte: u8) -> u32 {
        while node != ROOT {
            if let Some(&child) = self.children.get(&(node, byte)) {
                return child;
            }
            node = self.nodes[node as usize].fallback;
        }
        self.from_root[usize::from(byte)]
    }
}

/// One sequence's state.
pub struct StopMatcher {
    automaton: Arc<Automaton>,
    state: u32,
    /// The text that is, so far, the beginning of a stop string.
    held: String,
}

impl StopMatcher {
    /// Appends to `out` what of the text so far can be no part of a stop string. The first stop string to be
    /// complete wins, of several that end at one place the longest; its index is returned.
    pub fn push(&mut self, text: &str, out: &mut String) -> Option<usize> {
        let before = self.held.len();
        self.held.push_str(text);
        for at in before..self.held.len() {
            self.state = self.automaton.step(self.state, self.held.as_bytes()[at]);
            if let Some((index, length)) = self.automaton.nodes[self.state as usize].matched {
                let end = at + 1;
                let kept = if self.automaton.includes_match { end } else { end - length as usize };
                out.push_str(&self.held[..kept]);
                self.held.clear();
                return Some(index as usize);
            }
        }
        let safe = self.held.len() - self.automaton.nodes[self.state as usize].depth as usize;
        out.push_str(&self.held[..safe]);
        self.held.drain(..safe);
        None
    }

    /// Appends the held text: no more will come.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
        self.state = ROOT;
    }

    pub(crate) fn holds_text(&self) -> bool {
        !self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each chunk releases, the stop's index, and what finishing releases.
    fn run(stops: &[&str], include: bool, chunks: &[&str]) -> (Vec<String>, Option<usize>) {
        let mut matcher = StopStrings::new(stops, include).matcher().expect("stop strings");
        let mut released = Vec::new();
        for chunk in chunks {
            let mut out = String::new();
            let stopped = matcher.push(chunk, &mut out);
            released.push(out);
            if stopped.is_some() {
                return (released, stopped);
            }
        }
        let mut out = String::new();
        matcher.finish(&mut out);
        released.push(out);
        (released, None)
    }

    #[test]
    fn a_stop_string_is_found_across_chunks() {
        assert_eq!(run(&["STOP"], false, &["ab S", "TO", "P cd"]), (vec!["ab ".into(), "".into(), "".into()], Some(0)));
        assert_eq!(run(&["STOP"], true, &["ab ST", "OP cd"]), (vec!["ab ".into(), "STOP".into()], Some(0)));
    }

    #[test]
    fn only_the_longest_possible_beginning_is_held() {
        assert_eq!(run(&["aab"], false, &["aaa", "ax"]), (vec!["a".into(), "aaax".into(), "".into()], None));
        assert_eq!(run(&["STOP"], false, &["x STO"]), (vec!["x ".into(), "STO".into()], None));
    }

    #[test]
    fn the_first_to_be_complete_wins_and_of_those_the_longest() {
        assert_eq!(run(&["bcd", "bc"], false, &["abcd"]), (vec!["a".into()], Some(1)));
        assert_eq!(run(&["c", "abc"], false, &["xabc"]), (vec!["x".into()], Some(1)));
        assert_eq!(run(&["abcd", "bc"], false, &["ab", "c"]), (vec!["".into(), "a".into()], Some(1)));
        assert_eq!(run(&["same", "same"], false, &["same"]), (vec!["".into()], Some(0)));
    }

    #[test]
    fn stops_of_several_bytes_a_character() {
        assert_eq!(run(&["。"], false, &["好。", "x"]), (vec!["好".into()], Some(0)));
        assert_eq!(run(&["。!"], false, &["好。", "、"]), (vec!["好".into(), "。、".into(), "".into()], None));
    }

    #[test]
    fn empty_stop_strings_never_match() {
        assert!(StopStrings::new(&["", ""], false).matcher().is_none());
        assert!(StopStrings::new::<&str>(&[], false).matcher().is_none());
        assert_eq!(run(&["", "x"], false, &["ax"]), (vec!["a".into()], Some(1)));
    }

    #[test]
    fn thousands_of_stop_strings_share_their_prefixes() {
        let stops: Vec<String> = (0..5000).map(|i| format!("<stop number {i}>")).collect();
        let strings = StopStrings::new(&stops, false);
        let nodes = strings.0.as_ref().unwrap().nodes.len();
        assert!(nodes < 5000 * 8, "{nodes} nodes");
        let mut matcher = strings.matcher().unwrap();
        let mut out = String::new();
        assert_eq!(matcher.push("text <stop number 49", &mut out), None);
        assert_eq!(matcher.push("99> more", &mut out), Some(4999));
        assert_eq!(out, "text ");
    }
}
