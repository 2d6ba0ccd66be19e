//! Whether a server is idle before it is measured: work that others give it, or its GPUs, would be taken for its own
//! slowness.

use crate::findings::{Finding, FindingKind};
use crate::series::ServerSample;

/// A GPU that shows a desktop is not busy.
const TOLERATED_UTILIZATION: f64 = 0.1;

/// What the server or its GPUs do before the first request of the measurement. None: nothing that is seen.
pub(crate) fn busy(sample: &ServerSample) -> Option<Finding> {
    let requests = sample.running.unwrap_or(0.0) + sample.waiting.unwrap_or(0.0);
    let is_busy = |share: f64| share > TOLERATED_UTILIZATION;
    let gpus = sample.gpus.iter().filter_map(|gpu| Some((gpu.index, gpu.utilization.filter(|&share| is_busy(share))?)));
    let mut work: Vec<String> = gpus.map(|(index, share)| format!("GPU {index} {:.0}% busy", 100.0 * share)).collect();
    if requests > 0.0 {
        work.insert(0, format!("{requests:.0} requests of others running or waiting"));
    }
    (!work.is_empty()).then(|| {
        let text = format!(
            "The server was not idle before the measurement: {}. What it measured is what was left; measure again \
             when nothing else runs.",
            work.join(", ")
        );
        Finding::new(FindingKind::NotIdle, text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::GpuSample;

    #[test]
    fn work_of_others_is_told() {
        let gpu = |index, utilization| GpuSample { index, utilization, ..GpuSample::default() };
        let idle =
            ServerSample { running: Some(0.0), gpus: vec![gpu(0, Some(0.05)), gpu(1, None)], ..Default::default() };
        let of_others = ServerSample { host_gpus: vec![gpu(0, Some(0.97))], ..idle.clone() };
        assert_eq!(busy(&of_others), None, "nobody says that it is the server's");
        assert_eq!(busy(&idle), None);
        assert_eq!(busy(&ServerSample::default()), None, "nothing is known");
        let text = |sample: &ServerSample| busy(sample).expect("a finding").text;
        assert!(text(&ServerSample { waiting: Some(3.0), ..idle.clone() }).contains("3 requests of others"));
        let hot = ServerSample { gpus: vec![gpu(0, Some(0.0)), gpu(7, Some(0.87))], ..idle };
        assert!(text(&hot).contains("GPU 7 87% busy") && !text(&hot).contains("GPU 0"));
    }
}
