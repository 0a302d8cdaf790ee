//! Bodies: kept bytes, edits that cannot be bypassed, and what is read from them.
