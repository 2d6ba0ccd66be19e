//! Plans whose answer is known beforehand, and what must hold of all.

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    options: PlanOptions,
}

/// A plan of one of the bundled architectures.
fn planned(model: &str, gpu: &str, more: &[&str]) -> Result<Plan> {
    let path = format!("{}/../../configs/architectures/{model}.json", env!("CARGO_MANIFEST_DIR"));
    let args = ["plan", "--model", &path, "--gpu", gpu].into_iter().chain(more.iter().copied());
    plan(&Command::try_parse_from(args).expect("valid options").options)
}

const IDEAL: [&str; 12] = [
    "--bandwidth-efficiency",
    "1",
    "--compute-efficiency",
    "1",
    "--step-overhead-us",
    "0",
    "--layer-overhead-us",
    "0",
    "--host-step-us",
    "0",
    "--host-seq-us",
    "0",
];

fn sizes(model: &str) -> Sizes {
    let path = format!("{}/../../configs/architectures/{model}.json", env!("CARGO_MANIFEST_DIR"));
    Sizes::new(&read_config(Path::new(&path)).expect("a config")).expect("a model")
}

#[test]
fn weights_are_counted_as_published() {
    // By the models' own cards.
    for (model, billions, active) in [
        ("llama-3.2-1b", 1.24, 1.24),
        ("llama-3.1-8b", 8.03, 7.50),
        ("gpt-oss-20b", 20.9, 3.6),
        ("gemma-3-27b-it", 27.0, 27.0),
    ] {
        let sizes = sizes(model);
        let close = |value: f64, expected: f64| (value / 1e9 - expected).abs() < 0.02 * expected;
        assert!(close(sizes.parameters, billions), "{model}: {}", sizes.parameters);
        assert!(close(sizes.active_parameters(), active), "{model}: {}", sizes.active_parameters());
    }
}

#[test]
fn one_request_is_bound_by_the_bandwidth_that_reads_the_weights() {
    let plan = planned("llama-3.1-8b", "h100", &IDEAL).expect("a plan");
    // 8.03e9 weights, less the 0.53e9 of an embedding table that is only gathered from, of two bytes at 3.35 TB/s.
    let expected = 3.35e12 / (2.0 * (8.03e9 - 0.525e9));
    let first = &plan.rungs[0];
    assert_eq!(first.concurrency, 1);
    assert!((first.output_tokens_per_s / expected - 1.0).abs() < 0.02, "{} {expected}", first.output_tokens_per_s);
    assert!((first.output_tokens_per_s - first.roofline_tokens_per_s).abs() < 1e-6 * expected);
    let with_losses = planned("llama-3.1-8b", "h100", &[]).expect("a plan");
    assert!(with_losses.rungs.iter().all(|rung| rung.output_tokens_per_s < rung.roofline_tokens_per_s));
}

#[test]
fn few_active_experts_make_single_requests_fast() {
    let one = |model, gpu| planned(model, gpu, &IDEAL).expect("a plan").rungs[0].output_tokens_per_s;
    // 3.6 of 20.9 billion weights are read for a token.
    let (mixture, dense) = (one("gpt-oss-20b", "h200"), one("gemma-3-27b-it", "h200"));
    assert!(mixture > 6.0 * dense, "{mixture} {dense}");
}

#[test]
fn throughput_never_falls_where_a_gpu_or_a_format_is_better() {
    let peak = |gpu, more: &[&str]| planned("llama-3.1-8b", gpu, more).expect("a plan").answer.peak_throughput;
    // Each has more of everything than the one before; an L40S has more arithmetic than an A100, and less bandwidth.
    for better in [["l4", "a100", "h100", "h200"], ["l4", "l40s", "h100", "b200"]] {
        let rates = better.map(|gpu| peak(gpu, &[]));
        assert!(rates.is_sorted(), "{better:?}: {rates:?}");
    }
    let first = |more: &[&str]| planned("llama-3.1-8b", "l40s", more).expect("a plan").rungs[0].output_tokens_per_s;
    let (plain, eight, four) = (first(&[]), first(&["--quantize", "fp8"]), first(&["--quantize", "int4"]));
    assert!(1.6 * plain < eight && 1.4 * eight < four, "{plain} {eight} {four}");
}

#[test]
fn throughput_rises_with_concurrency_up_to_the_plateau() {
    let plan = planned("llama-3.1-8b", "a100", &[]).expect("a plan");
    let below: Vec<f64> = plan
        .rungs
        .iter()
        .filter(|rung| rung.concurrency <= plan.answer.saturation)
        .map(|rung| rung.output_tokens_per_s)
        .collect();
    assert!(below.len() > 3 && below.is_sorted(), "{below:?}");
}

#[test]
fn memory_that_does_not_suffice_is_said() {
    let error = format!("{:#}", planned("gemma-3-27b-it", "l40s", &[]).expect_err("54 GB on 48"));
    assert!(error.contains("NVIDIA L40S") && error.contains("weights"), "{error}");
    planned("gemma-3-27b-it", "l40s", &["--quantize", "int4"]).expect("a quarter of it fits");
    // 16 GB of weights leave 24 GB little for keys and values: that binds where there are many long requests.
    let long = ["--input-len", "2000", "--output-len", "500", "--max-concurrency", "64"];
    let plan = planned("llama-3.1-8b", "rtx-4090", &long).expect("a plan");
    assert_eq!(plan.binds, curve::Binds::KvMemory, "{plan}");
    assert!(u64::from(plan.answer.peak) >= plan.memory.workload_requests / 2, "{plan}");
}

#[test]
fn limits_of_latency_are_found() {
    let plan = planned("llama-3.1-8b", "h100", &["--slo-tpot", "15"]).expect("a plan");
    let found = plan.answer.breakpoint.expect("a step of many takes longer than 15 ms");
    let tpot = |n: u32| plan.rungs.iter().find(|rung| rung.concurrency == n).expect("measured").tpot_ms.p99;
    assert!(tpot(found.last_pass) <= 15.0 && tpot(found.first_fail) > 15.0, "{found:?}");
}

#[test]
fn the_same_options_give_the_same_plan_and_say_that_it_is_one() {
    let text = |_| planned("gpt-oss-20b", "h200", &[]).expect("a plan").to_string();
    let [first, second] = [0, 1].map(text);
    assert_eq!(first, second);
    let line = first.lines().next().expect("a first line");
    assert!(line.contains("prediction") && line.contains("bound by") && line.contains("tok/s"), "{line}");
    assert!(first.contains("Assumed: 75% of that bandwidth"), "{first}");
}

#[test]
fn a_list_of_gpus_needs_no_model() {
    let options = |gpu| Command::try_parse_from(["plan", "--gpu", gpu]).expect("valid options").options;
    run(&options("list")).expect("a list");
    let error = run(&options("h200")).expect_err("no model");
    assert!(error.to_string().contains("--model"), "{error}");
}

#[test]
fn a_plan_is_json_and_a_page() {
    let plan = planned("gpt-oss-20b", "h200", &["--quantize", "mxfp4"]).expect("a plan");
    let json = serde_json::to_value(&plan).expect("JSON");
    assert_eq!(json["schema"], "plimsoll.plan/1");
    assert!(json["rungs"].as_array().is_some_and(|rungs| !rungs.is_empty()));
    let file = std::env::temp_dir().join(format!("plimsoll-plan-{}.json", std::process::id()));
    std::fs::write(&file, json.to_string()).expect("written");
    let read = foretold(&file).expect("a plan");
    assert_eq!(read.len(), plan.rungs.len());
    assert!(read.iter().all(|rung| rung.predicted <= rung.roofline));
    std::fs::write(&file, r#"{"schema":"plimsoll.saturation/3","rungs":[]}"#).expect("written");
    assert!(foretold(&file).expect_err("no plan").to_string().contains("plan --json"));
    std::fs::remove_file(&file).expect("removed");
    let html = plan.page().to_string();
    assert!(html.contains("Nothing was run on a GPU") && !html.contains("NaN"));
}

#[test]
fn wrong_options_say_what_would_be_right() {
    for (gpu, more, part) in [
        ("tpu", &[][..], "give one of"),
        ("h200", &["--input-len", "0"], "--input-len"),
        ("h200", &["--gpu-memory-utilization", "2"], "--gpu-memory-utilization"),
        ("h200", &["--max-model-len", "64"], "--input-len"),
        ("h200", &["--max-num-batched-tokens", "10"], "--max-num-seqs"),
        ("h200", &["--bandwidth-efficiency", "0"], "--bandwidth-efficiency"),
        ("h200", &["--slo-ttft", "-5"], "--slo-ttft"),
    ] {
        let more: Vec<String> = more.iter().map(|arg| (*arg).to_owned()).collect();
        let joined: Vec<&str> = more.iter().map(String::as_str).collect();
        // A negative number must be joined to its option.
        let args: Vec<String> = joined.chunks(2).map(|pair| pair.join("=")).collect();
        let error = planned("llama-3.1-8b", gpu, &args.iter().map(String::as_str).collect::<Vec<_>>());
        let error = format!("{:#}", error.expect_err("wrong"));
        assert!(error.contains(part), "{gpu} {more:?}: {error}");
    }
}
