//! PTX's fundamental types and state spaces.

/// A fundamental type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    Pred,
    B8,
    B16,
    B32,
    B64,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    Bf16,
    Bf16x2,
    F32,
    F64,
}

impl Type {
    /// The type that PTX writes as `.name`.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "pred" => Self::Pred,
            "b8" => Self::B8,
            "b16" => Self::B16,
            "b32" => Self::B32,
            "b64" => Self::B64,
            "u8" => Self::U8,
            "u16" => Self::U16,
            "u32" => Self::U32,
            "u64" => Self::U64,
            "s8" => Self::S8,
            "s16" => Self::S16,
            "s32" => Self::S32,
            "s64" => Self::S64,
            "bf16" => Self::Bf16,
            "bf16x2" => Self::Bf16x2,
            "f32" => Self::F32,
            "f64" => Self::F64,
            _ => return None,
        })
    }

    /// Bytes it takes in memory.
    pub fn bytes(self) -> u32 {
        match self {
            Self::Pred | Self::B8 | Self::U8 | Self::S8 => 1,
            Self::B16 | Self::U16 | Self::S16 | Self::Bf16 => 2,
            Self::B32 | Self::U32 | Self::S32 | Self::F32 | Self::Bf16x2 => 4,
            Self::B64 | Self::U64 | Self::S64 | Self::F64 => 8,
        }
    }

    /// Whether a wider register gets its sign bit repeated.
    pub fn is_signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }

    pub(crate) fn is_integer(self) -> bool {
        !matches!(self, Self::Pred | Self::Bf16 | Self::Bf16x2 | Self::F32 | Self::F64)
    }

    /// The bits it has in a register.
    pub(crate) fn mask(self) -> u64 {
        if self == Self::Pred { 1 } else { u64::MAX >> (64 - 8 * self.bytes()) }
    }

    /// `bits` of this type as a 64-bit number: the sign repeated or zeros above.
    pub(crate) fn extend(self, bits: u64) -> u64 {
        let unused = 64 - 8 * self.bytes();
        if self.is_signed() {
            ((bits << unused).cast_signed() >> unused).cast_unsigned()
        } else {
            bits & self.mask()
        }
    }
}

/// Where an address points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Param,
}

/// Generic addresses of the three small spaces; everything else is global.
const PARAM_WINDOW: u64 = 0x4000_0000_0000_0000;
const SHARED_WINDOW: u64 = 0x5000_0000_0000_0000;
const LOCAL_WINDOW: u64 = 0x6000_0000_0000_0000;
const WINDOW: u64 = 0xf000_0000_0000_0000;

impl Space {
    /// What is added to an address of this space to make it generic. Parameters are generic already.
    pub(crate) fn window(self) -> u64 {
        match self {
            Self::Shared => SHARED_WINDOW,
            Self::Local => LOCAL_WINDOW,
            Self::Generic | Self::Global | Self::Param => 0,
        }
    }

    /// The address of a parameter `offset` bytes into the parameters.
    pub(crate) fn param_address(offset: u32) -> u64 {
        PARAM_WINDOW + u64::from(offset)
    }

    /// The space and the offset in it that `address` of this space means.
    pub(crate) fn resolve(self, address: u64) -> (Self, u64) {
        match (self, address & WINDOW) {
            (Self::Generic, PARAM_WINDOW) => (Self::Param, address - PARAM_WINDOW),
            (Self::Generic, SHARED_WINDOW) => (Self::Shared, address - SHARED_WINDOW),
            (Self::Generic, LOCAL_WINDOW) => (Self::Local, address - LOCAL_WINDOW),
            (Self::Generic, _) => (Self::Global, address),
            // Shared and local addresses are 32 bits wide and wrap.
            (Self::Shared | Self::Local, _) => (self, address & 0xffff_ffff),
            (Self::Param, _) => (self, address.wrapping_sub(PARAM_WINDOW)),
            (Self::Global, _) => (self, address),
        }
    }
}
