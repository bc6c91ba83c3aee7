//! What the board is, read from the kernel and from /etc.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;

use wherry_sync::status::NodeFacts;

/// As many pods as the board may be given; each has its own small processes.
const PODS: u32 = 32;

/// Reads everything anew; what cannot be read is left empty.
pub(super) fn read(node: &str, state: &Path) -> NodeFacts {
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| {
        let line = memory
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
            .unwrap_or(0)
            << 10
    };
    let disk = rustix::fs::statvfs(state).ok();
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let name = rustix::system::uname();
    NodeFacts {
        name: node.to_owned(),
        address: host_address(),
        cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
        memory: kib("MemTotal"),
        memory_available: kib("MemAvailable"),
        disk: disk
            .as_ref()
            .map_or(0, |disk| disk.f_blocks.saturating_mul(disk.f_frsize)),
        disk_available: disk
            .as_ref()
            .map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize)),
        architecture: architecture().to_owned(),
        kernel: name.release().to_string_lossy().into_owned(),
        os_image: os_image(&text("/etc/os-release")),
        machine_id: text("/etc/machine-id"),
        boot_id: text("/proc/sys/kernel/random/boot_id"),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pods: PODS,
    }
}

/// Kubernetes' name for what this program was built for: a 32-bit user space runs 32-bit images.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn os_image(release: &str) -> String {
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("Linux").trim_matches('"').to_owned()
}

/// The address from which this board reaches others, if it has a route at all. Nothing is sent.
pub fn host_address() -> Option<String> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // A documentation address: any that is not on this board asks for the default route.
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then(|| address.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_board_is_read() {
        let facts = read("edge1", Path::new("/"));
        assert!(facts.cpus > 0 && facts.memory > facts.memory_available && facts.disk > 0);
        assert!(!facts.kernel.is_empty() && !facts.boot_id.is_empty());
    }

    #[test]
    fn names_of_systems() {
        assert_eq!(
            os_image("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 13\"\n"),
            "Debian GNU/Linux 13"
        );
        assert_eq!(os_image(""), "Linux");
    }
}
