//! Reads the kernel's type information (Documentation/bpf/btf.rst): where struct members are, and what a
//! tracepoint's arguments are.
//!
//! Programs written in Rust have no relocations for kernel types, so offsets are looked up here once at start.
//! The published readers of this format either do not expose members or carry a licence that does not fit.

use std::collections::BTreeMap;

use thiserror::Error;
use userns_common::settings::Offsets;

use super::plan::Function;

/// What can be wrong with type information, or missing from it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BtfError {
    /// Shorter than it says, or than the format needs.
    #[error("type information is truncated at byte {at}")]
    Truncated {
        /// Where the next read would have begun.
        at: usize,
    },
    /// Not type information of this byte order.
    #[error("not BTF: magic number is {magic:#06x}, expected 0xeb9f")]
    Magic {
        /// What was found.
        magic: u16,
    },
    /// A kind of type this reader does not know, so that what follows cannot be located.
    #[error("unknown kind {kind} at type {id}")]
    Kind {
        /// The kind.
        kind: u32,
        /// The type.
        id: u32,
    },
    /// The kernel has no such struct.
    #[error("this kernel has no `struct {name}`")]
    NoStruct {
        /// Its name.
        name: String,
    },
    /// The struct has no such member.
    #[error("this kernel's `struct {name}` has no member `{member}`")]
    NoMember {
        /// The struct.
        name: String,
        /// The member looked for.
        member: String,
    },
    /// The member is not where a program can read it.
    #[error("`{name}.{member}` is a bit field or lies too far inside")]
    NotAddressable {
        /// The struct.
        name: String,
        /// The member.
        member: String,
    },
}

const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FWD: u32 = 7;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_FLOAT: u32 = 16;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// Depth of nested anonymous members or type modifiers that is still taken for honest.
const MAX_DEPTH: u32 = 16;

/// One type: where its record is.
#[derive(Clone, Copy, Debug)]
struct Type {
    name: u32,
    kind: u32,
    /// Number of members or parameters.
    len: u32,
    kind_flag: bool,
    /// Size, or the type referred to.
    size_or_type: u32,
    /// Where its trailing data begins.
    data: usize,
}

/// Parsed type information. Type 0 is `void`.
#[derive(Debug)]
pub struct Btf<'a> {
    bytes: &'a [u8],
    strings: usize,
    types: Vec<Type>,
    /// Structs, typedefs and functions by (kind, name).
    names: BTreeMap<(u32, &'a [u8]), u32>,
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, BtfError> {
    let word = at.checked_add(4).and_then(|end| bytes.get(at..end));
    word.and_then(|word| word.try_into().ok()).map(u32::from_le_bytes).ok_or(BtfError::Truncated { at })
}

impl<'a> Btf<'a> {
    /// Reads `/sys/kernel/btf/vmlinux`, little-endian.
    ///
    /// # Errors
    ///
    /// [`BtfError`] if the bytes are not valid type information.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let magic = bytes.get(..2).and_then(|two| two.try_into().ok()).map(u16::from_le_bytes);
        match magic {
            Some(0xeb9f) => {}
            Some(magic) => return Err(BtfError::Magic { magic }),
            None => return Err(BtfError::Truncated { at: 0 }),
        }
        let header = u32_at(bytes, 4)? as usize;
        let types_at = header.saturating_add(u32_at(bytes, 8)? as usize);
        let types_end = types_at.saturating_add(u32_at(bytes, 12)? as usize);
        let strings = header.saturating_add(u32_at(bytes, 16)? as usize);
        if types_end > bytes.len() || strings > bytes.len() {
            return Err(BtfError::Truncated { at: bytes.len() });
        }
        let void = Type { name: 0, kind: 0, len: 0, kind_flag: false, size_or_type: 0, data: 0 };
        let mut btf = Self { bytes, strings, types: vec![void], names: BTreeMap::new() };
        let mut at = types_at;
        while at < types_end {
            at = btf.parse_type(at)?;
        }
        Ok(btf)
    }

    fn parse_type(&mut self, at: usize) -> Result<usize, BtfError> {
        let info = u32_at(self.bytes, at + 4)?;
        let found = Type {
            name: u32_at(self.bytes, at)?,
            kind: (info >> 24) & 0x1f,
            len: info & 0xffff,
            kind_flag: info >> 31 != 0,
            size_or_type: u32_at(self.bytes, at + 8)?,
            data: at + 12,
        };
        let id = u32::try_from(self.types.len()).unwrap_or(u32::MAX);
        let len = found.len as usize;
        let trailing = match found.kind {
            KIND_PTR | KIND_FWD | KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_FUNC
            | KIND_FLOAT | KIND_TYPE_TAG => 0,
            KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
            KIND_ARRAY => 12,
            KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => len * 12,
            KIND_ENUM | KIND_FUNC_PROTO => len * 8,
            kind => return Err(BtfError::Kind { kind, id }),
        };
        if matches!(found.kind, KIND_STRUCT | KIND_TYPEDEF | KIND_FUNC) {
            let name = self.name(found.name);
            if !name.is_empty() {
                self.names.entry((found.kind, name)).or_insert(id);
            }
        }
        self.types.push(found);
        Ok(found.data + trailing)
    }

    fn name(&self, offset: u32) -> &'a [u8] {
        let tail = self.bytes.get(self.strings.saturating_add(offset as usize)..).unwrap_or_default();
        tail.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    fn get(&self, id: u32) -> Type {
        self.types.get(id as usize).copied().unwrap_or_else(|| self.types[0])
    }

    /// Skips typedefs and qualifiers.
    fn strip(&self, mut id: u32) -> u32 {
        for _ in 0..MAX_DEPTH {
            let found = self.get(id);
            if !matches!(
                found.kind,
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG
            ) {
                break;
            }
            id = found.size_or_type;
        }
        id
    }

    /// Byte offset of a member of a struct. `path` names a member, with dots into embedded structs and `|`
    /// between alternatives; anonymous structs and unions are looked through.
    ///
    /// # Errors
    ///
    /// [`BtfError`] if the struct or all alternatives are missing, or the member is a bit field.
    pub fn offset(&self, name: &str, path: &str) -> Result<u32, BtfError> {
        let root = *self
            .names
            .get(&(KIND_STRUCT, name.as_bytes()))
            .ok_or_else(|| BtfError::NoStruct { name: name.to_owned() })?;
        let bits = path
            .split('|')
            .find_map(|alternative| self.path_bits(root, alternative))
            .ok_or_else(|| BtfError::NoMember { name: name.to_owned(), member: path.to_owned() })?;
        // 16 bits hold every offset a program can use in one instruction
        if bits % 8 != 0 || bits / 8 > 0x7fff {
            return Err(BtfError::NotAddressable { name: name.to_owned(), member: path.to_owned() });
        }
        Ok(bits / 8)
    }

    fn path_bits(&self, root: u32, path: &str) -> Option<u32> {
        let mut total = 0u32;
        let mut id = root;
        for component in path.split('.') {
            let (bits, member) = self.member_bits(self.strip(id), component.as_bytes(), 0)?;
            total = total.checked_add(bits)?;
            id = member;
        }
        Some(total)
    }

    fn member_bits(&self, id: u32, name: &[u8], depth: u32) -> Option<(u32, u32)> {
        let outer = self.get(id);
        if !matches!(outer.kind, KIND_STRUCT | KIND_UNION) || depth > MAX_DEPTH {
            return None;
        }
        (0..outer.len as usize).find_map(|index| {
            let at = outer.data + index * 12;
            let member = self.name(u32_at(self.bytes, at).ok()?);
            let ty = u32_at(self.bytes, at + 4).ok()?;
            let raw = u32_at(self.bytes, at + 8).ok()?;
            let bits = if outer.kind_flag { raw & 0x00ff_ffff } else { raw };
            if member == name {
                return Some((bits, ty));
            }
            if !member.is_empty() {
                return None;
            }
            let (inner, ty) = self.member_bits(self.strip(ty), name, depth + 1)?;
            Some((bits.checked_add(inner)?, ty))
        })
    }

    /// All offsets that the programs need.
    ///
    /// # Errors
    ///
    /// The first member that this kernel does not have.
    pub fn offsets(&self) -> Result<Offsets, BtfError> {
        Offsets::resolve(|name, member| self.offset(name, member))
    }

    /// Types of a tracepoint's arguments (`TP_PROTO`), for example `struct cred *`; `None` if the kernel has no
    /// such tracepoint.
    #[must_use]
    pub fn tracepoint(&self, name: &str) -> Option<Function> {
        let typedef = format!("btf_trace_{name}");
        let id = *self.names.get(&(KIND_TYPEDEF, typedef.as_bytes()))?;
        let pointer = self.get(self.strip(id));
        let proto = self.get(self.strip(pointer.size_or_type));
        if pointer.kind != KIND_PTR || proto.kind != KIND_FUNC_PROTO {
            return None;
        }
        // the first parameter is the tracepoint's private data
        self.prototype(proto, 1)
    }

    fn prototype(&self, proto: Type, skip: usize) -> Option<Function> {
        let parameters =
            (skip..proto.len as usize).map(|index| u32_at(self.bytes, proto.data + index * 8 + 4));
        let arguments = parameters.map(|ty| ty.ok().map(|ty| self.show(ty, 0))).collect::<Option<_>>()?;
        Some(Function { arguments, returns: self.show(proto.size_or_type, 0) })
    }

    /// Types of a function's arguments and result; `None` if the kernel has no such function that can be hooked.
    #[must_use]
    pub fn function(&self, name: &str) -> Option<Function> {
        let function = self.get(*self.names.get(&(KIND_FUNC, name.as_bytes()))?);
        let proto = self.get(function.size_or_type);
        if proto.kind == KIND_FUNC_PROTO { self.prototype(proto, 0) } else { None }
    }

    /// Whether the kernel has a function of this name in its type information.
    #[must_use]
    pub fn has_function(&self, name: &str) -> bool {
        self.names.contains_key(&(KIND_FUNC, name.as_bytes()))
    }

    /// A type in C, without qualifiers.
    fn show(&self, id: u32, depth: u32) -> String {
        let found = self.get(id);
        let name = || String::from_utf8_lossy(self.name(found.name)).into_owned();
        if depth > MAX_DEPTH {
            return "...".to_owned();
        }
        match found.kind {
            0 => "void".to_owned(),
            KIND_PTR => format!("{} *", self.show(found.size_or_type, depth + 1)),
            KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => {
                self.show(found.size_or_type, depth + 1)
            }
            KIND_STRUCT => format!("struct {}", name()),
            KIND_UNION => format!("union {}", name()),
            KIND_ENUM | KIND_ENUM64 => format!("enum {}", name()),
            KIND_FWD => format!("{} {}", if found.kind_flag { "union" } else { "struct" }, name()),
            _ => name(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds `struct outer { int a; union { struct { int b; int c; }; }; struct inner in; }` and a tracepoint.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0outer\0a\0b\0c\0in\0inner\0inum\0btf_trace_demo\0";
        let at = |name: &str| {
            let needle = [b"\0", name.as_bytes(), b"\0"].concat();
            strings.windows(needle.len()).position(|window| window == needle).unwrap() as u32 + 1
        };
        let mut types: Vec<u32> = Vec::new();
        let mut ty = |name: u32, kind: u32, len: u32, size: u32, rest: &[u32]| {
            types.extend([name, kind << 24 | len, size]);
            types.extend(rest);
        };
        ty(at("int"), KIND_INT, 0, 4, &[32]); // 1
        ty(0, KIND_STRUCT, 2, 8, &[at("b"), 1, 0, at("c"), 1, 32]); // 2
        ty(0, KIND_UNION, 1, 8, &[0, 2, 0]); // 3
        ty(at("inner"), KIND_STRUCT, 1, 8, &[at("inum"), 1, 32]); // 4
        ty(at("outer"), KIND_STRUCT, 3, 20, &[at("a"), 1, 0, 0, 3, 32, at("in"), 4, 96]); // 5
        ty(0, KIND_PTR, 0, 4, &[]); // 6: struct inner *
        ty(0, KIND_FUNC_PROTO, 3, 0, &[0, 0, 0, 6, 0, 1]); // 7: (void, inner *, int)
        ty(0, KIND_PTR, 0, 7, &[]); // 8
        ty(at("btf_trace_demo"), KIND_TYPEDEF, 0, 8, &[]); // 9
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        for word in [24, 0, types.len() as u32 * 4, types.len() as u32 * 4, strings.len() as u32] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(types.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn finds_members_through_anonymous_and_embedded_structs() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.offset("outer", "a"), Ok(0));
        assert_eq!(btf.offset("outer", "c"), Ok(8));
        assert_eq!(btf.offset("outer", "in.inum"), Ok(16));
        assert_eq!(btf.offset("outer", "gone|b"), Ok(4));
        assert!(matches!(btf.offset("outer", "x"), Err(BtfError::NoMember { .. })));
        assert!(matches!(btf.offset("absent", "x"), Err(BtfError::NoStruct { .. })));
    }

    #[test]
    fn shows_tracepoint_arguments() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).unwrap();
        let demo = btf.tracepoint("demo").unwrap();
        assert_eq!(demo.arguments, ["struct inner *", "int"]);
        assert_eq!(demo.returns, "void");
        assert_eq!(btf.tracepoint("other"), None);
    }

    #[test]
    fn truncated_or_foreign_bytes_are_errors_not_panics() {
        let bytes = sample();
        for end in 0..bytes.len() {
            let _ = Btf::parse(&bytes[..end]).map(|btf| btf.offset("outer", "in.inum"));
        }
        assert_eq!(Btf::parse(b"\x7fELF....").unwrap_err(), BtfError::Magic { magic: 0x457f });
    }
}
