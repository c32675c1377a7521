//! What the kernel says about this process, read at scrape. Any file that cannot be read is left out.

use std::fs;

use super::scrape::Scrape;
use super::table::Sampled;

pub(super) fn sample(scrape: &mut Scrape) {
    if let Ok(stat) = fs::read_to_string("/proc/self/stat") {
        sample_stat(scrape, &stat);
    }
    if let Some(open) = open_files() {
        scrape.add(Sampled::OpenFiles, &[], open as f64);
    }
    if let Some(limit) = files_max() {
        scrape.add(Sampled::MaxFiles, &[], limit);
    }
}

/// Descriptors open in this process now.
pub fn open_files() -> Option<usize> {
    // One of them is the directory that is being read.
    let open = fs::read_dir("/proc/self/fd").ok()?;
    Some(open.count().saturating_sub(1))
}

/// The fields after the process name, which is in parentheses and may itself hold spaces and `)`;
/// `fields[0]` is field 3 of proc_pid_stat(5).
fn sample_stat(scrape: &mut Scrape, stat: &str) {
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let field = |number: usize| {
        fields
            .get(number - 3)
            .and_then(|text| text.parse::<f64>().ok())
    };
    // SAFETY: sysconf only reads.
    let (ticks, page) = unsafe {
        (
            libc::sysconf(libc::_SC_CLK_TCK) as f64,
            libc::sysconf(libc::_SC_PAGESIZE) as f64,
        )
    };
    if let (Some(user), Some(system)) = (field(14), field(15)) {
        scrape.add(Sampled::Cpu, &[], (user + system) / ticks);
    }
    if let Some(threads) = field(20) {
        scrape.add(Sampled::Threads, &[], threads);
    }
    if let (Some(started), Some(boot)) = (field(22), boot_time()) {
        scrape.add(Sampled::StartTime, &[], boot + started / ticks);
    }
    if let Some(pages) = field(24) {
        scrape.add(Sampled::ResidentMemory, &[], pages * page);
    }
}

fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()
}

fn files_max() -> Option<f64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid place for the result.
    let done = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    (done == 0).then_some(limit.rlim_cur as f64)
}
