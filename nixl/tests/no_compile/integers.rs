//! Descriptors made of integers that nobody advertised.
use nixl::{MemKind, RemoteDescs};

fn main() {
    let _descs = RemoteDescs { kind: MemKind::Dram, device: 0, entries: vec![(0, u64::MAX)] };
}
