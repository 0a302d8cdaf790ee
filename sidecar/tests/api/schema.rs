//! Values beside JSON schemas, as far as this API's description uses them: a keyword that is not known here fails the test.
//!
//! Stricter than a validator: a member that no schema describes is an error. schemathesis reads the same schemas with a validator of its own.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// Keywords that say nothing about an answer, or only what a client should send.
const WORDS: [&str; 13] = [
    "default",
    "description",
    "example",
    "examples",
    "format",
    "maxItems",
    "maxLength",
    "minItems",
    "minLength",
    "multipleOf",
    "pattern",
    "propertyNames",
    "uniqueItems",
];

/// The named schemas.
pub(crate) struct Schemas<'a>(pub(crate) &'a Map<String, Value>);

type Described<'a> = BTreeSet<&'a str>;

impl Schemas<'_> {
    /// Whether a value is as described, without any other member.
    pub(crate) fn closed(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let described = self.open(schema, value, at)?;
        let says_something = schema.as_object().is_some_and(|schema| !schema.is_empty());
        match value.as_object() {
            Some(members) if says_something => match members.keys().find(|key| !described.contains(key.as_str())) {
                Some(other) => Err(format!("{at}/{other} is not described")),
                None => Ok(()),
            },
            Some(_) | None => Ok(()),
        }
    }

    /// Whether a value is as described; the members that are.
    fn open<'a>(&self, schema: &'a Value, value: &'a Value, at: &str) -> Result<Described<'a>, String>
    where
        Self: 'a,
    {
        let mut described = Described::new();
        let members = value.as_object();
        for (keyword, says) in schema.as_object().unwrap_or_else(|| panic!("{schema} at {at}")) {
            match keyword.as_str() {
                "$ref" => {
                    let name = says.as_str().unwrap().strip_prefix("#/components/schemas/").unwrap();
                    described.extend(self.names(&self.0[name], value, at)?);
                }
                "type" => check(is_of(says, value), || format!("{at} is not {says}"))?,
                "enum" => check(says.as_array().unwrap().contains(value), || format!("{at} is none of {says}"))?,
                "minimum" => {
                    check(value.as_f64() >= says.as_f64() || value.is_null(), || format!("{at} is below {says}"))?
                }
                "maximum" => {
                    check(value.as_f64() <= says.as_f64() || value.is_null(), || format!("{at} is above {says}"))?
                }
                "required" => {
                    for name in says.as_array().unwrap() {
                        let there = members.is_none_or(|members| members.contains_key(name.as_str().unwrap()));
                        check(there, || format!("{at}/{name} is missing"))?;
                    }
                }
                "properties" => {
                    for (name, schema) in says.as_object().unwrap() {
                        if let Some(member) = members.and_then(|members| members.get(name)) {
                            self.closed(schema, member, &format!("{at}/{name}"))?;
                            described.insert(name);
                        }
                    }
                }
                "additionalProperties" => described.extend(members.into_iter().flat_map(Map::keys).map(String::as_str)),
                "items" => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.closed(says, item, &format!("{at}/{index}"))?;
                    }
                }
                "allOf" => {
                    for part in says.as_array().unwrap() {
                        described.extend(self.open(part, value, at)?);
                    }
                }
                "oneOf" => {
                    let fit = says.as_array().unwrap().iter().filter_map(|part| self.open(part, value, at).ok());
                    let fit: Vec<Described<'_>> = fit.collect();
                    check(fit.len() == 1, || format!("{at} is {} of {says}", fit.len()))?;
                    described.extend(fit.into_iter().flatten());
                }
                word => assert!(WORDS.contains(&word), "{word} at {at} is not known to this test"),
            }
        }
        Ok(described)
    }

    /// The members of a named schema, by the value's own names.
    fn names<'a>(&self, schema: &Value, value: &'a Value, at: &str) -> Result<Described<'a>, String> {
        let described: BTreeSet<String> = self.open(schema, value, at)?.into_iter().map(ToOwned::to_owned).collect();
        let members = value.as_object().into_iter().flat_map(Map::keys);
        Ok(members.filter(|key| described.contains(*key)).map(String::as_str).collect())
    }
}

fn check(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

fn is_of(types: &Value, value: &Value) -> bool {
    let is = |name: &Value| match name.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{other} is no type"),
    };
    match types.as_array() {
        Some(several) => several.iter().any(is),
        None => is(types),
    }
}
