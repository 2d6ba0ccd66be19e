//! A process of this machine, by /proc: its memory, and the processors it keeps busy.

/// Resident memory in bytes.
pub(super) fn resident_bytes(process: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    kib.split_whitespace().next()?.parse::<f64>().ok().map(|kib| 1024.0 * kib)
}

/// Seconds of processors' time that it has taken since it began, all its threads together.
pub(super) fn cpu_seconds(process: u32) -> Option<f64> {
    let ticks = ticks(&std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?)?;
    Some(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// User's and system's time of a line of /proc/PID/stat, whose second field, in parentheses, may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, behind) = stat.rsplit_once(')')?;
    let mut fields = behind.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    next()?.checked_add(next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_time() {
        assert!(resident_bytes(std::process::id()).is_some_and(|bytes| bytes > 1e6));
        assert!(cpu_seconds(std::process::id()).is_some_and(|seconds| seconds >= 0.0));
        assert_eq!((resident_bytes(u32::MAX), cpu_seconds(u32::MAX)), (None, None));
    }

    #[test]
    fn a_name_with_parentheses_moves_no_field() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194304 500 0 0 0 120 30 7 9 20 0 8 0 100 1000 200";
        assert_eq!(ticks(stat), Some(150));
        assert_eq!((ticks("42 (x) S 1"), ticks("")), (None, None));
    }
}
