//! Cuts a text into statements.

use super::ParseError;

/// One piece of a kernel's body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Statement<'a> {
    /// `{`
    Open,
    /// `}`
    Close,
    /// `name:`
    Label(&'a str),
    /// Everything up to a semicolon.
    Text(&'a str),
}

/// A place in a text without comments.
pub(super) struct Cursor<'a> {
    text: &'a str,
    at: usize,
    /// Line of the next character, from 1.
    pub line: u32,
}

/// `text` with comments blanked, so that lines keep their numbers.
pub(super) fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('/') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let comment = match from.as_bytes().get(1) {
            Some(b'/') => from.find('\n').unwrap_or(from.len()),
            Some(b'*') => from.find("*/").map_or(from.len(), |end| end + 2),
            _ => {
                out.push('/');
                rest = &from[1..];
                continue;
            }
        };
        out.extend(from[..comment].chars().filter(|c| *c == '\n'));
        out.push(' ');
        rest = &from[comment..];
    }
    out.push_str(rest);
    out
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '%'))
}

impl<'a> Cursor<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0, line: 1 }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// Moves over `bytes` and returns them.
    fn take(&mut self, bytes: usize) -> &'a str {
        let taken = &self.rest()[..bytes];
        self.line += taken.bytes().filter(|byte| *byte == b'\n').count() as u32;
        self.at += bytes;
        taken
    }

    fn skip_blank(&mut self) {
        self.take(self.rest().len() - self.rest().trim_start().len());
    }

    pub fn at_end(&mut self) -> bool {
        self.skip_blank();
        self.rest().is_empty()
    }

    pub fn starts_with(&self, text: &str) -> bool {
        self.rest().starts_with(text)
    }

    /// Up to the end of the line.
    pub fn take_line(&mut self) -> &'a str {
        self.take(self.rest().find('\n').unwrap_or(self.rest().len()))
    }

    /// Up to one of `ends`, which is left there.
    pub fn take_until(&mut self, ends: &[char]) -> Result<&'a str, ParseError> {
        match self.rest().find(ends) {
            Some(end) => Ok(self.take(end)),
            None => Err(ParseError::at(self.line, "the text ends within a statement")),
        }
    }

    /// Over one character, if there is one.
    pub fn skip_one(&mut self) {
        self.take(self.rest().chars().next().map_or(0, char::len_utf8));
    }

    /// The next piece of a body and its line.
    pub fn statement(&mut self) -> Result<(Statement<'a>, u32), ParseError> {
        loop {
            self.skip_blank();
            let line = self.line;
            match self.rest().chars().next() {
                None => return Err(ParseError::at(line, "the text ends within a kernel")),
                Some('{') => {
                    self.skip_one();
                    return Ok((Statement::Open, line));
                }
                Some('}') => {
                    self.skip_one();
                    return Ok((Statement::Close, line));
                }
                Some(';') => self.skip_one(),
                // Debug directives end with their line.
                Some('.') if matches!(self.rest().split_whitespace().next(), Some(".loc" | ".file")) => {
                    self.take_line();
                }
                Some(_) => return Ok((self.label_or_text()?, line)),
            }
        }
    }

    fn label_or_text(&mut self) -> Result<Statement<'a>, ParseError> {
        let start = self.at;
        let name = self.take_until(&[';', ':'])?;
        if self.starts_with(":") && is_name(name) {
            self.skip_one();
            return Ok(Statement::Label(name));
        }
        self.take_until(&[';'])?;
        let text = &self.text[start..self.at];
        self.skip_one();
        Ok(Statement::Text(text.trim()))
    }
}
