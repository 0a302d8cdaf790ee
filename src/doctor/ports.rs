//! The ports that a sidecar of this pod needs: free, or taken by that very sidecar.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use side_channel::Endpoint;
use tokio::time::timeout;

use super::line::Line;
use crate::ask::Asker;

/// On this machine, and from memory.
const SIDECAR_ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// Where this pod's sidecar listens, or would.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) http: SocketAddr,
    pub(super) https: bool,
    /// The first of `ranks` neighbouring ports; none on the prefill side.
    pub(super) side_channel: Option<Endpoint>,
    pub(super) ranks: u16,
}

/// How one port stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Port {
    Free,
    Taken,
    /// The address is not this machine's, or may not be bound.
    Refused(String),
}

/// The sidecar's address for a client on this machine.
pub(super) fn local_url(listen: SocketAddr, https: bool) -> String {
    let reachable = match listen {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, v4.port())),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => SocketAddr::from((Ipv6Addr::LOCALHOST, v6.port())),
        other @ (SocketAddr::V4(_) | SocketAddr::V6(_)) => other,
    };
    format!("{}://{reachable}", if https { "https" } else { "http" })
}

pub(super) async fn lines(root: &Path, asker: &Asker, wanted: &Wanted) -> Vec<Line> {
    let sidecar = sidecar_is_here(&asker.anonymous(), &local_url(wanted.http, wanted.https)).await;
    let mut lines = vec![http(root, wanted.http, sidecar)];
    let listening =
        if sidecar { Some(virtual_engines(asker, &local_url(wanted.http, wanted.https)).await) } else { None };
    if let Some(base) = &wanted.side_channel {
        lines.push(side_channel(root, base, wanted.ranks, listening.as_ref()));
    }
    lines
}

/// A sidecar says one of its own words at a path that needs no token.
async fn sidecar_is_here(asker: &Asker, url: &str) -> bool {
    // A program that takes connections and says nothing is no sidecar.
    let answer = timeout(SIDECAR_ANSWERS_WITHIN, asker.get(url, "/readyz")).await;
    answer.is_ok_and(|answer| answer.is_ok_and(|answer| answer.body.get("ranks").is_some_and(Value::is_array)))
}

/// The side-channel ports that the running sidecar has; none known when it wants a token that we lack.
async fn virtual_engines(asker: &Asker, url: &str) -> BTreeSet<u16> {
    let Ok(answer) = asker.get(url, "/v1/ranks").await else { return BTreeSet::new() };
    let ranks = answer.body.get("ranks").and_then(Value::as_array).cloned().unwrap_or_default();
    let endpoints = ranks.iter().filter_map(|rank| rank.get("side_channel")?.as_str()?.parse::<Endpoint>().ok());
    endpoints.map(|endpoint| endpoint.port).collect()
}

fn http(root: &Path, listen: SocketAddr, sidecar: bool) -> Line {
    const CHECK: &str = "port-http";
    if listen.port() == 0 {
        return Line::skip(CHECK, "--listen takes a free port");
    }
    let line = match try_bind(&listen.ip().to_string(), listen.port()) {
        Port::Free => Line::ok(CHECK, format!("{listen} is free")),
        Port::Taken if sidecar => Line::ok(CHECK, format!("a kvgate sidecar listens on {listen}")),
        Port::Taken => Line::fail(
            CHECK,
            format!("{listen} is taken by {}, which is no kvgate sidecar", holder(root, listen.port())),
            "end that program, or give the sidecar another --listen (and the router `,sidecar=URL`)",
        ),
        Port::Refused(why) => {
            Line::fail(CHECK, format!("{listen} cannot be bound: {why}"), "give --listen an address of this pod")
        }
    };
    line.with("port", listen.port())
}

fn side_channel(root: &Path, base: &Endpoint, ranks: u16, running: Option<&BTreeSet<u16>>) -> Line {
    const CHECK: &str = "ports-side-channel";
    if base.port == 0 {
        return Line::skip(CHECK, "--side-channel-listen takes free ports");
    }
    let last = base.port.saturating_add(ranks.saturating_sub(1));
    let (mut ours, mut trouble) = (0_u16, Vec::new());
    for port in base.port..=last {
        match try_bind(&base.host, port) {
            Port::Free => {}
            Port::Taken if running.is_some_and(|ports| ports.is_empty() || ports.contains(&port)) => {
                ours = ours.saturating_add(1)
            }
            Port::Taken => trouble.push(format!("{port} is taken by {}", holder(root, port))),
            Port::Refused(why) => trouble.push(format!("{}:{port} cannot be bound: {why}", base.host)),
        }
    }
    let line = if !trouble.is_empty() {
        Line::fail(CHECK, trouble.join("\n"), "end that program, or give the sidecar another --side-channel-listen")
    } else if ours > 0 {
        Line::ok(
            CHECK,
            format!("{ours} of {ranks} ports from {base} on are the running sidecar's, the others are free"),
        )
    } else {
        Line::ok(CHECK, format!("{}–{last} on {} are free", base.port, base.host))
    };
    line.with("first", base.port).with("last", last)
}

fn try_bind(host: &str, port: u16) -> Port {
    match TcpListener::bind((host, port)) {
        Ok(_listener) => Port::Free,
        Err(error) if error.kind() == ErrorKind::AddrInUse => Port::Taken,
        Err(error) => Port::Refused(error.to_string()),
    }
}

/// Who listens on a port: `pid 42 (python3)`, or words that it cannot be seen.
fn holder(root: &Path, port: u16) -> String {
    let proc_folder = root.join("proc");
    let inodes: BTreeSet<String> = ["net/tcp", "net/tcp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(proc_folder.join(table)).ok())
        .flat_map(|table| listeners(&table, port))
        .collect();
    let entries = std::fs::read_dir(&proc_folder).into_iter().flatten().flatten();
    for process in entries {
        let name = process.file_name().to_string_lossy().into_owned();
        if !name.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let files = std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let mut links = files.filter_map(|file| std::fs::read_link(file.path()).ok());
        let holds = links.any(|link| {
            let link = link.to_string_lossy();
            link.strip_prefix("socket:[")
                .and_then(|rest| rest.strip_suffix(']'))
                .is_some_and(|inode| inodes.contains(inode))
        });
        if holds {
            let program = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return format!("pid {name} ({})", program.trim());
        }
    }
    "a program that cannot be seen from here".to_owned()
}

/// The inodes of sockets that listen on a port, from the text of `/proc/net/tcp`.
fn listeners(table: &str, port: u16) -> Vec<String> {
    const LISTEN: &str = "0A";
    let of = |line: &str| -> Option<String> {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, hex) = fields.get(1)?.rsplit_once(':')?;
        let is_it = u16::from_str_radix(hex, 16) == Ok(port) && fields.get(3) == Some(&LISTEN);
        is_it.then(|| fields.get(9).map(|inode| (*inode).to_owned())).flatten()
    };
    table.lines().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::line::Status;

    #[test]
    fn a_taken_port_names_its_holder() {
        let root = Path::new("/");
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = taken.local_addr().unwrap();
        let line = http(root, at, false);
        assert_eq!(line.status, Status::Fail);
        assert!(line.says.contains(&format!("pid {}", std::process::id())), "{line:?}");
        assert_eq!(http(root, at, true).status, Status::Ok);
        let base = Endpoint::new("127.0.0.1", at.port());
        assert_eq!(side_channel(root, &base, 1, None).status, Status::Fail);
        assert_eq!(side_channel(root, &base, 1, Some(&BTreeSet::from([at.port()]))).status, Status::Ok);
        assert_eq!(side_channel(root, &base, 1, Some(&BTreeSet::from([1]))).status, Status::Fail);
        drop(taken);
        assert_eq!(http(root, at, false).status, Status::Ok);
    }

    #[test]
    fn addresses_of_others_and_port_0() {
        let foreign: SocketAddr = "192.0.2.1:7700".parse().unwrap();
        assert!(http(Path::new("/"), foreign, false).says.contains("cannot be bound"));
        assert_eq!(http(Path::new("/"), "127.0.0.1:0".parse().unwrap(), false).status, Status::Skip);
        assert_eq!(local_url("0.0.0.0:7700".parse().unwrap(), false), "http://127.0.0.1:7700");
        assert_eq!(local_url("[::]:7700".parse().unwrap(), true), "https://[::1]:7700");
    }

    #[test]
    fn the_kernel_s_table_is_in_hex() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                     0: 0100007F:1E14 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1\n   \
                     1: 0100007F:1E14 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4712 1\n";
        assert_eq!(listeners(table, 7700), ["4711"]);
        assert!(listeners(table, 7701).is_empty());
    }
}
