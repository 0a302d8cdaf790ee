//! The TCP connections of this very process, cut as a network does it that has lost them.

use rustix::net::{Shutdown, getpeername, shutdown, sockopt};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// Cuts every TCP connection of this process, in both directions; how many there were.
pub(crate) fn cut_tcp_connections() -> usize {
    let this = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    let mut cut = 0;
    for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // A second descriptor of the same socket, so that nobody's own one has to be borrowed.
        let Ok(socket) = pidfd_getfd(&this, number, PidfdGetfdFlags::empty()) else { continue };
        let tcp = sockopt::socket_protocol(&socket).is_ok_and(|protocol| protocol == Some(rustix::net::ipproto::TCP));
        if tcp && getpeername(&socket).is_ok() && shutdown(&socket, Shutdown::Both).is_ok() {
            cut += 1;
        }
    }
    cut
}
