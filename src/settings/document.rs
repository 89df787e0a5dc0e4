//! A TOML document that somebody wrote, of settings or of a study.

use std::ops::Range;

use toml::de::DeTable;

use crate::{Error, Result};

/// Its text, and what messages call it.
pub struct Document<'a> {
    /// The text.
    pub text: &'a str,
    /// The name, in quotes where it is a path.
    pub name: &'a str,
}

impl<'a> Document<'a> {
    /// What it says, each key and value with its place.
    ///
    /// # Errors
    /// It is not TOML; with the line.
    pub fn parse(&self) -> Result<DeTable<'a>> {
        let table = DeTable::parse(self.text).map_err(|error| {
            let line = error.span().map(|span| self.line(&span));
            let place = line.map_or(String::new(), |line| format!(", line {line}"));
            let written = line.and_then(|line| self.text.lines().nth(line - 1)).and_then(|line| line.split_once('='));
            let in_quotes = written.is_some_and(|(_, value)| value.trim() == "none");
            let advice = if in_quotes { "; write \"none\", in quotes" } else { "" };
            Error::input(format!("{}{place} is not TOML: {}{advice}", self.name, error.message().replace('\n', ", ")))
        })?;
        Ok(table.into_inner())
    }

    /// The line where a place begins, from 1.
    pub fn line(&self, place: &Range<usize>) -> usize {
        1 + self.text[..place.start].matches('\n').count()
    }
}
