//! The compatibility hash of a NIXL handshake: SHA-256 of the factors as Python's `json.dumps(…, sort_keys=True)` writes
//! them (protocol doc §1.5).

use std::fmt::Write as _;

use serde_json::{Map, Number, Value, json};
use sha2::{Digest as _, Sha256};

/// What must be equal in two engines that exchange blocks, as vLLM computes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Factors {
    /// The whole version string, local suffix included.
    pub vllm_version: String,
    /// See [`crate::versions`].
    pub nixl_connector_version: u32,
    /// The string given to `--model`.
    pub model: String,
    /// As torch prints it, e.g. `torch.bfloat16`.
    pub dtype: String,
    /// Of the whole model, not of one TP shard.
    pub num_kv_heads: u32,
    /// Elements of one head.
    pub head_size: u32,
    /// Of the whole model.
    pub num_hidden_layers: u32,
    /// E.g. `CPU_ATTN`.
    pub attn_backend_name: String,
    /// E.g. `auto`.
    pub cache_dtype: String,
    /// Whether the hybrid memory allocator is on.
    pub is_hma_enabled: bool,
    /// `null` or an object.
    pub speculative_config: Value,
    /// `pull` or `push`.
    pub transfer_mode: String,
}

/// The hash in lower-case hex.
///
/// The golden value of the test is what this prints:
/// ```sh
/// python3 -c 'import hashlib, json; print(hashlib.sha256(json.dumps({
///   "vllm_version": "0.32.0", "nixl_connector_version": 14, "model": "mod\u00e8le/\U0001f680\x7f", "dtype": "torch.bfloat16",
///   "num_kv_heads": 8, "head_size": 128, "num_hidden_layers": 32, "attn_backend_name": "FLASH_ATTN", "cache_dtype": "auto",
///   "is_hma_enabled": False, "speculative_config": {"z": [1, 2.5, 1e-07, 1e16, None], "a": {"y": True, "b": "\t\""}},
///   "transfer_mode": "pull"}, sort_keys=True).encode()).hexdigest())'
/// ```
pub fn compatibility_hash(factors: &Factors) -> String {
    let mut text = String::new();
    write_python(&factors.to_json(), &mut text);
    let mut hex = String::with_capacity(64);
    for byte in Sha256::digest(text.as_bytes()) {
        push(&mut hex, format_args!("{byte:02x}"));
    }
    hex
}

impl Factors {
    /// The factors' names, as vLLM hashes them.
    #[cfg(test)]
    pub(crate) fn names(&self) -> Vec<String> {
        self.to_json().as_object().into_iter().flat_map(Map::keys).cloned().collect()
    }

    fn to_json(&self) -> Value {
        json!({
            "vllm_version": self.vllm_version,
            "nixl_connector_version": self.nixl_connector_version,
            "model": self.model,
            "dtype": self.dtype,
            "num_kv_heads": self.num_kv_heads,
            "head_size": self.head_size,
            "num_hidden_layers": self.num_hidden_layers,
            "attn_backend_name": self.attn_backend_name,
            "cache_dtype": self.cache_dtype,
            "is_hma_enabled": self.is_hma_enabled,
            "speculative_config": self.speculative_config,
            "transfer_mode": self.transfer_mode,
        })
    }
}

/// Formatting into a `String` cannot fail.
fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).ok();
}

fn write_python(value: &Value, out: &mut String) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) => write_number(number, out),
        Value::String(text) => write_text(text, out),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                write_python(item, out);
            }
            out.push(']');
        }
        Value::Object(members) => write_members(members, out),
    }
}

fn write_members(members: &Map<String, Value>, out: &mut String) {
    // UTF-8 sorts as its code points do, which is Python's order of strings.
    let mut sorted: Vec<_> = members.iter().collect();
    sorted.sort_by_key(|(key, _)| *key);
    out.push('{');
    for (index, (key, value)) in sorted.into_iter().enumerate() {
        out.push_str(if index == 0 { "" } else { ", " });
        write_text(key, out);
        out.push_str(": ");
        write_python(value, out);
    }
    out.push('}');
}

/// Python escapes everything that is not printable ASCII, as UTF-16 units in lower-case hex.
fn write_text(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='~' => out.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    push(out, format_args!("\\u{unit:04x}"));
                }
            }
        }
    }
    out.push('"');
}

/// Integers as they are; floats as Python's `repr`: shortest digits, an exponent below 1e-4 and from 1e16 on.
fn write_number(number: &Number, out: &mut String) {
    let Some(float) = number.as_f64().filter(|_| number.is_f64()) else {
        return push(out, format_args!("{number}"));
    };
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        push(out, format_args!("{float:?}"));
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        push(out, format_args!("{digits}e{sign}{:02}", exponent.unsigned_abs()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factors() -> Factors {
        Factors {
            vllm_version: "0.32.0".to_owned(),
            nixl_connector_version: 14,
            model: "mod\u{e8}le/\u{1f680}\u{7f}".to_owned(),
            dtype: "torch.bfloat16".to_owned(),
            num_kv_heads: 8,
            head_size: 128,
            num_hidden_layers: 32,
            attn_backend_name: "FLASH_ATTN".to_owned(),
            cache_dtype: "auto".to_owned(),
            is_hma_enabled: false,
            speculative_config: json!({"z": [1, 2.5, 1e-07, 1e16, null], "a": {"y": true, "b": "\t\""}}),
            transfer_mode: "pull".to_owned(),
        }
    }

    #[test]
    fn it_is_pythons() {
        let golden = "19a48c09b7aac339c01ccc3b683eb839a52c2e4d4f051fe9b0b298fa59554b26";
        assert_eq!(compatibility_hash(&factors()), golden);
    }

    #[test]
    fn every_factor_counts() {
        let base = compatibility_hash(&factors());
        let changes: [fn(&mut Factors); 12] = [
            |f| f.vllm_version.push('+'),
            |f| f.nixl_connector_version += 1,
            |f| f.model.push('x'),
            |f| f.dtype.push('x'),
            |f| f.num_kv_heads += 1,
            |f| f.head_size += 1,
            |f| f.num_hidden_layers += 1,
            |f| f.attn_backend_name.push('x'),
            |f| f.cache_dtype.push('x'),
            |f| f.is_hma_enabled = true,
            |f| f.speculative_config = Value::Null,
            |f| f.transfer_mode = "push".to_owned(),
        ];
        for change in changes {
            let mut other = factors();
            change(&mut other);
            assert_ne!(compatibility_hash(&other), base);
        }
    }

    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (float, text) in [
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (-2.5, "-2.5"),
            (1e100, "1e+100"),
            (3.0, "3.0"),
        ] {
            let mut out = String::new();
            write_python(&json!(float), &mut out);
            assert_eq!(out, text);
        }
    }
}
