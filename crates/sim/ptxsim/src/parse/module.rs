//! Module scope: version, target, variables and kernels.

use std::collections::{BTreeMap, HashMap};

use super::{
    ParseError,
    kernel::{self, Layout},
    lex::{Cursor, without_comments},
};
use crate::program::{Module, Operand};

/// Longest text that is read.
const MAX_BYTES: usize = 64 << 20;

/// Reads a PTX text.
///
/// # Errors
/// When the text is no PTX or uses something that cannot be executed here: device function calls, module-scope
/// variables other than shared ones, opcodes that no kernel of ours needs.
pub fn parse(text: &str) -> Result<Module, ParseError> {
    if text.len() > MAX_BYTES {
        return Err(ParseError::at(1, format!("{} bytes of text, at most {MAX_BYTES} are read", text.len())));
    }
    let text = without_comments(text);
    let mut cursor = Cursor::new(&text);
    let mut header = Header::default();
    let mut kernels = BTreeMap::new();
    while !cursor.at_end() {
        let line = cursor.line;
        if cursor.starts_with(".version")
            || cursor.starts_with(".target")
            || cursor.starts_with(".address_size")
        {
            header.read(cursor.take_line()).map_err(|problem| ParseError::at(line, problem))?;
        } else if cursor.starts_with(".file") {
            cursor.take_line();
        } else {
            let head = cursor.take_until(&[';', '{', '='])?;
            if head.contains(".entry") {
                let kernel = kernel::read(head, &mut cursor, line, &header)?;
                kernels.insert(kernel.name.clone(), kernel);
            } else {
                header.variable(head, &mut cursor, line)?;
            }
        }
    }
    let missing = |what| ParseError::at(1, format!("no `{what}`: this is no PTX"));
    Ok(Module {
        version: header.version.ok_or_else(|| missing(".version"))?,
        target: header.target.ok_or_else(|| missing(".target"))?,
        kernels,
    })
}

/// What stands before the kernels.
#[derive(Default)]
pub(super) struct Header {
    version: Option<(u32, u32)>,
    target: Option<String>,
    /// Shared variables that every kernel sees.
    pub shared: Layout,
    pub names: HashMap<String, Operand>,
}

impl Header {
    fn read(&mut self, line: &str) -> Result<(), String> {
        let (directive, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let value = value.trim();
        match directive {
            ".version" => {
                let parts = value.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
                self.version = Some(parts.ok_or_else(|| format!("`{value}` is no version"))?);
            }
            ".target" => self.target = Some(value.to_owned()),
            ".address_size" if value == "64" => {}
            _ => return Err(format!("`{line}` is not supported")),
        }
        Ok(())
    }

    /// A variable at module scope. Constants that no instruction names are only skipped: compilers emit them for
    /// `constexpr` at namespace scope; an instruction that does name one is refused as an unknown name.
    fn variable(&mut self, head: &str, cursor: &mut Cursor<'_>, line: u32) -> Result<(), ParseError> {
        if head.contains(".func") {
            return Err(ParseError::at(
                line,
                "device functions are not supported: have the compiler inline them",
            ));
        }
        let declares = |space: &str| head.split_whitespace().any(|word| word == space);
        if !(declares(".shared") || declares(".global") || declares(".const")) {
            return Err(ParseError::at(line, format!("`{}` is not supported", head.trim())));
        }
        cursor.take_until(&[';'])?;
        cursor.skip_one();
        if declares(".shared") {
            let (name, offset) =
                self.shared.declare(head).map_err(|problem| ParseError::at(line, problem))?;
            self.names.insert(name, kernel::place(offset));
        }
        Ok(())
    }
}
