//! Case `alias`: nobody holds a reference into memory that hardware writes.
fn main() {}

fn slice(region: &nixl::Region) -> &[u8] {
    region.as_slice()
}

fn index(region: &nixl::Region) -> u8 {
    region[0]
}
