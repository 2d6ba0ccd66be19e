//! The load generator: drives any OpenAI-compatible endpoint at a fixed number of concurrent requests ([`run`]) or up
//! a ladder of them until throughput stops rising ([`saturate`]), and says honestly what it saw.
//!
//! | room | what it is for |
//! |---|---|
//! | [`config`](BenchConfig) | what to measure, resolved and serializable, so that a report carries it |
//! | `delta`, `client` | one streaming request: events to token deltas, deltas to a record |
//! | `record` | what is kept of one request, and its outcome by cause |
//! | `selection` | which conversations are sent, of which lengths, in which order |
//! | `prompts`, `synthetic`, `lengths`, `trace` | files of prompts, random texts, distributions, traces |
//! | `source`, `conversation` | conversations made into requests |
//! | `arrivals`, `load` | when requests are sent: closed loops and open ones |
//! | `stats`, `window`, `summary` | estimators, the steady part of a run, and the numbers with their definitions |
//! | `slo`, `evidence` | latency limits, and what a count of bad requests shows about the share behind it |
//! | `series`, `open_loop`, `telemetry` | a run over time, whether the server kept up, what it says of itself |
//! | `search` | the saturation search: a pure state machine over what was measured |
//! | `saturate`, `target`, `run` | feed the search with measurements |
//! | `usage_check`, `idle_check` | what is wrong with a server before it is driven |
//! | `findings` | what to know before believing a result |
//! | `preflight`, `null_server` | how fast the client itself is |
//! | `report`, `table` | JSON and the terminal |
//! | [`page`] | HTML with charts, of plain data |
//! | `compare` | reports side by side, and the published result |
//! | `devices` | which device of a host is slower than the others |
//!
//! It must never know how the server under test works, read a clock in `stats`, `window`, `summary` or `search`, or
//! drop a request from the count: every request that was issued ends as a record.

mod arrivals;
mod client;
mod compare;
mod config;
mod conversation;
mod delta;
mod descriptors;
mod devices;
mod endpoint;
mod error;
mod evidence;
mod findings;
mod idle_check;
mod lengths;
mod load;
mod null_server;
mod open_loop;
pub mod page;
mod preflight;
mod progress;
mod prompts;
mod record;
mod report;
mod run;
mod saturate;
mod search;
mod selection;
mod series;
mod slo;
mod source;
mod stats;
mod stop;
mod summary;
mod synthetic;
mod table;
mod target;
mod telemetry;
mod timeline;
mod trace;
mod usage_check;
mod window;

pub use arrivals::Arrivals;
pub use compare::{Candidate, CompareOptions, Comparison};
pub use config::{
    BenchConfig, Endpoint, EndpointKind, Generation, OwnServer, PromptSource, RungRule, SaturateConfig, SharedPrefix,
    Workload,
};
pub use devices::Devices;
pub use error::BenchError;
pub use findings::{Finding, FindingKind};
pub use lengths::Lengths;
pub use null_server::{NullServer, NullServerConfig};
pub use open_loop::{InFlightGrowth, OpenLoopFacts};
pub use preflight::{ClientCeiling, first_content_times};
pub use progress::{Progress, Running, Stage};
pub use record::{OutcomeCounts, TokenSource};
pub use report::{
    BenchReport, Foretold, OfferedReport, PageOptions, RungReport, SaturationReport, WorkloadFacts, write_file,
};
pub use run::{run, run_until};
pub use saturate::{saturate, saturate_until};
pub use search::{
    Answer, Breakpoint, Constraint, Drift, Fall, Measured, OfferedPoint, OpenLoopAnswer, OpenLoopFault, Recheck,
    RungPoint, SearchConfig, Step, Verdict, next_step,
};
pub use selection::LengthSource;
pub use series::{GpuSample, ServerSample, ServerSide, ServerStart, StartPart, TimeSlice, TtftSplit};
pub use slo::{Slo, SloCounts};
pub use stats::nearest_rank;
pub use stop::Stop;
pub use summary::{Distribution, PerUser, Rates, RungSummary, WindowFacts};
