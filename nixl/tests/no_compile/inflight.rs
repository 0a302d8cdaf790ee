//! Case `inflight`: a transfer into a buffer that its owner may free.
use nixl::LocalDescs;

fn main() {
    let buffer = vec![0_u8; 4096];
    let _descs = LocalDescs::new(&buffer, [(0, 4096)]);
}
