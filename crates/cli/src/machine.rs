//! What this machine has to give.

/// Assumed where the system does not say.
const UNKNOWN_MEMORY: u64 = 8 << 30;

/// Bytes of memory that could be allocated now without swapping.
pub(crate) fn available_memory() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name| parse_field(&meminfo, name);
    let host = field("MemAvailable:").unwrap_or(UNKNOWN_MEMORY);
    container_limit().map_or(host, |limit| host.min(limit))
}

/// A container's limit less what it uses, where there is one (cgroup v2).
fn container_limit() -> Option<u64> {
    let read = |file: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?.trim().parse::<u64>().ok();
    read("memory.max")?.checked_sub(read("memory.current")?)
}

/// What the CPU calls itself.
pub(crate) fn cpu_name() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let named = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    named.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

fn parse_field(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with(name))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::{available_memory, parse_field};

    #[test]
    fn reads_the_kernel_s_table() {
        let text = "MemTotal:       24623132 kB\nMemAvailable:   22511616 kB\n";
        assert_eq!(parse_field(text, "MemAvailable:"), Some(22_511_616 * 1024));
        assert_eq!(parse_field("", "MemAvailable:"), None);
        assert!(available_memory() > 0);
    }
}
