//! Golden bytes and hostile bytes.
