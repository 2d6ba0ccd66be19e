//! The incremental detokenizer against decoding the whole, wherever the boundaries fall.

use crate::vocabularies::{byte_level, sentence_piece};
use plimsoll_text::{Detokenizer, SpecialTokens, StopStrings, Tokenizer};
use proptest::prelude::*;

/// Each chunk that `ids` release, and the stop string that was found.
fn chunks(detokenizer: Detokenizer, ids: &[u32]) -> (Vec<String>, Option<usize>) {
    let mut detokenizer = detokenizer;
    let mut chunks = Vec::new();
    for &id in ids {
        let mut chunk = String::new();
        let stopped = detokenizer.push(id, &mut chunk);
        chunks.push(chunk);
        if stopped.is_some() {
            return (chunks, stopped);
        }
    }
    let mut last = String::new();
    let stopped = detokenizer.finish(&mut last);
    assert!(!detokenizer.holds_text());
    chunks.push(last);
    (chunks, stopped)
}

fn detokenizer(tokenizer: &Tokenizer, skip_special: bool, stops: &[&str]) -> Detokenizer {
    Detokenizer::new(tokenizer, skip_special, &StopStrings::new(stops, false))
}

#[test]
fn a_character_of_several_tokens_comes_at_once() {
    let tokenizer = byte_level();
    let ids = tokenizer.encode("a🦀b", SpecialTokens::AsText, false).unwrap();
    let (chunks, _) = chunks(detokenizer(&tokenizer, true, &[]), &ids);
    assert_eq!(chunks.iter().filter(|chunk| !chunk.is_empty()).collect::<Vec<_>>(), ["a", "🦀", "b"]);
}

#[test]
fn control_tokens_are_shown_or_not() {
    let tokenizer = byte_level();
    let ids = tokenizer.encode("a<|im_end|>b", SpecialTokens::Parse, false).unwrap();
    assert_eq!(chunks(detokenizer(&tokenizer, true, &[]), &ids).0.concat(), "ab");
    assert_eq!(chunks(detokenizer(&tokenizer, false, &[]), &ids).0.concat(), "a<|im_end|>b");
}

#[test]
fn the_first_space_goes_unless_the_text_goes_on_from_a_prompt() {
    let tokenizer = sentence_piece();
    let ids = tokenizer.encode("hello wo", SpecialTokens::AsText, true).unwrap();
    assert_eq!(chunks(detokenizer(&tokenizer, true, &[]), &ids).0, ["", "hello", " wo", ""]);
    assert_eq!(chunks(detokenizer(&tokenizer, true, &[]).continuing(), &ids).0, ["", " hello", " wo", ""]);
}

#[test]
fn a_stop_string_cuts_inside_a_token_and_nothing_follows() {
    let tokenizer = byte_level();
    let ids = tokenizer.encode("wo hello wo", SpecialTokens::AsText, false).unwrap();
    let stops = StopStrings::new(&["xyz", "llo w"], false);
    let mut detokenizer = Detokenizer::new(&tokenizer, true, &stops);
    let mut text = String::new();
    let found: Vec<_> = ids.iter().map(|&id| detokenizer.push(id, &mut text)).collect();
    assert_eq!(found.last(), Some(&Some(1)));
    assert_eq!(text, "wo he");
    assert_eq!(detokenizer.push(ids[0], &mut text), Some(1));
    assert_eq!(detokenizer.finish(&mut text), Some(1));
    assert_eq!(text, "wo he");
}

#[test]
fn a_stop_string_may_be_kept() {
    let tokenizer = byte_level();
    let ids = tokenizer.encode("hello wo", SpecialTokens::AsText, false).unwrap();
    let (chunks, stopped) = chunks(Detokenizer::new(&tokenizer, true, &StopStrings::new(&["lo"], true)), &ids);
    assert_eq!((chunks.concat().as_str(), stopped), ("hello", Some(0)));
}

#[test]
fn an_id_outside_the_vocabulary_adds_nothing() {
    let tokenizer = byte_level();
    assert_eq!(chunks(detokenizer(&tokenizer, true, &[]), &[u32::MAX, 9_999]).0.concat(), "");
}

/// The stop string that ends first, the longest of those that end there, by looking at the whole text.
fn expected_stop(text: &str, stops: &[String]) -> Option<(usize, usize)> {
    let ends = stops.iter().filter_map(|stop| text.find(stop.as_str()).map(|at| at + stop.len()));
    let end = ends.min()?;
    let longest = stops.iter().filter(|stop| text[..end].ends_with(stop.as_str())).map(String::len).max()?;
    let index = stops.iter().position(|stop| stop.len() == longest && text[..end].ends_with(stop.as_str()))?;
    Some((end - longest, index))
}

proptest! {
    #[test]
    fn chunks_make_the_whole_and_replace_nothing_that_the_whole_does_not(
        ids in prop::collection::vec(0u32..290, 0..60),
        skip_special in any::<bool>(),
    ) {
        for tokenizer in [byte_level(), sentence_piece()] {
            let whole = tokenizer.decode(&ids, skip_special);
            let (chunks, _) = chunks(detokenizer(&tokenizer, skip_special, &[]), &ids);
            prop_assert_eq!(chunks.concat(), whole.clone());
            let replaces = |text: &str| text.contains(char::REPLACEMENT_CHARACTER);
            prop_assert!(replaces(&whole) || !chunks.iter().any(|chunk| replaces(chunk)));
        }
    }

    #[test]
    fn unused_stop_strings_change_nothing(ids in prop::collection::vec(0u32..270, 0..60)) {
        let tokenizer = byte_level();
        let with = detokenizer(&tokenizer, true, &["\u{10FFFF}\u{10FFFF}\u{10FFFF}", "\u{10FFFE} never"]);
        let without = detokenizer(&tokenizer, true, &[]);
        prop_assert_eq!(chunks(with, &ids).0.concat(), chunks(without, &ids).0.concat());
    }

    #[test]
    fn stop_strings_are_found_wherever_the_boundaries_fall(
        text in "[abé]{0,30}",
        stops in prop::collection::vec("[abé]{1,5}", 1..6),
    ) {
        let tokenizer = byte_level();
        let ids = tokenizer.encode(&text, SpecialTokens::AsText, false).unwrap();
        let (chunks, stopped) = chunks(Detokenizer::new(&tokenizer, true, &StopStrings::new(&stops, false)), &ids);
        match expected_stop(&text, &stops) {
            Some((at, index)) => {
                prop_assert_eq!(chunks.concat(), &text[..at]);
                prop_assert_eq!(&stops[stopped.unwrap()], &stops[index]);
            }
            None => {
                prop_assert_eq!(stopped, None);
                prop_assert_eq!(chunks.concat(), text);
            }
        }
    }
}
