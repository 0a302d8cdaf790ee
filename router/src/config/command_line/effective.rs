//! The effective configuration as a TOML file, which read back gives the same configuration.

use clap::{Arg, ArgAction, ArgMatches};
use toml::Value;

/// Flags whose value is a secret itself, not the name of a file that holds it.
const SECRETS: [&str; 1] = ["api-key"];

pub(super) fn toml(flags: &[Arg], matches: &ArgMatches) -> String {
    flags.iter().filter_map(|flag| line(flag, matches)).collect()
}

fn line(flag: &Arg, matches: &ArgMatches) -> Option<String> {
    let long = flag.get_long()?;
    let values = matches.get_raw(flag.get_id().as_str())?;
    let key = long.replace('-', "_");
    if SECRETS.contains(&long) {
        return Some(format!("# {key} is set, and not shown\n"));
    }
    let mut values: Vec<Value> = values.map(|value| typed(&value.to_string_lossy())).collect();
    let value = if matches!(flag.get_action(), ArgAction::Append) { Value::Array(values) } else { values.pop()? };
    Some(format!("{key} = {value}\n"))
}

/// Numbers and booleans as such, as an operator would write them.
fn typed(text: &str) -> Value {
    let integer = text.parse().map(Value::Integer).ok();
    let boolean = || text.parse().map(Value::Boolean).ok();
    let float = || text.parse().map(Value::Float).ok();
    // Only what is written as it was read: 007 and 1e3 stay strings.
    let same = |value: &Value| value.to_string() == text;
    let typed = integer.or_else(boolean).or_else(float).filter(same);
    typed.unwrap_or_else(|| Value::String(text.to_owned()))
}
