//! Parameters: what is taken, what is refused.
