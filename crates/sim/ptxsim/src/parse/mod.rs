//! Reads PTX. The text may come from anywhere: whatever it holds, the answer is a program or an error that names the line.
//!
//! An opcode is known only with all its modifiers: one that is not understood is refused, never ignored, since it would
//! silently mean something else.

mod instruction;
mod kernel;
mod lex;
mod module;
mod opcode;
mod operand;
#[cfg(test)]
mod tests;

pub use module::parse;

/// Why a text is not a program that can be executed here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}: {problem}")]
pub struct ParseError {
    /// Line of the statement, from 1.
    pub line: u32,
    /// What is wrong with it.
    pub problem: String,
}

impl ParseError {
    fn at(line: u32, problem: impl Into<String>) -> Self {
        Self { line, problem: problem.into() }
    }
}
