//! How many connections this process may have open at once.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::findings::{Finding, FindingKind};

/// Descriptors that are not connections: files, pipes, the runtime's own, and connections about to be closed.
const OTHERS: u64 = 64;

/// Raises the limit as far as the system lets it, and returns how many requests can be in flight of the `wanted` ones,
/// with what to say where that is fewer.
pub(crate) fn connections_for(wanted: u32) -> (u32, Option<Finding>) {
    let limits = getrlimit(Resource::Nofile);
    let enough = u64::from(wanted) + OTHERS;
    let mut allowed = limits.current.unwrap_or(u64::MAX);
    if allowed < enough {
        let raised = limits.maximum.unwrap_or(enough).min(enough.max(allowed));
        if setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: limits.maximum }).is_ok() {
            allowed = raised;
        }
    }
    within(allowed, wanted)
}

fn within(allowed: u64, wanted: u32) -> (u32, Option<Finding>) {
    let most = u32::try_from(allowed.saturating_sub(OTHERS)).unwrap_or(u32::MAX).max(1);
    if most >= wanted {
        return (wanted, None);
    }
    let text = format!(
        "This process may open {allowed} files, so no more than {most} of {wanted} connections were tried; raise the \
         limit (ulimit -n) to go on."
    );
    (most, Some(Finding::new(FindingKind::Descriptors, text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_descriptors_bound_the_search_and_are_said() {
        assert_eq!(within(10_000, 4096), (4096, None));
        let (most, finding) = within(1024, 4096);
        assert_eq!(most, 960);
        assert!(finding.is_some_and(|finding| finding.text.contains("ulimit -n")));
        assert_eq!(within(10, 4096).0, 1);
    }

    #[test]
    fn a_few_are_always_to_be_had() {
        assert_eq!(connections_for(8), (8, None));
    }
}
