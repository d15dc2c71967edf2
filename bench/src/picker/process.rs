//! What a process of this machine has used.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;
use nix::time::ClockId;
use nix::unistd::Pid;

/// Used since the process began.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    /// How much of `cpu` was spent in the kernel; in steps of 10 ms.
    pub(crate) kernel: Duration,
    /// How often a thread went to sleep of itself and was woken; of threads that still are.
    pub(crate) wakes: u64,
}

impl Usage {
    /// Of the process with this number.
    pub(crate) fn of(pid: u32) -> anyhow::Result<Usage> {
        let gone = || format!("cannot read the CPU time of process {pid}");
        // Unlike /proc/PID/stat this clock counts nanoseconds, and unlike the sum over threads those that ended.
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid.cast_signed())).with_context(gone)?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(gone)?;
        // The name, which may hold blanks, ends at the last bracket; stime is field 15 of the file.
        let behind_name = stat.rsplit(')').next().unwrap_or_default();
        let ticks: u64 =
            behind_name.split_whitespace().nth(12).and_then(|field| field.parse().ok()).unwrap_or(0);
        let mut wakes = 0;
        for task in fs::read_dir(format!("/proc/{pid}/task")).with_context(gone)? {
            let status = fs::read_to_string(task?.path().join("status")).unwrap_or_default();
            wakes += number_in(&status, "voluntary_ctxt_switches:").unwrap_or_default();
        }
        let cpu = clock.now().with_context(gone)?.into();
        Ok(Usage { cpu, kernel: Duration::from_millis(ticks * 10), wakes })
    }

    /// Used since `earlier`.
    pub(crate) fn since(self, earlier: Usage) -> Usage {
        Usage {
            cpu: self.cpu.saturating_sub(earlier.cpu),
            kernel: self.kernel.saturating_sub(earlier.kernel),
            wakes: self.wakes.saturating_sub(earlier.wakes),
        }
    }
}

/// The most memory that was resident, in MB, since the last [`reset_peak`].
pub(crate) fn peak_mb(pid: u32) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kb = number_in(&status, "VmHWM:").context("no VmHWM in /proc/PID/status")?;
    Ok(kb as f64 / 1024.0)
}

/// Lets the peak begin anew; without the right to do so it stays that of the process's life.
pub(crate) fn reset_peak(pid: u32) {
    let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

fn number_in(status: &str, label: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(label))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn the_time_that_this_process_burns_is_seen() {
        let pid = std::process::id();
        let before = Usage::of(pid).expect("our own usage");
        let begin = Instant::now();
        let mut sum = 0_u64;
        while begin.elapsed() < Duration::from_millis(60) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let used = Usage::of(pid).expect("our own usage").since(before);
        // Others may have the processor for a part of it.
        assert!(used.cpu > Duration::from_millis(5), "{used:?}");
        assert!(peak_mb(pid).expect("our own memory") > 1.0);
    }

    #[test]
    fn a_number_is_found_by_its_whole_label() {
        let status = "nonvoluntary_ctxt_switches:\t7\nvoluntary_ctxt_switches:\t42\nVmHWM:\t  2048 kB\n";
        assert_eq!(number_in(status, "voluntary_ctxt_switches:"), Some(42));
        assert_eq!(number_in(status, "VmHWM:"), Some(2048));
        assert_eq!(number_in(status, "VmRSS:"), None);
    }
}
