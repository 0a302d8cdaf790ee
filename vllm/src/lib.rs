//! vLLM's formats on the wire, without I/O
