//! Which conversations a run sends: from where the workload says, of the lengths it says, in seeded order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::config::{PromptSource, SharedPrefix, Workload};
use crate::conversation::Conversation;
use crate::endpoint::RemoteTokenizer;
use crate::error::{BenchError, Result};
use crate::lengths::{Lengths, MOST_INPUT_TOKENS};
use crate::prompts::PromptSet;
use crate::synthetic::Writer;
use crate::trace;

/// Requests to `/tokenize` in flight at once.
const TOKENIZE_CONCURRENCY: usize = 8;
/// Characters a token of English text, for the estimate.
const CHARS_PER_TOKEN: f64 = 4.1;
/// Texts whose length is made right one by one; of more, the length is right on average.
const EXACT_TEXTS: usize = 512;
/// Random conversations that are made where nothing says how many are wanted.
const MOST_RANDOM: usize = 2048;

/// Who counted the tokens of the prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum LengthSource {
    /// The server's `/tokenize`.
    ServerTokenizer,
    /// An estimate from the number and kind of characters: the server has no `/tokenize` that is known. Or, for very
    /// many random texts, the length that they have on average by its `/tokenize`.
    Estimate,
}

/// The conversations that a run sends, in order, and how they were chosen.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    pub(crate) source: String,
    /// In the set, of these had their length looked at, of these were within the limits.
    pub(crate) loaded: usize,
    pub(crate) examined: usize,
    pub(crate) prompts: Vec<Conversation>,
    pub(crate) without_prompt: usize,
    pub(crate) lengths: LengthSource,
    /// When each is due, if they say so.
    pub(crate) trace: Vec<Duration>,
}

impl Selection {
    /// Of the texts of a request.
    pub(crate) fn mean_tokens(&self) -> f64 {
        let turns = || self.prompts.iter().flat_map(|prompt| &prompt.turns);
        turns().map(|turn| f64::from(turn.tokens)).sum::<f64>() / turns().count().max(1) as f64
    }
}

/// Counts tokens: by the server's tokenizer where it has one, else by estimate.
pub(crate) struct Counter<'a> {
    tokenizer: Option<&'a RemoteTokenizer<'a>>,
    /// Since the tokenizer failed, if it has: it is not asked again, for one that hangs would do so for every text.
    estimated: AtomicBool,
}

impl<'a> Counter<'a> {
    pub(crate) fn new(tokenizer: Option<&'a RemoteTokenizer<'a>>) -> Self {
        Self { tokenizer, estimated: AtomicBool::new(false) }
    }

    pub(crate) async fn count(&self, text: &str) -> u32 {
        let remote = match self.tokenizer {
            Some(tokenizer) if !self.estimated.load(Ordering::Relaxed) => tokenizer.count(text).await,
            _ => None,
        };
        remote.unwrap_or_else(|| {
            self.estimated.store(true, Ordering::Relaxed);
            estimate_tokens(text)
        })
    }

    fn source(&self) -> LengthSource {
        match self.estimated.load(Ordering::Relaxed) {
            true => LengthSource::Estimate,
            false => LengthSource::ServerTokenizer,
        }
    }
}

/// Chooses or makes up to `wanted` conversations.
pub(crate) async fn select(
    workload: &Workload,
    tokenizer: Option<&RemoteTokenizer<'_>>,
    wanted: usize,
) -> Result<Selection> {
    let counter = Counter::new(tokenizer);
    let mut selection = match &workload.prompts {
        PromptSource::Bundled => choose(workload, PromptSet::bundled(), &counter, wanted).await?,
        PromptSource::File(path) => choose(workload, PromptSet::read(path)?, &counter, wanted).await?,
        PromptSource::Random { input, output } => {
            let mut rng = StdRng::seed_from_u64(workload.seed);
            let drawn = (0..wanted.min(MOST_RANDOM)).map(|_| (input.draw(&mut rng), output.draw(&mut rng)));
            let lengths = within_memory(drawn);
            let name = format!("random, {input} tokens in and {output} out");
            make(workload, name, lengths, &counter).await
        }
        PromptSource::Trace { path, speed } => {
            let (arrivals, loaded) = trace::read(path, *speed, wanted)?;
            let lengths = arrivals.iter().map(|arrival| (arrival.input, arrival.output)).collect();
            let made = make(workload, path.display().to_string(), lengths, &counter).await;
            Selection { loaded, trace: arrivals.iter().map(|arrival| arrival.at).collect(), ..made }
        }
    };
    if let Some(shared) = &workload.shared_prefix {
        share(&mut selection, shared, workload, &counter).await;
    }
    Ok(selection)
}

/// As many of the lengths as have texts that fit into memory together, and one at least.
fn within_memory(lengths: impl Iterator<Item = (u32, u32)>) -> Vec<(u32, u32)> {
    let mut tokens = 0;
    let fits = |&(input, _): &(u32, u32)| {
        tokens += u64::from(input);
        tokens <= MOST_INPUT_TOKENS
    };
    lengths.take_while(fits).collect()
}

/// Shuffles the set by the workload's seed and takes conversations whose first request is of the right length.
async fn choose(workload: &Workload, set: PromptSet, counter: &Counter<'_>, wanted: usize) -> Result<Selection> {
    let PromptSet { name, conversations: mut candidates, without_prompt } = set;
    candidates.shuffle(&mut StdRng::seed_from_u64(workload.seed));
    let loaded = candidates.len();
    let turns = workload.turns as usize;
    let counted = stream::iter(candidates).map(|conversation| measured(conversation, workload, counter));
    let mut counted = counted.buffered(TOKENIZE_CONCURRENCY);
    let (mut prompts, mut examined) = (Vec::new(), 0);
    while prompts.len() < wanted
        && let Some(conversation) = counted.next().await
    {
        examined += 1;
        if (workload.min_tokens..=workload.max_tokens).contains(&conversation.turns[0].tokens) {
            prompts.push(conversation);
        }
    }
    drop(counted);
    if prompts.is_empty() {
        let (min, max) = (workload.min_tokens, workload.max_tokens);
        return Err(BenchError::NoPromptFits { source_name: name, loaded, min, max });
    }
    if turns > 1 && prompts.iter().all(|conversation| conversation.turns.len() == 1) {
        return Err(BenchError::Config(format!(
            "{name} holds no conversation of several turns; leave out --turns, or give a file of conversations"
        )));
    }
    let lengths = counter.source();
    Ok(Selection { source: name, loaded, examined, prompts, without_prompt, lengths, trace: Vec::new() })
}

/// The conversation's first turns, with the tokens of each request's texts, the salt's included.
async fn measured(mut conversation: Conversation, workload: &Workload, counter: &Counter<'_>) -> Conversation {
    conversation.turns.truncate(workload.turns as usize);
    let mut before = match &conversation.prefix {
        Some(prefix) => counter.count(&salted(prefix, workload)).await,
        None => 0,
    };
    for (i, turn) in conversation.turns.iter_mut().enumerate() {
        let text = if i == 0 { salted(&turn.text, workload) } else { turn.text.clone() };
        turn.tokens = before + counter.count(&text).await;
        before = turn.tokens + if turn.reply.is_empty() { 0 } else { counter.count(&turn.reply).await };
    }
    conversation
}

/// Conversations of one turn of random words, of so many tokens in and out each.
async fn make(workload: &Workload, name: String, lengths: Vec<(u32, u32)>, counter: &Counter<'_>) -> Selection {
    let mut rng = StdRng::seed_from_u64(workload.seed ^ 0x7e57);
    let writer = Writer::new(counter, &mut rng).await;
    let exact = lengths.len() <= EXACT_TEXTS;
    let seeds: Vec<u64> = lengths.iter().map(|_| rng.random()).collect();
    let made = stream::iter(lengths.into_iter().zip(seeds)).map(|((input, output), seed)| {
        let writer = &writer;
        async move {
            let mut rng = StdRng::seed_from_u64(seed);
            let (text, tokens) = if exact {
                writer.exact(input, counter, |text| salted(text, workload), &mut rng).await
            } else {
                (writer.rough(input, &mut rng), input)
            };
            let mut conversation = Conversation::single(text, tokens);
            conversation.turns[0].output = Some(output);
            conversation
        }
    });
    let prompts: Vec<Conversation> = made.buffered(TOKENIZE_CONCURRENCY).collect().await;
    let count = prompts.len();
    let lengths = if exact { counter.source() } else { LengthSource::Estimate };
    Selection { source: name, loaded: count, examined: count, prompts, without_prompt: 0, lengths, trace: Vec::new() }
}

/// Puts the conversations into groups, each of which begins alike.
async fn share(selection: &mut Selection, shared: &SharedPrefix, workload: &Workload, counter: &Counter<'_>) {
    let mut rng = StdRng::seed_from_u64(workload.seed ^ 0x9e37);
    let writer = Writer::new(counter, &mut rng).await;
    let mut prefixes: Vec<(Arc<str>, u32)> = Vec::new();
    for _ in 0..shared.groups {
        let (text, tokens) = writer.exact(shared.tokens, counter, |text| salted(text, workload), &mut rng).await;
        prefixes.push((text.into(), tokens));
    }
    for (conversation, (prefix, tokens)) in selection.prompts.iter_mut().zip(prefixes.iter().cycle()) {
        conversation.prefix = Some(prefix.clone());
        conversation.turns.iter_mut().for_each(|turn| turn.tokens += tokens);
    }
    selection.source = format!("{}, behind {} shared prefixes", selection.source, shared.groups);
}

fn salted(text: &str, workload: &Workload) -> String {
    if workload.salt { with_salt(text, workload.seed, 0) } else { text.to_owned() }
}

/// `text` behind a tag that differs for every `index` below 2^24.
pub(crate) fn with_salt(text: &str, seed: u64, index: u64) -> String {
    // Multiplying by an odd number permutes the residues modulo 2^24.
    let start: u32 = StdRng::seed_from_u64(seed).random();
    let tag = (index as u32).wrapping_mul(0x9e_3779).wrapping_add(start) & 0xff_ffff;
    format!("[{tag:06x}] {text}")
}

/// A guess at the tokens of `text`: most vocabularies hold whole English words, parts of words in other alphabets, and
/// about a character a token of Chinese, Japanese and Korean.
pub(crate) fn estimate_tokens(text: &str) -> u32 {
    let weight = |c: char| match c {
        '\0'..='\x7f' => 1.0 / CHARS_PER_TOKEN,
        '\u{80}'..='\u{2e7f}' => 0.5,
        _ => 1.0,
    };
    (text.chars().map(weight).sum::<f64>().ceil() as u32).max(1)
}

impl PromptSource {
    /// Whether it says for each request how long its reply is.
    pub(crate) fn has_output_lengths(&self) -> bool {
        matches!(self, Self::Random { .. } | Self::Trace { .. })
    }

    /// Prompts and replies of fixed lengths.
    pub fn fixed(input: u32, output: u32) -> Self {
        Self::Random { input: Lengths::Fixed(input), output: Lengths::Fixed(output) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    async fn chosen(workload: &Workload, wanted: usize) -> Result<Selection> {
        select(workload, None, wanted).await
    }

    #[tokio::test]
    async fn choice_is_seeded_and_within_the_limits() {
        let choose = async |seed, wanted| {
            let workload = Workload { seed, max_tokens: 12, ..Workload::default() };
            chosen(&workload, wanted).await.expect("short prompts")
        };
        let first = choose(1, 50).await;
        assert_eq!(first.prompts, choose(1, 50).await.prompts);
        assert_ne!(first.prompts, choose(2, 50).await.prompts);
        assert_eq!((first.prompts.len(), first.lengths), (50, LengthSource::Estimate));
        assert!(first.prompts.iter().all(|prompt| (1..=12).contains(&prompt.turns[0].tokens)));
        let all = choose(1, usize::MAX).await;
        assert_eq!(all.examined, all.loaded);
        let impossible = Workload { min_tokens: 5000, max_tokens: 6000, ..Workload::default() };
        assert!(matches!(chosen(&impossible, 10).await, Err(BenchError::NoPromptFits { .. })));
        let several = Workload { turns: 3, ..Workload::default() };
        assert!(matches!(chosen(&several, 10).await, Err(BenchError::Config(_))), "single prompts have no turns");
    }

    #[tokio::test]
    async fn random_texts_have_the_lengths_that_were_drawn() {
        let prompts = PromptSource::Random { input: Lengths::Uniform(50, 200), output: Lengths::Fixed(7) };
        let workload = Workload { prompts, salt: true, ..Workload::default() };
        let selection = chosen(&workload, 100).await.expect("texts");
        let tokens: Vec<u32> = selection.prompts.iter().map(|prompt| prompt.turns[0].tokens).collect();
        assert!(tokens.iter().all(|tokens| (48..=202).contains(tokens)), "{tokens:?}");
        assert!(tokens.iter().collect::<HashSet<_>>().len() > 40, "{tokens:?}");
        assert!(selection.prompts.iter().all(|prompt| prompt.turns[0].output == Some(7)));
        assert_eq!(selection.prompts, chosen(&workload, 100).await.expect("texts").prompts);
    }

    #[test]
    fn of_long_texts_as_many_are_made_as_fit_into_memory() {
        let count = |input| within_memory((0..2048).map(|_| (input, 1))).len();
        assert_eq!((count(100), count(1_000_000), count(crate::lengths::LONGEST)), (2048, 50, 5));
    }

    #[tokio::test]
    async fn a_tokenizer_that_fails_is_asked_no_more() {
        let asked = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let seen = asked.clone();
        tokio::spawn(async move {
            // Hears every question, and hangs up.
            while let Ok((mut connection, _)) = listener.accept().await {
                seen.fetch_add(1, Ordering::Relaxed);
                drop(tokio::io::AsyncReadExt::read(&mut connection, &mut [0; 64]).await);
            }
        });
        let base = crate::endpoint::Base::parse(&url).expect("a URL");
        let patience = Duration::from_secs(5);
        let http = crate::client::HttpClients::new(base.root(), None, patience).expect("a client");
        let asking = crate::endpoint::Asking { http: &http.kept, base: &base, patience };
        let tokenizer = RemoteTokenizer::known(asking, "m");
        let selection = select(&Workload::default(), Some(&tokenizer), 200).await.expect("bundled prompts");
        assert_eq!((selection.prompts.len(), selection.lengths), (200, LengthSource::Estimate));
        // Those that were under way together; each may have been sent again on a new connection.
        assert!(asked.load(Ordering::Relaxed) <= 2 * TOKENIZE_CONCURRENCY as u32, "{asked:?}");
    }

    #[tokio::test]
    async fn groups_begin_alike() {
        let shared_prefix = Some(SharedPrefix { tokens: 300, groups: 3 });
        let workload = Workload { shared_prefix, ..Workload::default() };
        let selection = chosen(&workload, 30).await.expect("prompts");
        let prefixes: HashSet<_> = selection.prompts.iter().filter_map(|prompt| prompt.prefix.clone()).collect();
        assert_eq!(prefixes.len(), 3);
        assert_eq!(selection.prompts[0].prefix, selection.prompts[3].prefix);
        assert!(selection.prompts.iter().all(|prompt| prompt.turns[0].tokens >= 295));
    }

    #[tokio::test]
    async fn conversations_are_cut_to_the_turns_that_were_asked_for() {
        let turns: String = (0..5)
            .map(|i| {
                format!("{{\"from\": \"human\", \"value\": \"q{i}\"}}, {{\"from\": \"gpt\", \"value\": \"a{i}\"}}")
            })
            .collect::<Vec<_>>()
            .join(", ");
        let path = std::env::temp_dir().join(format!("plimsoll-turns-{}.json", std::process::id()));
        std::fs::write(&path, format!("[{{\"conversations\": [{turns}]}}]")).expect("a file");
        let workload = Workload { prompts: PromptSource::File(path.clone()), turns: 3, ..Workload::default() };
        let selection = chosen(&workload, 10).await.expect("a conversation");
        let tokens: Vec<u32> = selection.prompts[0].turns.iter().map(|turn| turn.tokens).collect();
        // A token each, and all that went before.
        assert_eq!(tokens, [1, 3, 5]);
        std::fs::remove_file(path).expect("our own file");
    }

    #[tokio::test]
    async fn a_trace_brings_its_lengths_and_times() {
        let path = std::env::temp_dir().join(format!("plimsoll-trace-{}.csv", std::process::id()));
        std::fs::write(&path, "timestamp_s,input_length,output_length\n5,20,3\n7,40,4\n9,60,5\n").expect("a file");
        let prompts = PromptSource::Trace { path: path.clone(), speed: 2.0 };
        let selection = chosen(&Workload { prompts, ..Workload::default() }, 2).await.expect("a trace");
        assert_eq!(selection.trace, [Duration::ZERO, Duration::from_secs(1)]);
        assert_eq!(selection.prompts.iter().filter_map(|p| p.turns[0].output).collect::<Vec<_>>(), [3, 4]);
        std::fs::remove_file(path).expect("our own file");
    }

    #[test]
    fn salts_differ() {
        let salted: HashSet<String> = (0..100_000).map(|index| with_salt("hi", 7, index)).collect();
        assert_eq!(salted.len(), 100_000);
        assert_eq!(with_salt("hi", 7, 3), with_salt("hi", 7, 3));
        assert_ne!(with_salt("hi", 7, 3), with_salt("hi", 8, 3));
    }
}
