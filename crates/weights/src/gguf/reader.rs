//! A cursor over untrusted bytes, and the parser of a GGUF header on top of it.

use std::{collections::BTreeMap, ops::Range};

use super::{
    error::Damage,
    metadata::{Metadata, Value},
    quant::ElementType,
};

/// Nested arrays are legal and unused; the bound keeps a malicious file from exhausting the stack.
const MAX_NESTING: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_DIMENSIONS: u32 = 4;
const VERSION: u32 = 3;

/// The parsed header. Every byte range is inside the file and as long as its type and shape say.
#[derive(Debug, Default)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) metadata: Metadata,
    pub(super) tensors: BTreeMap<String, TensorInfo>,
}

/// One tensor of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TensorInfo {
    pub(super) element: ElementType,
    /// Dimensions slowest first: the reverse of the file's order.
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Range<usize>,
}

impl Header {
    /// Parses `data`. A version other than 3 yields a header with nothing but the version.
    pub(super) fn parse(data: &[u8]) -> Result<Self, Damage> {
        let mut cursor = Cursor { data, at: 0 };
        if cursor.take(4, "the magic")? != b"GGUF" {
            return Err(Damage::Magic);
        }
        let version = cursor.u32("the version")?;
        if version != VERSION {
            return Ok(Self { version, ..Self::default() });
        }
        let tensor_count = cursor.u64("the tensor count")?;
        let metadata_count = cursor.u64("the metadata count")?;
        let metadata = cursor.metadata(metadata_count)?;
        let alignment = metadata.u64("general.alignment").unwrap_or(DEFAULT_ALIGNMENT);
        if !alignment.is_power_of_two() {
            return Err(Damage::Alignment(alignment));
        }
        let claims = cursor.claims(tensor_count)?;
        let start = (cursor.at as u64).checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
        let mut tensors = BTreeMap::new();
        for claim in claims {
            let (name, info) = claim.check(start, data.len())?;
            if tensors.insert(name.clone(), info).is_some() {
                return Err(Damage::Twice(name));
            }
        }
        Ok(Self { version, metadata, tensors })
    }
}

/// What the file says of a tensor, before anything of it is believed.
struct Claim {
    name: String,
    dimensions: Vec<u64>,
    type_code: u32,
    offset: u64,
}

impl Claim {
    fn check(self, data_start: u64, file_len: usize) -> Result<(String, TensorInfo), Damage> {
        let Self { name, dimensions, type_code, offset } = self;
        let Some(element) = ElementType::from_code(type_code) else {
            return Err(Damage::UnknownType { item: name, kind: "tensor", code: type_code });
        };
        let impossible = |tensor, dimensions, reason| Damage::Dimensions { tensor, dimensions, reason };
        let (block, block_bytes) = element.block();
        let elements = dimensions.iter().try_fold(1u64, |all, dim| all.checked_mul(*dim));
        let bytes = elements.and_then(|elements| (elements / block).checked_mul(block_bytes));
        let (Some(_), Some(bytes)) = (elements, bytes) else {
            return Err(impossible(name, dimensions, "they overflow"));
        };
        if dimensions.first().is_none_or(|row| !row.is_multiple_of(block)) {
            return Err(impossible(name, dimensions, "a row is not a whole number of blocks"));
        }
        let from = data_start.saturating_add(offset);
        let to = from.saturating_add(bytes);
        if to > file_len as u64 {
            return Err(Damage::OutOfBounds { tensor: name, needed: to, actual: file_len });
        }
        // A tensor without elements could claim anything for its other dimensions.
        let Ok(shape) = dimensions.iter().rev().map(|dim| usize::try_from(*dim)).collect() else {
            return Err(impossible(name, dimensions, "they overflow"));
        };
        Ok((name, TensorInfo { element, shape, bytes: from as usize..to as usize }))
    }
}

struct Cursor<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: u64, item: &str) -> Result<&'a [u8], Damage> {
        let left = &self.data[self.at..];
        match usize::try_from(count).ok().and_then(|count| left.get(..count)) {
            Some(bytes) => {
                self.at += bytes.len();
                Ok(bytes)
            }
            None => {
                Err(Damage::Truncated { item: item.to_owned(), at: self.at, needed: count, left: left.len() })
            }
        }
    }

    fn array<const N: usize>(&mut self, item: &str) -> Result<[u8; N], Damage> {
        let bytes = self.take(N as u64, item)?;
        let mut array = [0; N];
        array.copy_from_slice(bytes);
        Ok(array)
    }

    fn u32(&mut self, item: &str) -> Result<u32, Damage> {
        self.array(item).map(u32::from_le_bytes)
    }

    fn u64(&mut self, item: &str) -> Result<u64, Damage> {
        self.array(item).map(u64::from_le_bytes)
    }

    fn string(&mut self, item: &str) -> Result<String, Damage> {
        let length = self.u64(item)?;
        let at = self.at;
        let bytes = self.take(length, item)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(Damage::NotUtf8 { item: item.to_owned(), at }),
        }
    }

    fn metadata(&mut self, count: u64) -> Result<Metadata, Damage> {
        let mut metadata = Metadata::default();
        for _ in 0..count {
            let key = self.string("a metadata key")?;
            let code = self.u32(&key)?;
            let value = self.value(&key, code, 0)?;
            if !metadata.insert(key.clone(), value) {
                return Err(Damage::Twice(key));
            }
        }
        Ok(metadata)
    }

    fn value(&mut self, key: &str, code: u32, depth: u32) -> Result<Value, Damage> {
        Ok(match code {
            0 => Value::Unsigned(u8::from_le_bytes(self.array(key)?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.array(key)?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array(key)?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array(key)?).into()),
            4 => Value::Unsigned(self.u32(key)?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array(key)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array(key)?).into()),
            7 => Value::Bool(self.array::<1>(key)? != [0]),
            8 => Value::String(self.string(key)?),
            9 if depth < MAX_NESTING => {
                let (code, count) = (self.u32(key)?, self.u64(key)?);
                // Grows as elements are read: a claimed count is no reason to allocate.
                let mut values = Vec::new();
                for _ in 0..count {
                    values.push(self.value(key, code, depth + 1)?);
                }
                Value::Array(values)
            }
            10 => Value::Unsigned(self.u64(key)?),
            11 => Value::Signed(i64::from_le_bytes(self.array(key)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(key)?)),
            code => return Err(Damage::UnknownType { item: key.to_owned(), kind: "value", code }),
        })
    }

    fn claims(&mut self, count: u64) -> Result<Vec<Claim>, Damage> {
        let mut claims = Vec::new();
        for _ in 0..count {
            let name = self.string("a tensor name")?;
            let dimension_count = self.u32(&name)?;
            if dimension_count > MAX_DIMENSIONS {
                let reason = "the file claims more than four of them";
                return Err(Damage::Dimensions { tensor: name, dimensions: Vec::new(), reason });
            }
            let dimensions = (0..dimension_count).map(|_| self.u64(&name)).collect::<Result<_, _>>()?;
            let (type_code, offset) = (self.u32(&name)?, self.u64(&name)?);
            claims.push(Claim { name, dimensions, type_code, offset });
        }
        Ok(claims)
    }
}
