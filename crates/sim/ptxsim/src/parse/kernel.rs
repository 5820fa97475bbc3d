//! One kernel: parameters, declarations, labels and instructions.

use std::collections::HashMap;

use super::{
    ParseError, instruction,
    lex::{Cursor, Statement},
    module::Header,
    operand::{Names, split},
};
use crate::{
    program::{Kernel, Op, Operand, Param, Special},
    types::{Space, Type},
};

/// Bytes that the variables of one space take at most; more than any architecture has.
const MAX_SPACE: u32 = 512 << 10;
/// Braces in braces at most.
const MAX_DEPTH: usize = 64;

/// Variables of one space, laid out in the order in which they are declared.
#[derive(Clone, Default)]
pub(super) struct Layout {
    pub bytes: u32,
    /// Of what the launch adds; zero if nothing is declared for it.
    dynamic_align: u32,
}

impl Layout {
    /// Places `… .align 16 .b8 name[100]`; the name and the offset it got. `name[]` is what the launch adds, after all
    /// others, and so has none yet.
    pub fn declare(&mut self, text: &str) -> Result<(String, Option<u32>), String> {
        let bad = || format!("`{}` is no declaration that is understood", text.trim());
        let mut words = text.split_whitespace().peekable();
        let (mut ty, mut align, mut name) = (None, None, None);
        while let Some(word) = words.next() {
            if word == ".align" {
                align = words.next().and_then(|n| n.parse::<u32>().ok());
                align.filter(|n| n.is_power_of_two() && *n <= MAX_SPACE).ok_or_else(bad)?;
            } else if let Some(directive) = word.strip_prefix('.') {
                ty = ty.or(Type::named(directive));
            } else {
                name = Some(word);
            }
        }
        let (ty, name) = (ty.ok_or_else(bad)?, name.ok_or_else(bad)?);
        let align = align.unwrap_or(ty.bytes());
        let (name, count) = match name.split_once('[') {
            Some((name, "]")) => {
                self.dynamic_align = self.dynamic_align.max(align);
                return Ok((name.to_owned(), None));
            }
            Some((name, count)) => {
                (name, count.strip_suffix(']').and_then(|n| n.parse().ok()).ok_or_else(bad)?)
            }
            None => (name, 1u32),
        };
        let offset = self.bytes.checked_next_multiple_of(align);
        let end = offset.and_then(|offset| count.checked_mul(ty.bytes())?.checked_add(offset));
        let too_much = || format!("`{name}` makes more than {MAX_SPACE} bytes");
        self.bytes = end.filter(|end| *end <= MAX_SPACE).ok_or_else(too_much)?;
        Ok((name.to_owned(), offset))
    }

    /// Where what the launch adds begins.
    fn dynamic_offset(&self) -> u32 {
        self.bytes.next_multiple_of(self.dynamic_align.max(1))
    }
}

/// What a variable's name means, by its offset.
pub(super) fn place(offset: Option<u32>) -> Operand {
    offset.map_or(Operand::Special(Special::DynamicOffset), |offset| Operand::Immediate(offset.into()))
}

/// Reads a kernel whose head, up to its opening brace, is `head`.
pub(super) fn read(
    head: &str,
    cursor: &mut Cursor<'_>,
    line: u32,
    header: &Header,
) -> Result<Kernel, ParseError> {
    let bad = |problem: String| ParseError::at(line, problem);
    let signature = Signature::read(head).map_err(bad)?;
    let mut names = Names::new(header.names.clone());
    for (name, param) in &signature.params {
        names.declare_variable(name, Operand::Immediate(Space::param_address(param.offset)));
    }
    let mut body = Body {
        names,
        shared: header.shared.clone(),
        local: Layout::default(),
        code: vec![],
        labels: HashMap::new(),
        branches: vec![],
    };
    body.read(cursor)?;
    Ok(Kernel {
        name: signature.name,
        params: signature.params.into_iter().map(|(_, param)| param).collect(),
        static_shared: body.shared.bytes,
        dynamic_offset: body.shared.dynamic_offset(),
        local_bytes: body.local.bytes,
        max_threads: signature.max_threads,
        registers: body.names.registers,
        code: body.code,
    })
}

struct Signature {
    name: String,
    params: Vec<(String, Param)>,
    max_threads: Option<u32>,
}

impl Signature {
    /// Reads `.visible .entry name(params) .maxntid 128, 1, 1`.
    fn read(head: &str) -> Result<Self, String> {
        let bad = || format!("`{}` is no kernel's head", head.trim());
        let (_, after) = head.split_once(".entry").ok_or_else(bad)?;
        let (name, params, performance) = match after.split_once('(') {
            Some((name, rest)) => {
                let (params, performance) = rest.rsplit_once(')').ok_or_else(bad)?;
                (name.trim(), params, performance)
            }
            None => {
                let name = after.split_whitespace().next().ok_or_else(bad)?;
                (name, "", after)
            }
        };
        let mut layout = Layout::default();
        let mut places = Vec::new();
        for text in split(params) {
            let (name, offset) = layout.declare(text)?;
            let offset = offset.ok_or_else(bad)?;
            places.push((name, Param { offset, bytes: layout.bytes - offset }));
        }
        Ok(Self { name: name.to_owned(), params: places, max_threads: max_threads(performance)? })
    }
}

/// The product of `.maxntid`'s or `.reqntid`'s numbers.
fn max_threads(text: &str) -> Result<Option<u32>, String> {
    let Some((_, numbers)) = text.split_once(".maxntid").or_else(|| text.split_once(".reqntid")) else {
        return Ok(None);
    };
    let numbers = numbers.split('.').next().unwrap_or_default();
    let product = numbers.split(',').try_fold(1u32, |product, n| product.checked_mul(n.trim().parse().ok()?));
    product.map(Some).ok_or_else(|| format!("`{}` are no thread counts", numbers.trim()))
}

struct Body {
    names: Names,
    shared: Layout,
    local: Layout,
    code: Vec<crate::program::Instruction>,
    labels: HashMap<String, usize>,
    /// Branches whose label may come later: instruction, label and line.
    branches: Vec<(usize, String, u32)>,
}

impl Body {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), ParseError> {
        let mut depth = 0;
        loop {
            let (statement, line) = cursor.statement()?;
            match statement {
                Statement::Open if depth == MAX_DEPTH => {
                    return Err(ParseError::at(line, format!("more than {MAX_DEPTH} braces in each other")));
                }
                Statement::Open => {
                    depth += 1;
                    self.names.open();
                }
                Statement::Close => {
                    depth -= 1;
                    self.names.close();
                }
                Statement::Label(name) => drop(self.labels.insert(name.to_owned(), self.code.len())),
                Statement::Text(text) => {
                    self.statement(text, line).map_err(|problem| ParseError::at(line, problem))?;
                }
            }
            if depth == 0 {
                return self.resolve_branches();
            }
        }
    }

    fn statement(&mut self, text: &str, line: u32) -> Result<(), String> {
        let (first, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        match first {
            ".reg" => self.registers(rest),
            ".shared" => {
                let (name, offset) = self.shared.declare(rest)?;
                self.names.declare_variable(&name, place(offset));
                Ok(())
            }
            ".local" => {
                let (name, offset) = self.local.declare(rest)?;
                self.names.declare_variable(&name, place(offset));
                Ok(())
            }
            // Hints to the compiler.
            ".pragma" => Ok(()),
            directive if directive.starts_with('.') => {
                Err(format!("directive `{directive}` is not supported"))
            }
            _ => {
                let (instruction, label) = instruction::read(&self.names, text, line)?;
                if let Some(label) = label {
                    self.branches.push((self.code.len(), label, line));
                }
                self.code.push(instruction);
                Ok(())
            }
        }
    }

    /// `.reg .b32 %r<10>, %x`
    fn registers(&mut self, text: &str) -> Result<(), String> {
        let bad = || format!("`.reg {text}` is not understood");
        let (ty, items) = text.trim().split_once(char::is_whitespace).ok_or_else(bad)?;
        let ty = ty.strip_prefix('.').and_then(Type::named).ok_or_else(bad)?;
        items.split(',').try_for_each(|item| self.names.declare_register(item.trim(), ty))
    }

    fn resolve_branches(&mut self) -> Result<(), ParseError> {
        for (at, label, line) in &self.branches {
            let target = self.labels.get(label);
            let target = target.ok_or_else(|| ParseError::at(*line, format!("no label `{label}`")))?;
            self.code[*at].op = Op::Branch(*target);
        }
        Ok(())
    }
}
