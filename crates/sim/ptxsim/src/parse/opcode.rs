//! An opcode and its modifiers, each of which must be asked for.

use crate::types::{Space, Type};

/// `add.rn.f32` as `add` and what is left of `rn` and `f32`.
pub(super) struct Opcode<'a> {
    pub base: &'a str,
    whole: &'a str,
    modifiers: Vec<&'a str>,
}

impl<'a> Opcode<'a> {
    pub fn new(whole: &'a str) -> Self {
        let mut words = whole.split('.');
        Self { base: words.next().unwrap_or_default(), whole, modifiers: words.collect() }
    }

    /// Whether the modifier is there; it counts as understood from now on.
    pub fn take(&mut self, modifier: &str) -> bool {
        match self.modifiers.iter().position(|word| *word == modifier) {
            Some(at) => {
                self.modifiers.remove(at);
                true
            }
            None => false,
        }
    }

    /// Takes those of `modifiers` that change nothing here.
    pub fn ignore(&mut self, modifiers: &[&str]) {
        self.modifiers.retain(|word| !modifiers.contains(word));
    }

    /// The first of `choices` that is there.
    pub fn take_one<T: Copy>(&mut self, choices: &[(&str, T)]) -> Option<T> {
        choices.iter().find(|(word, _)| self.take(word)).map(|(_, meaning)| *meaning)
    }

    /// The next modifier, whatever it is.
    pub fn take_next(&mut self) -> Result<&'a str, String> {
        if self.modifiers.is_empty() { Err(self.unknown()) } else { Ok(self.modifiers.remove(0)) }
    }

    /// The first type among the modifiers.
    pub fn take_type(&mut self) -> Result<Type, String> {
        let found = self.modifiers.iter().enumerate().find_map(|(at, word)| Some((at, Type::named(word)?)));
        let (at, ty) = found.ok_or_else(|| self.unknown())?;
        self.modifiers.remove(at);
        Ok(ty)
    }

    /// The state space; generic when none is named.
    pub fn take_space(&mut self) -> Space {
        let spaces = [
            ("global", Space::Global),
            ("shared", Space::Shared),
            ("shared::cta", Space::Shared),
            ("local", Space::Local),
            ("param", Space::Param),
        ];
        self.take_one(&spaces).unwrap_or(Space::Generic)
    }

    /// How many elements a vector has.
    pub fn take_vector(&mut self) -> usize {
        self.take_one(&[("v2", 2), ("v4", 4)]).unwrap_or(1)
    }

    pub fn unknown(&self) -> String {
        format!("opcode `{}` is not supported", self.whole)
    }

    /// Fails when a modifier was not understood.
    pub fn finish(self) -> Result<(), String> {
        if self.modifiers.is_empty() {
            Ok(())
        } else {
            Err(format!(
                "opcode `{}` is not supported: unknown modifier `.{}`",
                self.whole,
                self.modifiers.join(".")
            ))
        }
    }
}
