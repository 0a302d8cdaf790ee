//! What router and sidecar tell monitoring in the same way.
//!
//! | module | is |
//! |---|---|
//! | [`exposition`] | a page of metrics in the format that was asked for |

pub mod exposition;
