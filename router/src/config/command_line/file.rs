//! The file of `--config`: a TOML table whose keys are the long flags, with `_` or `-`.

use std::ffi::OsString;
use std::path::Path;

use clap::Arg;
use toml::{Table, Value};

use super::nearest;

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("the file cannot be read")]
    Read(#[from] std::io::Error),
    /// Not TOML.
    #[error("the file is not TOML")]
    Toml(#[from] toml::de::Error),
    /// A key that is no flag.
    #[error("there is no key {key:?}{}", nearest.as_ref().map(|near| format!("; the nearest is {near:?}")).unwrap_or_default())]
    UnknownKey {
        /// The key.
        key: String,
        /// The one that may have been meant.
        nearest: Option<String>,
    },
    /// A table, a date, or a list within a list.
    #[error("{key} must be a string, a number, a boolean or a list of them")]
    Form {
        /// The key.
        key: String,
    },
}

/// A flag with what stands for it on a command line.
pub(super) type Written = (Arg, Vec<OsString>);

pub(super) fn read(path: &Path) -> Result<String, FileError> {
    Ok(super::read(path)?)
}

/// Every key as flags, in the file's order.
pub(super) fn flags(text: &str, known: &[Arg]) -> Result<Vec<Written>, FileError> {
    let table: Table = text.parse()?;
    table.into_iter().map(|(key, value)| written(key, value, known)).collect()
}

fn written(key: String, value: Value, known: &[Arg]) -> Result<Written, FileError> {
    let long = key.replace('_', "-");
    let Some(flag) = known.iter().find(|flag| flag.get_long() == Some(long.as_str())) else {
        let nearest = nearest(&long, known.iter().filter_map(Arg::get_long)).map(|near| near.replace('-', "_"));
        return Err(FileError::UnknownKey { key, nearest });
    };
    let values = match value {
        Value::Array(values) => values,
        value @ (Value::String(_)
        | Value::Integer(_)
        | Value::Float(_)
        | Value::Boolean(_)
        | Value::Datetime(_)
        | Value::Table(_)) => vec![value],
    };
    let flags = values.into_iter().map(|value| plain(value).map(|value| format!("--{long}={value}").into()));
    let flags = flags.collect::<Option<Vec<OsString>>>().ok_or(FileError::Form { key })?;
    Ok((flag.clone(), flags))
}

fn plain(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Boolean(on) => Some(on.to_string()),
        Value::Datetime(_) | Value::Array(_) | Value::Table(_) => None,
    }
}
